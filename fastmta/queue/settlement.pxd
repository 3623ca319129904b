cdef class Settlement:
    cdef object _finish, _journal, _orders, _policy_for, _record
    cdef object _reporter, _reports, _spool, _wishes

    cpdef settle(self, job, str site, str source, list ends)
    cpdef _end(self, job, str site, str source, result, waiting, ordered=*)
