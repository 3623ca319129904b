"""Quoted-printable (RFC 2045 6.7), whole and incremental.

Takes any object with a contiguous buffer, and releases the GIL for all but small data. Lines of
the data end in CRLF, the canonical form of text; CR and LF by themselves are escaped, so every
octet string comes back as it was.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcpy

from fastmta._core.output cimport cut_bytes, new_bytes, start_of


cdef extern from "quopri_kernels.h" nogil:
    enum: QP_SLACK
    enum: QP_KERNEL_COUNT
    const uint8_t *QP_DIGITS
    ctypedef struct qp_span:
        const uint8_t *src
        const uint8_t *end
        uint8_t *dst
        uint8_t *out
    ctypedef struct qp_kernel:
        const char *name
        int (*supported)() noexcept nogil
        size_t (*expand)(const uint8_t *, size_t, uint8_t *) noexcept nogil
        void (*decode)(qp_span *) noexcept nogil
    const qp_kernel *QP_KERNELS
    void qp_prepare() noexcept
    size_t qp_count_specials(const uint8_t *, size_t) noexcept
    void qp_copy_unmarked(qp_span *) noexcept
    void qp_decode_escapes(qp_span *) noexcept


# Under this many octets, letting go of the GIL and taking it back costs more than the work.
cdef enum: GIL_FLOOR = 16384

# RFC 2045 6.7 (5): 76 characters, of which a soft line break takes the last.
cdef enum: LINE = 76

# Octets that are escaped at a time, before their lines are folded; stays in the first cache.
cdef enum: PIECE = 1024

# White space that is looked at as what may stand before the end of a line: no line of mail is
# longer (RFC 5321 4.5.3.1.6). Bounds what a decoder keeps.
cdef enum: MAX_SPACE = 1000

cdef const qp_kernel *KERNEL


def kernels() -> tuple:
    """Names of the kernels that this processor runs, fastest first."""
    names = []
    for i in range(QP_KERNEL_COUNT):
        if QP_KERNELS[i].supported():
            names.append(QP_KERNELS[i].name.decode())
    return tuple(names)


def use_kernel(str name not None) -> None:
    """Take the kernel of this name from now on; for tests. ValueError when there is none."""
    global KERNEL
    for i in range(QP_KERNEL_COUNT):
        if QP_KERNELS[i].name.decode() == name and QP_KERNELS[i].supported():
            KERNEL = &QP_KERNELS[i]
            return
    raise ValueError(f"no kernel {name!r} on this processor")


qp_prepare()
use_kernel(kernels()[0])


def encode(data) -> bytes:
    """The quoted-printable form of `data`, in lines of at most 76 characters."""
    return Encoder()._run(data, True)


def decode(data) -> bytes:
    """The octets that `data` stands for; never fails.

    White space at the end of a line is dropped. An `=` that begins neither an escape nor a soft
    line break is left as it is (RFC 2045 6.7, the notes to robust implementations), and so are
    line ends of any kind, long lines and octets that should have been escaped.
    """
    return Decoder()._run(data, True)


@cython.final
cdef class Encoder:
    """Encodes data that comes in pieces; the pieces' output in a row is `encode` of the whole."""

    cdef int column
    cdef bytes held

    def __cinit__(self):
        self.column = 0
        self.held = b""

    def update(self, data) -> bytes:
        """What can be encoded by now: two octets may have to wait for what follows them."""
        return self._run(data, False)

    def finish(self) -> bytes:
        """The rest. The encoder then begins anew."""
        return self._run(b"", True)

    cdef bytes _run(self, data, bint final):
        cdef Py_buffer view
        cdef qp_span span
        cdef PyObject *out
        cdef int column = self.column
        if self.held:
            data = self.held + data
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            # Octets that another thread may change under us are not worth counting.
            out = new_bytes(
                _counted_bound(&view) if type(data) is bytes else _bound(view.len * 3)
            )
            _open(&span, &view, out)
            if view.len < GIL_FLOOR:
                _encode(&span, &column, final)
            else:
                with nogil:
                    _encode(&span, &column, final)
            encoded = cut_bytes(out, span.dst - start_of(out))
            self.held = span.src[:span.end - span.src]
        finally:
            PyBuffer_Release(&view)
        self.column = 0 if final else column
        return encoded


