from fastmta._core.lines cimport LineBuffer

cpdef tuple plain_mail(LineBuffer lines, Py_ssize_t max_size)
cpdef str plain_rcpt(LineBuffer lines)
cpdef bint plain_data(LineBuffer lines)
