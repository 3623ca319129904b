"""Messages in an mbox file (RFC 4155, and what programs do that RFC 4155 does not allow).

A message begins with a line "From ", at the start of the file or behind an empty line, that tells
a time. How a line of the message that looks like that is written is the dialect:

    mboxrd   ">" before it, and before those that have one or more of them already: no loss
    mboxo    ">" before it: one that had it already cannot be told from it
    mboxcl   as mboxo, and Content-Length tells the octets of the body
    mboxcl2  as it is: only Content-Length tells where the message ends
"""

import re
from calendar import timegm
from collections.abc import Callable, Iterator
from time import asctime, gmtime
from typing import NamedTuple

DIALECTS = ("mboxrd", "mboxo", "mboxcl", "mboxcl2")
LONGEST = 256 << 20  # octets of a message

_BLOCK = 1 << 20
_LONGEST_LINE = 4096  # of a "From " line
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_LINE = re.compile(rb"From [^\r\n]*\d\d:\d\d[^\r\n]*\r?\n")
_FIRST = re.compile(rb"(?:\r?\n)*" + _LINE.pattern)
_BEHIND = re.compile(rb"(?:\r?\n)*(?=" + _LINE.pattern + rb"|\Z)")
_TIME = re.compile(
    rb"(%s) +(\d{1,2}) +(\d\d):(\d\d)(?::(\d\d))?(?: +[A-Za-z]\S*)?"
    rb" +(\d{4})(?: +([+-])(\d\d)(\d\d))?" % "|".join(_MONTHS).encode()
)
_HEADER_END = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,12})[ \t]*\r?$", re.I | re.M)
_OWN = re.compile(
    rb"^(status|x-status|x-keywords|content-length):([^\n]*(?:\n[ \t][^\n]*)*)\n", re.I | re.M
)
_QUOTED = {
    "mboxrd": re.compile(rb"^>(?=>*From )", re.M),
    "mboxo": re.compile(rb"^>(?=From )", re.M),
    "mboxcl": re.compile(rb"^>(?=From )", re.M),
}
_TO_QUOTE = re.compile(rb"^(?=>*From )", re.M)
# Letters of Status and X-Status, and the bits of the flags that they tell.
_SEEN = 1
_LETTERS = {b"A": 2, b"F": 4, b"D": 8, b"T": 16}


class Broken(Exception):
    """This is no mbox file, or a message in it is too long."""


class Piece(NamedTuple):
    """One message as it stands in the file."""

    line: bytes  # the "From " line
    text: bytes
    end: int  # offset in the file behind it


class Mail(NamedTuple):
    """What a piece says."""

    octets: bytes  # with CRLF
    date: float | None  # seconds since the epoch, as its "From " line has it
    flags: int  # 1 seen, 2 answered, 4 flagged, 8 deleted, 16 draft
    keywords: tuple[str, ...]


class _Window:
    """What is in memory of a file: `data` begins at the offset `start`."""

    def __init__(self, read: Callable[[int], bytes], start: int) -> None:
        self.read, self.start = read, start
        self.data = b""
        self.is_end = False

    def grow(self) -> None:
        block = self.read(max(_BLOCK, len(self.data)))
        self.is_end = not block
        self.data += block

    def drop(self, octets: int) -> None:
        self.data = self.data[octets:]
        self.start += octets


def split(read: Callable[[int], bytes], start: int, dialect: str) -> Iterator[Piece]:
    """The messages of a file from an offset on, where one begins or the last one ended.

    `read` gives so many octets or fewer, b"" at the end. Broken where there is no message.
    Memory is three times that of the longest message.
    """
    window, at = _Window(read, start), 0
    while True:
        if at > _BLOCK:
            window.drop(at)
            at = 0
        while not (found := _FIRST.match(window.data, at)):
            if window.is_end or len(window.data) - at > _LONGEST_LINE:
                if window.data[at : at + _LONGEST_LINE].strip():
                    raise Broken(
                        f'there is no line "From " with a time at octet {window.start + at}'
                    )
                return
            window.grow()
        stop, after = _end_of(window, found.end(), dialect)
        text = window.data[found.end() : stop]
        at = after
        yield Piece(found.group().lstrip(b"\r\n"), text, window.start + at)


def _end_of(window: _Window, start: int, dialect: str) -> tuple[int, int]:
    """Where the message that begins at `start` ends, and where to go on."""
    if dialect in ("mboxcl", "mboxcl2") and (stop := _told_end(window, start)) >= 0:
        return stop, stop
    at = start
    while True:
        at = window.data.find(b"\nFrom ", at)
        if 0 <= at < len(window.data) - _LONGEST_LINE or (at >= 0 and window.is_end):
            stop = _line_start(window.data, at)
            if stop >= start and _LINE.match(window.data, at + 1):
                return stop, at + 1
            at += 1
            continue
        if window.is_end:
            return _without_last_line(window.data, start), len(window.data)
        if len(window.data) - start > LONGEST:
            raise Broken(f"the message at octet {window.start + start} is longer than {LONGEST}")
        at = at if at >= 0 else max(start, len(window.data) - len(b"\nFrom "))
        window.grow()