@cython.final
cdef class Decoder:
    """Decodes data that comes in pieces; the pieces' output in a row is `decode` of the whole."""

    cdef bytes held

    def __cinit__(self):
        self.held = b""

    def update(self, data) -> bytes:
        """What can be decoded by now: an escape or a line end may have to wait for its rest."""
        return self._run(data, False)

    def finish(self) -> bytes:
        """The rest. The decoder then begins anew."""
        return self._run(b"", True)

    cdef bytes _run(self, data, bint final):
        cdef Py_buffer view
        cdef qp_span span
        cdef PyObject *out
        if self.held:
            data = self.held + data
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            out = new_bytes(view.len)
            _open(&span, &view, out)
            if view.len < GIL_FLOOR:
                _decode(&span, final)
            else:
                with nogil:
                    _decode(&span, final)
            decoded = cut_bytes(out, span.dst - start_of(out))
            self.held = span.src[:span.end - span.src]
        finally:
            PyBuffer_Release(&view)
        return decoded


cdef void _open(qp_span *span, Py_buffer *view, PyObject *out) noexcept:
    span.src = <const uint8_t *> view.buf
    span.end = span.src + view.len
    span.dst = span.out = start_of(out)


# ---- encoding ----

cdef Py_ssize_t _bound(Py_ssize_t forms) noexcept nogil:
    # A soft break is three octets for every 73 at the least: an escape that does not fit leaves
    # up to two columns empty. The first line may have begun before.
    return forms + forms // 73 * 3 + 6 + QP_SLACK


cdef Py_ssize_t _counted_bound(Py_buffer *view) noexcept:
    # The allocator gives back what was never written, and then has to ask for it again.
    # CRLF counts as two escapes, which leaves room for a blank before it that has to be one.
    cdef const uint8_t *src = <const uint8_t *> view.buf
    cdef Py_ssize_t specials
    if view.len < GIL_FLOOR:
        specials = qp_count_specials(src, view.len)
    else:
        with nogil:
            specials = qp_count_specials(src, view.len)
    return _bound(view.len + 2 * specials + 2)


cdef void _encode(qp_span *s, int *column, bint final) noexcept nogil:
    cdef const uint8_t *line_end
    while s.src < s.end:
        line_end = _find_crlf(s.src, s.end)
        if line_end == NULL:
            break
        _encode_line(s, line_end, column, True)
        _write_crlf(s)
        s.src += 2
        column[0] = 0
    # Of a line that may go on two octets wait: CRLF behind them decides about the last of it.
    if final or s.end - s.src > 2:
        _encode_line(s, s.end if final else s.end - 2, column, final)


cdef const uint8_t *_find_crlf(const uint8_t *src, const uint8_t *end) noexcept nogil:
    cdef const uint8_t *at = src
    while at < end:
        at = <const uint8_t *> memchr(at, c"\n", end - at)
        if at == NULL:
            return NULL
        if at > src and at[-1] == c"\r":
            return at - 1
        at += 1
    return NULL


cdef void _encode_line(
    qp_span *s, const uint8_t *line_end, int *column, bint ends
) noexcept nogil:
    """Up to `line_end`; `ends`: the line ends there."""
    # Two octets stand before the forms, so that a fold may look back.
    cdef uint8_t[2 + PIECE * 3 + QP_SLACK] room
    cdef uint8_t *forms = &room[2]
    cdef Py_ssize_t octets, size
    cdef bint last
    room[0] = room[1] = 0
    while s.src < line_end:
        octets = min(line_end - s.src, <Py_ssize_t> PIECE)
        size = KERNEL.expand(s.src, octets, forms)
        s.src += octets
        last = ends and s.src == line_end
        if last:
            size += _protect_blank(forms + size)
        _fold(s, forms, size, column, LINE if last else LINE - 1)


cdef int _protect_blank(uint8_t *end) noexcept nogil:
    """Rule 3: no line ends in white space. Returns by how much the forms before `end` grew."""
    if not _is_space(end[-1]):
        return 0
    memcpy(end - 1, <const char *> "=20" if end[-1] == c" " else <const char *> "=09", 3)
    return 2


cdef void _fold(
    qp_span *s, const uint8_t *forms, Py_ssize_t size, int *column, int width
) noexcept nogil:
    """Write the forms with soft breaks (rule 5), so that at most `width` columns are taken."""
    cdef Py_ssize_t cut
    while column[0] + size > width:
        cut = LINE - 1 - column[0]
        if cut > 0:
            # An `=` in the last two places begins an escape that would be torn.
            cut -= (forms[cut - 1] == c"=") + 2 * (forms[cut - 2] == c"=")
            s.dst = _write(s.dst, forms, cut)
            forms += cut
            size -= cut
        s.dst[0] = c"="
        s.dst += 1
        _write_crlf(s)
        column[0] = 0
    s.dst = _write(s.dst, forms, size)
    column[0] += size


