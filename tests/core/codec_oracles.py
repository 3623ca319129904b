"""The transfer codecs once more, in plain Python and as simple as their definitions allow."""

import re

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
LINE_OCTETS = 57
LINE = 76
MAX_SPACE = 1000


def base64_encode(data: bytes, *, lines: bool = False) -> bytes:
    if lines:
        cuts = range(0, len(data), LINE_OCTETS)
        return b"".join(base64_encode(data[at : at + LINE_OCTETS]) + b"\r\n" for at in cuts)
    groups = (data[at : at + 3] for at in range(0, len(data), 3))
    return b"".join(_letters(group) for group in groups)


def _letters(group: bytes) -> bytes:
    bits = int.from_bytes(group.ljust(3, b"\0"), "big")
    letters = bytes(ALPHABET[bits >> shift & 63] for shift in (18, 12, 6, 0))
    return letters[: len(group) + 1].ljust(4, b"=")


def base64_decode(data: bytes, *, strict: bool = False) -> bytes:
    return _strict_decode(data) if strict else _lenient_decode(data)


def _strict_decode(data: bytes) -> bytes:
    """RFC 4648 4 taken literally: what encodes back to the same, and nothing else."""
    if not re.fullmatch(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", data):
        raise ValueError("not base64")
    decoded = _lenient_decode(data)
    if base64_encode(decoded) != data:
        raise ValueError("loose bits")
    return decoded


def _lenient_decode(data: bytes) -> bytes:
    decoded, group, pads = b"", b"", 0
    for octet in data:
        if octet in ALPHABET:
            group, pads = group + bytes([octet]), 0
        elif octet == ord("=") and len(group) >= 2:
            pads += 1
        if len(group) + pads == 4:
            decoded += _octets(group)
            if pads:
                return decoded
            group = b""
    return decoded + _octets(group)


def _octets(group: bytes) -> bytes:
    if len(group) < 2:
        return b""
    bits = 0
    for letter in group.ljust(4, b"A"):
        bits = bits << 6 | ALPHABET.index(letter)
    return bits.to_bytes(3, "big")[: len(group) - 1]


def quopri_encode(data: bytes) -> bytes:
    return b"\r\n".join(_fold(_forms(line)) for line in data.split(b"\r\n"))


def _forms(line: bytes) -> list[bytes]:
    forms = [_form(octet) for octet in line]
    if line.endswith((b" ", b"\t")):
        forms[-1] = b"=%02X" % line[-1]
    return forms


def _form(octet: int) -> bytes:
    plain = octet in b" \t" or (33 <= octet <= 126 and octet != ord("="))
    return bytes([octet]) if plain else b"=%02X" % octet


def _fold(forms: list[bytes]) -> bytes:
    lines = [b""]
    for at, form in enumerate(forms):
        last = at == len(forms) - 1
        if len(lines[-1] + form) > (LINE if last else LINE - 1):
            lines.append(b"")
        lines[-1] += form
    return b"=\r\n".join(lines)


_MARKS = re.compile(
    rb"=([0-9A-Fa-f]{2})"  # an escape
    rb"|=[ \t]{0,%d}(?:\r?\n|\Z)"  # a soft break
    rb"|[ \t]{1,%d}(?=\r?\n|\Z)" % (MAX_SPACE, MAX_SPACE)  # blanks at the end of a line
)


def quopri_decode(data: bytes) -> bytes:
    return _MARKS.sub(lambda mark: bytes.fromhex((mark[1] or b"").decode()), data)
