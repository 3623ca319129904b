"""The readers of messages once more, in plain Python: slower, and written another way."""

import re
from dataclasses import dataclass, field

SPACE = b" \t\r\n"
FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")


# Header fields.


def lines_of(data: bytes, start: int, end: int) -> list[tuple[int, int]]:
    """Where each line begins and ends, its line end included."""
    result = []
    while start < end:
        stop = data.find(b"\n", start, end) + 1 or end
        result.append((start, stop))
        start = stop
    return result


def is_empty(line: bytes) -> bool:
    return line in (b"\n", b"\r\n")


def without_line_end(data: bytes, start: int, end: int) -> int:
    for line_end in (b"\r\n", b"\n"):
        if data[start:end].endswith(line_end):
            return end - len(line_end)
    return end


def ranges(data: bytes, start: int, end: int) -> list[tuple[int, int, int, int]]:
    end = min(end, len(data))
    found: list[list[int]] = []
    for at, stop in lines_of(data, start, end):
        if is_empty(data[at:stop]):
            break
        if found and data[at : at + 1] in (b" ", b"\t"):
            found[-1][3] = stop
            continue
        match = FIELD.match(data, at, stop)
        found.append([at, match.end(1), match.end(), stop] if match else [at, at, at, stop])
    return [(a, b, c, without_line_end(data, c, d)) for a, b, c, d in found]


def find(data: bytes, start: int, end: int, name: bytes) -> list[tuple[int, int]]:
    return [(c, d) for a, b, c, d in ranges(data, start, end) if data[a:b].lower() == name]


def end_of_header(data: bytes, start: int = 0) -> int:
    for at, stop in lines_of(data, start, len(data)):
        if is_empty(data[at:stop]):
            return at
    return max(start, len(data))


def unfold(data: bytes, start: int, end: int) -> bytes:
    return data[start:end].strip(SPACE).translate(None, b"\r\n")


# What structured fields are made of.


@dataclass
class Reader:
    data: bytes
    at: int = 0

    @property
    def next(self) -> bytes:
        return self.data[self.at : self.at + 1]

    def take(self, characters: bytes) -> bytes:
        """The octets from here on that are, each, one of those."""
        start = self.at
        while self.next and self.next in characters:
            self.at += 1
        return self.data[start : self.at]

    def take_until(self, characters: bytes) -> bytes:
        start = self.at
        while self.next and self.next not in characters:
            self.at += 1
        return self.data[start : self.at]

    def comment(self) -> bytes:
        start, depth = self.at, 0
        while self.next:
            if self.next == b"\\":
                self.at += 1
            elif self.next == b"(":
                depth += 1
            elif self.next == b")":
                depth -= 1
            self.at += 1
            if depth == 0:
                break
        self.at = min(self.at, len(self.data))
        return self.data[start : self.at]

    def cfws(self) -> None:
        while self.take(SPACE) or (self.next == b"(" and self.comment()):
            pass

    def quoted(self) -> bytes:
        """The content of the quoted-string at the quote before; reads the closing one too."""
        start = self.at
        while self.next and self.next != b'"':
            self.at += 2 if self.next == b"\\" and self.at + 1 < len(self.data) else 1
        content = self.data[start : self.at]
        self.at = min(self.at + 1, len(self.data))
        return content


