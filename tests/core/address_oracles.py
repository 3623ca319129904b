"""The readers of addresses once more, in plain Python, with lists of words and regexes."""

import re
from dataclasses import dataclass, field

from tests.core.message_oracles import SPACE, Reader, unquoted

ENCODED_WORD = re.compile(rb"=\?[^\x00-\x20?]*\?[^\x00-\x20?]*\?[^\x00-\x20?]*\?=")
ATOM = re.compile(rb'[^ \t\r\n<>@,;:"(]*')


@dataclass
class Words:
    """Words that may become a local-part or domain: joined where a dot or nothing is between."""

    words: list[bytes] = field(default_factory=list)  # b"\n" stands for a gap at a dot

    def phrase(self) -> bytes:
        return b"".join(self.words).replace(b"\n", b" ")

    def joined(self) -> bytes:
        return b"".join(self.words).replace(b"\n", b"")


class Element:
    def __init__(self, reader: Reader, in_group: bool) -> None:
        self.reader, self.in_group = reader, in_group
        self.phrase = b""
        self.word, self.domain = Words(), Words()
        self.comment = b""
        self.in_angle = self.had_angle = self.at_sign = self.gap = self.done = False
        self.stop = b""
        while self.reader.next and not self.stop:
            self.step()
        if not self.at_sign and not self.had_angle:
            self.flush()

    def text(self) -> bytes:
        return self.phrase or self.comment

    def flush(self) -> None:
        if self.word.phrase():
            self.phrase += b" " * bool(self.phrase) + self.word.phrase()
        self.word = Words()

    def add(self, content: bytes, dot: bool = False) -> None:
        gap, self.gap = self.gap, False
        words = self.domain if self.at_sign else self.word
        text = b"".join(words.words)
        if not self.done and gap and text and not dot and not text.endswith(b"."):
            if not self.at_sign:
                self.flush()
                words = self.word
            else:
                self.done = True
        elif not self.done and gap and text and not self.at_sign:
            words.words.append(b"\n")
        if self.done:
            self.phrase += b" " * bool(self.phrase) + content
        else:
            words.words.append(content)

    def step(self) -> None:
        reader, c = self.reader, self.reader.next
        if reader.take(SPACE):
            self.gap = True
        elif c == b"(":
            comment = reader.comment()
            closed = is_closed(comment)
            self.comment = unquoted(comment[1:-1] if closed else comment[1:])
            self.gap = True
        elif c == b'"':
            reader.at += 1
            self.add(unquoted(reader.quoted()))
        elif c == b"[" and self.at_sign and not b"".join(self.domain.words):
            literal = reader.take_until(b"]") + reader.next
            reader.at = min(reader.at + 1, len(reader.data))
            self.domain.words = [literal.translate(None, SPACE)]
        elif c in b",;:<>@" and not self.is_text(c):
            reader.at += 1
            self.special(c)
        else:
            start = reader.at
            encoded = ENCODED_WORD.match(reader.data, start)
            match = ATOM.match(reader.data, encoded.end() if encoded else start)
            assert match
            reader.at = max(match.end(), start + 1)
            self.add(reader.data[start : reader.at], c == b".")

    def is_text(self, c: bytes) -> bool:
        return c == b"@" and self.done and self.had_angle != self.in_angle

    def special(self, c: bytes) -> None:
        route = self.in_angle and self.at_sign and not self.word.joined()
        if c == b"<":
            if self.at_sign and not self.in_angle:
                self.word.words += [b"@", *self.domain.words]
            self.flush()
            self.domain = Words()
            self.in_angle = self.had_angle = True
            self.at_sign = self.done = self.gap = False
        elif c == b">":
            self.in_angle, self.done, self.gap = False, self.had_angle, True
        elif c == b"@":
            if self.at_sign and self.word.joined():
                self.word.words += [b"@", *self.domain.words]
            self.word.words = [self.word.joined()]
            self.domain = Words()
            self.at_sign, self.done, self.gap = True, False, False
        elif (
            c == b";"
            or (c == b"," and not route)
            or (c == b":" and not (self.in_group or self.in_angle or self.at_sign))
        ):
            self.stop = c
        else:
            if route:
                self.domain, self.at_sign = Words(), False
            self.gap = True

    def is_empty(self) -> bool:
        local, domain = self.word.joined(), self.domain.joined()
        return not (self.text() or local or domain or self.had_angle)


