# cython: boundscheck=False, wraparound=False, cdivision=True
"""The load's clients: all connections in one thread, without the GIL.

Each sends one message after another: envelope and DATA in one write, where the server offers
PIPELINING, then the content. What `bench.load.Client` does, but for TLS.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno
from libc.math cimport modf
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from bench._core.linux cimport (
    CLOCK_MONOTONIC, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLIN,
    EPOLLOUT, TFD_CLOEXEC, TFD_NONBLOCK, TFD_TIMER_ABSTIME, close, epoll_create1, epoll_event,
    epoll_wait, iovec, itimerspec, now, recv, send_at_once, timerfd_create, timerfd_settime, watch,
    writev,
)
from bench._core.octets cimport (
    Numbers, Octets, Seconds, append, append_number, append_text, drop, find, note, time,
)

from os import strerror

cdef enum:
    EVENTS = 256  # in one turn
    READ = 64 << 10  # octets that are read at most in one
    TURNS = 1000  # between two looks whether Ctrl-C was pressed
    PAUSE = 200  # milliseconds between them at the most
    LINE = 16  # octets of a reply that are kept: "250-PIPELINING" has 14

# What is awaited.
cdef enum Step:
    GREETING
    EHLO
    READY  # nothing: it has not begun, or waits until its next message is due
    ENVELOPE  # the replies to MAIL, RCPT and DATA in one
    COMMAND  # the reply to one of them
    END_OF_DATA
    RSET
    QUIT
    GONE


cdef struct Client:
    int descriptor
    Step step
    bint pipelining
    int awaited  # replies
    int code  # of the last reply
    char[LINE] line  # what begins an unfinished line
    int length  # of that line
    uint64_t number
    double due  # when its message is
    double sent  # when the last octets of the content were handed over
    Octets script  # envelope and DATA, where they are sent one by one
    Octets out  # what is to be sent, but for the body
    bint content  # the body is to be sent behind it
    size_t done  # octets that were sent
    bint waits  # for room to send the others


cdef struct Text:
    const char *data
    size_t length


cdef class Load:
    """`envelope` and `head` are the pieces between what differs from message to message."""

    cdef Client *clients
    cdef Client **waiting  # a ring of those whose message is not yet due, in its order
    cdef size_t count, greeted, left, first_waiting, count_waiting
    cdef uint64_t number, messages, domains, recipients
    cdef double rate
    cdef readonly double started, ended
    cdef readonly uint64_t refused, disconnects
    cdef int epoll, timer
    cdef double armed  # when the timer goes off; 0: never
    cdef tuple kept
    cdef Text[3] envelope
    cdef Text[5] head
    cdef Text body
    cdef Numbers numbers  # acknowledged
    cdef Seconds times

    def __cinit__(
        self, size_t clients, uint64_t messages, double rate, uint64_t domains,
        uint64_t recipients, list envelope not None, list head not None, bytes body not None,
    ):
        self.messages, self.rate = messages, rate
        self.domains, self.recipients = domains, recipients
        self.kept = (*envelope, *head, body)
        for i in range(3):
            self.envelope[i] = text_of(envelope[i])
        for i in range(5):
            self.head[i] = text_of(head[i])
        self.body = text_of(body)
        self.clients = <Client *> calloc(clients, sizeof(Client))
        self.waiting = <Client **> calloc(clients, sizeof(Client *))
        if self.clients == NULL or self.waiting == NULL:
            raise MemoryError
        self.count = clients
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        # Edge-triggered: it need not be read.
        if watch(self.epoll, EPOLL_CTL_ADD, self.timer, EPOLLIN | EPOLLET, NULL) < 0:
            raise OSError(errno, strerror(errno))

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.greeted):
            free(self.clients[i].out.data)
            free(self.clients[i].script.data)
        close(self.epoll)
        close(self.timer)
        free(self.clients)
        free(self.waiting)
        free(self.numbers.at)
        free(self.times.at)

    def greet(self, int descriptor, double deadline):
        """Take over a connection that does not block, and say EHLO on it; TimeoutError.

        The descriptor is closed by whoever made it.
        """
        cdef Client *client = self.clients + self.greeted
        client.descriptor, client.awaited = descriptor, 1
        self.greeted += 1
        send_at_once(descriptor)
        if watch(self.epoll, EPOLL_CTL_ADD, descriptor, EPOLLIN, client) < 0:
            raise OSError(errno, strerror(errno))
        while client.step < READY:
            PyErr_CheckSignals()
            with nogil:
                self._turn(PAUSE)
            if now() > deadline:
                raise TimeoutError

    def run(self):
        """Send all messages; at the end every client has left or was cut off."""
        cdef size_t i
        cdef int _
        self._turn(0)  # some may have been cut off meanwhile
        self.started = self.ended = now()
        for i in range(self.count):
            self._next(self.clients + i)
        while self.left < self.count:
            PyErr_CheckSignals()
            with nogil:
                for _ in range(TURNS):
                    if self.left < self.count:
                        self._turn(PAUSE)

    def acknowledged(self):
        return [self.numbers.at[i] for i in range(self.numbers.count)]

    def latencies(self):
        """Seconds from the last octet of content to the 250."""
        return [self.times.at[i] for i in range(self.times.count)]

    # The loop

    cdef void _turn(self, int pause) noexcept nogil:
        """`pause`: milliseconds to wait at the most."""
        cdef epoll_event[EVENTS] events
        cdef int count = epoll_wait(self.epoll, events, EVENTS, pause)
        cdef int i
        cdef Client *client
        for i in range(count):
            client = <Client *> events[i].data.ptr
            if client == NULL:
                continue  # the timer
            if events[i].events & EPOLLOUT:
                self._push(client)
            if events[i].events & ~EPOLLOUT:
                self._read(client)
        if self.count_waiting:
            self._send_what_is_due()

    cdef void _read(self, Client *client) noexcept nogil:
        cdef char[READ] data
        cdef ssize_t length = recv(client.descriptor, data, READ, 0)
        cdef ssize_t i
        if length <= 0:
            if length == 0 or errno != EAGAIN and errno != EINTR:
                self._lost(client)
            return
        for i in range(length):
            if data[i] == c"\n":
                self._take_line(client)
            elif client.length < LINE:
                client.line[client.length] = data[i]
                client.length += 1

    cdef void _take_line(self, Client *client) noexcept nogil:
        """RFC 5321 section 4.2.1: the last line of a reply has no hyphen behind its code."""
        cdef char *line = client.line
        cdef int length = client.length
        client.length = 0
        if length and line[length - 1] == c"\r":
            length -= 1
        if client.step == EHLO and length == 14 and not memcmp(line + 4, b"PIPELINING", 10):
            client.pipelining = True
        if length > 3 and line[3] == c"-" or not client.awaited:
            return
        client.code = 100 * line[0] + 10 * line[1] + line[2] - 111 * c"0" if length >= 3 else 0
        client.awaited -= 1
        if not client.awaited:
            self._replied(client)

    cdef void _lost(self, Client *client) noexcept nogil:
        """The server has ended the connection."""
        if client.step < QUIT:
            self.disconnects += 1
            self._leave(client)
        client.step = GONE
        watch(self.epoll, EPOLL_CTL_DEL, client.descriptor, 0, NULL)

    cdef void _leave(self, Client *client) noexcept nogil:
        self.left += 1
        self.ended = now()

    # The dialogue

    cdef void _replied(self, Client *client) noexcept nogil:
        if self._unsent(client):
            self._lost(client)  # it has answered what it has not had: nothing it says can be used
        elif client.step == GREETING:
            client.step = EHLO
            self._say(client, b"EHLO client.example.test\r\n", 26)
        elif client.step == EHLO:
            client.step = READY
        elif client.step == COMMAND and client.code == 250 and client.script.length:
            self._say_command(client)
        elif client.step == ENVELOPE or client.step == COMMAND:
            self._on_envelope(client)
        elif client.step == END_OF_DATA:
            self._on_end_of_data(client)
        elif client.step == RSET:
            self._next(client)
        elif client.step == QUIT:
            self._lost(client)

    cdef void _next(self, Client *client) noexcept nogil:
        """Begin the next message, or leave where all are sent."""
        if client.step == GONE:
            return  # the server has ended the connection before
        if self.number == self.messages:
            client.step = QUIT
            self._leave(client)
            self._say(client, b"QUIT\r\n", 6)
            return
        self.number += 1
        client.number, client.step = self.number, READY
        if self.rate:
            client.due = self.started + self.number / self.rate
            self.waiting[(self.first_waiting + self.count_waiting) % self.count] = client
            self.count_waiting += 1
        else:
            self._begin(client)

    cdef void _send_what_is_due(self) noexcept nogil:
        """Numbers were handed out in order, so the first that waits is the next that is due."""
        cdef Client *client = self.waiting[self.first_waiting]
        while self.count_waiting and client.due <= now():
            self.first_waiting = (self.first_waiting + 1) % self.count
            self.count_waiting -= 1
            if client.step == READY:
                self._begin(client)
            client = self.waiting[self.first_waiting]
        if self.count_waiting and client.due != self.armed:
            self._arm(client.due)

    cdef void _arm(self, double moment) noexcept nogil:
        """A microsecond late, for what is due must not seem to be in the future then."""
        cdef itimerspec timer
        cdef double seconds
        timer.it_interval.tv_sec = timer.it_interval.tv_nsec = 0
        timer.it_value.tv_nsec = <long> (modf(moment + 1e-6, &seconds) * 1e9)
        timer.it_value.tv_sec = <int64_t> seconds
        timerfd_settime(self.timer, TFD_TIMER_ABSTIME, &timer, NULL)
        self.armed = moment

    cdef void _begin(self, Client *client) noexcept nogil:
        cdef Octets *out = &client.script
        append(out, self.envelope[0].data, self.envelope[0].length)
        append_number(out, client.number % self.recipients, 1)
        append(out, self.envelope[1].data, self.envelope[1].length)
        if self.domains:
            append_text(out, b"d")
            append_number(out, client.number % self.domains, 1)
            append_text(out, b".")
        append(out, self.envelope[2].data, self.envelope[2].length)
        if client.pipelining:
            client.step = ENVELOPE
            self._say(client, out.data, out.length)
            client.awaited, out.length = 3, 0
        else:  # RFC 2920, section 3.1: only where the server has said that it can
            client.step = COMMAND
            self._say_command(client)

    cdef void _say_command(self, Client *client) noexcept nogil:
        """The next line of the script."""
        cdef Octets *script = &client.script
        cdef size_t length = find(script.data, script.length, b"\n", 1) + 1 - script.data
        self._say(client, script.data, length)
        drop(script, length)

    cdef void _on_envelope(self, Client *client) noexcept nogil:
        client.script.length = 0
        if client.code == 354:
            client.step = END_OF_DATA
            self._send_content(client)
        else:
            self.refused += 1
            client.step = RSET
            self._say(client, b"RSET\r\n", 6)

    cdef void _on_end_of_data(self, Client *client) noexcept nogil:
        if client.code == 250:
            time(&self.times, now() - client.sent)
            note(&self.numbers, client.number)
        else:
            self.refused += 1
        self._next(client)

    # Sending

    cdef void _say(self, Client *client, const char *text, size_t length) noexcept nogil:
        """Something that is answered by one reply."""
        client.out.length = client.done = 0
        client.content, client.awaited = False, 1
        append(&client.out, text, length)
        self._push(client)

    cdef void _send_content(self, Client *client) noexcept nogil:
        cdef Octets *out = &client.out
        cdef uint64_t microseconds = <uint64_t> (now() * 1e6)
        cdef int i
        out.length = client.done = 0
        for i in range(3):
            append(out, self.head[i].data, self.head[i].length)
            append_number(out, client.number, 1)
        append(out, self.head[3].data, self.head[3].length)
        append_number(out, microseconds // 1000000, 1)
        append_text(out, b".")
        append_number(out, microseconds % 1000000, 6)
        append(out, self.head[4].data, self.head[4].length)
        client.content, client.awaited = True, 1
        self._push(client)

    cdef size_t _unsent(self, const Client *client) noexcept nogil:
        return client.out.length + client.content * self.body.length - client.done

    cdef void _push(self, Client *client) noexcept nogil:
        """Send what there is room for; the rest, once there is again."""
        cdef iovec[2] pieces
        cdef size_t of_out = min(client.done, client.out.length)
        cdef size_t of_body = client.done - of_out
        cdef bint waits = client.waits
        pieces[0].iov_base = client.out.data + of_out
        pieces[0].iov_len = client.out.length - of_out
        pieces[1].iov_base = <char *> self.body.data + of_body
        pieces[1].iov_len = self.body.length - of_body if client.content else 0
        client.sent = now()
        cdef ssize_t sent = writev(client.descriptor, pieces, 2)
        if sent < 0 and errno != EAGAIN and errno != EINTR:
            self._lost(client)
            return
        client.done += max(sent, 0)
        client.waits = self._unsent(client) > 0
        if client.waits != waits:
            watch(self.epoll, EPOLL_CTL_MOD, client.descriptor,
                  EPOLLIN | EPOLLOUT if client.waits else EPOLLIN, client)


cdef Text text_of(bytes data):
    cdef Text text
    text.data, text.length = data, len(data)
    return text