def unquoted(content: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", content, flags=re.DOTALL).translate(None, b"\r\n")


ENDS_NAME = SPACE + b';="('
WORD_AHEAD = re.compile(rb'[^ \t\r\n;="(]*')


def parameters(value: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    reader = Reader(value)
    reader.cfws()
    main = reader.take_until(SPACE + b";(")
    pairs = []
    while True:
        reader.cfws()
        if not reader.next:
            return main, pairs
        start = reader.at
        name = reader.take_until(ENDS_NAME)
        reader.cfws()
        if not name or reader.next != b"=":
            if reader.at == start:
                reader.at += 1
            continue
        reader.at += 1
        reader.cfws()
        if reader.next == b'"':
            reader.at += 1
            pairs.append((name.lower(), unquoted(reader.quoted())))
        else:
            pairs.append((name.lower(), bare_value(reader)))


def bare_value(reader: Reader) -> bytes:
    start = last = reader.at
    while reader.next and reader.next != b";":
        if reader.next not in SPACE:
            reader.at += 1
            last = reader.at
            continue
        reader.take(SPACE)
        word = WORD_AHEAD.match(reader.data, reader.at)
        assert word
        behind = reader.data[word.end() : word.end() + 1]
        if reader.next == b"(" or (reader.next and behind == b"="):
            break
        if word[0]:
            reader.at = last = word.end()
    reader.at = last
    return reader.data[start:last]


def words(value: bytes) -> list[bytes]:
    reader, found = Reader(value), []
    while reader.take(SPACE) or reader.next:
        if not reader.next:
            break
        start = reader.at
        if reader.next == b"(":
            reader.comment()
        else:
            while reader.next and reader.next not in SPACE + b"(":
                quote = reader.next == b'"'
                reader.at += 1
                if quote:
                    reader.quoted()
        found.append(value[start : reader.at])
    return found


def bracketed(value: bytes) -> list[bytes]:
    reader, found = Reader(value), []
    while True:
        reader.cfws()
        if not reader.next:
            break
        reader.at += 1
        if value[reader.at - 1 : reader.at] != b"<":
            continue
        start = reader.at
        while reader.next and reader.next != b">":
            quote = reader.next == b'"'
            reader.at += 1
            if quote:
                reader.quoted()
        found.append(b"".join(value[start : reader.at].split()))
    return found or [value.strip()] * bool(value.strip())


# Dates.

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
ZONES = {"est": -5, "edt": -4, "cst": -6, "cdt": -5, "mst": -7, "mdt": -6, "pst": -8, "pdt": -7}
DATE = re.compile(
    r"\s*[a-z]*\s*[,.]*\s*(?P<day>\d{1,9}+)-*\s*(?P<month>[a-z]*)-*\s*(?P<year>\d{1,9}+)"
    r"\s*(?P<hour>\d{1,9})\s*:\s*(?P<minute>\d{1,9})\s*(?::\s*(?P<second>\d{0,9}))?"
    r"\s*(?P<zone>[+-]\s*\d{0,9}|[a-z]*)",
    re.ASCII | re.IGNORECASE,
)


def date_time(value: bytes) -> tuple[int, ...] | None:
    text = re.sub(r"[\x0b\x0c\x1c-\x1f]", "\0", without_comments(value).decode("latin-1"))
    found = DATE.match(text)
    if not found:
        return None
    day, month, year = found["day"], found["month"].lower()[:3], found["year"]
    if len(day) > 2 or month not in MONTHS or not 2 <= len(year) <= 4:
        return None
    number = int(year)
    if len(year) == 2:
        number += 2000 if number < 50 else 1900
    elif len(year) == 3:
        number += 1900
    clock = (int(found["hour"]), int(found["minute"]), int(found["second"] or 0))
    return (number, MONTHS.index(month) + 1, int(day), *clock, zone_offset(found["zone"]))


def zone_offset(zone: str) -> int:
    sign, digits = zone[:1], zone[1:].strip()
    if sign not in ("+", "-"):
        return 60 * ZONES.get(zone.lower(), 0)
    number = int(digits or 0) * (100 if len(digits) == 2 else 1)
    if len(digits) < 2 or number % 100 > 59 or number > 9959:
        return 0
    return (-1 if sign == "-" else 1) * (number // 100 * 60 + number % 100)


def without_comments(value: bytes) -> bytes:
    reader, kept = Reader(value), b""
    while reader.next:
        if reader.next == b"(":
            reader.comment()
            kept += b" "
        else:
            kept += reader.next
            reader.at += 1
    return kept


# The structure of a message.


@dataclass
class Part:
    start: int
    parent: "Part | None"
    depth: int
    kind: int = 0
    header_end: int = 0
    body: int = 0
    end: int = -1
    type: tuple[int, int] = (-1, -1)
    encoding: tuple[int, int] = (-1, -1)
    parts: list["Part"] = field(default_factory=list)


class Structure:
    """Line by line, with the boundaries that are open as a list of (boundary, part)."""

    def __init__(self, data: bytes, most_depth: int = 100, most_parts: int = 10_000) -> None:
        self.data, self.most_depth, self.most_parts = data, most_depth, most_parts
        self.open: list[tuple[bytes, Part]] = []
        self.cut = False
        self.parts: list[Part] = []
        self.current = self.begin(0, None)
        while self.step():
            pass
        self.close(None, len(data))

    def begin(self, at: int, parent: Part | None) -> Part:
        part = Part(at, parent, parent.depth + 1 if parent else 0)
        self.parts.append(part)
        self.fresh = True
        return part

    def step(self) -> bool:
        if self.fresh:
            self.fresh = False
            delimiter = self.header(self.current)
            if delimiter is None:
                self.at = self.current.body
                self.enter(self.current)
                return True
        else:
            delimiter = next(
                (
                    at
                    for at, _ in lines_of(self.data, self.at, len(self.data))
                    if self.level(at) >= 0
                ),
                None,
            )
            if delimiter is None or not self.open:
                return False
        self.delimiter(delimiter)
        return True

    def level(self, at: int, own: bytes = b"") -> int:
        """The open boundary that the line begins with; the longest, then the innermost."""
        if self.data[at : at + 2] != b"--":
            return -1
        names = [name for name, _ in self.open] + ([own] if own else [])
        fitting = [
            (len(name), index)
            for index, name in enumerate(names)
            if self.data.startswith(name, at + 2)
        ]
        return max(fitting)[1] if fitting else -1

    def header(self, part: Part) -> int | None:
        """Read it; where a delimiter of another part ended it, or None."""
        at, any_field = part.start, False
        while True:
            stop = self.data.find(b"\n", at) + 1 or len(self.data)
            level = self.level(at, self.boundary(part))
            if level >= 0 or at >= len(self.data) or is_empty(self.data[at:stop]):
                break
            ((name, name_end, value, value_end),) = ranges(self.data, at, len(self.data))[:1]
            any_field = any_field or name_end > name
            if self.data[name:name_end].lower() == b"content-type":
                part.type = value, value_end
            if self.data[name:name_end].lower() == b"content-transfer-encoding":
                part.encoding = value, value_end
            at = self.data.find(b"\n", value_end) + 1 or len(self.data)
        part.header_end = part.body = at
        if level < 0 and at < len(self.data):
            part.body = stop
        elif not any_field:
            part.header_end = part.body = part.start
        return at if 0 <= level < len(self.open) else None

    def media_type(self, part: Part) -> bytes:
        reader = Reader(self.data[slice(*part.type)])
        reader.cfws()
        return reader.data[reader.at :].lower()

    def declared(self, part: Part) -> int:
        if part.type[0] < 0:
            is_digest = part.parent and self.media_type(part.parent).startswith(b"multipart/digest")
            return 2 if is_digest and part.parent and self.declared(part.parent) == 1 else 0
        media = self.media_type(part)
        if media.startswith(b"multipart/"):
            return 1
        if media.startswith(b"message/global-"):
            return 0
        return 2 if media.startswith((b"message/rfc822", b"message/global")) else 0

    def boundary(self, part: Part) -> bytes:
        if self.declared(part) != 1 or part.depth >= self.most_depth:
            return b""
        value = self.data[slice(*part.type)]
        main = re.match(rb"[^; \t\n]*", value)
        assert main
        for name, content in raw_parameters(value[main.end() :]):
            if name == b"boundary":
                return b"" if set(content) & set(b"\r\n") else content
        return b""

    def enter(self, part: Part) -> None:
        kind = self.declared(part)
        if part.depth >= self.most_depth:
            self.cut = self.cut or kind > 0
        elif kind == 1 and self.boundary(part):
            self.open.append((self.boundary(part), part))
        elif kind == 2 and not self.is_encoded(part):
            if len(self.parts) >= self.most_parts:
                self.cut = True
            else:
                part.kind = 2
                self.current = self.begin(part.body, part)

    def is_encoded(self, part: Part) -> bool:
        reader = Reader(self.data[slice(*part.encoding)] if part.encoding[0] >= 0 else b"")
        reader.cfws()
        word = reader.take_until(bytes(range(33)) + b"(;").lower()
        return word in (b"base64", b"quoted-printable")

    def close(self, ancestor: Part | None, end: int) -> None:
        part: Part | None = self.current
        while part is not ancestor:
            assert part
            part.end = max(end, part.body) if part.end < 0 else part.end
            part = part.parent

    def delimiter(self, at: int) -> None:
        level = self.level(at)
        name, multipart = self.open[level]
        self.at = self.data.find(b"\n", at) + 1 or len(self.data)
        self.close(multipart, without_line_end(self.data, self.current.body, at))
        self.current = multipart
        closing = self.data.startswith(b"--", at + 2 + len(name))
        self.open = self.open[: level + (not closing)]
        if closing or self.at >= len(self.data):
            return
        if len(self.parts) >= self.most_parts:
            self.cut = True
            self.open = []
            return
        multipart.kind = 1
        self.current = self.begin(self.at, multipart)


def raw_parameters(value: bytes) -> list[tuple[bytes, bytes]]:
    """Like `parameters`, but with the line ends in quoted values, and trimmed at their ends."""
    reader, pairs = Reader(b"x;" + value, 1), []
    while True:
        reader.cfws()
        if not reader.next:
            return pairs
        start = reader.at
        name = reader.take_until(ENDS_NAME)
        reader.cfws()
        if not name or reader.next != b"=":
            reader.at += reader.at == start
            continue
        reader.at += 1
        reader.cfws()
        if reader.next == b'"':
            reader.at += 1
            content = reader.quoted()
            escaped = rb"\1"
            trimmed = content.rstrip(b" \t") if not set(content) & set(b"\r\n") else content
            pairs.append((name.lower(), re.sub(rb"\\(.)", escaped, trimmed, flags=re.DOTALL)))
        else:
            pairs.append((name.lower(), bare_value(reader).rstrip(b" \t")))


def structure(data: bytes, most_depth: int = 100, most_parts: int = 10_000) -> tuple[list, bool]:
    found = Structure(data, most_depth, most_parts)
    rows = [
        (p.kind, p.start, p.header_end, p.body, p.end, *p.type, *p.encoding) for p in found.parts
    ]
    return rows, found.cut


def octet_counts(data: bytes) -> tuple[int, int, int]:
    high = sum(octet > 127 for octet in data)
    alone = len(re.findall(rb"\0|\r(?!\n)|(?<!\r)\n", data))
    lines = (
        data[at : without_line_end(data, at, stop)] for at, stop in lines_of(data, 0, len(data))
    )
    return high, alone, max(map(len, lines), default=0)
