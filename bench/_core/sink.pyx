# cython: boundscheck=False, wraparound=False, cdivision=True
"""The sink's loop: all its connections in one thread, without the GIL."""

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, errno
from libc.stdlib cimport free, malloc

from bench._core.linux cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, MSG_NOSIGNAL, SOCK_CLOEXEC,
    SOCK_NONBLOCK, accept4, close, epoll_create1, epoll_event, epoll_wait, recv, send,
    send_at_once, watch,
)
from bench._core.octets cimport drop
from bench._core.session cimport Ledger, Session, close_session, counts, feed, open_session
from bench._core.tally cimport forget

from os import strerror

cdef enum:
    EVENTS = 256  # in one turn
    READ = 256 << 10  # octets that are read at most in one


cdef class Server:
    """Serves a listening socket that does not block, until `wakeup` can be read.

    Both stay the caller's.
    """

    cdef Ledger ledger
    cdef int epoll, listener, wakeup
    cdef bint woken
    cdef char *data

    def __cinit__(self, int listener, int wakeup):
        self.ledger.max_size = 1 << 30
        self.listener, self.wakeup = listener, wakeup
        self.data = <char *> malloc(READ)
        if self.data == NULL:
            raise MemoryError
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if (self.epoll < 0
                or watch(self.epoll, EPOLL_CTL_ADD, listener, EPOLLIN, &self.listener) < 0
                or watch(self.epoll, EPOLL_CTL_ADD, wakeup, EPOLLIN, &self.wakeup) < 0):
            raise OSError(errno, strerror(errno))

    def __dealloc__(self):
        close(self.epoll)
        free(self.data)
        forget(&self.ledger.tally)

    def run(self):
        """OSError where no connection can be accepted any more."""
        cdef int failed = 0
        self.woken = False
        with nogil:
            while not self.woken and not failed:
                failed = self._turn()
        if failed:
            raise OSError(failed, strerror(failed))

    def counts(self):
        return counts(&self.ledger)

    cdef int _turn(self) noexcept nogil:
        """0, or why no connection can be accepted."""
        cdef epoll_event[EVENTS] events
        cdef int count = epoll_wait(self.epoll, events, EVENTS, -1)
        cdef int failed = 0
        cdef int i
        cdef void *whose
        for i in range(count):
            whose = events[i].data.ptr
            if whose == &self.wakeup:
                self.woken = True
            elif whose == &self.listener:
                failed = self._accept()
            elif events[i].events & EPOLLOUT:
                self._write(<Session *> whose, True)
            else:
                self._read(<Session *> whose)
        return failed

    cdef int _accept(self) noexcept nogil:
        cdef int descriptor
        cdef Session *session
        while True:
            descriptor = accept4(self.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if descriptor >= 0:
                send_at_once(descriptor)
                session = open_session(&self.ledger, descriptor)
                if watch(self.epoll, EPOLL_CTL_ADD, descriptor, EPOLLIN, session) < 0:
                    return errno
                self._write(session, False)
            elif errno != ECONNABORTED and errno != EINTR:
                return 0 if errno == EAGAIN else errno

    cdef void _read(self, Session *session) noexcept nogil:
        cdef ssize_t length = recv(session.descriptor, self.data, READ, 0)
        if length > 0:
            feed(session, &self.ledger, self.data, length)
            if session.out.length:
                self._write(session, False)
        elif length == 0 or errno != EAGAIN and errno != EINTR:
            self._close(session)

    cdef void _write(self, Session *session, bint waited) noexcept nogil:
        """All replies; while some wait for room, nothing more is read."""
        cdef ssize_t sent = send(
            session.descriptor, session.out.data, session.out.length, MSG_NOSIGNAL
        )
        if sent < 0 and errno != EAGAIN and errno != EINTR:
            self._close(session)
            return
        drop(&session.out, max(sent, 0))
        if session.out.length:
            watch(self.epoll, EPOLL_CTL_MOD, session.descriptor, EPOLLOUT, session)
        elif session.closing:
            self._close(session)
        elif waited:
            watch(self.epoll, EPOLL_CTL_MOD, session.descriptor, EPOLLIN, session)

    cdef void _close(self, Session *session) noexcept nogil:
        close(session.descriptor)
        close_session(session)
