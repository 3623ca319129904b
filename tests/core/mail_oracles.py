"""Encoded words and parameters once more, step by step and without a thought for speed."""

import re

from fastmta.mail import charset
from tests.core import codec_oracles

Word = tuple[str, bytes, int]


def decode_words(text: str) -> str:
    decoded, at, gap = "", 0, ""
    run: list[Word] = []
    while at < len(text):
        if word := _word(text, at):
            if run and (gap.strip() or run[-1][0] != word[0]):
                decoded, run = decoded + _text(run) + (gap if gap.strip() else ""), []
            run, gap, at = [*run, word], "", word[2]
        elif run:
            gap, at = gap + text[at], at + 1
        else:
            decoded, at = decoded + text[at], at + 1
    return decoded + _text(run) + gap


def _text(run: list[Word]) -> str:
    return charset.decode(b"".join(octets for _, octets, _ in run), run[0][0]) if run else ""


def _word(text: str, at: int) -> Word | None:
    parts = text[at + 2 :].split("?", 3)
    if not text.startswith("=?", at) or len(parts) < 4 or not parts[3].startswith("="):
        return None
    name, encoding, body, _ = parts
    plain = name.partition("*")[0]
    if not plain or any(map(str.isspace, name)) or encoding not in tuple("BbQq"):
        return None
    end = at + 2 + len(name) + 1 + 1 + 1 + len(body) + 2
    return plain.lower(), _octets(encoding, body), end


def _octets(encoding: str, body: str) -> bytes:
    raw = body.encode("utf-8", "replace")
    if encoding in "Bb":
        return codec_oracles.base64_decode(raw)
    return codec_oracles.quopri_decode(raw.replace(b"_", b" ").replace(b" ", b"=20"))


def decode_parameters(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    names = [_name(raw) for raw, _ in pairs]
    values = {}
    for wanted in dict.fromkeys(name for name, _, _ in names):
        own = [
            (section, extended, value)
            for (name, section, extended), (_, value) in zip(names, pairs, strict=True)
            if name == wanted
        ]
        values[wanted] = _value(own)
    return values


def _name(raw: bytes) -> tuple[str, int | None, bool]:
    parts = raw.split(b"*")
    extended = len(parts) > 1 and parts[-1] == b""
    rest = parts[:-1] if extended else parts
    numbered = len(rest) == 2 and rest[1].isdigit() and len(rest[1]) <= 4
    if not parts[0] or len(rest) > 2 or (len(rest) == 2 and not numbered):
        return raw.decode("ascii", "replace").lower(), None, False
    number = int(rest[1]) if numbered else None
    return rest[0].decode("ascii", "replace").lower(), number, extended


def _value(forms: list[tuple[int | None, bool, bytes]]) -> str:
    for section, extended, value in forms:
        if section is None and extended:
            return _joined([(True, value)])
    found: list[tuple[bool, bytes]] = []
    while mine := [(e, v) for section, e, v in forms if section == len(found)]:
        found.append(mine[0])
    if found:
        return _joined(found)
    plain = [value for section, _, value in forms if section is None]
    lowest = min((section or 0 for section, _, _ in forms), default=0)
    value = plain[0] if plain else next(v for section, _, v in forms if section == lowest)
    return decode_words(charset.decode(value, ""))


def _joined(sections: list[tuple[bool, bytes]]) -> str:
    name, octets = "", b""
    for at, (extended, value) in enumerate(sections):
        if not at and extended and value.count(b"'") > 1:
            raw, _, value = value.split(b"'", 2)
            name = raw.decode("ascii", "replace")
        octets += _percent(value) if extended else value
    return charset.decode(octets, name)


def _percent(value: bytes) -> bytes:
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda m: bytes.fromhex(m[1].decode()), value)