cdef uint8_t *_write(uint8_t *dst, const uint8_t *src, Py_ssize_t size) noexcept nogil:
    # No line is longer than the slack: a copy of known size is a few stores.
    memcpy(dst, src, QP_SLACK)
    return dst + size


cdef void _write_crlf(qp_span *s) noexcept nogil:
    s.dst[0] = c"\r"
    s.dst[1] = c"\n"
    s.dst += 2


cdef bint _is_space(uint8_t octet) noexcept nogil:
    return octet == c" " or octet == c"\t"


# ---- decoding ----

cdef enum Mark:
    SOFT_BREAK
    LITERAL
    UNDECIDED


cdef void _decode(qp_span *s, bint final) noexcept nogil:
    cdef const uint8_t *start = s.src  # of what was copied last
    cdef Py_ssize_t tail
    while True:
        KERNEL.decode(s)
        qp_copy_unmarked(s)
        if s.src == s.end:
            break
        if s.src[0] == c"\n":
            _end_line(s, start)
        elif not _decode_mark(s, final):
            return
        start = s.src
    tail = _open_tail(start, s.end, final)
    _take_back(s, tail)
    if not final:
        s.src -= tail


cdef void _end_line(qp_span *s, const uint8_t *start) noexcept nogil:
    """Rule 3: white space at the end of a line was added on the way."""
    cdef Py_ssize_t returns = s.src > start and s.src[-1] == c"\r"
    _take_back(s, returns + _space_before(s.src - returns, start))
    if returns:
        s.dst[0] = c"\r"
        s.dst += 1
    s.dst[0] = c"\n"
    s.dst += 1
    s.src += 1


cdef void _take_back(qp_span *s, Py_ssize_t octets) noexcept nogil:
    # Never more than there is, even where another thread changed the data since.
    s.dst -= min(octets, s.dst - s.out)


cdef Py_ssize_t _space_before(const uint8_t *at, const uint8_t *start) noexcept nogil:
    cdef Py_ssize_t count = 0
    while count < MAX_SPACE and at - count > start and _is_space(at[-1 - count]):
        count += 1
    return count


cdef Py_ssize_t _open_tail(const uint8_t *start, const uint8_t *end, bint final) noexcept nogil:
    """Octets at the end of the data that may turn out to stand before the end of a line."""
    cdef Py_ssize_t returns = not final and end > start and end[-1] == c"\r"
    return returns + _space_before(end - returns, start)


cdef bint _decode_mark(qp_span *s, bint final) noexcept nogil:
    """What `=` begins; False where more has to come before that can be told."""
    cdef const uint8_t *start = s.src
    cdef Mark mark
    qp_decode_escapes(s)
    if s.src != start:
        return True
    mark = _read_mark(s, final)
    if mark == Mark.LITERAL:
        s.dst[0] = c"="
        s.dst += 1
        s.src += 1
    return mark != Mark.UNDECIDED


cdef bint _crlf(const uint8_t *src, const uint8_t *end) noexcept nogil:
    return end - src >= 2 and src[0] == c"\r" and src[1] == c"\n"


cdef Mark _read_mark(qp_span *s, bint final) noexcept nogil:
    """For an `=` that begins no whole escape: moves behind it where it is a soft break."""
    cdef const uint8_t *at = s.src + 1
    while at < s.end and _is_space(at[0]) and at - s.src <= MAX_SPACE:
        at += 1
    if at == s.end:
        return _cut_off(s, at, final)
    if not final and at + 1 == s.end and (
        at[0] == c"\r" or (at == s.src + 1 and QP_DIGITS[at[0]] < 0x80)
    ):
        return Mark.UNDECIDED
    if at[0] == c"\n" or _crlf(at, s.end):
        s.src = at + (1 if at[0] == c"\n" else 2)
        return Mark.SOFT_BREAK
    return Mark.LITERAL


cdef Mark _cut_off(qp_span *s, const uint8_t *at, bint final) noexcept nogil:
    """A soft break at the end of the data breaks nothing off, and goes."""
    if not final:
        return Mark.UNDECIDED
    s.src = at
    return Mark.SOFT_BREAK
