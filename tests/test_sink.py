"""The sink: what it takes arrives whole, what it refuses is told, and what it counts is true."""

import asyncio
import re
import smtplib
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from signal import SIGTERM, SIGUSR1
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.sink import KEYWORDS, Behaviour, Counts, Mail, Mbox, Sink
from fastmta.sink.session import Session
from fastmta.sink.tally import NUMBER, SUM, TIME, Tally, parse_ranges, percentile, ranges
from tests.certificates import make_certificate
from tests.support import run, until

EOF = b""


class Client:
    """Says something, and reads as many replies as it expects; EOF is the empty reply."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def to(cls, sink: Sink) -> AsyncIterator["Client"]:
        client = cls(*await asyncio.open_connection(*sink.endpoint))
        try:
            yield client
        finally:
            client._writer.close()
            with suppress(ConnectionError):
                await client._writer.wait_closed()

    async def reply(self) -> bytes:
        lines = b""
        while True:
            try:
                line = await self._reader.readline()
            except ConnectionError:
                line = EOF
            lines += line
            if line[3:4] != b"-":
                return lines

    async def say(self, text: bytes, replies: int = 1) -> list[bytes]:
        self._writer.write(text)
        return [await self.reply() for _ in range(replies)]

    async def codes(self, text: bytes, replies: int = 1) -> list[bytes]:
        return [reply[:3] for reply in await self.say(text, replies)]


class Wire:
    """A transport that keeps what is written, to feed a session in exact pieces."""

    def __init__(self, sink: Sink) -> None:
        self.written: list[bytes] = []
        self.write = self.written.append
        self.session = Session(sink)
        self.session.connection_made(self)  # type: ignore[arg-type]

    def close(self) -> None: ...

    def get_extra_info(self, name: str) -> tuple[str, int]:
        assert name == "peername"
        return ORIGIN[0], 25

    def feed(self, *pieces: bytes) -> bytes:
        self.written.clear()
        for piece in pieces:
            self.session.data_received(piece)
        return b"".join(self.written)


def taken(*pieces: bytes, behaviour: Behaviour | None = None) -> tuple[list[Mail], bytes]:
    mails: list[Mail] = []
    return mails, Wire(Sink(behaviour, take=mails.append)).feed(*pieces)


def stuffed(content: bytes) -> bytes:
    return re.sub(rb"(?m)^\.", b"..", content) + b".\r\n"


CONTENT = b"Subject: x\r\n\r\n.dot\r\n..two\r\n\r\nend\r\n"
TALK = (
    b"EHLO me\r\nMAIL FROM:<a@b> SIZE=9\r\nrcpt to:<c@d>\r\nRCPT TO: <e@f>\r\nDATA\r\n"
    + stuffed(CONTENT)
    + b'MAIL FROM:<>\r\nRCPT TO:<"x>y"@z>\r\nBDAT 4\r\n.\r\n.'
    + b"BDAT 3 LAST\r\n\r\n.MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\nQUIT\r\n"
)
ORIGIN = ("192.0.2.1", "me")
MAILS = [
    Mail("a@b", ["c@d", "e@f"], "SIZE=9", CONTENT, False, {}, *ORIGIN),
    Mail("", ['"x>y"@z'], "", b".\r\n.\r\n.", True, {}, *ORIGIN),
    Mail("a@b", ["c@d"], "", b"", False, {}, *ORIGIN),
]


def test_whole_split_at_every_byte_and_byte_by_byte_are_the_same() -> None:
    whole, replies = taken(TALK)
    assert whole == MAILS
    for at in range(1, len(TALK)):
        assert taken(TALK[:at], TALK[at:]) == (MAILS, replies), at
    assert taken(*(TALK[i : i + 1] for i in range(len(TALK)))) == (MAILS, replies)


def test_one_read_makes_one_write() -> None:
    wire = Wire(Sink())
    wire.feed(TALK)
    assert len(wire.written) == 1


LINES = st.lists(st.sampled_from([b".", b"\r\n", b"\n", b"\r", b"x", b"\0", b"From "]), max_size=30)


@given(LINES, st.lists(st.integers(0, 200), max_size=4))
def test_any_content_in_any_pieces_arrives_as_it_was(words: list[bytes], cuts: list[int]) -> None:
    content = b"".join(words) + b"\r\n"
    dotted = re.sub(rb"(\A|\r\n)\.", rb"\1..", content)
    dialogue = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n" + dotted + b".\r\nNOOP\r\n"
    borders = [0, *sorted(min(cut, len(dialogue)) for cut in cuts), len(dialogue)]
    pieces = (dialogue[a:b] for a, b in pairwise(borders))
    mails, replies = taken(*pieces)
    assert [mail.content for mail in mails] == [content]
    assert replies.count(b"\r\n") == 5


@pytest.mark.parametrize(
    "end",
    [
        b"\n.\n", b"\n.\r", b"\r.\n", b"\r.\r", b"\n.\r\n", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r",
        b"\r\n.\r\r\n", b"\r\r\n.\r\r\n", b"\r\n\0.\r\n",
    ],
)  # fmt: skip
def test_nothing_but_crlf_dot_crlf_ends_a_message(end: bytes) -> None:
    mails, replies = taken(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx" + end)
    assert not mails
    assert replies.endswith(b"354 Go ahead\r\n")


@pytest.mark.parametrize(
    ("talk", "codes"),
    [
        (b"RCPT TO:<a@b>\r\n", b"503"),
        (b"DATA\r\n", b"554"),
        (b"MAIL FROM a@b\r\n", b"501"),
        (b"MAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\n", b"250 503"),
        (b"MAIL FROM:<a@b>\r\nRCPT TO: x\r\n", b"250 501"),
        (b"MAIL FROM:<a@b>\r\nBDAT 3 LAST\r\nxyzNOOP\r\n", b"250 554 250"),
        (b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 0\r\nDATA\r\n", b"250 250 250 503"),
        (b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT x\r\n", b"250 250 500"),
        (b"MAIL FROM:<a@b> SIZE=99999999999\r\n", b"552"),
        (b"VRFY a\r\nHELO x\r\nRSET\r\nWHAT\r\n", b"252 250 250 500"),
    ],
)
def test_replies_to_what_is_out_of_order(talk: bytes, codes: bytes) -> None:
    _, replies = taken(talk)
    assert re.findall(rb"(?m)^\d{3}", replies) == codes.split()


def test_a_message_over_the_limit_is_refused_and_not_kept() -> None:
    start = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
    small = Behaviour(max_size=100)
    for body in (b"DATA\r\n" + b"x" * 300 + b"\r\n.\r\n", b"BDAT 300 LAST\r\n" + b"x" * 300):
        mails, replies = taken(*(bytes([b]) for b in start + body), behaviour=small)
        assert not mails
        assert b"\r\n552 5.3.4" in replies


def test_an_endless_command_line_is_cut() -> None:
    _, replies = taken(*[b"x" * 1000] * 70)
    assert replies.startswith(b"500")


@pytest.mark.parametrize(
    ("local", "codes"),
    [
        ("tempfail", [b"451", b"250"]),
        ("permfail+more", [b"550", b"250"]),
        ("421", [b"421", EOF]),
        ("drop", [EOF, EOF]),
    ],
)
def test_a_recipient_chooses_its_fate(local: str, codes: list[bytes]) -> None:
    async def scenario() -> None:
        async with Sink(Behaviour(drop_at="rcpt")) as sink, Client.to(sink) as client:
            await client.reply()
            assert await client.codes(b"EHLO me\r\nMAIL FROM:<a@b>\r\n", 2) == [b"250"] * 2
            both = f"RCPT TO:<{local}@d>\r\nRCPT TO:<good@d>\r\n".encode()
            assert await client.codes(both, 2) == codes
            counts = sink.counts
            assert counts.tempfailed == (local == "tempfail")
            assert counts.permfailed == (local == "permfail+more")
            assert counts.dropped == (local == "drop")

    run(scenario())


def test_slow_and_delayed_replies_wait() -> None:
    async def scenario() -> None:
        async with Sink(Behaviour(delay=0.02, slow=0.1)) as sink:
            begun = time.monotonic()
            async with Client.to(sink) as client:
                await client.reply()
                assert time.monotonic() - begun >= 0.019  # its clock counts whole milliseconds
                begun = time.monotonic()
                talk = b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<slow@d>\r\nDATA\r\n"
                assert await client.codes(talk, 4) == [b"250", b"250", b"250", b"354"]
                assert time.monotonic() - begun >= 4 * 0.02 + 0.1 - 0.001
                assert await client.codes(b"x\r\n.\r\nQUIT\r\n", 2) == [b"250", b"221"]
                assert await client.reply() == EOF

    run(scenario())


def test_shares_are_drawn_by_address_and_attempt() -> None:
    behaviour = Behaviour(tempfail=0.2, permfail=0.1, seed=7)
    wire = Wire(sink := Sink(behaviour))
    addresses = [f"user{i}@example.test" for i in range(1000)]
    wire.feed(b"MAIL FROM:<>\r\n")
    for attempt in range(2):
        for address in addresses:
            code = wire.feed(f"RCPT TO:<{address}>\r\n".encode())[:3]
            fate = behaviour.fate(address, attempt)
            assert code == {"accept": b"250", "tempfail": b"451", "permfail": b"550"}[fate]
    assert 300 < sink.counts.tempfailed < 500
    assert 130 < sink.counts.permfailed < 270
    assert any(Behaviour(tempfail=0.2, seed=8).fate(a) != behaviour.fate(a) for a in addresses)


@pytest.mark.parametrize(
    ("step", "body", "replies"),
    [
        ("connect", b"", 0),
        ("mail", b"", 1),
        ("rcpt", b"", 2),
        ("data", b"DATA\r\n", 3),
        ("data", b"BDAT 3 LAST\r\nx\r\n", 3),
        ("body", b"DATA\r\nx", 3),
        ("body", b"BDAT 3 LAST\r\nx", 3),
        ("end", b"DATA\r\nx\r\n.\r\n", 3),
        ("end", b"BDAT 3 LAST\r\nx\r\n", 3),
    ],
)
def test_a_connection_is_dropped_at_the_chosen_step(step: Any, body: bytes, replies: int) -> None:
    async def scenario() -> None:
        dropping = Sink(Behaviour(drop=1.0, drop_at=step))
        async with dropping as sink, Client.to(sink) as client:
            got = [await client.reply()]
            for line in (b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", body):
                if got[-1] != EOF:
                    got += await client.say(line)
            if got[-1].startswith(b"354"):
                got += [await client.reply()]
            assert got[-1] == EOF
            assert len([reply for reply in got if reply and reply[:3] != b"354"]) == replies
            assert (sink.counts.dropped, sink.counts.messages) == (1, 0)

    run(scenario())


def test_a_share_of_drops_leaves_the_others_alone() -> None:
    talk = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\n"

    async def scenario() -> None:
        async with Sink(Behaviour(drop=0.5, drop_at="end")) as sink:
            for _ in range(100):
                async with Client.to(sink) as client:
                    await client.say(talk, 5)
            counts = sink.counts
            assert counts.messages + counts.dropped == 100
            assert 25 < counts.dropped < 75

    run(scenario())


def test_421_after_so_many_messages_on_a_connection() -> None:
    talk = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\n"

    async def scenario() -> None:
        async with Sink(Behaviour(close_after=2)) as sink, Client.to(sink) as client:
            await client.reply()
            ok = [b"250", b"250", b"354", b"250"]
            assert await client.codes(talk * 3, 10) == [*ok, *ok, b"421", EOF]
            assert sink.counts.messages == 2

    run(scenario())


def test_connections_over_the_limit_get_421_until_one_leaves() -> None:
    async def scenario() -> None:
        async with Sink(Behaviour(max_connections=1)) as sink:
            async with Client.to(sink) as first:
                assert (await first.reply())[:3] == b"220"
                async with Client.to(sink) as second:
                    assert (await second.reply())[:3] == b"421"
                    assert await second.reply() == EOF
                assert await first.codes(b"QUIT\r\n", 2) == [b"221", EOF]
            await until(lambda: not sink.sessions)
            async with Client.to(sink) as third:
                assert (await third.reply())[:3] == b"220"
            assert sink.counts.refused == 1

    run(scenario())


@pytest.mark.parametrize("keyword", [each for each in KEYWORDS if each != "REQUIRETLS"])
def test_a_keyword_that_is_off_is_not_offered(keyword: str) -> None:
    _, full = taken(b"EHLO me\r\n")
    _, partly = taken(b"EHLO me\r\n", behaviour=Behaviour(without=frozenset({keyword})))
    assert keyword.encode() in full
    assert keyword.encode() not in partly


@pytest.mark.parametrize(
    ("keyword", "talk", "codes"),
    [
        ("SIZE", b"MAIL FROM:<a@b> SIZE=5\r\n", b"555"),
        ("8BITMIME", b"MAIL FROM:<a@b> BODY=8BITMIME\r\n", b"555"),
        ("SMTPUTF8", b"MAIL FROM:<a@b> SMTPUTF8\r\n", b"555"),
        ("CHUNKING", b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 0 LAST\r\n", b"250 250 500"),
        ("PIPELINING", b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n", b"250 250"),
    ],
)
def test_what_was_not_offered_counts_as_a_protocol_error(
    keyword: str, talk: bytes, codes: bytes
) -> None:
    for without, errors in ((frozenset({keyword}), 1), (frozenset[str](), 0)):
        wire = Wire(sink := Sink(Behaviour(without=without)))
        replies = wire.feed(talk)
        assert sink.counts.protocol_errors == errors
        assert (re.findall(rb"(?m)^\d{3}", replies) == codes.split()) or not errors


def test_without_enhanced_codes_no_reply_has_one() -> None:
    _, replies = taken(TALK, behaviour=Behaviour(without=frozenset({"ENHANCEDSTATUSCODES"})))
    assert b"250 Ok\r\n" in replies
    assert not re.search(rb"(?m)^\d{3}[ -]\d\.", replies)


def test_the_standard_client_is_served() -> None:
    def send(host: str, port: int) -> None:
        with smtplib.SMTP(host, port) as client:
            client.sendmail("a@b", ["c@d"], CONTENT)

    async def scenario() -> None:
        mails: list[Mail] = []
        async with Sink(take=mails.append) as sink:
            sending = asyncio.create_task(asyncio.to_thread(send, *sink.endpoint))
            await sink.arrived(1)
            await sending
            assert mails[0].content == CONTENT

    run(scenario())


# What it counts


def numbered(number: int, body: bytes = b"body\r\n", checksum: int | None = None) -> bytearray:
    fields = {
        NUMBER: str(number).encode(),
        TIME: str(time.monotonic()).encode(),
        SUM: b"%08x" % (crc32(body) if checksum is None else checksum),
    }
    head = b"".join(name + b": " + value + b"\r\n" for name, value in fields.items())
    return bytearray(b"\r\n" + head + b"\r\n" + body)


def test_the_tally_tells_distinct_duplicate_and_corrupt() -> None:
    tally = Tally()
    for number in (1, 2, 3, 7):
        tally.add(numbered(number), ["a@b"])
    assert (ranges(tally.numbers), tally.duplicates, tally.corrupt) == ("1-3,7", 0, 0)
    tally.add(numbered(3), ["c@d"])  # the same message for another recipient is none
    assert (ranges(tally.numbers), tally.duplicates, tally.corrupt) == ("1-3,7", 0, 0)
    tally.add(numbered(3), ["a@b"])
    tally.add(numbered(9, checksum=1), ["a@b"])
    assert (ranges(tally.numbers), tally.duplicates, tally.corrupt) == ("1-3,7,9", 1, 1)
    assert len(tally.delays) == 7
    assert min(tally.delays) >= 0


def test_a_number_in_the_body_is_no_number() -> None:
    tally = Tally()
    tally.add(bytearray(b"\r\nSubject: x\r\n\r\nX-Fastmta-Number: 5\r\n"), ["a@b"])
    tally.add(bytearray(b"\r\nX-Fastmta-Number: five\r\n\r\n"), ["a@b"])
    tally.add(bytearray(b"\r\n"), ["a@b"])
    assert not tally.numbers
    tally.add(bytearray(b"\r\nX-Fastmta-Number: 5\r\nX-Fastmta-Sum: no\r\n\r\n"), ["a@b"])
    assert (tally.numbers, tally.corrupt) == ({5}, 1)


@given(st.sets(st.integers(0, 50)))
def test_ranges_name_each_number_once(numbers: set[int]) -> None:
    text = ranges(numbers)
    assert parse_ranges(text) == numbers
    assert text.count(",") == max(sum(number - 1 not in numbers for number in numbers) - 1, 0)


def test_percentile() -> None:
    assert percentile([], 0.5) == 0
    assert percentile(range(100), 0.99) == 99
    assert percentile([3, 1, 2], 0.5) == 2


# mbox


@given(st.lists(st.lists(st.sampled_from([b"From x", b">From ", b">>From y", b"a", b""]))))
def test_mbox_can_be_read_back(tmp_path_factory: Any, messages: list[list[bytes]]) -> None:
    path = tmp_path_factory.mktemp("mbox") / "mail"
    box = Mbox(path)
    for lines in messages:
        content = b"".join(line + b"\r\n" for line in lines)
        box.append(Mail("a b@c", ["c@d"], "", content, False))
    box.close()
    assert list(unquoted(path.read_bytes())) == [
        b"".join(line + b"\n" for line in lines) for lines in messages
    ]


def unquoted(mbox: bytes) -> Iterator[bytes]:
    for part in re.split(rb"(?m)^From a_b@c .*\n", mbox)[1:]:
        assert part.endswith(b"\n")
        yield re.sub(rb"(?m)^>(>*From )", rb"\1", part[:-1])


# LMTP and TLS

LISTS = b"LHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<%b@d>\r\nRCPT TO:<c@d>\r\nRCPT TO:<full@d>\r\n"


@pytest.mark.parametrize("how", [b"DATA\r\nx\r\n.\r\n", b"BDAT 3 LAST\r\nx\r\n"])
@pytest.mark.parametrize("fate", [b"busy", b"tempfail"])
def test_over_lmtp_each_recipient_has_its_answer(how: bytes, fate: bytes) -> None:
    mails, said = taken(LISTS % fate + how + b"QUIT\r\n", behaviour=Behaviour(lmtp=True))
    assert [mail.recipients for mail in mails] == [["c@d"]]
    codes = [line[:3] for line in said.splitlines() if line[3:4] == b" "]
    at_rcpt = [b"250" if fate == b"busy" else b"451", b"250", b"250"]
    go = [b"354"] if how[:4] == b"DATA" else []
    at_end = [b"451"] * (fate == b"busy") + [b"250", b"552"]
    assert codes == [b"250", b"250", *at_rcpt, *go, *at_end, b"221"]


def test_over_smtp_one_busy_recipient_answers_for_all() -> None:
    mails, said = taken(
        b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<busy@d>\r\nDATA\r\nx\r\n.\r\n"
    )
    assert mails == []
    assert said.splitlines()[-1].startswith(b"451 ")


def test_each_protocol_has_its_hello() -> None:
    assert taken(b"LHLO me\r\n")[1].splitlines()[-1].startswith(b"500")
    for hello in (b"EHLO me\r\n", b"HELO me\r\n"):
        _, said = taken(hello, behaviour=Behaviour(lmtp=True))
        assert said.splitlines()[-1].startswith(b"500")
    _, said = taken(LISTS % b"permfail" + b"RSET\r\nMAIL FROM:<>\r\nDATA\r\n",
                    behaviour=Behaviour(lmtp=True))  # fmt: skip
    assert said.splitlines()[-1].startswith(b"503")


def test_without_a_certificate_there_is_no_tls() -> None:
    _, said = taken(b"EHLO me\r\nSTARTTLS\r\n")
    assert b"250 STARTTLS" not in said
    assert said.splitlines()[-1].startswith(b"503")


def any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_over_tls(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "DNS:sink.test")
    with command("--tls", str(certificate), str(key), "--json") as (process, endpoint):
        with smtplib.SMTP(*endpoint) as client:
            client.ehlo()
            assert client.has_extn("STARTTLS")
            client.starttls(context=any_certificate())
            client.ehlo()
            assert not client.has_extn("STARTTLS")
            client.sendmail("a@b", ["c@d"], CONTENT)
        process.send_signal(SIGTERM)
        assert process.stdout
        counts = msgspec.json.decode(process.stdout.readline(), type=Counts)
        assert (counts.messages, counts.tls, counts.protocol_errors) == (1, 1, 0)


def test_threat_02_nothing_in_the_clear_is_executed_behind_starttls(tmp_path: Path) -> None:
    async def scenario() -> None:
        context = make_certificate(tmp_path, "DNS:sink.test").context
        async with Sink(tls=context) as sink, Client.to(sink) as client:
            await client.reply()
            assert await client.codes(b"EHLO me\r\nSTARTTLS\r\nMAIL FROM:<a@b>\r\n", 2) == [
                b"250",
                b"220",
            ]
            await until(lambda: sink.totals.protocol_errors == 1)

    run(scenario())


def test_over_lmtp_and_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "lmtp"
    with command("--lmtp", "--json", listen=f"unix:{path}") as (process, _):
        with smtplib.LMTP(str(path)) as client:
            assert client.sendmail("a@b", ["c@d", "permfail@d"], CONTENT).keys() == {"permfail@d"}
        process.send_signal(SIGTERM)
        assert process.stdout
        counts = msgspec.json.decode(process.stdout.readline(), type=Counts)
        assert (counts.messages, counts.recipients, counts.protocol_errors) == (1, 1, 0)


# The command


@contextmanager
def command(
    *options: str, listen: str = "127.0.0.1:0"
) -> Iterator[tuple["subprocess.Popen[str]", tuple[str, int]]]:
    line = [sys.executable, "-m", "fastmta.cli.sink", "--listen", listen, *options]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr
            host, _, port = process.stderr.readline().split()[-1].rpartition(":")
            yield process, (host, int(port) if port.isdigit() else 0)
        finally:
            process.kill()


def test_the_command_counts_on_request_and_at_the_end(tmp_path: Path) -> None:
    box = tmp_path / "mail"
    with command("--json", "--mbox", str(box)) as (process, endpoint):
        assert process.stdout
        for messages, number in ((1, SIGUSR1), (2, SIGTERM)):
            with smtplib.SMTP(*endpoint) as client:
                client.sendmail("a@b", ["c@d", "e@f"], CONTENT)
            process.send_signal(number)
            counts = msgspec.json.decode(process.stdout.readline(), type=Counts)
            assert (counts.messages, counts.recipients) == (messages, 2 * messages)
            assert box.read_bytes().count(b"\nSubject: x\n") == messages
        assert process.wait() == 0


def test_the_command_ends_by_itself_and_shows_a_table() -> None:
    with command("--exit-after", "2") as (process, endpoint):
        assert process.stdout
        with smtplib.SMTP(*endpoint) as client:
            for _ in range(2):
                client.sendmail("a@b", ["c@d"], CONTENT)
        assert re.search(r"messages\W+2\W", process.stdout.read())
        assert process.wait() == 0


@pytest.mark.parametrize(
    "options",
    [["--without", "FOO"], ["--delay", "5"], ["--drop", "2"], ["--tempfail=1", "--permfail=1"]],
)
def test_wrong_usage_is_told(options: list[str]) -> None:
    line = [sys.executable, "-m", "fastmta.cli.sink", *options]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--mbox", "/nowhere/mbox"], "/nowhere/mbox: No such file or directory"),
        (["--listen", "unix:/nowhere/lmtp"], "cannot listen on unix:/nowhere/lmtp: No such file"),
        (["--listen", "192.0.2.1:2700"], "cannot listen on 192.0.2.1:2700: Cannot assign"),
    ],
)
def test_what_cannot_be_opened_is_told_in_words(options: list[str], told: str) -> None:
    line = [sys.executable, "-m", "fastmta.cli.sink", *options]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"fastmta: {told}")
