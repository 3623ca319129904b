"""What a shard takes for written: how attempts ended, and what is reported of that."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastmta.config import Reports, Retry
from fastmta.log import DispositionLog
from fastmta.mail.arrival import Arrival
from fastmta.mail.disposition import Disposition
from fastmta.mail.reply import Reply
from fastmta.queue.orders import Orders
from fastmta.queue.ready import Job
from fastmta.queue.retry import policies
from fastmta.queue.settlement import Settlement
from fastmta.store.spool import Spool
from fastmta.worker_shard import Shard
from tests.store.test_spool import Box, accept, arrival
from tests.support import run


@asynccontextmanager
async def reporting(folder: Path) -> AsyncIterator[tuple[Shard, asyncio.Event]]:
    """A shard with a report under way, which is made when the event is set."""
    may_finish = asyncio.Event()

    async def finish(report: Arrival) -> list[Arrival]:
        await may_finish.wait()
        return [report]

    spool, box, unused = Spool(folder, 0, min_free=0), Box(), (None, None, None)
    await spool.start(box.deliver)
    journal = DispositionLog(str(folder / "dispositions.jsonl"))
    about: Any = (spool, policies(Retry()), Reports(), "relay.test", journal, Orders(), finish)
    settlement = Settlement(*about)
    parts: Any = (spool, settlement, *unused)
    assert await accept(spool, arrival(spool, "x@to.test")) is None
    [envelope] = await box.wait(1)
    end = Disposition.of_reply(Reply(550, "5.1.1", "no such user"), "", time.time())
    settlement.settle(Job(envelope, None), "site", "", [end])
    yield Shard(*parts), may_finish
    journal.close()


def test_an_attempt_is_written_with_its_report(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reporting(tmp_path) as (shard, may_finish):
            written = asyncio.ensure_future(shard.written())
            await shard.spool.written()
            assert not written.done()
            may_finish.set()
            await written
            assert not shard.spool.unsettled
            assert await shard.close()

    run(scenario())


@pytest.mark.parametrize("is_made", [True, False])
def test_a_shard_that_closes_says_whether_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    if not is_made:
        monkeypatch.setattr("fastmta.queue.settlement.FINISH_SECONDS", 0.01)

    async def scenario() -> None:
        async with reporting(tmp_path) as (shard, may_finish):
            if is_made:
                may_finish.set()
            assert await shard.close() is is_made

    run(scenario())
