"""What is fuzzed of SMTP's lines: commands, paths, replies and content, against the ABNF."""

import re
from collections.abc import Callable, Iterator
from zlib import crc32

from fastmta._core import smtp
from fastmta._core.data import BARE_NEWLINE, NO_FAULT, DataScanner, Stuffer
from fastmta._core.lines import BareLineFeed, LineBuffer, LineTooLong
from fastmta.mail.address import is_domain, is_mailbox
from fastmta.protocol.smtp_reply import MAX_TEXT, BadReply, ReplyReader
from tests.core import wire_oracles as wire
from tests.protocol.smtp_client_oracle import spoken

LIMIT = 24
_ERRORS = {BareLineFeed: wire.BareFeed, LineTooLong: wire.TooLong}


def cut(data: bytes) -> list[bytes]:
    """In pieces of a size that the data choose, now and then single octets."""
    size = 1 + crc32(data) % 17
    return [data[at : at + size] for at in range(0, len(data), size)]


# Lines.


def fuzz_smtp_lines(data: bytes) -> None:
    expected = wire.lines_of(data, LIMIT)
    for pieces in ([data], cut(data)):
        buffer, found = LineBuffer(LIMIT), []
        for piece in pieces:
            buffer.feed(piece)
            found += _lines(buffer)
            assert len(buffer) <= LIMIT
        assert found == expected


def _lines(buffer: LineBuffer) -> Iterator[wire.Line]:
    while True:
        try:
            line = buffer.next_line()
        except (BareLineFeed, LineTooLong) as error:
            yield _ERRORS[type(error)]
            continue
        if line is None:
            return
        yield line


def fuzz_smtp_command(data: bytes) -> None:
    verb, argument = wire.command(data)
    code = smtp.MALFORMED if verb == "?" else getattr(smtp, verb or "UNKNOWN")
    assert smtp.parse_command(data) == (code, argument)
    for parse, word in ((smtp.parse_mail, b"FROM:"), (smtp.parse_rcpt, b"TO:")):
        for said in (argument, word + argument):
            assert _path(parse, said) == wire.path(said, word)


def _path(
    parse: Callable[..., tuple[str, bool, dict[str, str | None] | None]], argument: bytes
) -> wire.Path | None:
    try:
        address, ascii_only, parameters = parse(argument)
    except ValueError:
        return None
    assert ascii_only == argument.isascii()
    return address, parameters or {}


def fuzz_smtp_mailbox(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert is_mailbox(text) == wire.is_mailbox(text)
    domain = re.fullmatch(rf"{wire.DOMAIN}|\[[^\]]*\]", text)
    assert is_domain(text) == (domain is not None and wire.is_domain(text))


def fuzz_smtp_reply(data: bytes) -> None:
    told = [(heard.code, heard.enhanced, "\n".join(heard.lines)) for heard, _ in spoken(data)]
    expected = [(code, enhanced, text[:MAX_TEXT]) for code, enhanced, text in told]
    for pieces in ([data], cut(data)):
        reader, found = ReplyReader(), []
        try:
            for piece in pieces:
                reader.feed(piece)
                while reply := reader.next():
                    found.append((reply.code, reply.enhanced, reply.text))
        except BadReply:
            found.append((0, "", ""))
        assert found == expected


# Content.


def fuzz_smtp_data(data: bytes) -> None:
    wire_form, end = data + wire.END, wire.end_of_data(data + wire.END)
    content = wire.unstuffed(wire_form[: end - 3])
    for normalise in (False, True):
        bare = wire.has_bare_newline(content)
        for pieces in ([wire_form], cut(wire_form)):
            scanner = DataScanner(1 << 20, 1 << 20, normalise)
            assert _scan(scanner, pieces) == end
            if bare and not normalise:
                assert scanner.fault == BARE_NEWLINE
                continue
            expected = wire.normalised(content) if normalise else content
            assert scanner.fault == NO_FAULT
            assert scanner.received == wire.count_received(expected)
            assert scanner.eight_bit == (not content.isascii())
            assert scanner.size == scanner.held == len(expected)
            assert b"".join(scanner.take()) == expected
    for pieces in ([data], cut(data)):
        stuffer = Stuffer()
        assert b"".join(map(stuffer.feed, pieces)) + stuffer.finish() == wire.stuffed(data)


def _scan(scanner: DataScanner, pieces: list[bytes]) -> int:
    before = 0
    for piece in pieces:
        end = scanner.feed(piece)
        if end >= 0:
            return before + end
        before += len(piece)
    return -1
