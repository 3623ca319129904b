"""What goes over SMTP's wire, in plain Python from the ABNF: lines, content, paths, replies."""

import re
from ipaddress import IPv4Address, IPv6Address

END = b"\r\n.\r\n"


class BadLine:
    """In place of a line that is none."""


class BareFeed(BadLine):
    """Its LF stands alone."""


class TooLong(BadLine):
    """It is dropped up to its CRLF."""


Line = bytes | type[BadLine]


def first_line(data: bytes, limit: int) -> tuple[Line, bytes] | None:
    """A line of at most `limit` octets with its CRLF, and what is behind it; None: more is to come.

    What is too long is told as soon as that is sure, so how it came does not matter.
    """
    feed = data.find(b"\n")
    if (feed if feed >= 0 else len(data)) > limit:
        return TooLong, data
    if feed < 0:
        return None
    if not data[:feed].endswith(b"\r"):
        return BareFeed, data[feed + 1 :]
    return (TooLong, data) if feed == limit else (data[: feed - 1], data[feed + 1 :])


def lines_of(data: bytes, limit: int) -> list[Line]:
    """All lines of a whole."""
    found = []
    while (line := first_line(data, limit)) is not None:
        found.append(line[0])
        data = line[1]
        if line[0] is TooLong:
            _, _, data = data.partition(b"\r\n")
    return found


# Content (RFC 5321 section 4.5.2).


def end_of_data(data: bytes) -> int:
    """CRLF "." CRLF, the first of them where the message is empty; -1 where there is none."""
    found = (b"\r\n" + data).find(END)
    return found + 3 if found >= 0 else -1


def has_bare_newline(content: bytes) -> bool:
    return re.search(rb"(?<!\r)\n|\r(?!\n)", content) is not None


def unstuffed(content: bytes) -> bytes:
    lines = content.split(b"\r\n")
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)


def normalised(content: bytes) -> bytes:
    return re.sub(rb"\r\n|\r|\n", b"\r\n", content)


def header_lines(content: bytes) -> list[bytes]:
    """Up to an empty line or one that is no field, with that one."""
    found = []
    lines = content.split(b"\r\n")
    for line in lines if lines[-1] else lines[:-1]:
        found.append(line)
        if not line or not (line[:1] in b" \t" or b":" in line):
            break
    return found


def count_received(content: bytes) -> int:
    return sum(line.lower().startswith(b"received:") for line in header_lines(content))


def header_size(content: bytes) -> int:
    """Octets with CRLF, but without the last one."""
    lines = header_lines(content)
    return sum(map(len, lines)) + 2 * (len(lines) - 1)


def stuffed(content: bytes) -> bytes:
    """With what ends it."""
    content = normalised(content)
    if content and not content.endswith(b"\r\n"):
        content += b"\r\n"
    return (
        re.sub(rb"(?m)^\.", b"..", content.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")
        + b".\r\n"
    )


# Paths: RFC 5321 section 4.1.2 and 4.1.3, RFC 6531 section 3.3; underscores in domains are ours.

UTF8 = r"[^\x00-\x9f]"
ATOM = rf"(?:[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~-]|{UTF8})+"
QUOTED = rf'"(?:[ !#-\[\]-~]|\\[ -~]|{UTF8})*"'
LOCAL = rf"(?:{ATOM}(?:\.{ATOM})*|{QUOTED})"
LABEL = rf"(?![-])(?:[A-Za-z0-9_-]|{UTF8})+(?<!-)"
DOMAIN = rf"{LABEL}(?:\.{LABEL})*"
MAILBOX = re.compile(rf"{LOCAL}@(?P<domain>{DOMAIN}|\[[^\]]*\])")
_AT_DOMAIN = rf"@(?:{DOMAIN}|\[[^\]]*\])"
PATH = re.compile(
    rf" *<(?:(?P<route>{_AT_DOMAIN}(?:,{_AT_DOMAIN})*):)?"
    rf"(?P<address>{MAILBOX.pattern}|(?P<postmaster>(?i:postmaster))|(?P<null>))>"
)
PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=((?:[!-<>-~]|[^\x00-\x7f])+))?")


def is_literal(text: str) -> bool:
    try:
        if text[:5].lower() == "ipv6:":
            IPv6Address(text[5:])
            return "%" not in text
        IPv4Address(text)
    except ValueError:
        return False
    return True


def is_domain(text: str) -> bool:
    """What has the form of one; whether it is one."""
    if text.startswith("["):
        return is_literal(text[1:-1])
    octets = text.encode()
    return len(octets) <= 255 and max(map(len, octets.split(b"."))) <= 63


def is_mailbox(text: str) -> bool:
    match = MAILBOX.fullmatch(text)
    return match is not None and is_domain(match["domain"])


Path = tuple[str, dict[str, str | None]]


def path(argument: bytes, word: bytes) -> Path | None:
    """The path and parameters of MAIL ("FROM:") or RCPT ("TO:"); None for what is none."""
    if argument[: len(word)].upper() != word:
        return None
    try:
        text = argument[len(word) :].decode()
    except UnicodeDecodeError:
        return None
    match = PATH.match(text)
    if match is None or not _is_path(match, forward=word == b"TO:"):
        return None
    found = parameters(text[match.end() :])
    return None if found is None else (match["address"], found)


def _is_path(match: re.Match[str], *, forward: bool) -> bool:
    if match["null"] is not None:
        return not forward and match["route"] is None
    hops = re.findall(rf"@({DOMAIN}|\[[^\]]*\])", match["route"] or "")
    if match["postmaster"] is not None:
        return forward and all(map(is_domain, hops))
    return len(match["address"].encode()) <= 1024 and all(map(is_domain, [*hops, match["domain"]]))


def parameters(text: str) -> dict[str, str | None] | None:
    """RFC 5321 section 4.1.2: each once, behind white space."""
    if text and not text.startswith(" "):
        return None
    found: dict[str, str | None] = {}
    for word in filter(None, text.split(" ")):
        match = PARAMETER.fullmatch(word)
        if match is None or match[1].upper() in found:
            return None
        found[match[1].upper()] = match[2]
    return found


# Commands (RFC 5321 section 4.1.1) and replies (section 4.2, RFC 2034).

VERBS = (
    *("EHLO", "HELO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "HELP", "VRFY", "EXPN"),
    *("QUIT", "AUTH", "STARTTLS", "XCLIENT"),
)


def command(line: bytes) -> tuple[str, bytes]:
    """The verb, "" for none that is known and "?" where there is a control; and its argument."""
    if re.search(rb"[\x00-\x1f\x7f]", line):
        return "?", b""
    word, _, rest = line.partition(b" ")
    verb = word.decode("latin-1").upper()
    return verb if word.isascii() and verb in VERBS else "", rest.strip(b" ")


REPLY = re.compile(
    rb"([2-5][0-9]{2})(?:([ -])((?:[245]\.[0-9]{1,3}\.[0-9]{1,3})(?= |$))?(.*))?", re.S
)


def reply_line(line: bytes) -> tuple[int, bool, str, str] | None:
    """Code, whether it is the last, enhanced code and text; None for what is no reply."""
    match = REPLY.fullmatch(line)
    if match is None:
        return None
    code, separator, enhanced, text = match.groups(b"")
    if enhanced[:1] == code[:1]:
        text = text[1:]
    else:
        enhanced, text = b"", enhanced + text
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text.decode("utf-8", "replace"))
    return int(code), separator != b"-", enhanced.decode(), shown
