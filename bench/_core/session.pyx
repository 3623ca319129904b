# cython: boundscheck=False, wraparound=False, cdivision=True
"""One client's connection to the sink: octets in, replies out.

It takes everything, and answers and counts as `fastmta.sink.session` does with its defaults. What
it does not know: chosen misbehaviour, LMTP, TLS.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport abort, calloc, free
from libc.string cimport memchr, memmove

from bench._core.linux cimport now
from bench._core.octets cimport Octets, append, append_number, append_text, drop, find, note
from bench._core.tally cimport count_message, distinct, forget, hash_of, ordered

cdef enum:
    MAX_LINE = 64 << 10  # octets
    SIZE_DIGITS = 18


cdef Session *open_session(Ledger *ledger, int descriptor) noexcept nogil:
    cdef Session *it = <Session *> calloc(1, sizeof(Session))
    if it == NULL:
        abort()
    ledger.connections += 1
    it.descriptor = descriptor
    reset(it)
    append_text(&it.out, b"220 sink.example.test ESMTP\r\n")
    return it


cdef void close_session(Session *it) noexcept nogil:
    free(it.rest.data)
    free(it.body.data)
    free(it.out.data)
    free(it.recipients.at)
    free(it)


cdef void reset(Session *it) noexcept nogil:
    it.sender = it.last = it.oversize = False
    it.chunk = -1
    it.recipients.count = 0
    it.body.length = 0
    append_text(&it.body, b"\r\n")


cdef void feed(Session *it, Ledger *ledger, const char *data, size_t length) noexcept nogil:
    """Take octets in; the replies are appended to `out`."""
    cdef size_t at = 0
    if it.rest.length:
        append(&it.rest, data, length)
        data, length = it.rest.data, it.rest.length
        it.rest.length = 0
    while at < length and not it.closing:
        if it.reading == COMMANDS:
            at += read_line(it, ledger, data + at, length - at)
        elif it.reading == CONTENT:
            at += read_content(it, ledger, data + at, length - at)
        else:
            at += read_chunk(it, ledger, data + at, length - at)


cdef void complain(Session *it, Ledger *ledger, const char *reply) noexcept nogil:
    ledger.protocol_errors += 1
    append_text(&it.out, reply)


cdef void leave(Session *it, const char *reply) noexcept nogil:
    append_text(&it.out, reply)
    it.closing = True


# Commands

cdef size_t read_line(
    Session *it, Ledger *ledger, const char *data, size_t length
) noexcept nogil:
    cdef const char *end = find(data, length, b"\r\n", 2)
    if end == NULL:
        append(&it.rest, data, length)
        if length > MAX_LINE:
            leave(it, b"500 5.5.2 Line too long\r\n")
        return length
    execute(it, ledger, data, end - data)
    return end - data + 2


cdef inline bint begins(
    const char *line, size_t length, const char *word, size_t size
) noexcept nogil:
    """Whether the line begins with a word, given in lower case, in any case."""
    cdef size_t i
    if length < size:
        return False
    for i in range(size):
        if (line[i] + 32 if c"A" <= line[i] <= c"Z" else line[i]) != word[i]:
            return False
    return True


cdef void execute(
    Session *it, Ledger *ledger, const char *line, size_t length
) noexcept nogil:
    if begins(line, length, b"mail", 4):
        on_mail(it, ledger, line, length)
    elif begins(line, length, b"rcpt", 4):
        on_rcpt(it, ledger, line, length)
    elif begins(line, length, b"data", 4):
        on_data(it, ledger)
    elif begins(line, length, b"bdat", 4):
        on_bdat(it, ledger, line, length)
    else:
        execute_other(it, ledger, line, length)


cdef void execute_other(
    Session *it, Ledger *ledger, const char *line, size_t length
) noexcept nogil:
    if begins(line, length, b"ehlo", 4):
        on_ehlo(it, ledger)
    elif begins(line, length, b"helo", 4):
        reset(it)
        append_text(&it.out, b"250 sink.example.test\r\n")
    elif begins(line, length, b"rset", 4):
        reset(it)
        append_text(&it.out, b"250 2.0.0 Ok\r\n")
    elif begins(line, length, b"noop", 4):
        append_text(&it.out, b"250 2.0.0 Ok\r\n")
    elif begins(line, length, b"vrfy", 4):
        append_text(&it.out, b"252 2.5.0 Send it and see\r\n")
    elif begins(line, length, b"quit", 4):
        leave(it, b"221 2.0.0 Bye\r\n")
    elif begins(line, length, b"lhlo", 4):
        complain(it, ledger, b"500 5.5.1 The other hello\r\n")
    elif begins(line, length, b"star", 4):
        complain(it, ledger, b"503 5.5.1 No TLS here\r\n")
    else:
        complain(it, ledger, b"500 5.5.2 Unknown command\r\n")


cdef void on_ehlo(Session *it, Ledger *ledger) noexcept nogil:
    reset(it)
    append_text(&it.out, b"250-sink.example.test\r\n250-PIPELINING\r\n250-SIZE ")
    append_number(&it.out, ledger.max_size, 1)
    append_text(&it.out, b"\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n")
    append_text(&it.out, b"250-CHUNKING\r\n250 DSN\r\n")


cdef const char *path_end(const char *at, const char *end) noexcept nogil:
    """The ">" of a path that begins at `at`, behind quoted strings; NULL where it has none."""
    cdef bint quoted = False
    while at < end:
        if at[0] == c'"':
            quoted = not quoted
        elif quoted and at[0] == c"\\":
            at += 1
        elif not quoted and at[0] == c">":
            return at
        at += 1
    return NULL


cdef const char *path_start(const char *at, const char *end) noexcept nogil:
    """Behind "<", which may have a space in front; NULL where it is not there."""
    if at < end and at[0] == c" ":
        at += 1
    return at + 1 if at < end and at[0] == c"<" else NULL


cdef void on_mail(
    Session *it, Ledger *ledger, const char *line, size_t length
) noexcept nogil:
    cdef const char *end = line + length
    cdef const char *path = path_start(line + 10, end)
    cdef const char *after = path_end(path, end) if path != NULL else NULL
    if not begins(line, length, b"mail from:", 10) or after == NULL:
        complain(it, ledger, b"501 5.5.4 Syntax: MAIL FROM:<>\r\n")
    elif it.sender:
        complain(it, ledger, b"503 5.5.1 Sender already given\r\n")
    elif too_big(ledger, after + 1, end):
        append_text(&it.out, b"552 5.3.4 Message too big\r\n")  # RFC 1870 section 6.1
    else:
        it.sender = True
        append_text(&it.out, b"250 2.1.0 Ok\r\n")


cdef void on_rcpt(
    Session *it, Ledger *ledger, const char *line, size_t length
) noexcept nogil:
    cdef const char *end = line + length
    cdef const char *path = path_start(line + 8, end)
    cdef const char *after = path_end(path, end) if path != NULL else NULL
    if not begins(line, length, b"rcpt to:", 8) or after == NULL:
        complain(it, ledger, b"501 5.5.4 Syntax: RCPT TO:<address>\r\n")
    elif not it.sender:
        complain(it, ledger, b"503 5.5.1 MAIL first\r\n")
    elif too_big(ledger, after + 1, end):
        append_text(&it.out, b"552 5.3.4 Message too big\r\n")
    else:
        note(&it.recipients, hash_of(path, after - path))
        append_text(&it.out, b"250 2.1.5 Ok\r\n")


cdef inline bint is_word(char c) noexcept nogil:
    return c"0" <= c <= c"9" or c"a" <= (c | 32) <= c"z" or c == c"_"


cdef bint too_big(Ledger *ledger, const char *at, const char *end) noexcept nogil:
    """Whether a SIZE parameter tells of more than is taken."""
    cdef const char *start = at
    cdef const char *digit
    cdef uint64_t size
    while at < end:
        if begins(at, end - at, b"size=", 5) and (at == start or not is_word((at - 1)[0])):
            digit, size = at + 5, 0
            while digit < end and c"0" <= digit[0] <= c"9" and digit - at < 5 + SIZE_DIGITS:
                size = 10 * size + (digit[0] - c"0")
                digit += 1
            if digit > at + 5 and (digit == end or not is_word(digit[0])):
                return size > ledger.max_size
        at += 1
    return False


cdef void on_data(Session *it, Ledger *ledger) noexcept nogil:
    if it.chunk >= 0:
        complain(it, ledger, b"503 5.5.1 BDAT was begun\r\n")  # RFC 3030 section 2
    elif not it.recipients.count:
        # RFC 2920 section 3.1: a pipelining client sends DATA before it knows.
        ledger.protocol_errors += not it.sender
        append_text(&it.out, b"554 5.5.1 No valid recipients\r\n")
    else:
        it.reading = CONTENT
        append_text(&it.out, b"354 Go ahead\r\n")


cdef void on_bdat(
    Session *it, Ledger *ledger, const char *line, size_t length
) noexcept nogil:
    """BDAT SP chunk-size [SP "LAST"] (RFC 3030 section 2)."""
    cdef const char *end = line + length
    cdef const char *at = line + 5
    cdef int64_t size = 0
    cdef bint last = False
    if begins(line, length, b"bdat ", 5):
        while at < end and c"0" <= at[0] <= c"9" and at - line < 5 + SIZE_DIGITS:
            size = 10 * size + (at[0] - c"0")
            at += 1
    if at > line + 5:
        last = begins(at, end - at, b" last", 5)
        at += 5 * last
        while at < end and (at[0] == c" " or c"\t" <= at[0] <= c"\r"):
            at += 1
        if at == end:
            begin_chunk(it, ledger, size, last)
            return
    complain(it, ledger, b"500 5.5.1 BDAT\r\n")


cdef void begin_chunk(Session *it, Ledger *ledger, int64_t size, bint last) noexcept nogil:
    it.chunk, it.last, it.reading = size, last, CHUNK
    if not size:
        end_chunk(it, ledger)


# Content

cdef size_t read_content(
    Session *it, Ledger *ledger, const char *data, size_t length
) noexcept nogil:
    cdef Octets *body = &it.body
    cdef size_t scanned = max(body.length, 4) - 4
    append(body, data, length)
    cdef const char *end = end_of_data(body.data + scanned, body.data + body.length)
    if end == NULL:
        bound(it, ledger)
        return length
    cdef size_t behind = body.data + body.length - end - 5
    body.length = end + 2 - body.data
    unstuff(body)
    it.reading = COMMANDS
    finish(it, ledger)
    return length - behind


cdef const char *before_dot(const char *at, const char *end) noexcept nogil:
    """The next CRLF with a dot behind it; NULL where there is none.

    By line ends, of which a body has few beside its octets: memmem would prepare itself each time.
    """
    at = <const char *> memchr(at + 1, c"\n", end - at - 1) if at < end else NULL
    while at != NULL and not (at + 1 < end and (at - 1)[0] == c"\r" and (at + 1)[0] == c"."):
        at = <const char *> memchr(at + 1, c"\n", end - at - 1)
    return at - 1 if at != NULL else NULL


cdef const char *end_of_data(const char *at, const char *end) noexcept nogil:
    """The CRLF of CRLF.CRLF, with which alone a message ends (RFC 5321 section 4.1.1.4)."""
    at = before_dot(at, end)
    while at != NULL and not (end - at >= 5 and at[3] == c"\r" and at[4] == c"\n"):
        at = before_dot(at + 3, end)
    return at


cdef void unstuff(Octets *body) noexcept nogil:
    """Without the dot in front of each line that begins with one (RFC 5321 section 4.5.2)."""
    cdef const char *end = body.data + body.length
    cdef char *to = <char *> before_dot(body.data, end)
    cdef const char *start = to
    cdef const char *stop
    while start != NULL:  # `start` is where such a line end is, and all before it stands at `to`
        stop = before_dot(start + 3, end)
        to[0], to[1] = c"\r", c"\n"
        to += 2
        start += 3
        memmove(to, start, (stop if stop != NULL else end) - start)
        to += (stop if stop != NULL else end) - start
        start = stop
        body.length = to - body.data


cdef size_t read_chunk(
    Session *it, Ledger *ledger, const char *data, size_t length
) noexcept nogil:
    length = min(length, <size_t> it.chunk)
    it.chunk -= length
    if it.recipients.count:
        append(&it.body, data, length)
        bound(it, ledger)
    if not it.chunk:
        end_chunk(it, ledger)
    return length


cdef void end_chunk(Session *it, Ledger *ledger) noexcept nogil:
    it.reading = COMMANDS
    if not it.recipients.count:
        # RFC 3030 section 2: the octets are swallowed, then the chunk is refused.
        append_text(&it.out, b"554 5.5.1 No valid recipients\r\n")
        it.chunk = -1
    elif it.last:
        finish(it, ledger)
    else:
        append_text(&it.out, b"250 2.0.0 Ok\r\n")


cdef void bound(Session *it, Ledger *ledger) noexcept nogil:
    """Keep no more than was allowed; the tail stays, for the end of data may be in it."""
    if it.body.length > ledger.max_size + 5:
        it.oversize = True
        memmove(it.body.data + 2, it.body.data + it.body.length - 5, 5)
        it.body.length = 7


cdef void finish(Session *it, Ledger *ledger) noexcept nogil:
    if it.oversize or it.body.length - 2 > ledger.max_size:
        append_text(&it.out, b"552 5.3.4 Message too big\r\n")
    else:
        take(it, ledger)
        append_text(&it.out, b"250 2.0.0 Ok\r\n")
    reset(it)


cdef void take(Session *it, Ledger *ledger) noexcept nogil:
    ledger.last = now()
    ledger.first = ledger.first or ledger.last
    ledger.messages += 1
    ledger.recipients += it.recipients.count
    ledger.octets += it.body.length - 2
    count_message(
        &ledger.tally, &it.body, it.recipients.at, it.recipients.count, ledger.last
    )


cdef dict counts(Ledger *ledger):
    """All but what is the same for every sink that behaves: fields of `Counts`, and the lists."""
    return {
        "connections": ledger.connections,
        "messages": ledger.messages,
        "recipients": ledger.recipients,
        "octets": ledger.octets,
        "protocol_errors": ledger.protocol_errors,
        "duplicates": ledger.tally.duplicates,
        "corrupt": ledger.tally.corrupt,
        "seconds": ledger.last - ledger.first,
        "last": ledger.last,
        "numbers": distinct(&ledger.tally),
        "delays": ordered(&ledger.tally.delays),
    }


cdef class Wire:
    """One session without a socket, to be fed by hand."""

    cdef Ledger ledger
    cdef Session *session

    def __cinit__(self, size_t max_size=1 << 30):
        self.ledger.max_size = max_size
        self.session = open_session(&self.ledger, -1)

    def __dealloc__(self):
        close_session(self.session)
        forget(&self.ledger.tally)

    def feed(self, bytes data not None):
        """What is answered; empty where the session has ended."""
        feed(self.session, &self.ledger, data, len(data))
        cdef bytes said = self.session.out.data[:self.session.out.length]
        drop(&self.session.out, self.session.out.length)
        return said

    def counts(self):
        return counts(&self.ledger)
