"""What the sink got: counted honestly, or kept as an mbox."""

import re
import time
from array import array
from collections.abc import Iterable
from itertools import pairwise
from math import inf
from pathlib import Path
from zlib import crc32

from msgspec import Struct

NUMBER = b"X-Fastmta-Number"  # which message of a run it is
SUM = b"X-Fastmta-Sum"  # CRC-32 of the body, eight hexadecimal digits
TIME = b"X-Fastmta-Time"  # time.monotonic() of the sender, for delays on one machine

# RFC 4155 and mboxrd: each line that would read as a separator, quoted or not, gets one more ">".
_FROM_LINE = re.compile(rb"(?m)^(>*From )")


class Mail(Struct):
    """A message as it was taken: its envelope, and its octets without dot-stuffing."""

    sender: str
    recipients: list[str]
    parameters: str  # of MAIL, as sent
    content: bytes
    chunked: bool  # it came by BDAT
    wishes: dict[str, str] = {}  # recipient -> parameters of its RCPT, as sent, where it had some
    client: str = ""  # the address that it came from; "" over a unix socket
    hello: str = ""  # what the client called itself


class Counts(Struct):
    """What the sink has seen so far."""

    connections: int = 0
    refused: int = 0  # connections over the limit
    dropped: int = 0  # connections that the sink cut
    messages: int = 0  # taken with 250
    recipients: int = 0  # of those messages
    octets: int = 0  # of those messages
    tempfailed: int = 0  # RCPTs answered 4xx
    permfailed: int = 0  # RCPTs answered 5xx
    tls: int = 0  # connections that went over to TLS
    protocol_errors: int = 0  # commands out of order, or that were not offered
    distinct: int = 0  # message numbers
    duplicates: int = 0  # times that a recipient got a number again
    corrupt: int = 0  # messages whose checksum is not that of their body
    numbers: str = ""  # the distinct ones, as in "1-4999,5003"
    seconds: float = 0.0  # from the first message to the last
    last: float = 0.0  # time.monotonic() of the last message
    delay_p50: float = 0.0  # from the sender's time stamp to the sink's 250
    delay_p99: float = 0.0
    delay_p999: float = 0.0


def ranges(numbers: Iterable[int]) -> str:
    """Distinct numbers as text: {1, 2, 3, 7} is "1-3,7"."""
    ordered = sorted(numbers)
    starts = [b for a, b in pairwise([-inf, *ordered]) if b != a + 1]
    ends = [a for a, b in pairwise([*ordered, inf]) if b != a + 1]
    spans = zip(starts, ends, strict=True)
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in spans)


def parse_ranges(text: str) -> set[int]:
    """The numbers that `ranges` wrote."""
    spans = [span.partition("-") for span in text.split(",") if span]
    return {n for a, _, b in spans for n in range(int(a), int(b or a) + 1)}


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


class Tally:
    """Reads number, checksum and time stamp of each message that carries them."""

    def __init__(self, number: bytes = NUMBER) -> None:
        self.numbers: set[int] = set()
        self.duplicates = self.corrupt = 0
        self.delays = array("d")  # seconds
        self._seen: set[tuple[int, str]] = set()
        self._number, self._sum, self._time = (
            b"\r\n" + name + b": " for name in (number, SUM, TIME)
        )

    def add(self, framed: bytearray, recipients: list[str]) -> None:
        """Count one message, given with a CRLF in front; without a number it is passed over."""
        border = framed.find(b"\r\n\r\n") + 2
        number = self._field(framed, self._number, border)
        if not number.isdigit():
            return
        self._count(int(number), recipients)
        try:
            if sent := self._field(framed, self._time, border):
                self.delays.append(time.monotonic() - float(sent))
            if checksum := self._field(framed, self._sum, border):
                self.corrupt += int(checksum, 16) != crc32(memoryview(framed)[border + 2 :])
        except ValueError:
            self.corrupt += 1

    def _count(self, number: int, recipients: list[str]) -> None:
        self.numbers.add(number)
        for recipient in recipients:
            delivery = (number, recipient)
            if delivery in self._seen:
                self.duplicates += 1
            else:
                self._seen.add(delivery)

    @staticmethod
    def _field(framed: bytearray, name: bytes, border: int) -> bytearray:
        at = framed.find(name, 0, border)
        return framed[at + len(name) : framed.find(b"\r\n", at + 2)] if at >= 0 else bytearray()


class Mbox:
    """Appends messages to a file in the mboxrd form, through a buffer."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=1 << 20)
        self.flush = self._file.flush
        self.close = self._file.close

    def append(self, mail: Mail) -> None:
        """RFC 4155: a separator line, the message with LF line ends, an empty line."""
        sender = mail.sender.replace(" ", "_") or "MAILER-DAEMON"
        content = _FROM_LINE.sub(rb">\1", mail.content.replace(b"\r\n", b"\n"))
        self._file.write(f"From {sender} {time.asctime(time.gmtime())}\n".encode())
        self._file.write(content)
        self._file.write(b"\n" if not content or content.endswith(b"\n") else b"\n\n")
