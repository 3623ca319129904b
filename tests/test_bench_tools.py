"""The load and the sink of C's speed: they say and count what their twins in Python do."""

import asyncio
import re
import signal
import smtplib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from bench import load, peers, processes, relay, sweep
from bench._core.session import Wire
from bench.load import RECIPIENTS, Load, Result
from bench.peers import Features
from bench.sink import told
from fastmta.config import Endpoint
from fastmta.sink import Behaviour, Counts, Mail, Sink
from fastmta.sink.session import Session
from fastmta.sink.tally import NUMBER, SUM, TIME, parse_ranges
from tests.support import run

# The sink's machine beside the one of `fastmta sink`


class Twin:
    """A session of `fastmta sink` with nothing behind it, which is fed by hand."""

    def __init__(self, max_size: int) -> None:
        self.sink = Sink(Behaviour(max_size=max_size))
        self._said: list[bytes] = []
        self.write = self._said.append
        self._session = Session(self.sink)
        self._session.connection_made(self)  # type: ignore[arg-type]

    def close(self) -> None: ...

    def get_extra_info(self, _: str) -> None:
        return None

    def feed(self, data: bytes) -> bytes:
        if not self._session._closing:
            self._session.data_received(data)
        said = b"".join(self._said)
        self._said.clear()
        return said


