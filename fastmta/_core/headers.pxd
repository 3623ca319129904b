from fastmta._core.scan cimport octets


cdef struct field_t:
    # A field as offsets; a broken line has an empty name and is all value.
    Py_ssize_t name_start
    Py_ssize_t name_end
    Py_ssize_t value_start
    Py_ssize_t value_end
    Py_ssize_t next


cdef struct parameter_t:
    Py_ssize_t name_start
    Py_ssize_t name_end
    Py_ssize_t value_start
    Py_ssize_t value_end
    bint quoted
    Py_ssize_t next


cdef bint read_field(octets data, Py_ssize_t at, Py_ssize_t end, field_t* field) noexcept nogil
cdef Py_ssize_t skip_cfws(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil
cdef Py_ssize_t comment_close(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil
cdef Py_ssize_t quoted_end(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil
cdef bint read_parameter(
    octets data, Py_ssize_t at, Py_ssize_t end, parameter_t* parameter) noexcept nogil


cdef class Section:
    cdef readonly bytes data
    cdef readonly Py_ssize_t start, end
