"""Settlement on a real spool: what it stores, and what it writes down."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
from msgspec.structs import replace

from fastmta.config import Duration, Reports, Retry
from fastmta.log import DispositionLog
from fastmta.mail.classification import classify
from fastmta.mail.delivery_status import Action
from fastmta.mail.disposition import Disposition
from fastmta.mail.dsn import Notification, parse_report
from fastmta.mail.envelope import Envelope, TlsDemand
from fastmta.mail.message import parse
from fastmta.mail.reply import Reply
from fastmta.queue import orders, reporting
from fastmta.queue.ready import Job
from fastmta.queue.retry import policies
from fastmta.queue.selector import Selector
from fastmta.queue.settlement import Settlement
from fastmta.store.spool import Spool
from fastmta.store.view import SpoolView
from tests.store.test_spool import Box, accept, arrival, opened
from tests.support import run, until

NO_SUCH_USER = Reply(550, "5.1.1", "no such user")
BUSY = Reply(450, "4.2.0", "busy")
OK = Reply(250, "2.0.0", "queued")
LONG = b"Subject: x\r\n\r\n" + b"The body.\r\n" * 20_000  # in chunks, so not in memory for long


class Office:
    """A settlement on a spool, with its log."""

    def __init__(self, folder: Path, spool: Spool, box: Box, **options: Any) -> None:
        self.spool, self.box = spool, box
        self._path = folder / "dispositions.jsonl"
        self.journal = DispositionLog(str(self._path))
        reports, self.orders = options.pop("reports", Reports()), orders.Orders()
        self.settlement = Settlement(
            spool, policies(Retry()), reports, "relay.test", self.journal, self.orders
        )

    async def take(self, *addresses: str, content: bytes = LONG, **changes: Any) -> Envelope:
        """A message comes in; gives its envelope as the scheduler has it."""
        before = len(self.box.handed)
        what = replace(arrival(self.spool, *addresses, content=content), **changes)
        assert await accept(self.spool, what) is None
        return (await self.box.wait(before + 1))[before]

    def settle(self, envelope: Envelope, *replies: Reply, parts: list[bytes] | None = None) -> None:
        ends = [
            Disposition.of_reply(reply, "mx.test [192.0.2.1]", time.time(), Action.RELAYED)
            for reply in replies
        ]
        self.settlement.settle(Job(envelope, parts), "site", "source", ends)

    async def report(self, count: int) -> tuple[Envelope, Notification]:
        """The nth that was handed over, as a report."""
        envelope = (await self.box.wait(count))[count - 1]
        content = b"".join(await self.spool.read(envelope.message, 0))
        notification = parse_report(parse(content))
        assert notification is not None and envelope.sender == ""
        return envelope, notification

    def events(self) -> list[dict[str, Any]]:
        self.journal.flush()
        return [json.loads(line) for line in self._path.read_text().splitlines()]


@asynccontextmanager
async def office(folder: Path, **options: Any) -> AsyncIterator[Office]:
    async with opened(folder / "spool") as (one, box):
        here = Office(folder, one, box, **options)
        yield here
        await here.settlement.finish()
        here.journal.close()


def test_a_message_that_cannot_be_read_is_reported_without_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(self: Spool, message: int, first: int) -> list[bytes]:
        raise lmdb.CorruptedError("planted")

    async def scenario() -> None:
        async with office(tmp_path) as here:
            envelope = await here.take("bob@to.test", ret="FULL")
            with monkeypatch.context() as broken:
                broken.setattr(Spool, "read", unreadable)
                here.settle(envelope, NO_SUCH_USER)
                await here.box.wait(2)
            report, notification = await here.report(2)
            assert [each.final for each in notification.status.recipients] == ["bob@to.test"]
            assert notification.returned is None
            assert here.events()[-1]["dsn"] == report.id
            assert here.spool.statistics().envelopes == 1

    run(scenario())


@pytest.mark.parametrize("resident", [True, False], ids=["in memory", "on disk"])
def test_ret_full_gives_all_of_a_long_message_back(tmp_path: Path, resident: bool) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            envelope = await here.take("bob@to.test", ret="FULL")
            here.settle(envelope, NO_SUCH_USER, parts=[LONG] if resident else None)
            _, notification = await here.report(2)
            assert notification.returned is not None
            assert notification.returned.text().count("The body.") == 20_000

    run(scenario())


def test_a_message_above_the_bound_comes_back_as_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(reporting, "MAX_RETURNED", len(LONG) - 1)
        async with office(tmp_path) as here:
            here.settle(await here.take("bob@to.test", ret="FULL"), NO_SUCH_USER)
            _, notification = await here.report(2)
            assert notification.returned is not None
            assert notification.returned.headers.get("Subject") == b"x"
            assert notification.returned.size == 0

    run(scenario())


def test_a_report_is_protected_like_the_message(tmp_path: Path) -> None:
    """RFC 8689 section 5: REQUIRETLS again, and RET=FULL is as RET=HDRS."""

    async def scenario() -> None:
        async with office(tmp_path) as here:
            envelope = await here.take("bob@to.test", ret="FULL", demand=TlsDemand.REQUIRED)
            assert envelope.tls is TlsDemand.REQUIRED
            here.settle(envelope, NO_SUCH_USER)
            report, notification = await here.report(2)
            assert report.tls is TlsDemand.REQUIRED
            assert notification.returned is not None
            assert notification.returned.size == 0
            optional = await here.take("bob@to.test", ret="FULL", demand=TlsDemand.OPTIONAL)
            here.settle(optional, NO_SUCH_USER)
            report, notification = await here.report(4)
            assert report.tls is TlsDemand.NONE
            assert notification.returned is not None
            assert notification.returned.size

    run(scenario())


def test_expiry_fails_all_recipients_with_the_last_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            envelope = await here.take("a@to.test", "b@to.test")
            here.settle(envelope, BUSY, BUSY)
            waiting = replace(envelope, due=1.0, attempts=1, site="site")
            waiting.last = Disposition.of_reply(BUSY, "mx.test [192.0.2.1]", 1.0)
            await until(lambda: not here.spool.unsettled)
            here.settlement.expire(waiting)
            _, notification = await here.report(2)
            found = notification.status.recipients
            assert [each.final for each in found] == ["a@to.test", "b@to.test"]
            assert {each.status for each in found} == {"5.4.7"}
            assert all("450 4.2.0 busy" in each.diagnostic for each in found)
            assert [(e["event"], e["site"]) for e in here.events()[-2:]] == [
                ("bounced", "site")
            ] * 2

    run(scenario())


def test_a_deferral_keeps_the_site_and_counts_the_report_of_its_delay(tmp_path: Path) -> None:
    async def scenario() -> None:
        reports = Reports(delay_after=Duration(1), unasked_delays=True)
        async with office(tmp_path, reports=reports) as here:
            envelope = await here.take("bob@to.test", received=time.time() - 2)
            stored: list[Envelope | None] = []
            settle = here.spool.settle

            def keep(one: Envelope, remaining: Envelope | None, *dsns: Any, **rest: Any) -> None:
                stored.append(remaining)
                settle(one, remaining, *dsns, **rest)

            here.spool.settle = keep  # type: ignore[method-assign]
            here.settle(envelope, BUSY)
            report, notification = await here.report(2)
            assert notification.status.recipients[0].action == Action.DELAYED
            [remaining] = stored
            assert remaining is not None
            assert (remaining.site, remaining.delays, remaining.attempts) == ("site", 1, 1)
            [event] = here.events()
            assert (event["event"], event["dsn"]) == ("deferred", report.id)

    run(scenario())


def test_failures_have_the_category_of_their_reply(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with office(tmp_path) as here:
            envelope = await here.take("a@to.test", "b@to.test", "c@to.test", sender="")
            here.settle(envelope, BUSY, NO_SUCH_USER, OK)
            found = {event["event"]: event["category"] for event in here.events()}
            categories = {"deferred": classify(BUSY), "bounced": classify(NO_SUCH_USER)}
            assert found == {**categories, "delivered": ""}
            assert categories["bounced"] == "bad-mailbox" != categories["deferred"]

    run(scenario())


def test_what_remains_obeys_orders(tmp_path: Path) -> None:
    async def scenario() -> None:
        hold = orders.Order(action=orders.Action.HOLD, selector=Selector(site=("site",)), number=3)
        async with office(tmp_path) as here:
            here.orders.stand([hold])
            envelope = await here.take("a@to.test")
            here.settle(envelope, BUSY)
            await until(lambda: not here.spool.unsettled)
        async with opened(tmp_path / "spool") as (one, _):
            assert one.statistics().envelopes == 1
        view = SpoolView(tmp_path / "spool")
        assert [envelope.held for envelope in view.envelopes()] == ["3"]
        view.close()

    run(scenario())


def test_so_many_reports_are_made_at_a_time(tmp_path: Path) -> None:
    """The others wait for a commit, and all of them come."""

    async def scenario() -> None:
        async with office(tmp_path) as here:
            count = reporting.AT_ONCE * 3
            envelopes = [
                await here.take(f"u{n}@to.test", content=b"S: x\r\n\r\n") for n in range(count)
            ]
            stored = 0
            settle = here.spool.settle

            def counted(*args: Any, **rest: Any) -> None:
                nonlocal stored
                stored += 1
                settle(*args, **rest)

            here.spool.settle = counted  # type: ignore[method-assign]
            for envelope in envelopes:
                here.settle(envelope, NO_SUCH_USER, parts=[b"S: x\r\n\r\n"])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert stored == reporting.AT_ONCE
            await here.box.wait(2 * count)
            assert stored == count

    run(scenario())
