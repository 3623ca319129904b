"""The PROXY protocol's header in plain Python, of what is there in whole."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_SIZES = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}


class Bad(Exception):
    """It is none."""


def read(seen: bytes) -> tuple[int, str] | None:
    """How long it is, and the client's address; None where more is to come. Raises Bad."""
    if seen[:1] == b"\r":
        return _binary(seen)
    if not b"PROXY ".startswith(seen[:6]):
        raise Bad
    line, end, _ = seen[:107].partition(b"\r\n")
    if not end:
        if len(seen) >= 107:
            raise Bad
        return None
    return len(line) + 2, _text(line.split(b" "), line)


def _text(words: list[bytes], line: bytes) -> str:
    if words[1] == b"UNKNOWN":
        if re.search(rb"[^ -~]", line):
            raise Bad
        return ""
    kinds = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}
    if len(words) != 6 or words[1] not in kinds or b"%" in line:
        raise Bad
    try:
        source, _ = (kinds[words[1]](word.decode("ascii")) for word in words[2:4])
    except ValueError:
        raise Bad from None
    for port in words[4:]:
        if not re.fullmatch(rb"0|[1-9][0-9]{0,4}", port) or int(port) > 65535:
            raise Bad
    return _plain(source)


def _binary(seen: bytes) -> tuple[int, str] | None:
    if seen[:12] != SIGNATURE[: len(seen[:12])]:
        raise Bad
    if len(seen) < 16:
        return None
    length = 16 + int.from_bytes(seen[14:16], "big")
    if length > 4096:
        raise Bad
    if len(seen) < length:
        return None
    if seen[12] == 0x20:
        return length, ""
    if seen[12] != 0x21 or length - 16 < _SIZES.get(seen[13], 1 << 20):
        raise Bad
    if seen[13] == 0x11:
        return length, _plain(ip_address(seen[16:20]))
    return length, _plain(ip_address(seen[16:32])) if seen[13] == 0x21 else ""


def _plain(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
