from fastmta._core.lines cimport LineBuffer


cdef class SmtpMachine:
    cdef public int state
    cdef public bint authenticated, extended, may_relay, tls
    cdef public object arrival, door, on_error, watch
    cdef public str helo
    cdef LineBuffer _lines
    cdef list _output
    cdef bint _chunk_is_last
    cdef int _errors, _junk, _overshoot, _state_before
    cdef Py_ssize_t _chunk_left, _held
    cdef object _chunk_refusal, _event, _exchange, _last_word, _policy, _question
    cdef public object _load
    cdef readonly object _scanner

    cpdef bytes take_output(self)
    cpdef take_event(self)
    cpdef bint _wait(self) except -1
    cpdef _end(self, int state)
    cpdef _hold(self)
    cpdef _release(self)
