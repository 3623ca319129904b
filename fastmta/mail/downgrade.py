"""A message with 8-bit parts made fit for a host without 8BITMIME (RFC 6152 section 3).

Only parts that hold octets above 127 change. Header fields are left as they are: they ask for
SMTPUTF8, not for 8BITMIME. What may not be changed is not: a multipart/signed is opaque while it
is in transit, its transfer encodings included, and was to be made of seven bits by who signed it
(RFC 1847 section 2.1). So one of seven bits passes with its signature, and for one of eight only
the other way of RFC 6152 section 3 is left, which is to return the message.
"""

from bisect import bisect_left
from codecs import getincrementaldecoder
from collections.abc import Iterator

from fastmta._core import quopri
from fastmta._core.body import octet_counts, slice_of
from fastmta._core.headers import Ranges
from fastmta._core.mime import MESSAGE
from fastmta.mail import transfer
from fastmta.mail.message import Part, parse
from fastmta.mail.transfer import Encoding

_HIGH = bytes(range(128, 256))
_MASK = bytes.maketrans(_HIGH, b"?" * len(_HIGH))
_LONG = 16 << 10  # octets; what is longer is not copied under the GIL
_BLOCK = 1 << 20
_ENCODING, _TYPE = b"content-transfer-encoding", b"content-type"


class Unconvertible(ValueError):
    """The message cannot be had in seven bits without harm; the text says why."""