def _line_start(data: bytes, at: int) -> int:
    """Where the empty line begins that ends at `at`; -1 if what ends there is not empty."""
    if data[at - 1 : at] == b"\n":
        return at
    return at - 1 if data[at - 2 : at] == b"\n\r" else -1


def _told_end(window: _Window, start: int) -> int:
    """Where Content-Length says that it ends, if a message or nothing follows there; else -1."""
    while not (header := _HEADER_END.search(window.data, start)) and not window.is_end:
        window.grow()
    length = _LENGTH.search(window.data, start, header.start() + 1) if header else None
    if header is None or length is None:
        return -1
    stop = header.end() + int(length[1])
    while len(window.data) < stop + _LONGEST_LINE and not window.is_end:
        if stop - start > LONGEST:
            return -1
        window.grow()
    is_good = stop <= len(window.data) and _BEHIND.match(window.data, stop)
    return stop if is_good else -1


def _without_last_line(data: bytes, start: int) -> int:
    """The end, without the empty line that writers put behind a message."""
    for ending in (b"\r\n\r\n", b"\n\n"):
        if data.endswith(ending, start):
            return len(data) - len(ending) // 2
    return len(data)


def parse(piece: Piece, dialect: str) -> Mail:
    """A message as it was before it was written into the file.

    The fields in which mail readers keep its state there are taken out of it.
    """
    text = piece.text.replace(b"\r\n", b"\n") if b"\r" in piece.text else piece.text
    header, body = _cut(text)
    header, own = _without_own(header)
    if dialect in _QUOTED and b"\n>" in body:
        body = _QUOTED[dialect].sub(b"", body)
    states = own.get(b"x-status", b"")
    flags = sum(bit for letter, bit in _LETTERS.items() if letter in states)
    flags |= _SEEN if b"R" in own.get(b"status", b"") else 0
    keywords = own.get(b"x-keywords", b"").decode("utf-8", "replace").split()
    return Mail(with_crlf(header + body), time_of(piece.line), flags, tuple(keywords))


def _without_own(header: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """The last of each: programs add theirs behind those that the author has written."""
    last = {found[1].lower(): found for found in _OWN.finditer(header)}
    for found in sorted(last.values(), key=re.Match.start, reverse=True):
        header = header[: found.start()] + header[found.end() :]
    return header, {name: found[2] for name, found in last.items()}


def with_crlf(text: bytes) -> bytes:
    """Lines that end in LF or CRLF as SMTP has them."""
    return (text.replace(b"\r\n", b"\n") if b"\r" in text else text).replace(b"\n", b"\r\n")


def _cut(text: bytes) -> tuple[bytes, bytes]:
    """The header section, and the rest from its empty line on."""
    end = 0 if text.startswith(b"\n") else text.find(b"\n\n") + 1
    if end == 0 and not text.startswith(b"\n"):
        end = len(text)
    return text[:end], text[end:]


def time_of(line: bytes) -> float | None:
    """The time of a "From " line, in seconds since the epoch; UTC where it names no zone.

    None where it tells none.
    """
    found = _TIME.search(line)
    if found is None:
        return None
    month, day, hour, minute, second, year, sign, hours, minutes = found.groups()
    date = (int(year), _MONTHS.index(month.decode()) + 1, int(day))
    try:
        when = timegm((*date, int(hour), int(minute), int(second or 0)))
    except ValueError:  # there is no such year
        return None
    offset = (int(hours) * 60 + int(minutes)) * 60 if sign else 0
    return float(when + offset if sign == b"-" else when - offset)


def write(mail: Mail, sender: str) -> bytes:
    """A message as mboxrd has it, with its "From " line and the empty line behind it."""
    stamp = asctime(gmtime(mail.date or 0.0))  # its names are English in any locale
    header, body = _cut(mail.octets.replace(b"\r\n", b"\n"))
    if header and not header.endswith(b"\n"):
        header += b"\n"
    body = _TO_QUOTE.sub(b">", body)
    text = header + _own_fields(mail, header, len(body)) + body
    ending = b"\n" if text.endswith(b"\n") else b"\n\n"
    return f"From {sender or 'MAILER-DAEMON'} {stamp}\n".encode() + text + ending


def _own_fields(mail: Mail, header: bytes, octets: int) -> bytes:
    """What mail readers keep of its state, and what `parse` would take for it otherwise."""
    theirs = {found[1].lower() for found in _OWN.finditer(header)}
    fields = b"Status: %sO\n" % (b"R" if mail.flags & _SEEN else b"")
    letters = b"".join(letter for letter, bit in _LETTERS.items() if mail.flags & bit)
    if letters or b"x-status" in theirs:
        fields += b"X-Status: %s\n" % letters
    if mail.keywords or b"x-keywords" in theirs:
        fields += b"X-Keywords: %s\n" % " ".join(mail.keywords).encode()
    if b"content-length" in theirs:
        fields += b"Content-Length: %d\n" % max(0, octets - 1)
    return fields
