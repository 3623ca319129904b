from fastmta.queue.ready cimport Job


cdef class Dispatcher:
    cdef public bint draining
    cdef public object permits, room, shape, sources
    cdef readonly object bounds, conversions, flow, hosts, queue, tls
    cdef readonly dict idle, starved
    cdef readonly set connections
    cdef dict _paths
    cdef bint _turned_away
    cdef int _active
    cdef readonly int _slots
    cdef object _emptied, _read, _settle, _timer

    cpdef str submit(self, site, Job job)
    cpdef settle(self, Job job, str site, str source, list dispositions)
    cpdef _path(self, source, site, envelope)
