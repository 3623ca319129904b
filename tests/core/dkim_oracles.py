"""The canonical forms of RFC 6376 section 3.4 in plain Python, as its text has them."""

import re


def simple_body(body: bytes) -> bytes:
    """Section 3.4.3."""
    return re.sub(rb"(\r\n)*\Z", b"", body, count=1) + b"\r\n"


def relaxed_body(body: bytes) -> bytes:
    """Section 3.4.4."""
    lines = [re.sub(rb"[ \t]+", b" ", line).rstrip(b" ") for line in body.split(b"\r\n")]
    while lines and not lines[-1]:
        lines.pop()
    return b"".join(line + b"\r\n" for line in lines)


def relaxed_field(field: bytes) -> bytes:
    """Section 3.4.2; the field has its CRLF."""
    name, _, value = field.partition(b":")
    unfolded = re.sub(rb"[ \t]+", b" ", value.replace(b"\r\n", b""))
    return name.rstrip(b" \t").lower() + b":" + unfolded.strip(b" ") + b"\r\n"