class _Edits:
    """Replacements in a message, given in the order of their places.

    Short pieces are run together, to save memory; long ones are not copied until the end, where
    other threads may run meanwhile.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._done: list[bytes] = []
        self._short = bytearray()

    def replace(self, start: int, end: int, content: bytes) -> None:
        self._add(slice_of(self._data, self._at, start))
        self._add(content)
        self._at = end

    def result(self) -> bytes:
        self._add(slice_of(self._data, self._at, len(self._data)))
        return b"".join([*self._done, bytes(self._short)])

    def _add(self, piece: bytes) -> None:
        if len(piece) < _LONG:
            self._short += piece
            return
        self._done += (bytes(self._short), piece)
        self._short.clear()


def to_seven_bit(data: bytes) -> bytes:
    """The same message without octets above 127 in any body; the same object if it had none.

    Raises Unconvertible.
    """
    if data.isascii():
        return data
    converted = _convert(data)
    return converted if converted.isascii() else _mask_gaps(converted)


def _convert(data: bytes) -> bytes:
    edits = _Edits(data)
    root = parse(data)
    if root.cut:
        raise Unconvertible("it has more parts, or deeper ones, than are looked into")
    parts = root.walk()
    changing = [part.start for part, whole in _outline(parts) if whole and _is_high(part)]
    messages = {root.start, *(part.body_start for part in parts if part.kind == MESSAGE)}
    for part, whole in _outline(parts):
        first = bisect_left(changing, part.start)
        if first == len(changing) or changing[first] >= part.end:
            continue
        if whole:
            _convert_whole(edits, part, part.start in messages)
        else:
            _rewrite_header(edits, part, {_ENCODING}, _encoding_field(Encoding.SEVEN_BIT))
    return edits.result()


def _outline(parts: list[Part]) -> Iterator[tuple[Part, bool]]:
    """Each part that may change, and whether as a whole: then those inside of it are left out."""
    passed = 0
    for part in parts:
        if part.start < passed:
            continue
        whole = not part.parts or _is_opaque(part)
        passed = part.end if whole else passed
        yield part, whole


def _is_opaque(part: Part) -> bool:
    """Whether a part that has parts is none of our business inside; raises Unconvertible."""
    kind = str(part.content_type)
    if kind == "multipart/signed" and _is_high(part):
        raise Unconvertible("it is signed as 8-bit content")
    if part.is_multipart and not part.data[part.type_start : part.type_end].isascii():
        raise Unconvertible("the boundary of a multipart may be beyond ASCII")
    # RFC 6532 section 3.7: a message/global may be encoded, and its header fields need it.
    return kind in ("multipart/signed", "message/global")


def _is_high(part: Part) -> bool:
    return octet_counts(part.data, part.body_start, part.end)[0] > 0


def _convert_whole(edits: _Edits, part: Part, is_message: bool) -> None:
    body, encoding = part.decode(), part.encoding
    if encoding == Encoding.BASE64:
        # RFC 2045 section 6.8: octets outside of the alphabet mean nothing.
        kept = _without_high(part.data, part.body_start, part.end)
        edits.replace(part.body_start, part.end, kept)
        return
    if encoding == Encoding.QUOTED_PRINTABLE:
        edits.replace(part.body_start, part.end, quopri.encode(body))
        return
    chosen = transfer.choose(body, eight_bit=False)
    # RFC 2045 section 6.4: no encoding for a multipart; one without parts is but text.
    untyped = part.type_start < 0 or part.content_type.type == "multipart"
    fields = _missing_fields(part, body, is_message, untyped) + _encoding_field(chosen)
    _rewrite_header(edits, part, {_ENCODING, _TYPE} if untyped else {_ENCODING}, fields)
    edits.replace(part.body_start, part.end, transfer.encode(body, chosen))


def _missing_fields(part: Part, body: bytes, is_message: bool, untyped: bool) -> bytes:
    """What a message without MIME lacks for its encoding to be understood (RFC 2045 section 4)."""
    fields = b""
    if is_message and "MIME-Version" not in part.headers:
        fields += b"MIME-Version: 1.0\r\n"
    if untyped:
        fields += b"Content-Type: text/plain; charset=" + _charset(body) + b"\r\n"
    return fields


def _charset(body: bytes) -> bytes:
    """RFC 1428 section 3: text of an unknown charset is named so; UTF-8 shows itself."""
    decoder = getincrementaldecoder("utf-8")()
    try:
        for block in _blocks(body, 0, len(body)):
            decoder.decode(block)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return b"unknown-8bit"
    return b"utf-8"


def _rewrite_header(edits: _Edits, part: Part, dropped: set[bytes], fields: bytes) -> None:
    """Take fields out by their names, and put others in at the end."""
    for name, name_end, _, value_end in Ranges(part.data, part.start, part.header_end):
        if part.data[name:name_end].lower() in dropped:
            line = part.data.find(b"\n", value_end, part.header_end)
            edits.replace(name, line + 1 if line >= 0 else value_end, b"")
    # A part without an empty line was all body: it gets one.
    empty_line = b"" if part.body_start > part.header_end else b"\r\n"
    edits.replace(part.header_end, part.header_end, fields + empty_line)


def _encoding_field(encoding: Encoding) -> bytes:
    return b"Content-Transfer-Encoding: " + encoding.encode() + b"\r\n"


def _mask_gaps(data: bytes) -> bytes:
    """Preambles and epilogues, which nobody is meant to read (RFC 2046 section 5.1.1)."""
    edits = _Edits(data)
    root = parse(data)
    at = root.body_start
    for part in root.walk()[1:]:
        edits.replace(at, max(part.start, at), _masked(data, at, part.start))
        at = part.body_start if part.parts else part.end
    if root.parts:
        edits.replace(at, root.end, _masked(data, at, root.end))
    return edits.result()


def _masked(data: bytes, start: int, end: int) -> bytes:
    return b"".join(block.translate(_MASK) for block in _blocks(data, start, end))


def _without_high(data: bytes, start: int, end: int) -> bytes:
    return b"".join(block.translate(None, _HIGH) for block in _blocks(data, start, end))


def _blocks(data: bytes, start: int, end: int) -> Iterator[bytes]:
    """Of a size between which other threads may run."""
    for at in range(start, end, _BLOCK):
        yield data[at : min(at + _BLOCK, end)]
