"""The dispatcher over real sockets, against hosts that misbehave."""

import asyncio

import pytest

from fastmta.delivery.connection import JOINED_SIZE, Connection
from fastmta.delivery.dispatcher import Bounds
from fastmta.delivery.opening import draw
from fastmta.delivery.path import Path
from fastmta.delivery.site import Host, Site
from fastmta.mail.disposition import Kind
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.protocol.smtp_steps import Timeouts
from fastmta.queue.limits import Limits
from fastmta.queue.ready import Job, ReadyQueue
from tests.delivery.mx import DROP, SILENCE, Mx, Session
from tests.delivery.relay import CONTENT, Relay, refusing, saying, site
from tests.support import run, until

DELIVERED, DEFERRED, FAILED = Kind.DELIVERED, Kind.DEFERRED, Kind.FAILED


@pytest.fixture
def quick_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for what has run out of time more often, so that tests need not wait."""
    monkeypatch.setattr("fastmta.delivery.dispatcher.SWEEP_SECONDS", 0.01)


def test_extensions_make_no_difference_to_what_arrives() -> None:
    async def scenario(extensions: tuple[str, ...]) -> None:
        async with Mx(extensions=extensions) as mx:
            relay = Relay()
            ends = await relay.send(site(mx.host), 5)
            assert [end.kind for end in ends] == [DELIVERED] * 5
            assert ends[0].host == "mx.test [127.0.0.1]"
            assert sorted(mx.messages) == [b"Id: %d\r\n" % n + CONTENT for n in range(1, 6)]
            await relay.dispatcher.drain(5)

    for extensions in ((), ("PIPELINING",), ("CHUNKING",), ("PIPELINING", "CHUNKING")):
        run(scenario(extensions))


def test_one_round_trip_a_message_where_all_is_offered() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay()
            for _ in range(10):
                await relay.send(site(mx.host))
            assert len(mx.sessions) == 1
            assert mx.sessions[0].reads == 11  # EHLO, then each message whole
            await relay.dispatcher.drain(5)

    run(scenario())


def test_each_recipient_has_its_own_end() -> None:
    def answer(session: Session, command: str) -> bytes | None:
        return b"550 5.1.1 who?\r\n" if "q@" in command else None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay = Relay()
            await relay.send(
                site(mx.host), recipients=[Recipient("r@b.test"), Recipient("q@b.test")]
            )
            assert [end.kind for end in relay.settled[0][1]] == [DELIVERED, FAILED]
            await relay.dispatcher.drain(5)

    run(scenario())


# Connections: how many, how long.


def test_no_more_connections_than_the_limit() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(limits=Limits(connections=8))
            ends = await relay.send(site(mx.host), 300)
            assert {end.kind for end in ends} == {DELIVERED}
            assert mx.most == 8
            assert len(mx.messages) == len(set(mx.messages)) == 300
            await relay.dispatcher.drain(5)

    run(scenario())


def test_no_more_connections_than_jobs() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay()
            await relay.send(site(mx.host), 3)
            assert len(mx.sessions) <= 3
            await relay.dispatcher.drain(5)

    run(scenario())


def test_limit_on_all_connections() -> None:
    """Sites that have none get theirs from sites that have several, or one that is idle."""

    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(limits=Limits(idle_timeout=60), bounds=Bounds(all_connections=4))
            for number in range(20):
                for _ in range(10):
                    assert relay.submit(Site(f"site{number}", ((mx.host,),)))
            await relay.until_settled(200)
            assert {end.kind for _, (end,) in relay.settled} == {DELIVERED}
            assert mx.most <= 4
            assert relay.submit(Site("late", ((mx.host,),)))
            await relay.until_settled(201)
            assert mx.most <= 4
            await relay.dispatcher.drain(5)
            assert relay.dispatcher._slots == 4

    run(scenario())


def test_busy_site_leaves_a_connection_to_others() -> None:
    async def scenario() -> None:
        async with Mx() as busy, Mx() as other:
            relay = Relay(bounds=Bounds(all_connections=4))
            relay.on_settle = lambda: relay.sent < 2000 and relay.submit(site(busy.host))
            for _ in range(32):
                assert relay.submit(site(busy.host))
            await until(lambda: busy.open == 4)
            assert relay.submit(Site("other", ((other.host,),)))
            await until(lambda: bool(other.messages))
            assert len(busy.messages) < 1900
            await relay.dispatcher.drain(5)

    run(scenario())


def test_messages_a_connection() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(limits=Limits(messages_per_connection=3, connections=1))
            await relay.send(site(mx.host), 10)
            assert [len(session.messages) for session in mx.sessions] == [3, 3, 3, 1]
            assert mx.sessions[0].commands[-1] == "QUIT"
            await relay.dispatcher.drain(5)

    run(scenario())


@pytest.mark.usefixtures("quick_sweep")
def test_idle_connection_says_quit() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(limits=Limits(idle_timeout=0.01))
            await relay.send(site(mx.host))
            await until(lambda: not mx.open)
            assert mx.sessions[0].commands[-1] == "QUIT"
            await until(lambda: not relay.dispatcher.paths())  # the path is forgotten

    run(scenario())


@pytest.mark.parametrize("goodbye", [b"", b"421 4.4.2 idle for too long\r\n", b"rubbish\r\n"])
def test_idle_connection_closed_by_the_host(goodbye: bytes) -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay()
            await relay.send(site(mx.host))
            mx.sessions[0].transport.write(goodbye)
            mx.sessions[0].transport.close()
            await until(lambda: not relay.dispatcher.connections)
            assert [end.kind for end in await relay.send(site(mx.host))] == [DELIVERED]
            assert len(mx.sessions) == 2
            await relay.dispatcher.drain(5)

    run(scenario())


@pytest.mark.parametrize("goodbye", [DROP, b"421 4.3.2 enough\r\n" + DROP])
@pytest.mark.parametrize("extensions", [(), ("PIPELINING", "CHUNKING")])
def test_kept_connection_that_is_dead_costs_nothing(
    goodbye: bytes, extensions: tuple[str, ...]
) -> None:
    """The host takes two messages a connection; all arrive, none twice."""

    def answer(session: Session, command: str) -> bytes | None:
        return goodbye if len(session.messages) == 2 and command.startswith("MAIL") else None

    async def scenario() -> None:
        async with Mx(answer, extensions=extensions) as mx:
            relay = Relay(limits=Limits(connections=3))
            ends = await relay.send(site(mx.host), 30)
            assert {end.kind for end in ends} == {DELIVERED}
            assert len(mx.messages) == len(set(mx.messages)) == 30
            await relay.dispatcher.drain(5)

    run(scenario())


def test_dead_twice_is_deferred() -> None:
    def answer(session: Session, command: str) -> bytes | None:
        seen = session.number > 0 or session.messages
        return DROP if seen and command.startswith("MAIL") else None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay = Relay()
            await relay.send(site(mx.host))
            (end,) = await relay.send(site(mx.host))
            assert (end.kind, end.reply.enhanced) == (DEFERRED, "4.4.2")
            assert len(mx.sessions) == 2
            await relay.dispatcher.drain(5)

    run(scenario())


def test_a_second_try_is_for_a_fresh_connection() -> None:
    """Not for another that has been kept, and may be as dead."""
    seen = [0, 0, 0]  # messages begun, by session

    def answer(session: Session, command: str) -> bytes | None:
        if command.startswith("MAIL"):
            seen[session.number] += 1
            return DROP if session.number == 0 and seen[0] == 2 else None
        # The fresh one takes its time to greet, the others theirs to accept.
        slow = command == "BDAT" if session.number < 2 else command == ""
        return SILENCE if slow else None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay, to = Relay(Limits(connections=2)), site(mx.host)
            for count in ([1, 0, 0], [1, 1, 0]):
                assert relay.submit(to)
                await until(lambda count=count: seen == count)
            assert relay.submit(to)  # goes to the first to be free, and to its end
            mx.sessions[0].transport.write(b"250 ok\r\n")
            await until(lambda: len(mx.sessions) == 3)
            mx.sessions[1].transport.write(b"250 ok\r\n")
            await relay.until_settled(2)
            assert seen == [2, 1, 0] and relay.dispatcher.paths()[0].waiting == 1
            mx.sessions[2].transport.write(b"220 mx.test\r\n")
            await relay.until_settled(3)
            assert {end.kind for _, (end,) in relay.settled} == {DELIVERED}
            assert seen == [2, 1, 1]
            await relay.dispatcher.drain(5)

    run(scenario())


def test_connection_that_says_quit_takes_no_job() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay()
            await relay.send(site(mx.host))
            (connection,) = relay.dispatcher.connections
            connection.expire()
            (end,) = await relay.send(site(mx.host))
            assert end.kind is DELIVERED
            assert [len(session.messages) for session in mx.sessions] == [1, 1]
            await relay.dispatcher.drain(5)

    run(scenario())


# Hosts that do not answer, or not well.


def test_next_host_when_the_first_refuses() -> None:
    async def scenario() -> None:
        busy, blocking = Mx(saying({"": b"421 4.7.0 busy\r\n"})), Mx(saying({"": b"554 no\r\n"}))
        dropping = Mx(saying({"EHLO": DROP}))
        async with busy, blocking, dropping, Mx() as mx:
            hosts = (refusing(), busy.host, blocking.host, dropping.host, mx.host)
            relay = Relay()
            (end,) = await relay.send(site(*hosts))
            assert end.kind is DELIVERED
            assert [len(each.sessions) for each in (busy, blocking, dropping)] == [1, 1, 1]
            await until(lambda: blocking.sessions[0].commands == ["QUIT"])
            await relay.dispatcher.drain(5)

    run(scenario())


def test_next_address_of_the_same_host() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            host = Host("two.test", ("127.0.0.2", "127.0.0.1"), mx.port)
            relay = Relay()
            (end,) = await relay.send(site(host))
            assert end.host == "two.test [127.0.0.1]"
            await relay.dispatcher.drain(5)

    run(scenario())


def test_dead_site_costs_one_attempt() -> None:
    async def scenario() -> None:
        async with Mx(saying({"": b"450 4.3.2 not now\r\n"})) as mx:
            relay = Relay()
            ends = await relay.send(site(mx.host), 200)
            assert {(end.kind, end.reply.enhanced) for end in ends} == {(DEFERRED, "4.3.2")}
            assert len(mx.sessions) == 1
            await until(lambda: not relay.dispatcher.paths())
        ends = await relay.send(site(refusing()), 200)
        assert {(end.kind, end.reply.enhanced, end.host) for end in ends} == {
            (DEFERRED, "4.4.1", "down.test [127.0.0.1]")
        }

    run(scenario())


def test_blocking_host_is_temporary() -> None:
    async def scenario() -> None:
        async with Mx(saying({"": b"554 5.7.1 blocked\r\n"})) as mx:
            (end,) = await Relay().send(site(mx.host))
            assert end.kind is DEFERRED and "554 5.7.1 blocked" in end.reply.text

    run(scenario())


def test_site_without_addresses() -> None:
    async def scenario() -> None:
        (end,) = await Relay().send(site(Host("none.test", (), 25)))
        assert (end.kind, end.reply.enhanced) == (DEFERRED, "4.4.4")

    run(scenario())


def test_site_that_takes_few_connections_gets_its_mail_over_these() -> None:
    def answer(session: Session, command: str) -> bytes | None:
        return b"421 4.7.0 two at most\r\n" + DROP if not command and session.mx.open > 2 else None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay = Relay()
            ends = await relay.send(site(mx.host), 500)
            assert {end.kind for end in ends} == {DELIVERED}
            assert len(mx.messages) == 500
            assert len(mx.sessions) <= 32  # it is not asked again and again
            await relay.dispatcher.drain(5)

    run(scenario())


def test_equal_hosts_are_drawn_in_random_order() -> None:
    first, second, later = (Host(name, ("192.0.2.1",), 25) for name in "abc")
    drawn = {tuple(host.name for host, _ in draw(site((first, second), later))) for _ in range(99)}
    assert drawn == {("a", "b", "c"), ("b", "a", "c")}


# Transactions that end badly.


@pytest.mark.parametrize(
    ("extensions", "replies", "kind", "enhanced"),
    [
        ((), {"MAIL": DROP}, DEFERRED, "4.4.2"),
        ((), {"RCPT": DROP}, DEFERRED, "4.4.2"),
        ((), {"DATA": DROP}, DEFERRED, "4.4.2"),
        ((), {".": DROP}, DEFERRED, "4.4.2"),
        (("PIPELINING", "CHUNKING"), {"MAIL": DROP}, DEFERRED, "4.4.2"),
        (("PIPELINING", "CHUNKING"), {"BDAT": DROP}, DEFERRED, "4.4.2"),
        (("PIPELINING", "CHUNKING"), {"BDAT": b"250-2.0.0 o" + DROP}, DEFERRED, "4.4.2"),
        ((), {"MAIL": b"421 4.3.2 bye\r\n" + DROP}, DEFERRED, "4.3.2"),
        ((), {"DATA": b"421 4.3.2 bye\r\n" + DROP}, DEFERRED, "4.3.2"),
        ((), {".": b"421 4.3.2 bye\r\n" + DROP}, DEFERRED, "4.3.2"),
        ((), {"MAIL": b"552 5.3.4 big\r\n"}, FAILED, "5.3.4"),
        ((), {"RCPT": b"450 4.2.0 grey\r\n"}, DEFERRED, "4.2.0"),
        ((), {".": b"554 5.7.1 spam\r\n"}, FAILED, "5.7.1"),
        (("PIPELINING", "CHUNKING"), {"BDAT": b"452 4.3.1 full\r\n"}, DEFERRED, "4.3.1"),
    ],
)
def test_bad_ends(
    extensions: tuple[str, ...], replies: dict[str, bytes], kind: Kind, enhanced: str
) -> None:
    async def scenario() -> None:
        async with Mx(saying(replies), extensions=extensions) as mx:
            relay = Relay(limits=Limits(connections=1))
            (end,) = await relay.send(site(mx.host))
            assert (end.kind, end.reply.enhanced) == (kind, enhanced)
            mx.answer = lambda session, command: None
            (end,) = await relay.send(site(mx.host))
            assert end.kind is DELIVERED  # by the same connection, or another
            assert len(mx.messages) == 1
            await relay.dispatcher.drain(5)

    run(scenario())


def test_objections_leave_the_connection_to_others() -> None:
    async def scenario() -> None:
        async with Mx(extensions=("PIPELINING", "SIZE 100")) as mx:
            relay = Relay(limits=Limits(connections=1))
            to = site(mx.host)
            for _ in range(15):  # settled one by one, without recursion
                assert relay.submit(to, size=101)
                assert relay.submit(to, utf8=True)
            assert relay.submit(to)
            await relay.until_settled(31)
            ends = [(end.kind, end.reply.enhanced) for _, (end,) in relay.settled]
            assert {*ends} == {
                (FAILED, "5.3.4"),
                (FAILED, "5.6.7"),
                (DELIVERED, "2.0.0"),
            }
            # And on a connection that waits: not within `submit`.
            assert relay.submit(to, size=101) and len(relay.settled) == 31
            await relay.until_settled(32)
            assert (len(mx.sessions), len(mx.messages)) == (1, 1)
            await relay.dispatcher.drain(5)

    run(scenario())


# Large messages.


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("extensions", [(), ("PIPELINING",), ("PIPELINING", "CHUNKING")])
def test_large_message_is_streamed(stored: bool, extensions: tuple[str, ...]) -> None:
    content = b".dots and lines\r\n" * (3 * JOINED_SIZE // 17)

    async def scenario() -> None:
        async with Mx(extensions=extensions) as mx:
            relay = Relay()
            (end,) = await relay.send(site(mx.host), content=content, stored=stored)
            assert end.kind is DELIVERED
            assert mx.messages == [content]
            await relay.dispatcher.drain(5)

    run(scenario())


def test_small_message_from_the_spool() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay()
            ends = await relay.send(site(mx.host), 3, stored=True)
            assert [end.kind for end in ends] == [DELIVERED] * 3
            assert len(mx.messages) == 3
            await relay.dispatcher.drain(5)

    run(scenario())


def test_streaming_goes_no_faster_than_the_peer_reads() -> None:
    content = b"x" * 998 + b"\r\n"
    content *= 40 * JOINED_SIZE // len(content)

    def answer(session: Session, command: str) -> bytes | None:
        if command.startswith("MAIL"):
            session.transport.pause_reading()
        return None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay = Relay()
            assert relay.submit(site(mx.host), content=content, stored=True)
            await until(lambda: any(each._resumed for each in relay.dispatcher.connections))
            assert relay.read_up_to < len(relay.stored[1]) // 2
            mx.sessions[0].transport.resume_reading()
            await relay.until_settled(1)
            assert mx.messages == [content]
            await relay.dispatcher.drain(5)

    run(scenario())


@pytest.mark.parametrize("size", [1000, 2 * JOINED_SIZE])
@pytest.mark.parametrize("wrong", [-1, 1, None])
@pytest.mark.parametrize("extensions", [(), ("PIPELINING", "CHUNKING")])
def test_unreadable_message_is_deferred_and_void(
    size: int, wrong: int | None, extensions: tuple[str, ...]
) -> None:
    """Shorter or longer than its envelope says, or not there: the host must not take it."""

    async def scenario() -> None:
        async with Mx(extensions=extensions) as mx:
            relay = Relay()
            assert relay.submit(
                site(mx.host), content=b"x" * size, stored=True, size=size + (wrong or 0)
            )
            if wrong is None:
                relay.stored.clear()
            await relay.until_settled(1)
            ((_, (end,)),) = relay.settled
            assert (end.kind, end.reply.enhanced) == (DEFERRED, "4.3.0")
            assert [end.kind for end in await relay.send(site(mx.host))] == [DELIVERED]
            assert len(mx.messages) == 1
            await relay.dispatcher.drain(5)

    run(scenario())


# Time limits.


@pytest.mark.usefixtures("quick_sweep")
@pytest.mark.parametrize(
    ("silent", "limit"),
    [
        ("", "greeting"),
        ("EHLO", "hello"),
        ("MAIL", "mail"),
        ("RCPT", "rcpt"),
        ("DATA", "data"),
        (".", "end"),
    ],
)
def test_every_wait_has_an_end(silent: str, limit: str) -> None:
    async def scenario() -> None:
        async with Mx(saying({silent: SILENCE}), extensions=()) as mx:
            relay = Relay(timeouts=Timeouts(**{limit: 0.01}))
            (end,) = await relay.send(site(mx.host))
            assert (end.kind, end.reply.enhanced) == (DEFERRED, "4.4.2")
            assert "timed out" in end.reply.text

    run(scenario())


@pytest.mark.usefixtures("quick_sweep")
def test_threat_15_a_trickle_of_bytes_is_no_progress() -> None:
    async def scenario() -> None:
        async with Mx(saying({"BDAT": SILENCE})) as mx:
            relay = Relay(timeouts=Timeouts(end=0.5))
            assert relay.submit(site(mx.host))
            await until(lambda: bool(mx.sessions) and len(mx.sessions[0].commands) == 4)
            while not relay.settled:
                mx.sessions[0].transport.write(b"2")
                await asyncio.sleep(0.05)
            assert relay.settled[0][1][0].reply.enhanced in ("4.4.2", "4.5.0")
            assert "timed out" in relay.settled[0][1][0].reply.text

    run(scenario())


@pytest.mark.usefixtures("quick_sweep")
def test_peer_that_stops_reading() -> None:
    def answer(session: Session, command: str) -> bytes | None:
        if command.startswith("MAIL"):
            session.transport.pause_reading()
        return None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            before = asyncio.all_tasks()
            relay = Relay(timeouts=Timeouts(block=0.01))
            (end,) = await relay.send(site(mx.host), content=b"x" * 40 * JOINED_SIZE)
            assert (end.kind, end.reply.enhanced) == (DEFERRED, "4.4.2")
            await until(lambda: len(asyncio.all_tasks()) == len(before))  # nobody waits for it

    run(scenario())


def test_peer_that_half_closes() -> None:
    """It will not reply, so nothing more is sent, whatever is still in the buffer."""

    def answer(session: Session, command: str) -> bytes | None:
        if command.startswith("RCPT"):
            session.transport.pause_reading()
            session.transport.write(b"250 ok\r\n")
            session.transport.write_eof()
            return SILENCE
        return None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            (end,) = await Relay().send(site(mx.host), content=b"x" * 40 * JOINED_SIZE)
            assert (end.kind, end.reply.enhanced) == (DEFERRED, "4.4.2")
            assert "lost" in end.reply.text

    run(scenario())


# Threats.


@pytest.mark.parametrize("extensions", [(), ("PIPELINING", "CHUNKING")])
def test_threat_12_one_message_stays_one(extensions: tuple[str, ...]) -> None:
    content = b"a\r\n.\r\nMAIL FROM:<evil@a.test>\r\n..\r\n.x\r\n"

    async def scenario() -> None:
        async with Mx(extensions=extensions) as mx:
            relay = Relay()
            await relay.send(site(mx.host), content=content)
            assert mx.messages == [content]
            assert sum(each.startswith("MAIL") for each in mx.sessions[0].commands) == 1
            await relay.dispatcher.drain(5)

    run(scenario())


def test_threat_14_our_own_greeting_is_a_loop() -> None:
    async def scenario() -> None:
        async with Mx(saying({"": b"220 ME.test. ESMTP\r\n"})) as mx, Mx() as backup:
            relay = Relay()
            ends = await relay.send(site(mx.host, backup.host), 3)
            assert {(end.kind, end.reply.enhanced) for end in ends} == {(FAILED, "5.4.6")}
            assert not backup.sessions

    run(scenario())


def test_threat_14_we_are_the_backup_of_a_host_that_is_down() -> None:
    async def scenario() -> None:
        async with Mx(saying({"": b"220 me.test ESMTP\r\n"})) as mx:
            (end,) = await Relay().send(site(refusing(), mx.host))
            assert (end.kind, end.reply.enhanced) == (DEFERRED, "4.4.1")

    run(scenario())


@pytest.mark.parametrize(
    "hostile",
    [
        b"x" * 10_000_000,
        b"250-x\r\n" * 100_000,
        b"250-a\r\n550 b\r\n",
        b"\0\xff\r\n",
        b"250 \xe9\r\n" * 1000,
    ],
    ids=["10 MB", "endless", "codes", "rubbish", "many"],
)
@pytest.mark.parametrize("at", ["", "EHLO", "MAIL", "RCPT", "DATA", "."])
def test_threat_15_hostile_replies_defer(hostile: bytes, at: str) -> None:
    async def scenario() -> None:
        async with Mx(saying({at: hostile}), extensions=("PIPELINING",)) as mx:
            (end,) = await Relay().send(site(mx.host))
            if end.kind is DELIVERED:  # a whole acceptance, then nonsense
                assert at == "." and hostile.startswith(b"250 ")
            else:
                assert (end.kind, end.reply.enhanced) == (DEFERRED, "4.5.0")
                assert len(end.reply.text) <= 1000 and end.reply.text.isprintable()

    run(scenario())


# Bounds, numbers, the end.


def test_ready_queue_is_bounded() -> None:
    queue, job = ReadyQueue(2), Job(Envelope(1, 0, "", "", [], 0.0, 0))
    assert queue.take() is None
    assert [queue.put(job) for _ in range(3)] == [True, True, False]
    assert queue.take() is job and len(queue) == 1
    assert queue.take_all() == [job] and not queue


def test_full_queues_say_not_now() -> None:
    async def scenario() -> None:
        async with Mx(saying({"": SILENCE})) as mx:
            relay = Relay(limits=Limits(ready=5), bounds=Bounds(paths=1))
            assert [relay.submit(site(mx.host)) for _ in range(7)] == [True] * 5 + [False] * 2
            assert not relay.submit(Site("other.test", ((mx.host,),)))
            (numbers,) = relay.dispatcher.paths()
            assert (numbers.site, numbers.waiting, numbers.opening) == ("b.test", 5, 1)
            assert relay.dispatcher.active_jobs() == 5
            await relay.dispatcher.drain(5)

    run(scenario())


def test_settling_may_submit() -> None:
    """The scheduler puts the next job where there is room, at once."""

    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(limits=Limits(connections=2))
            relay.on_settle = lambda: relay.sent < 500 and relay.submit(site(mx.host))
            assert relay.submit(site(mx.host))
            await relay.until_settled(500)
            assert len(set(mx.messages)) == 500
            assert relay.dispatcher.active_jobs() == 0
            await relay.dispatcher.drain(5)

    run(scenario())


def test_settling_a_dead_site_may_submit() -> None:
    async def scenario() -> None:
        relay, to = Relay(), site(refusing())
        relay.on_settle = lambda: relay.sent < 5 and relay.submit(to)
        assert relay.submit(to)
        await relay.until_settled(5)

    run(scenario())


def test_drain_finishes_what_is_in_flight() -> None:
    """And lets go of what has not begun, unsettled."""
    held: list[Session] = []

    def answer(session: Session, command: str) -> bytes | None:
        if command == "BDAT":
            held.append(session)
            return SILENCE
        return None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay = Relay(limits=Limits(connections=2))
            for _ in range(10):
                assert relay.submit(site(mx.host))
            await until(lambda: len(held) == 2)
            draining = asyncio.ensure_future(relay.dispatcher.drain(30))
            await asyncio.sleep(0)
            assert not relay.submit(site(mx.host))
            for session in held:
                session.transport.write(b"250 2.0.0 ok\r\n")
            await draining
            assert [end.kind for _, (end,) in relay.settled] == [DELIVERED] * 2
            assert [session.commands[-1] for session in mx.sessions] == ["QUIT", "QUIT"]
            assert not relay.dispatcher.connections

    run(scenario())


@pytest.mark.parametrize("silent", ["", "EHLO", "BDAT"])
def test_drain_has_an_end(silent: str) -> None:
    async def scenario() -> None:
        async with Mx(saying({silent: SILENCE})) as mx:
            relay = Relay()
            assert relay.submit(site(mx.host))
            await until(lambda: bool(mx.sessions) and len(mx.sessions[0].commands) >= bool(silent))
            if silent == "BDAT":
                await until(lambda: len(mx.sessions[0].commands) == 4)
            # What only says hello is let go at once.
            await relay.dispatcher.drain(0.01 if silent == "BDAT" else 1000)
            assert not relay.dispatcher.connections
            ends = [(end.kind, end.reply.enhanced) for _, (end,) in relay.settled]
            assert ends == ([(DEFERRED, "4.3.2")] if silent == "BDAT" else [])

    run(scenario())


def test_cut_off_in_the_moment_of_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop then closes the socket without a word to the connection."""
    drains: list[asyncio.Task[None]] = []

    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay()

            class Drained(Path):
                def made(self, connection: Connection) -> None:
                    super().made(connection)
                    drains.append(asyncio.ensure_future(relay.dispatcher.drain(0.01)))
                    for opener in self._openers:
                        opener.cancel()

            monkeypatch.setattr("fastmta.delivery.dispatcher.Path", Drained)
            assert relay.submit(site(mx.host))
            await until(lambda: bool(drains))
            await drains[0]
            assert not relay.dispatcher.connections and not relay.settled

    run(scenario())