def is_closed(comment: bytes) -> bool:
    depth, at = 0, 0
    while at < len(comment):
        if comment[at : at + 1] == b"\\":
            at += 1
        elif comment[at : at + 1] == b"(":
            depth += 1
        elif comment[at : at + 1] == b")":
            depth -= 1
        at += 1
    return depth == 0 and at == len(comment)


def as_text(octets: bytes) -> str:
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("latin-1")


def address_list(value: bytes) -> list:
    reader, result, members = Reader(value), [], None
    while reader.next:
        element = Element(reader, members is not None)
        if element.stop == b":":
            members = []
            result.append((as_text(element.text()), members))
            continue
        if not element.is_empty():
            entry = tuple(
                map(as_text, (element.text(), element.word.joined(), element.domain.joined()))
            )
            (result if members is None else members).append(entry)
        if element.stop == b";":
            members = None
    return result


# Which rules an addr-spec follows: cut into tokens first, then judged by their order.

VALID, RFC5321, CFWS, DEPRECATED, RFC5322, INVALID = range(6)
CONTROL = rb"\x01-\x08\x0b\x0c\x0e-\x1f\x7f"
FWS = re.compile(rb"(?:(?:\r\n)?[ \t])+")


class Broken(Exception):
    pass


def classify(address: bytes, utf8: bool = False) -> int:
    try:
        tokens, level = tokenize(address, b"\x80-\xff" if utf8 else b"")
        return max([level, *judge(tokens)])
    except Broken:
        return INVALID


def tokenize(address: bytes, high: bytes) -> tuple[list[tuple[str, bytes]], int]:
    """Each token with its kind, and what their insides ask for."""
    pair = rb"\\[\x00-\x7f" + high + rb"]"
    inside = rb"|" + pair + rb"|(?:\r\n)?[ \t]"
    kinds = {
        "space": FWS.pattern,
        "quoted": rb'"(?:[!#-\[\]-~' + CONTROL + high + rb"]" + inside + rb')*"',
        "literal": rb"\[(?:[!-Z^-~" + CONTROL + high + rb"]" + inside + rb")*\]",
        "atom": rb"[!#$%&'*+\-/0-9=?A-Z^_`a-z{|}~" + high + rb"]+",
        "dot": rb"\.",
        "at": rb"@",
        "open": rb"\((?:[!-'*-\[\]-~" + CONTROL + high + rb"]" + inside + rb")*",
        "close": rb"\)(?:[!-'*-\[\]-~" + CONTROL + high + rb"]" + inside + rb")*",
    }
    token = re.compile(b"|".join(b"(?P<%b>%b)" % (k.encode(), v) for k, v in kinds.items()))
    tokens: list[tuple[str, bytes]] = []
    at = depth = level = 0
    while at < len(address):
        if depth:
            # Within a comment, only its own kind of text goes on.
            found = re.compile(kinds["open"] + b"|" + kinds["close"]).match(address, at)
            kind = "comment"
        else:
            found = token.match(address, at)
            kind = found.lastgroup if found else ""
        if not found or kind == "close":
            raise Broken
        text = found[0]
        if kind in ("open", "comment"):
            depth += 1 if text[:1] == b"(" else -1
            end = at + (1 if depth == 0 else len(text))
            text, kind = address[at:end], "comment"
        at += len(text)
        level = max(level, obsolescence(kind, text))
        tokens.append((kind, text))
    if depth:
        raise Broken
    return tokens, level


def obsolescence(kind: str, text: bytes) -> int:
    """What the inside of a token asks for."""
    level = VALID
    if kind in ("quoted", "literal", "comment", "space"):
        bare = re.sub(
            rb"\\.", lambda pair: b"\\" + b"?" * (pair[0][1] not in b"\t"), text, flags=re.S
        )
        pairs = re.findall(rb"\\(.)", text, flags=re.S)
        obsolete = [pair for pair in pairs if (pair < b" " and pair != b"\t") or pair == b"\x7f"]
        if obsolete or re.search(rb"[" + CONTROL + rb"]", bare):
            level = DEPRECATED
        for space in FWS.findall(bare):
            if kind != "quoted" or space.strip(b" "):
                level = max(level, space_level(space))
    return level


