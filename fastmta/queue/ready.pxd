cdef class Job:
    cdef readonly object envelope, parts


cdef class ReadyQueue:
    cdef public Py_ssize_t limit
    cdef object _jobs, _refused, _weight_of
    cdef readonly object _turns

    cpdef bint put(self, Job job) except -1
    cpdef Job take(self)
