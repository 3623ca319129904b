"""How the SMTP server's machine reads a message: DATA (RFC 5321) and BDAT (RFC 3030)."""

import re

from fastmta.protocol import smtp_replies as reply
from fastmta.protocol.smtp_machine import (
    CHUNK,
    CHUNKS,
    CONTENT,
    PENDING,
    READY,
    RECIPIENT,
    SENDER,
    START,
    SmtpMachine,
)

_CHUNK = re.compile(rb"([0-9]{1,18})( +[Ll][Aa][Ss][Tt])?")
_FOUR = ord("4")

OUT_OF_ORDER = {
    START: reply.EHLO_FIRST,
    READY: reply.MAIL_FIRST,
    SENDER: reply.RCPT_FIRST,
    RECIPIENT: reply.TRANSACTION_OPEN,
    CHUNKS: reply.CHUNKS_ONLY,
}


class ContentReader(SmtpMachine):
    """The part of a session from DATA or BDAT to the end of the message."""

    __slots__ = ()

    # Commands.

    def _data(self, argument: bytes) -> bytes:
        if argument:
            return self._error(reply.NO_ARGUMENT)
        if self._load.held >= self._load.max_held:
            return reply.OUT_OF_MEMORY
        self._start(True)
        self.state = CONTENT
        return reply.GO_AHEAD

    def _bdat(self, argument: bytes) -> bytes:
        if self.state == RECIPIENT:
            self._start(False)
        return self._begin_chunk(argument, b"")

    def _bdat_refused(self, argument: bytes) -> bytes:
        """Out of order, but its octets follow and are none of the commands (RFC 3030 section 2)."""
        return self._begin_chunk(argument, OUT_OF_ORDER[self.state])

    def _begin_chunk(self, argument: bytes, refusal: bytes) -> bytes:
        match = _CHUNK.fullmatch(argument)
        if match is None:
            return self._close(self._error(reply.BAD_CHUNK))  # where the chunk ends is unknown
        self._chunk_left = int(match[1])
        self._chunk_is_last = match[2] is not None
        self._chunk_refusal = refusal
        self.state = CHUNK
        return b""  # the reply comes behind the octets

    def _start(self, stuffed: bool) -> None:
        """Read a message; `arrival.body` sees it where somebody wants that."""
        arrival = self.arrival
        assert arrival is not None
        if self.watch is not None and self.may_relay:
            arrival.body = self.watch()
        self._scanner.start(stuffed, arrival.body)

    # Octets.

    def _content(self) -> bool:
        data = self._lines.take()
        end = self._scanner.feed(data)
        self._hold()
        if end < 0:
            return False
        if end < len(data):
            self._lines.feed(data[end:])
        self._end_of_message()
        return True

    def _chunk(self) -> bool:
        """The octets of a BDAT chunk; those of a refused one are read too (RFC 3030 section 2)."""
        data = self._lines.take(self._chunk_left)
        self._chunk_left -= len(data)
        if not self._chunk_refusal:
            self._scanner.feed(data)
            self._hold()
        if self._chunk_left:
            return False
        self._end_of_chunk()
        return True

    def _end_of_chunk(self) -> None:
        if self._chunk_refusal:
            self._end(READY if self.helo else START)
            self._output.append(self._counted(self._chunk_refusal))
        elif self._chunk_is_last:
            self._scanner.finish()
            self._end_of_message()
        elif self._scanner.fault:
            self._end_of_message()
        else:
            self.state = CHUNKS
            self._output.append(reply.CHUNK_OK)

    def _end_of_message(self) -> None:
        """All of it is there, or enough to know that it is refused."""
        scanner = self._scanner
        arrival = self.arrival
        assert arrival is not None
        if scanner.fault or scanner.received > self._policy.max_hops:
            refused = reply.AFTER_DATA.get(scanner.fault, reply.TOO_MANY_HOPS)
            self._end(READY)
            self._output.append(refused if refused[0] == _FOUR else self._error(refused))
            return
        arrival.size = scanner.size
        # Content that is ASCII can go where 8BITMIME is not offered, whatever was declared.
        arrival.eight_bit = arrival.eight_bit and scanner.eight_bit
        arrival.parts = scanner.take()
        self.arrival = None
        self._overshoot = 0
        self.state = PENDING
        self._event = arrival
