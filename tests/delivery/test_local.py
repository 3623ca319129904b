"""Into mailboxes: who gets what, how it is told, and what happens where something fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from fastmta.delivery.dispatcher import ALL_PATHS
from fastmta.delivery.local import Bounds, LocalDelivery, envelope_of, front_of, receipt_of
from fastmta.delivery.site import LOCAL
from fastmta.mail.delivery_status import Action
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.queue.ready import Job, ReadyQueue
from fastmta.store.accounts import Account
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.post import Post, Stored
from tests.store.test_directory import Town
from tests.support import run, until

CONTENT = b"Received: from x\r\nSubject: x\r\n\r\n.hello\r\n"


@pytest.fixture(autouse=True)
def quick_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmta.delivery.local.SWEEP_SECONDS", 0.01)


class Office(Town):
    """Mailboxes with what fills them, and how that ended."""

    def __init__(self, folder: Path, bounds: Bounds) -> None:
        super().__init__(folder)
        self.mailboxes = Mailboxes(folder / "mail", lambda name: self.quota_of(name))
        self.settled: list[tuple[Job, str, list[Disposition]]] = []
        self.room: list[str] = []
        self.stored: dict[int, list[bytes]] = {}
        self.written = asyncio.Event()
        self.written.set()
        self.delivery = LocalDelivery(
            self.mailboxes,
            self.directory,
            lambda job, site, source, ends: self.settled.append((job, site, ends)),
            self.read,
            self.has_written,
            room=self.room.append,
            queue=ReadyQueue,
            bounds=bounds,
        )
        self.numbers = iter(range(1, 100_000))

    def configure(self, *args: Any, **settings: Any) -> None:
        super().configure(*args, **settings)
        self.delivery.directory = self.directory

    def quota_of(self, name: str) -> int:
        return self.directory.quota_of_name(name)

    async def read(self, message: int, first: int) -> list[bytes]:
        await asyncio.sleep(0)
        return self.stored[message][first : first + 2]

    async def has_written(self) -> None:
        await self.written.wait()

    def envelope(self, *to: str, sender: str = "s@c.test", size: int = len(CONTENT)) -> Envelope:
        recipients = [Recipient(one) for one in to]
        return Envelope(next(self.numbers) << 8 | 7, 0, sender, "a.test", recipients, 5.0, size)

    def submit(self, *to: str, content: bytes = CONTENT, **about: Any) -> str:
        job = Job(self.envelope(*to, size=len(content), **about), [content[:10], content[10:]])
        return self.delivery.submit(LOCAL, job)

    async def ends(self, *to: str, **about: Any) -> list[str]:
        """How a message to these ended, for each."""
        before = len(self.settled)
        assert self.submit(*to, **about) == ""
        assert len(self.settled) == before  # never within `submit`
        await until(lambda: len(self.settled) > before)
        return [str(end.reply)[:9] for end in self.settled[before][2]]

    async def mail(self, account: str) -> list[bytes]:
        found = await self.mailboxes.open(account)
        messages = []
        for uid in found.uids:
            octets, number = b"", 0
            while some := await self.mailboxes.read(found.mailbox, uid, number):
                octets, number = octets + b"".join(some), number + len(some)
            messages.append(octets)
        return messages


@asynccontextmanager
async def office(folder: Path, bounds: Bounds | None = None) -> AsyncIterator[Office]:
    here = Office(folder, bounds or Bounds())
    try:
        yield here
    finally:
        await here.delivery.drain(10)
        await here.delivery.finish(settled=True)
        await here.mailboxes.close()
        here.accounts.close()


def test_each_mailbox_has_its_own_fields_in_front(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            here.add("bob@a.test", "info@a.test")
            here.add("eve@a.test")
            to = ("bob+x@a.test", "eve@a.test", "info@a.test")
            assert await here.ends(*to) == ["250 2.1.5"] * 3
            front = b"Return-Path: <s@c.test>\r\nDelivered-To: %b\r\n"
            assert await here.mail("bob@a.test") == [front % b"bob+x@a.test" + CONTENT]
            assert await here.mail("eve@a.test") == [front % b"eve@a.test" + CONTENT]
            [(_, site, ends)] = here.settled
            assert site == "local"
            assert {(end.kind, end.success, end.host) for end in ends} == {
                (Kind.DELIVERED, Action.DELIVERED, "")
            }

    run(scenario())


def test_a_message_without_a_sender_has_an_empty_return_path() -> None:
    assert front_of("", "bob@a.test") == b"Return-Path: <>\r\nDelivered-To: bob@a.test\r\n"


def test_recipients_end_each_in_its_own_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            here.configure(max_message_size=1000)
            here.add("bob@a.test")
            here.add("small@a.test", quota=10)
            here.add("full@a.test", quota=len(CONTENT) + 20)  # what is in front does not fit
            here.add("shut@a.test", disabled=True)
            to = [f"{name}@a.test" for name in ("gone", "bob", "small", "full", "shut")]
            assert await here.ends(*to) == [
                "550 5.1.1",
                "250 2.1.5",
                "552 5.2.3",
                "452 4.2.2",
                "550 5.2.1",
            ]
            assert await here.ends("gone@a.test") == ["550 5.1.1"]
            assert await here.ends("bob@a.test", content=b"x" * 1001) == ["552 5.2.3"]
            assert len(await here.mail("bob@a.test")) == 1
            kinds = [end.kind for end in here.settled[0][2]]
            assert kinds[3] is Kind.DEFERRED
            assert {kinds[0], kinds[2], kinds[4]} == {Kind.FAILED}

    run(scenario())


def test_what_memory_has_not_is_read_from_the_spool(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            here.add("bob@a.test")
            chunks = [bytes([65 + i]) * 30_000 for i in range(5)]
            envelope = here.envelope("bob@a.test", size=150_000)
            here.stored[envelope.message] = chunks
            assert here.delivery.submit(LOCAL, Job(envelope)) == ""
            await until(lambda: here.settled)
            [mail] = await here.mail("bob@a.test")
            assert mail == front_of("s@c.test", "bob@a.test") + b"".join(chunks)

    run(scenario())


@pytest.mark.parametrize("chunks", [[], [b"short"], [b"x" * 100, b"x" * 100]])
def test_what_cannot_be_read_whole_waits(tmp_path: Path, chunks: list[bytes]) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            here.add("bob@a.test")
            envelope = here.envelope("bob@a.test", size=150)
            here.stored[envelope.message] = chunks
            here.delivery.submit(LOCAL, Job(envelope))
            await until(lambda: here.settled)
            assert str(here.settled[0][2][0].reply).startswith("451 4.3.0")
            assert await here.mail("bob@a.test") == []

    run(scenario())


def test_where_the_disk_fails_mail_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            here.add("bob@a.test")

            def failing(post: Post, done: Callable[[Exception], None]) -> None:
                asyncio.get_running_loop().call_soon(done, lmdb.DiskError("planted"))

            def raising(post: Post, done: Callable[[Exception], None]) -> None:
                raise lmdb.DiskError("planted")

            for deliver, other in ((failing, "550 5.1.1"), (raising, "451 4.3.0")):
                with monkeypatch.context() as broken:
                    broken.setattr(here.mailboxes, "deliver", deliver)
                    assert await here.ends("bob@a.test", "gone@a.test") == ["451 4.3.0", other]

            for error in (lmdb.DiskError("planted"), RuntimeError("planted")):

                def unreadable(address: str, size: int, error: Exception = error) -> Account:
                    raise error

                with monkeypatch.context() as broken:
                    broken.setattr(here.directory, "resolve", unreadable)
                    assert await here.ends("bob@a.test") == ["451 4.3.0"]
                    envelope = here.envelope("bob@a.test")
                    here.stored[envelope.message] = [CONTENT]
                    here.delivery.submit(LOCAL, Job(envelope))
                    await until(lambda: not here.delivery.active_jobs())
                    assert str(here.settled[-1][2][0].reply).startswith("451 4.3.0")

    run(scenario())


def test_what_is_delivered_again_is_not_stored_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            here.written.clear()  # the spool has not noted it
            here.add("bob@a.test")
            here.add("full@a.test", quota=10 + len(CONTENT))
            envelope = here.envelope("bob@a.test", "full@a.test")
            for count in (1, 2, 3):
                here.delivery.submit(LOCAL, Job(envelope, [CONTENT]))
                await until(lambda count=count: len(here.settled) == count)
                here.accounts.change("full@a.test", quota=(10 + len(CONTENT)) * (count == 1))
            assert len(await here.mail("bob@a.test")) == len(await here.mail("full@a.test")) == 1
            replies = [str(ends[1].reply)[:3] for _, _, ends in here.settled]
            assert replies == ["452", "452", "250"]
            here.written.set()

    run(scenario())


def test_what_an_earlier_process_stored_stays_known_while_nobody_can_be_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(address: str, size: int) -> Account:
        raise lmdb.DiskError("planted")

    async def again(here: Office, envelope: Envelope, reply: str) -> None:
        before = len(here.settled)
        here.delivery.submit(LOCAL, Job(envelope, [CONTENT]))
        await until(lambda: len(here.settled) > before)
        assert str(here.settled[-1][2][0].reply).startswith(reply)
        await until(lambda: not here.delivery.paths())  # receipts that may go have gone

    async def scenario() -> None:
        async with office(tmp_path) as here:
            here.add("bob@a.test")
            envelope = here.envelope("bob@a.test")
            monkeypatch.setattr(here.mailboxes, "forget", lambda receipt: None)  # it is killed
            await again(here, envelope, "250")
        async with office(tmp_path) as here:
            assert here.mailboxes.receipts(7) == [receipt_of(envelope)]
            with monkeypatch.context() as broken:
                broken.setattr(here.directory, "resolve", unreadable)
                await again(here, envelope, "451 4.3.0")
            await again(here, envelope, "250")
            assert len(await here.mail("bob@a.test")) == 1

    run(scenario())


def test_a_receipt_goes_once_the_spool_has_written_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            forgotten: list[bytes] = []
            monkeypatch.setattr(here.mailboxes, "forget", forgotten.append)
            here.written.clear()
            here.add("bob@a.test")
            await here.ends("bob@a.test")
            for _ in range(20):
                await asyncio.sleep(0.005)  # sweeps come and go
                assert not forgotten
            here.written.set()
            await until(lambda: forgotten)
            assert forgotten == [receipt_of(here.settled[0][0].envelope)]

    run(scenario())


def test_receipts_that_are_left_at_the_end_go_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        forgotten: list[bytes] = []
        async with office(tmp_path) as here:
            monkeypatch.setattr(here.mailboxes, "forget", forgotten.append)
            here.written.clear()
            here.add("bob@a.test")
            await here.ends("bob@a.test")
            await until(lambda: not here.delivery._receipts)  # they wait for the spool
            await here.ends("bob@a.test")
        assert len(set(forgotten)) == 2

    run(scenario())


def test_where_the_spool_could_not_be_written_receipts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        forgotten: list[bytes] = []
        async with office(tmp_path) as here:
            monkeypatch.setattr(here.mailboxes, "forget", forgotten.append)
            here.written.clear()
            here.add("bob@a.test")
            await here.ends("bob@a.test")
            await here.delivery.finish(settled=False)
            assert not forgotten

    run(scenario())


def test_what_is_stored_after_the_end_is_settled_by_the_next_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            here.add("bob@a.test")
            here.submit("bob@a.test")
            await here.delivery.finish(settled=True)
            while not await here.mail("bob@a.test"):
                pass
            assert not here.settled

    run(scenario())


def test_what_is_stored_after_a_drain_is_settled_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        under_way: list[Callable[[list[Stored]], None]] = []
        async with office(tmp_path) as here:
            here.add("bob@a.test")
            slow = lambda post, done: under_way.append(done)  # noqa: E731
            monkeypatch.setattr(here.mailboxes, "deliver", slow)
            here.submit("bob@a.test")
            await here.delivery.drain(0.01)
            under_way[0]([Stored(1, 1)])  # while the spool closes
            assert not (here.settled or here.delivery._receipts)

    run(scenario())


def test_a_receipt_names_its_envelope() -> None:
    envelope = Envelope(0x0123456789ABCDEF, 513, "", "a.test", [], 5.0, 1)
    receipt = receipt_of(envelope)
    assert receipt[0] == 0xEF  # the shard
    named = envelope_of(receipt)
    assert (named.message, named.index) == (envelope.message, envelope.index)


# Bounds, orders, the end


def test_who_finds_no_room_hears_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path, Bounds(ready=4, begun=2)) as here:
            here.add("bob@a.test")
            assert [here.submit("bob@a.test") for _ in range(7)] == [""] * 6 + ["local"]
            assert here.delivery.active_jobs() == 6
            await until(lambda: here.room)
            assert here.room == ["local"]
            await until(lambda: len(here.settled) == 6)
            assert len(await here.mail("bob@a.test")) == 6

    run(scenario())


def test_large_messages_go_one_after_the_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path, Bounds(octets=100)) as here:
            here.add("bob@a.test")
            for _ in range(3):
                here.submit("bob@a.test", content=b"x" * 1000)
            begun = [job for job, _, is_begun in here.delivery.jobs() if is_begun]
            assert len(begun) == 1
            await until(lambda: len(here.settled) == 3)

    run(scenario())


def test_what_waits_can_be_withdrawn_and_what_is_begun_cannot(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path, Bounds(begun=1)) as here:
            here.add("bob@a.test")
            for _ in range(4):
                here.submit("bob@a.test")
            first = here.delivery.withdraw(lambda job, site: site == "local")
            assert len(first) == 3
            assert here.delivery.withdraw(lambda job, site: True) == []
            await until(lambda: len(here.settled) == 1)
            assert here.delivery.active_jobs() == 0

    run(scenario())


def test_operators_see_it_as_a_path(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            assert here.delivery.paths() == []
            here.add("bob@a.test")
            await here.ends("bob@a.test")
            [numbers] = here.delivery.paths()
            assert (numbers.name, numbers.site, numbers.source) == ("local", "local", "")
            assert numbers.last is not None and numbers.last.code == 250
            assert (here.delivery.name, here.delivery.site) == ("local", LOCAL)
            await until(lambda: here.delivery.paths() == [])  # quiet for a while

    run(scenario())


def test_a_drain_ends_what_is_begun_and_lets_go_of_the_rest(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path, Bounds(begun=2)) as here:
            here.add("bob@a.test")
            for _ in range(5):
                here.submit("bob@a.test")
            await here.delivery.drain(10)
            assert len(here.settled) == 2
            assert here.submit("bob@a.test") == ALL_PATHS
            assert len(await here.mail("bob@a.test")) == 2

    run(scenario())


def test_a_drain_does_not_wait_for_a_spool_that_cannot_be_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            here.add("bob@a.test")
            never: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()

            async def read(message: int, first: int) -> list[bytes]:
                return await never

            here.delivery._read = read
            here.delivery.submit(LOCAL, Job(here.envelope("bob@a.test")))
            await here.delivery.drain(0.01)
            assert not here.settled  # the spool has it

    run(scenario())
