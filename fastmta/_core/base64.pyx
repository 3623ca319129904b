"""base64 (RFC 4648 4, and RFC 2045 6.8 for its use in mail), whole and incremental.

Takes any object with a contiguous buffer. The `_into` forms write into a buffer of the caller's,
which must not overlap the data, and return how many octets they wrote. The GIL is released for
all but small data.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from fastmta._core.output cimport cut_bytes, new_bytes, start_of


cdef extern from "base64_kernels.h" nogil:
    enum: B64_LINE_OCTETS
    enum: B64_LINE_SIZE
    enum: B64_PAD
    enum: B64_KERNEL_COUNT
    const uint8_t *B64_VALUES
    ctypedef struct b64_span:
        const uint8_t *src
        const uint8_t *src_end
        uint8_t *dst
        uint8_t *dst_end
    ctypedef struct b64_kernel:
        const char *name
        int (*supported)() noexcept nogil
        void (*encode)(b64_span *) noexcept nogil
        void (*encode_lines)(b64_span *) noexcept nogil
        void (*decode)(b64_span *, int) noexcept nogil
    const b64_kernel *B64_KERNELS
    void b64_prepare() noexcept
    void b64_encode_last(b64_span *) noexcept
    void b64_crlf(uint8_t *) noexcept


# Under this many octets, letting go of the GIL and taking it back costs more than the work.
cdef enum: GIL_FLOOR = 16384

cdef const b64_kernel *KERNEL


def kernels() -> tuple:
    """Names of the kernels that this processor runs, fastest first."""
    names = []
    for i in range(B64_KERNEL_COUNT):
        if B64_KERNELS[i].supported():
            names.append(B64_KERNELS[i].name.decode())
    return tuple(names)


def use_kernel(str name not None) -> None:
    """Take the kernel of this name from now on; for tests. ValueError when there is none."""
    global KERNEL
    for i in range(B64_KERNEL_COUNT):
        if B64_KERNELS[i].name.decode() == name and B64_KERNELS[i].supported():
            KERNEL = &B64_KERNELS[i]
            return
    raise ValueError(f"no kernel {name!r} on this processor")


b64_prepare()
use_kernel(kernels()[0])


# ---- encoding ----

def encoded_size(Py_ssize_t octets, *, bint lines=False) -> int:
    """Octets that `encode` makes of so many."""
    return _encoded_size(octets, lines)


def encode(data, *, bint lines=False) -> bytes:
    """The base64 of `data`; with `lines`, in lines of 76 characters, each ended by CRLF."""
    cdef Py_buffer view
    cdef b64_span span
    cdef PyObject *out
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        out = _new_output(&span, &view, _encoded_size(view.len, lines))
        _encode_whole(&span, lines)
    finally:
        PyBuffer_Release(&view)
    return _cut(out, &span)


def encode_into(data, buffer, *, bint lines=False) -> int:
    """`encode` into `buffer`; ValueError when it is shorter than `encoded_size`."""
    cdef Py_buffer view, target
    cdef b64_span span
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(buffer, &target, PyBUF_WRITABLE)
        try:
            _into_output(&span, &view, &target, _encoded_size(view.len, lines))
            _encode_whole(&span, lines)
            return span.dst - <uint8_t *> target.buf
        finally:
            PyBuffer_Release(&target)
    finally:
        PyBuffer_Release(&view)


cdef struct Carry:
    Py_ssize_t unit  # octets that are encoded together: a group of 3, or a line of 57
    Py_ssize_t held
    uint8_t[B64_LINE_OCTETS] octets


@cython.final
cdef class Encoder:
    """Encodes data that comes in pieces; the pieces' output in a row is `encode` of the whole."""

    cdef Carry carry

    def __cinit__(self, *, bint lines=False):
        self.carry.unit = B64_LINE_OCTETS if lines else 3
        self.carry.held = 0

    def update(self, data) -> bytes:
        """What can be encoded by now; up to a group (or a line) is kept for later."""
        cdef Py_buffer view
        cdef b64_span span
        cdef PyObject *out
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            out = _new_output(&span, &view, self.size_with(view.len))
            self.feed(&span)
        finally:
            PyBuffer_Release(&view)
        return _cut(out, &span)

    def update_into(self, data, buffer) -> int:
        """`update` into `buffer`; ValueError, and nothing is taken, when it is too short."""
        cdef Py_buffer view, target
        cdef b64_span span
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(buffer, &target, PyBUF_WRITABLE)
            try:
                _into_output(&span, &view, &target, self.size_with(view.len))
                self.feed(&span)
                return span.dst - <uint8_t *> target.buf
            finally:
                PyBuffer_Release(&target)
        finally:
            PyBuffer_Release(&view)

    def finish(self) -> bytes:
        """The rest, with padding and the last CRLF. The encoder then begins anew."""
        held = PyBytes_FromStringAndSize(<char *> self.carry.octets, self.carry.held)
        self.carry.held = 0
        return encode(held, lines=self.carry.unit == B64_LINE_OCTETS)

    cdef Py_ssize_t size_with(self, Py_ssize_t octets) noexcept:
        cdef Py_ssize_t whole = (self.carry.held + octets) // self.carry.unit * self.carry.unit
        return _encoded_size(whole, self.carry.unit == B64_LINE_OCTETS)

    cdef void feed(self, b64_span *span) noexcept:
        # On a copy: whoever else calls this encoder while the GIL is away finds it whole.
        cdef Carry carry = self.carry
        if span.src_end - span.src < GIL_FLOOR:
            _encode_more(span, &carry)
        else:
            with nogil:
                _encode_more(span, &carry)
        self.carry = carry


