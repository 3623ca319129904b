cpdef str original_recipient(str address)
