from fastmta.delivery.connection cimport Connection
from fastmta.delivery.pace cimport Pace
from fastmta.queue.ready cimport Job, ReadyQueue


cdef class Path:
    cdef public object demand, shape, site, source
    cdef public str domain
    cdef readonly object loop, _openers
    cdef readonly str name
    cdef ReadyQueue _ready
    cdef bint _no_connection, _no_message
    cdef Py_ssize_t _enough
    cdef dict _open, _told
    cdef Pace _pace
    cdef double _hold_until, _last_time
    cdef int _probing, _recalls
    cdef object _again, _dispatcher, _last, _permits, _portions
    cdef list _idle

    cpdef bint submit(self, Job job) except -1
    cpdef free(self, Connection connection)
    cpdef done(self, Connection connection, Job job, list replies)
    cpdef bint _has_job(self, Connection connection) except -1
    cpdef bint _give_job(self, Connection connection) except -1
    cpdef Job _next(self, Connection connection)
    cpdef _park(self, Connection connection)
    cpdef bint _start(self, Connection connection, Job job) except -1
    cpdef _finish(self, Job job, list ends)
    cpdef open_more(self)
