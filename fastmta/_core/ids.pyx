# cython: boundscheck=False, wraparound=False
"""Message ids as people see them."""

from cpython.unicode cimport PyUnicode_DecodeASCII

from libc.stdint cimport uint64_t

# Crockford's base 32: no letter that a person reads as a digit.
cdef const char* DIGITS = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"

cdef enum:
    LENGTH = 13  # 64 bits at 5 bits a digit


def format_id(uint64_t number):
    """A message id (64 bits, growing with time) as the 13 characters that people see."""
    cdef char[LENGTH] text
    cdef int i
    for i in range(LENGTH - 1, -1, -1):
        text[i] = DIGITS[number & 31]
        number >>= 5
    return PyUnicode_DecodeASCII(text, LENGTH, NULL)
