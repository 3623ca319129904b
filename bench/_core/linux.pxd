"""What both ends ask of the kernel."""

from libc.stdint cimport uint32_t
from libc.time cimport time_t


cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLLET
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLL_CLOEXEC

    ctypedef union epoll_data_t:
        void *ptr

    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data

    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)


cdef extern from "<sys/socket.h>" nogil:
    enum:
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        MSG_NOSIGNAL
    int accept4(int, void *, void *, int)
    ssize_t recv(int, void *, size_t, int)
    ssize_t send(int, const void *, size_t, int)
    int setsockopt(int, int, int, const void *, uint32_t)


cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_TCP


cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_NODELAY


cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int, const iovec *, int)


cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_MONOTONIC
    cdef struct timespec:
        time_t tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *)


cdef extern from "<sys/timerfd.h>" nogil:
    enum:
        TFD_NONBLOCK
        TFD_CLOEXEC
        TFD_TIMER_ABSTIME
    cdef struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int, int)
    int timerfd_settime(int, int, const itimerspec *, itimerspec *)


cdef extern from "<unistd.h>" nogil:
    int close(int)


cdef inline double now() noexcept nogil:
    """Seconds, as time.monotonic() tells them."""
    cdef timespec clock
    clock_gettime(CLOCK_MONOTONIC, &clock)
    return clock.tv_sec + clock.tv_nsec * 1e-9


cdef inline int watch(
    int epoll, int how, int descriptor, uint32_t events, void *whose
) noexcept nogil:
    """0, or -1 with errno."""
    cdef epoll_event event
    event.events = events
    event.data.ptr = whose
    return epoll_ctl(epoll, how, descriptor, &event)


cdef inline void send_at_once(int descriptor) noexcept nogil:
    """No waiting for more to fill a segment (RFC 896), as other clients and servers have it."""
    cdef int on = 1
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
