cpdef str address_literal(str address)
