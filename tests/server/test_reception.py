"""What stands before the queue: who is refused or left out, and reports that come in."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fastmta import log
from fastmta.config import Bounces, Duration, Suppression
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Recipient
from fastmta.mail.reply import Reply
from fastmta.queue.suppressor import Suppressor
from fastmta.server import reception as module
from fastmta.server.reception import Addresses, Reception
from fastmta.store.suppression import Entry
from tests.mail.test_bounces import BOB, REPORT
from tests.mail.test_complaints import FIELDS
from tests.mail.test_complaints import REPORT as COMPLAINT
from tests.protocol.dialogue import greeted
from tests.protocol.test_smtp_in_threats import RELAY_FORMS
from tests.support import run, until

BOUNCES = Bounces(
    addresses=("Bounces@relay.example.test", "*@b.example.test"),
    complaints=("fbl@relay.example.test", "both@b.example.test"),
)
OPEN = Arrival(0, "", [], [], 0, 0.0)  # after MAIL
BOUNCE = REPORT % (BOB % (b"failed", b"5.1.1"))
SPAM = COMPLAINT % (FIELDS % b"abuse" + b"Original-Rcpt-To: eve@x.test\r\n", b"text/plain", b"")


class Shelf:
    """A suppression list in memory; writes wait until `answer` is called, if told so."""

    def __init__(self) -> None:
        self.rows: dict[str, Entry] = {}
        self.waiting: list[Callable[[bool], object]] | None = None
        self.works = True

    def find(self, address: str) -> Entry | None:
        return self.rows.get(address.lower())

    def add(self, entries: list[Entry], done: Callable[[bool], object]) -> None:
        if self.works:
            self.rows |= {one.address.lower(): one for one in entries}
        if self.waiting is None:
            done(self.works)
        else:
            self.waiting.append(done)

    def clean(self) -> None: ...


class Memory:
    """The backend behind the reception."""

    def __init__(self) -> None:
        self.arrivals: list[list[str]] = []
        self.verdict: Reply | None = None

    def new_id(self) -> int:
        return 1

    def refusal(self) -> Reply | None:
        return None

    def accept(self, arrival: Arrival, done: Callable[[Reply | None], None]) -> None:
        self.arrivals.append([one.address for one in arrival.recipients])
        done(self.verdict)


class Lines:
    def __init__(self) -> None:
        self.events: list[log.Event] = []

    def write(self, event: log.Event) -> None:
        self.events.append(event)

    @property
    def names(self) -> list[str]:
        return [str(type(event).__struct_config__.tag) for event in self.events]


class Scene:
    def __init__(self, drops: bool = False, feeds: bool = True, suppresses: bool = True) -> None:
        self.shelf, self.memory, self.lines = Shelf(), Memory(), Lines()
        settings = Suppression(expire_after=Duration(60))
        suppressor = Suppressor(settings, self.shelf, lambda: 1000.0)  # type: ignore[arg-type]
        self.reception = Reception(
            self.memory,
            self.lines,  # type: ignore[arg-type]
            suppressor if suppresses else None,
            drops=drops,
            bounces=BOUNCES,
            feeds=feeds,
        )

    def begin(self, content: bytes, *recipients: str) -> "asyncio.Future[Reply | None]":
        answer: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        to = [Recipient(one) for one in recipients]
        arrival = Arrival(7 << 20, "", to, [content[:9], content[9:]], len(content), 5.0)
        self.reception.accept(arrival, answer.set_result)
        return answer

    async def accept(self, content: bytes, *recipients: str) -> Reply | None:
        return await self.begin(content, *recipients)


def manual(address: str) -> Entry:
    return Entry(address, "manual", 1_800_000_000.0)


@pytest.mark.parametrize(
    ("address", "is_in"),
    [
        ("bounces@relay.example.test", True),
        ("BOUNCES@Relay.Example.Test", True),
        ("any.thing+1@B.example.test", True),
        ("bounces@b.relay.example.test", False),
        ("x@sub.b.example.test", False),
        ("*@relay.example.test", False),
        ("fbl@relay.example.test", False),
    ],
)
def test_which_addresses_take_bounces(address: str, is_in: bool) -> None:
    assert (address in Addresses(BOUNCES.addresses)) is is_in


@pytest.mark.parametrize("path", RELAY_FORMS)
def test_reports_open_the_relay_to_none_of_its_forms(path: str) -> None:
    dialogue = greeted(may_relay=False, vet=Scene().reception.vet)
    dialogue.say("MAIL FROM:<> SMTPUTF8")
    assert dialogue.say(f"RCPT TO:<{path}>")[0] in ("550 5.7.1", "501 5.1.3", "501 5.5.4")
    assert dialogue.say("RCPT TO:<x@b.example.test>") == ["250 2.1.5"]


def test_the_list_is_not_told_to_who_may_not_relay() -> None:
    scene = Scene()
    scene.shelf.rows["bob@x.test"] = manual("bob@x.test")
    for may_relay, text in (
        (False, b"Relaying denied"),
        (True, b"suppressed: manual on 2027-01-15"),
    ):
        assert text in scene.reception.vet("bob@x.test", may_relay, OPEN)
    scene.shelf.rows["eve@x.test"] = manual("@x.test")
    assert scene.reception.vet("eve@x.test", True, OPEN).endswith(b", the whole domain\r\n")


def test_refused_recipients_are_no_errors_of_a_client_that_may_relay() -> None:
    scene = Scene()
    scene.shelf.rows["bob@x.test"] = manual("bob@x.test")
    dialogue = greeted(vet=scene.reception.vet, max_errors=2)
    dialogue.say("MAIL FROM:<>")
    for _ in range(10):
        assert dialogue.say("RCPT TO:<bob@x.test>") == ["550 5.1.1"]
    assert dialogue.say("RCPT TO:<eve@x.test>") == ["250 2.1.5"]


def test_a_report_is_acknowledged_once_it_is_safe_and_not_before() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.shelf.waiting = []
        answer = scene.begin(BOUNCE, "bounces@relay.example.test")
        await until(lambda: scene.shelf.waiting)
        assert not answer.done()
        assert not scene.lines.events
        scene.shelf.waiting.pop()(True)
        assert await answer is None
        assert scene.lines.names == ["bounce-received"]
        assert scene.memory.arrivals == []  # nothing is queued
        entry = scene.shelf.rows["bob@example.test"]
        assert (entry.reason, entry.added, entry.expires) == ("bounce", 1000.0, 1060.0)

    run(scenario())


def test_a_list_that_cannot_be_written_is_a_451() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.shelf.works = False
        answer = await scene.accept(BOUNCE, "bounces@relay.example.test", "eve@x.test")
        assert answer is not None
        assert answer.code == 451
        assert not scene.lines.events
        assert not scene.memory.arrivals

    run(scenario())


def test_a_reader_that_fails_is_a_451(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    async def scenario() -> None:
        answer = await Scene().accept(BOUNCE, "bounces@relay.example.test")
        assert answer is not None
        assert answer.code == 451

    monkeypatch.setattr(module, "read_bounce", fail)
    run(scenario())


def test_a_report_beside_other_recipients_is_queued_for_them() -> None:
    async def scenario() -> None:
        scene = Scene()
        assert await scene.accept(BOUNCE, "x@b.example.test", "eve@x.test") is None
        assert scene.memory.arrivals == [["eve@x.test"]]
        assert "bob@example.test" in scene.shelf.rows
        scene.memory.verdict = Reply(452, "4.3.1", "full")
        assert await scene.accept(BOUNCE, "x@b.example.test", "eve@x.test") == scene.memory.verdict

    run(scenario())


@pytest.mark.parametrize(
    ("recipient", "content", "names", "suppressed"),
    [
        ("x@b.example.test", BOUNCE, ["bounce-received"], ["bob@example.test"]),
        ("x@b.example.test", SPAM, ["report-unknown"], []),
        ("fbl@relay.example.test", BOUNCE, ["report-unknown"], []),
        ("fbl@relay.example.test", SPAM, ["complaint"], ["eve@x.test"]),
        ("both@b.example.test", SPAM, ["complaint"], ["eve@x.test"]),
        ("both@b.example.test", BOUNCE, ["bounce-received"], ["bob@example.test"]),
        ("x@b.example.test", b"Subject: hi\r\n\r\nhello\r\n", ["report-unknown"], []),
        ("x@b.example.test", b"", ["report-unknown"], []),
    ],
)
def test_what_each_address_takes(
    recipient: str, content: bytes, names: list[str], suppressed: list[str]
) -> None:
    async def scenario() -> None:
        scene = Scene()
        assert await scene.accept(content, recipient) is None
        assert scene.lines.names == names
        assert list(scene.shelf.rows) == suppressed

    run(scenario())


@pytest.mark.parametrize(
    ("content", "names"),
    [(BOUNCE, ["bounce-received", "report-unknown"]), (SPAM, ["report-unknown", "complaint"])],
)
def test_each_address_of_a_message_takes_its_own_kind(content: bytes, names: list[str]) -> None:
    async def scenario() -> None:
        scene = Scene()
        assert await scene.accept(content, "x@b.example.test", "fbl@relay.example.test") is None
        assert scene.lines.names == names

    run(scenario())


@pytest.mark.parametrize(
    "fields",
    [
        BOB % (b"delayed", b"4.4.1"),
        BOB % (b"delayed", b"4.1.1"),
        BOB % (b"failed", b"5.7.1"),
        BOB % (b"failed", b"5.2.2"),
        BOB.replace(b"bob@", b"b b@") % (b"failed", b"5.1.1"),
    ],
)
def test_what_says_nothing_of_the_address_for_good_suppresses_nobody(fields: bytes) -> None:
    async def scenario() -> None:
        scene = Scene()
        assert await scene.accept(REPORT % fields, "x@b.example.test") is None
        assert scene.lines.names == ["bounce-received"]
        assert not scene.shelf.rows

    run(scenario())


@pytest.mark.parametrize("options", [{"feeds": False}, {"suppresses": False}])
def test_reports_may_be_told_only(options: dict[str, bool]) -> None:
    async def scenario() -> None:
        scene = Scene(**options)
        assert await scene.accept(BOUNCE, "x@b.example.test") is None
        assert scene.lines.names == ["bounce-received"]
        assert not scene.shelf.rows
        assert scene.reception.vet("bob@example.test", True, OPEN) == b""

    run(scenario())


class Residents:
    """Of the domain local.test; bob is one of them."""

    def is_local(self, address: str) -> bool:
        return address.endswith("@local.test")

    def verdict(self, address: str, arrival: Arrival) -> bytes | None:
        if not self.is_local(address):
            return None
        return b"" if address == "bob@local.test" else b"550 5.1.1 No\r\n"


@pytest.mark.parametrize("drops", [False, True])
def test_who_has_a_mailbox_here_is_never_suppressed(drops: bool) -> None:
    async def scenario() -> None:
        scene = Scene(drops=drops)
        scene.reception.residents = Residents()  # type: ignore[assignment]
        for address in ("bob@local.test", "bob@x.test"):
            scene.shelf.rows[address] = manual(address)
        vet = scene.reception.vet
        for may_relay in (False, True):
            assert vet("bob@local.test", may_relay, OPEN) == b""
            assert vet("eve@local.test", may_relay, OPEN) == b"550 5.1.1 No\r\n"
            assert vet("x@b.example.test", may_relay, OPEN) == b""
        assert vet("eve@x.test", False, OPEN).startswith(b"550 5.7.1")
        assert bool(vet("bob@x.test", True, OPEN)) is not drops
        assert await scene.accept(b"x", "bob@local.test", "eve@x.test") is None
        assert scene.memory.arrivals == [["bob@local.test", "eve@x.test"]]

    run(scenario())


def test_dropped_recipients_are_told_once_the_rest_is_safe() -> None:
    async def scenario() -> None:
        scene = Scene(drops=True)
        scene.shelf.rows["bob@x.test"] = manual("bob@x.test")
        assert scene.reception.vet("bob@x.test", True, OPEN) == b""
        assert await scene.accept(b"x", "bob@x.test", "eve@x.test") is None
        assert scene.memory.arrivals == [["eve@x.test"]]
        assert scene.lines.names == ["suppressed"]
        assert await scene.accept(b"x", "bob@x.test") is None
        assert len(scene.memory.arrivals) == 1
        scene.memory.verdict = Reply(452, "4.3.1", "full")
        assert await scene.accept(b"x", "bob@x.test", "eve@x.test") == scene.memory.verdict
        assert scene.lines.names == ["suppressed"] * 2

    run(scenario())


def test_only_the_beginning_of_a_large_report_is_read() -> None:
    async def scenario() -> None:
        scene = Scene()
        large = BOUNCE + b"x" * (8 << 20)
        assert await scene.accept(large, "x@b.example.test") is None
        assert scene.lines.names == ["bounce-received"]

    run(scenario())