def space_level(space: bytes) -> int:
    return DEPRECATED if space.count(b"\r\n") > 1 else CFWS


def judge(tokens: list[tuple[str, bytes]]) -> list[int]:
    kinds = [kind for kind, _ in tokens]
    if "at" not in kinds:
        raise Broken
    cut = kinds.index("at")
    local, domain = tokens[:cut], tokens[cut + 1 :]
    return [*judge_spaces(local, domain), *judge_local(local), *judge_domain(local, domain)]


def is_space(token: tuple[str, bytes]) -> bool:
    return token[0] in ("space", "comment")


def judge_spaces(local: list, domain: list) -> list[int]:
    """White space is fit at both ends of the whole; elsewhere it is obsolete."""
    levels = []
    while local and is_space(local[0]):
        del local[0]
        levels.append(CFWS)
    while domain and is_space(domain[-1]):
        del domain[-1]
        levels.append(CFWS)
    if any(map(is_space, local + domain)):
        levels.append(DEPRECATED)
    return levels


def without_spaces(tokens: list, words: set[str]) -> list[bytes]:
    """Words with dots between them, and nothing else but white space at their sides."""
    kept = [token for token in tokens if not is_space(token)]
    if len(kept) % 2 == 0:
        raise Broken
    for index, (kind, _) in enumerate(kept):
        if kind != "dot" if index % 2 else kind not in words:
            raise Broken
    return [text for _, text in kept]


def judge_local(local: list) -> list[int]:
    texts = without_spaces(local, {"atom", "quoted"})
    levels = [RFC5322] if sum(map(len, texts)) > 64 else []
    if any(text.startswith(b'"') for text in texts):
        levels.append(RFC5321 if len(texts) == 1 else DEPRECATED)
    return levels


def judge_domain(local: list, domain: list) -> list[int]:
    first = next((kind for kind, _ in domain if kind not in ("space", "comment")), "")
    texts = without_spaces(domain, {"literal"} if first == "literal" else {"atom"})
    if first == "literal":
        if len(texts) > 1:
            raise Broken
        levels = [literal_level(texts[0][1:-1])]
    else:
        levels = [label_level(label) for label in texts[::2]]
        if len(texts) == 1 or texts[-1][:1].isdigit():
            levels.append(RFC5321)
    length = sum(map(len, texts))
    whole = length + 1 + sum(len(text) for kind, text in local if kind not in ("space", "comment"))
    return [*levels, RFC5322] if length > 255 or whole > 254 else levels


def label_level(label: bytes) -> int:
    if label.startswith(b"-") or label.endswith(b"-"):
        raise Broken
    plain = re.fullmatch(rb"[0-9A-Za-z\x80-\xff-]+", label)
    return VALID if plain and len(label) <= 63 else RFC5322


def literal_level(content: bytes) -> int:
    if is_ipv4(content):
        return RFC5321
    return ipv6_level(content[5:]) if content[:5].lower() == b"ipv6:" else RFC5322


def is_ipv4(text: bytes) -> bool:
    numbers = text.split(b".")
    return len(numbers) == 4 and all(re.fullmatch(rb"\d{1,3}", n) and int(n) < 256 for n in numbers)


def ipv6_level(text: bytes) -> int:
    head, elided, tail = text.partition(b"::")
    groups = []
    for side in (head, tail):
        groups += side.split(b":") if side else []
    if groups and b"." in groups[-1] and (tail or not elided) and is_ipv4(groups[-1]):
        groups[-1:] = [b"0", b"0"]
    if not all(re.fullmatch(rb"[0-9A-Fa-f]{1,4}", group) for group in groups):
        return RFC5322
    if not elided:
        return RFC5321 if len(groups) == 8 else RFC5322
    return RFC5321 if len(groups) <= 6 else DEPRECATED if len(groups) == 7 else RFC5322
