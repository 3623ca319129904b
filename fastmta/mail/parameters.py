"""Parameters of header fields beyond US-ASCII, and long ones (RFC 2231)."""

import re
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from fastmta.mail import charset, encoded_words

# RFC 2231 7: name, section and the asterisk that says "percent-encoded".
_NAME = re.compile(rb"([^*]+)(?:\*([0-9]{1,4}))?(\*)?")

# RFC 2231 7, attribute-char, beyond the letters, digits and "-._~" that quote() leaves anyway.
_ATTRIBUTE_CHARS = "!#$&+^`{|}"
_SIMPLE = re.compile(r"[ -~]*")

# RFC 5322 2.1.1: what one section may take of a line of 78, with the blank before it, the
# section number, the asterisks, "=", the charset or quotes, and ";".
_COLUMNS = 78 - len(" *999*=utf-8'';")


class _Section(NamedTuple):
    extended: bool
    value: bytes


def decode_parameters(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Values by name, in lower case, from what stands in the field, unquoted.

    The extended form (`name*`) comes before the sections (`name*0`), and they before the plain
    form, which is there for readers that know no better (RFC 6266 4.3); of two alike the first
    counts. Encoded words, which RFC 2047 5 forbids here, are decoded nevertheless.
    """
    forms: dict[str, dict[int, _Section]] = {}
    for raw, value in pairs:
        match = _NAME.fullmatch(raw)
        name, number, extended = match.groups() if match else (raw, None, None)
        # What has no section number sorts under -1, the plain form under -2.
        at = int(number) if number else -1 if extended else -2
        sections = forms.setdefault(name.decode("ascii", "replace").lower(), {})
        sections.setdefault(at, _Section(extended is not None, value))
    return {name: _value(sections) for name, sections in forms.items()}


def _value(sections: dict[int, _Section]) -> str:
    if -1 in sections:
        return _join([sections[-1]])
    if 0 in sections:
        # RFC 2231 3: sections are numbered without gaps; what is behind one cannot belong.
        count = next(at for at in range(len(sections) + 1) if at not in sections)
        return _join([sections[at] for at in range(count)])
    plain = sections.get(-2) or sections[min(sections)]
    text = charset.decode(plain.value, "")
    return encoded_words.decode(text) if "=?" in text else text


def _join(sections: list[_Section]) -> str:
    """RFC 2231 4.1: the first section alone names the charset, and not all need be encoded."""
    name = b""
    first = sections[0]
    if first.extended and first.value.count(b"'") >= 2:
        name, _, value = first.value.split(b"'", 2)
        sections = [_Section(True, value), *sections[1:]]
    octets = [unquote_to_bytes(value) if extended else value for extended, value in sections]
    return charset.decode(b"".join(octets), name.decode("ascii", "replace"))


def encode_parameter(name: str, value: str) -> str:
    """`name="value"`; in UTF-8 where US-ASCII is not enough, in sections where a line is not."""
    room = max(_COLUMNS - len(name), 12)  # a character takes twelve at the most
    simple = value.replace("\\", "\\\\").replace('"', '\\"')
    if _SIMPLE.fullmatch(value) and len(simple) <= room:
        return f'{name}="{simple}"'
    sections = [""]
    for character in value:
        form = quote(character, safe=_ATTRIBUTE_CHARS, errors="replace")
        if len(sections[-1]) + len(form) > room:
            sections.append("")
        sections[-1] += form
    if len(sections) == 1:
        return f"{name}*=utf-8''{sections[0]}"
    sections[0] = f"utf-8''{sections[0]}"
    return "; ".join(f"{name}*{at}*={section}" for at, section in enumerate(sections))