cdef Py_ssize_t _encoded_size(Py_ssize_t octets, bint lines) noexcept nogil:
    cdef Py_ssize_t full, rest
    if not lines:
        return (octets + 2) // 3 * 4
    full = octets // B64_LINE_OCTETS
    rest = octets % B64_LINE_OCTETS
    return full * B64_LINE_SIZE + ((rest + 2) // 3 * 4 + 2 if rest else 0)


cdef void _encode_whole(b64_span *span, bint lines) noexcept:
    if span.src_end - span.src < GIL_FLOOR:
        _encode_all(span, lines)
    else:
        with nogil:
            _encode_all(span, lines)


cdef void _encode_all(b64_span *span, bint lines) noexcept nogil:
    if lines:
        KERNEL.encode_lines(span)
        if span.src == span.src_end:
            return
    KERNEL.encode(span)
    b64_encode_last(span)
    if lines:
        b64_crlf(span.dst)
        span.dst += 2


cdef void _encode_more(b64_span *span, Carry *carry) noexcept nogil:
    if carry.held:
        _encode_held(span, carry)
    if carry.unit == B64_LINE_OCTETS:
        KERNEL.encode_lines(span)
    else:
        KERNEL.encode(span)
    _hold(span, carry)


cdef void _encode_held(b64_span *span, Carry *carry) noexcept nogil:
    cdef b64_span unit
    _hold(span, carry)
    if carry.held < carry.unit:
        return
    unit = b64_span(&carry.octets[0], &carry.octets[carry.held], span.dst, span.dst_end)
    _encode_all(&unit, carry.unit == B64_LINE_OCTETS)
    span.dst = unit.dst
    carry.held = 0


cdef void _hold(b64_span *span, Carry *carry) noexcept nogil:
    """Move what the unit still lacks, as far as there is any, from the span to the carry."""
    cdef Py_ssize_t count = min(carry.unit - carry.held, span.src_end - span.src)
    memcpy(&carry.octets[carry.held], span.src, count)
    carry.held += count
    span.src += count


# ---- decoding ----

cdef enum Error:
    NONE
    OUTSIDE
    PADDING
    TRUNCATED
    LOOSE_BITS

cdef tuple REASONS = (
    "",
    "octet outside the alphabet",
    "padding or data in the wrong place",
    "data ends inside a group",
    "bits are set behind the last octet",
)


cdef struct State:
    bint strict
    bint ended  # by padding that completes a group
    int chars   # of the group that is under way, 0 to 3
    int pads
    uint32_t bits
    Error error
    Py_ssize_t taken  # octets of data in all


def decoded_bound(Py_ssize_t octets) -> int:
    """The most octets that `decode` makes of so many."""
    return _decoded_bound(octets)


def decode(data, *, bint strict=False) -> bytes:
    """The octets that `data` stands for.

    Never fails as it is: everything outside the alphabet is skipped (RFC 2045 6.8), data ends
    with the padding that completes a group, and missing padding is not missed. `strict` takes
    only what RFC 4648 3 allows (no line ends either) and raises ValueError for all else.
    """
    cdef Py_buffer view
    cdef b64_span span
    cdef PyObject *out
    cdef State state = _begin(strict)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        out = _new_output(&span, &view, _decoded_bound(view.len))
        _decode_whole(&span, &state, True)
    finally:
        PyBuffer_Release(&view)
    decoded = _cut(out, &span)
    _check(&state)
    return decoded


def decode_into(data, buffer, *, bint strict=False) -> int:
    """`decode` into `buffer`; ValueError when it is shorter than `decoded_bound`."""
    cdef Py_buffer view, target
    cdef b64_span span
    cdef State state = _begin(strict)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(buffer, &target, PyBUF_WRITABLE)
        try:
            _into_output(&span, &view, &target, _decoded_bound(view.len))
            _decode_whole(&span, &state, True)
            _check(&state)
            return span.dst - <uint8_t *> target.buf
        finally:
            PyBuffer_Release(&target)
    finally:
        PyBuffer_Release(&view)


@cython.final
cdef class Decoder:
    """Decodes data that comes in pieces; the pieces' output in a row is `decode` of the whole."""

    cdef State state

    def __cinit__(self, *, bint strict=False):
        self.state = _begin(strict)

    def update(self, data) -> bytes:
        """What can be decoded by now; up to three characters are kept for later."""
        cdef Py_buffer view
        cdef b64_span span
        cdef PyObject *out
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            out = _new_output(&span, &view, _decoded_bound(self.state.chars + view.len))
            self.feed(&span)
        finally:
            PyBuffer_Release(&view)
        decoded = _cut(out, &span)
        _check(&self.state)
        return decoded

    def update_into(self, data, buffer) -> int:
        """`update` into `buffer`; ValueError, and nothing is taken, when it is too short."""
        cdef Py_buffer view, target
        cdef b64_span span
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(buffer, &target, PyBUF_WRITABLE)
            try:
                size = _decoded_bound(self.state.chars + view.len)
                _into_output(&span, &view, &target, size)
                self.feed(&span)
                _check(&self.state)
                return span.dst - <uint8_t *> target.buf
            finally:
                PyBuffer_Release(&target)
        finally:
            PyBuffer_Release(&view)

    def finish(self) -> bytes:
        """What the characters kept still give. The decoder then begins anew."""
        cdef uint8_t[3] rest
        cdef uint8_t *start = rest
        cdef b64_span span = b64_span(NULL, NULL, start, start + 3)
        cdef State state = self.state
        self.state = _begin(state.strict)
        _decode_all(&span, &state, True)
        _check(&state)
        return PyBytes_FromStringAndSize(<char *> start, span.dst - start)

    cdef void feed(self, b64_span *span) noexcept:
        # On a copy: whoever else calls this decoder while the GIL is away finds it whole.
        cdef State state = self.state
        _decode_whole(span, &state, False)
        self.state = state


cdef Py_ssize_t _decoded_bound(Py_ssize_t octets) noexcept nogil:
    return (octets + 3) // 4 * 3


cdef State _begin(bint strict) noexcept:
    return State(strict, False, 0, 0, 0, Error.NONE, 0)


cdef int _check(State *state) except -1:
    if state.error:
        raise ValueError(f"base64, octet {state.taken}: {REASONS[state.error]}")
    return 0


cdef void _decode_whole(b64_span *span, State *state, bint final) noexcept:
    if span.src_end - span.src < GIL_FLOOR:
        _decode_all(span, state, final)
    else:
        with nogil:
            _decode_all(span, state, final)


cdef void _decode_all(b64_span *span, State *state, bint final) noexcept nogil:
    cdef const uint8_t *start = span.src
    while span.src < span.src_end and not state.error and (state.strict or not state.ended):
        if not state.chars and not state.ended:
            KERNEL.decode(span, not state.strict)
        _decode_chars(span, state)
    state.taken += span.src - start
    if final and not state.error and not state.ended:
        _end(span, state)


cdef void _decode_chars(b64_span *span, State *state) noexcept nogil:
    """Character by character, until the kernel can go on."""
    cdef uint8_t value
    while span.src < span.src_end:
        value = B64_VALUES[span.src[0]]
        if value < B64_PAD:
            _take_value(span, state, value)
        elif value == B64_PAD:
            _take_pad(span, state)
        elif state.strict:
            state.error = Error.OUTSIDE
        if state.error:
            return
        span.src += 1
        if state.ended or (not state.chars and _letter_next(span)):
            return


cdef bint _letter_next(b64_span *span) noexcept nogil:
    return span.src < span.src_end and B64_VALUES[span.src[0]] < B64_PAD


cdef void _take_value(b64_span *span, State *state, uint8_t value) noexcept nogil:
    if state.strict and (state.ended or state.pads):
        state.error = Error.PADDING
        return
    state.pads = 0  # what looked like padding was junk
    state.bits = state.bits << 6 | value
    state.chars += 1
    if state.chars == 4:
        _write_group(span, state)


cdef void _take_pad(b64_span *span, State *state) noexcept nogil:
    if state.ended or state.chars < 2:
        if state.strict:
            state.error = Error.PADDING
        return
    state.pads += 1
    if state.chars + state.pads == 4:
        state.ended = True
        _write_group(span, state)


cdef void _write_group(b64_span *span, State *state) noexcept nogil:
    """Two characters give one octet, three give two, four give three (RFC 4648 4)."""
    cdef int i, missing = 4 - state.chars
    cdef uint32_t bits = state.bits << 6 * missing
    if state.strict and bits & ((1u << 8 * missing) - 1):
        state.error = Error.LOOSE_BITS  # RFC 4648 3.5
        return
    for i in range(3 - missing):
        span.dst[0] = <uint8_t> (bits >> 16 - 8 * i)
        span.dst += 1
    state.chars = 0
    state.bits = 0


cdef void _end(b64_span *span, State *state) noexcept nogil:
    if not state.chars:
        return
    if state.strict:
        state.error = Error.TRUNCATED
    elif state.chars > 1:
        _write_group(span, state)


# ---- buffers ----

cdef PyObject *_new_output(b64_span *span, Py_buffer *view, Py_ssize_t size) except NULL:
    cdef PyObject *out = new_bytes(size)
    _span_over(span, view, start_of(out), size)
    return out


cdef bytes _cut(PyObject *out, b64_span *span):
    return cut_bytes(out, span.dst - start_of(out))


cdef int _into_output(
    b64_span *span, Py_buffer *view, Py_buffer *target, Py_ssize_t size
) except -1:
    if target.len < size:
        raise ValueError(f"buffer of {target.len} octets, {size} needed")
    _span_over(span, view, <uint8_t *> target.buf, target.len)
    return 0


cdef void _span_over(b64_span *span, Py_buffer *view, uint8_t *dst, Py_ssize_t size) noexcept:
    span.src = <const uint8_t *> view.buf
    span.src_end = span.src + view.len
    span.dst = dst
    span.dst_end = dst + size
