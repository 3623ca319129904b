"""A bytes object that is written before its final size is known, without a copy.

`new_bytes` gives a reference that only `cut_bytes` may take over; nothing may fail in between.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint8_t


cdef extern from "Python.h":
    PyObject *PyBytes_FromStringAndSize(const char *, Py_ssize_t) except NULL
    char *PyBytes_AS_STRING(PyObject *) noexcept
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    Py_ssize_t Py_SIZE(PyObject *) noexcept
    void Py_SET_SIZE(PyObject *, Py_ssize_t) noexcept


cdef inline PyObject *new_bytes(Py_ssize_t size) except NULL:
    return PyBytes_FromStringAndSize(NULL, size)


cdef inline uint8_t *start_of(PyObject *raw) noexcept:
    return <uint8_t *> PyBytes_AS_STRING(raw)


cdef inline bytes cut_bytes(PyObject *raw, Py_ssize_t size):
    """The first `size` octets, as an object of their own.

    A little that is left over stays with the object. Given back, it would make the block smaller
    than the next one of its kind, and glibc then asks the system for each anew (mallopt(3),
    M_MMAP_THRESHOLD): its page faults took four fifths of the time.
    """
    cdef Py_ssize_t left = Py_SIZE(raw) - size
    if left > Py_SIZE(raw) // 8:
        _PyBytes_Resize(&raw, size)
    elif left:
        start_of(raw)[size] = 0
        Py_SET_SIZE(raw, size)
    out = <bytes> raw
    Py_DECREF(out)
    return out