COMMANDS = b"""
EHLO me
ehlo
HELO me
LHLO me
STARTTLS
NOOP
VRFY x
RSET
FOO

DATA
DATAX
QUIT
MAIL FROM:<a@b>
mail from: <>
MAIL FROM:<a@b> SIZE=100 BODY=8BITMIME
MAIL FROM:<a@b> X-SIZE=9999 size=99x9
MAIL FROM:<a@b> XSIZE=99999 SIZE=9999999999999999999 SIZE=70
MAIL FROM:<"\\">SIZE=5000"@b>
MAIL FROM:<"a@b>
MAIL FROM:  <a@b>
MAIL FROM
MAIL
RCPT TO:<c@d>
RCPT TO:<c@d>
rcpt to: <"x>y"@z> NOTIFY=NEVER
RCPT TO:<a-recipient-that-is-rather-long@example.test>
RCPT TO:<c@d> SIZE=5000
RCPT TO:c@d
RCPT
BDAT
BDAT x
BDAT 5x
BDAT 0
BDAT 0 LAST
BDAT 1234567890123456789
bdat 3 last \t
BDAT 7  LAST
BDAT 40
BDAT 9 LASTING
""".split(b"\n")[1:-1]
TRANSACTION = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        NUMBER: st.sampled_from([b"0", b"7", b"8", b"999999999999999999", b"", b"x", b"-1"]),
        TIME: st.sampled_from([b"1.5", b"100", b"", b"1.5x", b"x"]),
        SUM: st.sampled_from([b"right", b"RIGHT", b"00000000", b"", b"zz", b"0123456x"]),
        b"Subject": st.just(b"x"),
    },
)
BODIES = st.lists(
    st.sampled_from([b".", b"..", b"\r\n", b"\r\n.", b"\n", b"\r", b"x" * 9, b"\0\xff"])
).map(b"".join)
CRLF = b"\r\n"


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """A message as it is before it is stuffed."""
    body, fields = draw(BODIES), draw(FIELDS)
    right = b"%08x" % crc32(body)
    if SUM in fields:
        whole = fields[SUM].replace(b"right", right).replace(b"RIGHT", right.upper())
        fields = {**fields, SUM: whole}
    lines = [name + b": " + value + CRLF for name, value in fields.items()]
    return b"".join(lines) + draw(st.sampled_from([CRLF, CRLF, b""])) + body


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message as DATA or BDAT has it, mostly with an envelope in front."""
    content = draw(contents())
    envelope = draw(st.sampled_from([TRANSACTION, TRANSACTION, b""]))
    if draw(st.booleans()):
        content += b"" if not content or content.endswith(CRLF) else CRLF
        stuffed = re.sub(rb"(?:^|(?<=\r\n))\.", b"..", content)
        return envelope + b"DATA\r\n" + stuffed + b".\r\n"
    at = draw(st.integers(0, len(content)))
    first = b"BDAT %d\r\n%b" % (at, content[:at])
    return envelope + first + b"BDAT %d LAST\r\n%b" % (len(content) - at, content[at:])


DIALOGUES = st.lists(
    st.one_of(messages(), messages(), st.sampled_from(COMMANDS).map(lambda line: line + CRLF)),
    min_size=5,
).map(b"".join)
PLACES = st.one_of(
    st.lists(st.integers(0, 10_000), max_size=8),
    st.just(range(10_000)),  # each octet alone
)


@settings(max_examples=300)
@given(DIALOGUES, PLACES, st.sampled_from([1 << 30, 200, 20]))
def test_a_dialogue_cut_anywhere_has_the_answers_and_counts_of_the_twin(
    dialogue: bytes, places: list[int], max_size: int
) -> None:
    wire, twin = Wire(max_size), Twin(max_size)
    assert wire.feed(b"") == twin.feed(b"")  # the greeting
    cuts = sorted({0, len(dialogue), *(place for place in places if place < len(dialogue))})
    for start, end in pairwise(cuts):
        assert wire.feed(dialogue[start:end]) == twin.feed(dialogue[start:end])
    counts = wire.counts()
    assert len(counts["delays"]) == len(twin.sink._tally.delays)
    assert facts(told(**counts)) == facts(twin.sink.counts)


def facts(counts: Counts) -> dict[str, object]:
    """What does not hang on the clock."""
    clock = ("seconds", "last", "delay_p50", "delay_p99", "delay_p999")
    return {name: it for name, it in msgspec.structs.asdict(counts).items() if name not in clock}


@pytest.mark.parametrize("max_size", [1 << 30, 200, 20])
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_has_the_answer_of_the_twin(line: bytes, max_size: int) -> None:
    for before in (b"", b"MAIL FROM:<a@b>\r\n", TRANSACTION, TRANSACTION + b"BDAT 1\r\nx"):
        wire, twin = Wire(max_size), Twin(max_size)
        talk = before + line + b"\r\n" + b"x" * 50 + b"\r\n"
        assert wire.feed(talk) == twin.feed(talk)
        assert facts(told(**wire.counts())) == facts(twin.sink.counts)


def test_a_line_without_an_end_is_refused() -> None:
    wire, twin = Wire(), Twin(1 << 30)
    for piece in (b"x" * 40_000, b"x" * 30_000):
        assert wire.feed(piece)[-8:] == twin.feed(piece)[-8:]
    assert wire.feed(b"NOOP\r\n") == b""


def test_a_number_that_is_too_long_is_corrupt() -> None:
    wire = Wire()
    wire.feed(TRANSACTION + b"DATA\r\n%b: %d\r\n\r\n.\r\n" % (NUMBER, 10**18))
    counts = told(**wire.counts())
    assert (counts.messages, counts.numbers, counts.corrupt) == (1, "", 1)


@given(st.binary(max_size=3000), st.integers(0, 7), st.integers(0, 255))
def test_each_spoilt_octet_is_found(body: bytes, bit: int, at: int) -> None:
    wire = Wire()
    content = b"%b: 1\r\n%b: %08x\r\n\r\n" % (NUMBER, SUM, crc32(body))
    spoilt = bytearray(body or b"x")
    spoilt[at % len(spoilt)] ^= 1 << bit
    for one in (body, bytes(spoilt)):
        whole = content + one
        wire.feed(TRANSACTION + b"BDAT %d LAST\r\n%b" % (len(whole), whole))
    assert wire.counts()["corrupt"] == 1


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 30)), max_size=500))
def test_a_number_is_a_duplicate_for_a_recipient_that_had_it(
    deliveries: list[tuple[int, int]],
) -> None:
    wire = Wire()
    for number, recipient in deliveries:
        envelope = b"MAIL FROM:<>\r\nRCPT TO:<user%d@example.test>\r\n" % recipient
        wire.feed(envelope + b"DATA\r\n%b: %d\r\n\r\n.\r\n" % (NUMBER, number))
    counts = wire.counts()
    assert counts["numbers"] == sorted({number for number, _ in deliveries})
    assert counts["duplicates"] == len(deliveries) - len(set(deliveries))


# The sink as a process


@contextmanager
def sinking(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    port = processes.free_port()
    with relay.receiving(port, folder) as sink:
        yield sink, port


def test_what_is_sent_by_hand_is_counted(tmp_path: Path) -> None:
    content = f"{NUMBER.decode()}: 5\r\n{SUM.decode()}: {crc32(b'x')}\r\n\r\ny\r\n"
    with sinking(tmp_path) as (sink, port):
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.sendmail("a@b", ["c@d", "e@f"], content)
            client.sendmail("a@b", ["c@d"], content)
        counts = relay.ask(sink, tmp_path / "sink")
        sink.send_signal(signal.SIGTERM)
        assert sink.wait() == 0
    assert (counts.messages, counts.recipients, counts.numbers) == (2, 3, "5")
    assert (counts.duplicates, counts.corrupt) == (1, 2)
    assert counts.connections == 2  # with that which saw it greet
    assert len(relay._answers(tmp_path / "sink")) == 2


def test_replies_wait_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    count = 1_000_000
    with sinking(tmp_path) as (_, port), socket.create_connection(("127.0.0.1", port)) as client:
        sending = threading.Thread(target=client.sendall, args=(b"NOOP\r\n" * count + b"QUIT\r\n",))
        sending.start()
        sending.join(0.2)  # it waits too, for the sink has stopped reading
        with client.makefile("rb") as replies:
            lines = replies.read().splitlines()
        sending.join()
    assert lines[1:-1] == [b"250 2.0.0 Ok"] * count
    assert lines[-1].startswith(b"221 ")


def test_the_sink_outlives_clients_that_vanish(tmp_path: Path) -> None:
    with sinking(tmp_path) as (sink, port):
        for end in (b"", b"NOOP", b"NOOP\r\n", TRANSACTION + b"DATA\r\nx"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.sendall(end)
        assert relay.ask(sink, tmp_path / "sink").messages == 0


# The load


def sent(
    behaviour: Behaviour, clients: int = 3, messages: int = 20, domains: int = 0
) -> tuple[Result, list[Mail], Counts]:
    async def scenario() -> tuple[Result, list[Mail], Counts]:
        mails: list[Mail] = []
        async with Sink(behaviour, take=mails.append) as sink:
            where = Endpoint(*sink.endpoint)
            result = await asyncio.to_thread(load.send, where, clients, messages, 1000, domains)
            return result, mails, sink.counts

    return run(scenario())


@pytest.mark.parametrize("domains", [0, 7])
def test_both_loads_send_the_same(domains: int) -> None:
    async def python() -> list[Mail]:
        mails: list[Mail] = []
        async with Sink(take=mails.append) as sink:
            await Load(RECIPIENTS + 2, 1000, domains).run(Endpoint(*sink.endpoint), 3)
        return mails

    result, mails, counts = sent(Behaviour(), 3, RECIPIENTS + 2, domains)
    assert result.acknowledged == counts.numbers == f"1-{RECIPIENTS + 2}"
    assert (counts.corrupt, counts.protocol_errors, counts.connections) == (0, 0, 3)
    assert sorted(map(timeless, mails)) == sorted(map(timeless, run(python())))


def timeless(mail: Mail) -> tuple[str, list[str], str, bytes]:
    content, count = re.subn(rb"(?m)^%b: \d+\.\d{6}\r$" % TIME, b"", mail.content)
    assert count == 1
    return mail.sender, mail.recipients, mail.parameters, content


def test_latencies_are_of_the_reply_behind_the_content() -> None:
    result, mails, counts = sent(Behaviour(delay=0.02), clients=2, messages=4)
    assert 0.019 < result.accept_p50 <= result.accept_p99 <= result.accept_p999
    assert result.seconds > 4 / 2 * 4 * 0.019  # of each message four replies
    assert 0 < counts.delay_p50 < result.accept_p50
    assert len(mails) == 4


def test_without_pipelining_each_command_waits_for_its_reply() -> None:
    result, _, counts = sent(Behaviour(without=frozenset({"PIPELINING"})))
    assert (result.acknowledged, counts.protocol_errors) == ("1-20", 0)


@pytest.mark.parametrize("without", [frozenset[str](), frozenset({"PIPELINING"})])
def test_refused_messages_are_not_acknowledged(without: frozenset[str]) -> None:
    for behaviour in (
        Behaviour(tempfail=1.0, without=without),
        Behaviour(max_size=10, without=without),
    ):
        result, mails, _ = sent(behaviour)
        assert (result.acknowledged, result.refused, mails) == ("", 20, [])
        assert result.disconnects == 0


@pytest.mark.parametrize("without", [frozenset[str](), frozenset({"PIPELINING"})])
def test_connections_that_end_early_are_counted(without: frozenset[str]) -> None:
    result, mails, _ = sent(Behaviour(close_after=2, without=without))
    acknowledged = parse_ranges(result.acknowledged)  # which of them, their order decides
    assert (len(acknowledged), result.disconnects, len(mails)) == (6, 3, 6)
    result, mails, _ = sent(Behaviour(drop=1.0, drop_at="end", without=without))
    assert (result.acknowledged, result.disconnects, mails) == ("", 3, [])


def test_at_a_rate_messages_leave_at_even_times() -> None:
    async def scenario() -> Result:
        async with Sink() as sink:
            return await asyncio.to_thread(
                load.send, Endpoint(*sink.endpoint), 3, 30, 1000, rate=100.0
            )

    result = run(scenario())
    assert result.acknowledged == "1-30"
    assert result.seconds >= 30 / 100


@contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[Endpoint]:
    """A server of one connection."""

    def serve() -> None:
        with listener.accept()[0] as client:
            talk(client)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Endpoint(*listener.getsockname())
        thread.join()


def until(client: socket.socket, end: bytes) -> bytearray:
    data = bytearray()
    while not data.endswith(end):
        data += client.recv(1 << 16)
    return data


LARGE = 20_000_000  # octets: more than the kernel takes at once (tcp_wmem and tcp_rmem of tcp(7))


def greet(client: socket.socket, go: bytes = b"354 Go\r\n") -> None:
    client.sendall(b"220 hello\r\n")
    until(client, b"EHLO client.example.test\r\n")
    client.sendall(b"250-hello\r\n250-PIPELI")
    client.sendall(b"NING\r\n250 SIZE\r\n")
    until(client, b"DATA\r\n")
    for octet in b"250 Ok\r\n250-More\r\n250 Ok\r\n":
        client.sendall(bytes([octet]))
    client.sendall(go)


def test_a_large_message_is_written_as_there_is_room() -> None:
    def talk(client: socket.socket) -> None:
        greet(client)
        contents.append(until(client, b"\r\n.\r\n"))
        client.sendall(b"250 Ok\r\n")
        until(client, b"QUIT\r\n")

    contents: list[bytearray] = []
    with serving(talk) as where:
        result = load.send(where, 1, 1, LARGE)
    body, checksum = load.body_of(LARGE)
    assert result.acknowledged == "1"
    head, _, rest = contents[0].partition(b"\r\n\r\n")
    assert b"%b: %08x\r\n" % (SUM, checksum) in head
    assert rest == body


def test_a_reply_before_the_end_of_the_content_is_no_acknowledgement() -> None:
    def talk(client: socket.socket) -> None:
        greet(client, b"354 Go\r\n250 Ok\r\n")
        left.wait()  # unread, all of the content has no room

    left = threading.Event()
    with serving(talk) as where:
        result = load.send(where, 1, 1, LARGE)
        left.set()
    assert (result.acknowledged, result.disconnects) == ("", 1)


def test_a_server_that_does_not_greet_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "GREETED", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TimeoutError):
        load.send(Endpoint(*listener.getsockname()), 1, 1, 1000)


def test_a_server_that_goes_before_it_greets_is_a_disconnect() -> None:
    with serving(lambda client: None) as where:
        result = load.send(where, 1, 5, 1000)
    assert (result.acknowledged, result.refused, result.disconnects) == ("", 0, 1)


def test_runs_that_are_compared_have_the_same_ends(tmp_path: Path) -> None:
    plain, tls = relay.Options(), relay.Options(features=Features(tls="out"))
    assert [it.in_python for it in (plain, tls, sweep.at(plain, {"tls": "none"}))] == [0, 1, 1]
    assert not sweep.at(plain, {"size": 10}).in_python
    for options in (plain, sweep.at(plain, {"tls": "none"})):
        small = structs.replace(options, messages=30, clients=3)
        found = relay.numbered(peers.load("null"), small, tmp_path)
        assert (found.lost, found.duplicated, found.corrupt, found.refused) == (0, 0, 0, 0)
