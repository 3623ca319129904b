"""What a process tells of itself."""

import asyncio
import resource
import time

from fastmta import vitals
from fastmta.server import room
from fastmta.vitals import LAG, STALLS, LagMeter
from tests.support import run, until


def test_a_loop_that_stands_still_is_seen() -> None:
    async def scenario() -> None:
        meter = LagMeter()
        try:
            looks = sum(LAG.counts)
            await until(lambda: sum(LAG.counts) > looks)
            stalls, total = STALLS.value, LAG.total
            time.sleep(0.05)  # noqa: ASYNC251
            await until(lambda: STALLS.value > stalls)
            assert LAG.total - total >= 0.05 - vitals.TICK
        finally:
            meter.stop()

    run(scenario())


def test_a_meter_that_was_stopped_looks_no_more() -> None:
    async def scenario() -> None:
        meter = LagMeter()
        meter.stop()
        looks = sum(LAG.counts)
        await asyncio.sleep(vitals.TICK * 3)
        assert sum(LAG.counts) == looks

    run(scenario())


def test_cpu_and_memory_are_those_of_this_process() -> None:
    vitals.show()
    [(_, (cpu,))] = vitals.CPU.sample().rows
    [(_, (memory,))] = vitals.MEMORY.sample().rows
    assert 0 < cpu <= time.process_time()
    assert 1 << 20 < memory < 1 << 40
    [((version,), (one,))] = vitals.INFO.sample().rows
    assert version.count(".") >= 1
    assert one == 1


def test_a_process_without_descriptors_still_tells_how_it_is() -> None:
    vitals.show()
    kinds = (resource.RLIMIT_NOFILE, 3), (resource.RLIMIT_AS, 1 << 50)
    before = [resource.getrlimit(kind) for kind, _ in kinds]
    for (kind, limit), (_, hard) in zip(kinds, before, strict=True):
        resource.setrlimit(kind, (limit, hard))
    try:
        [(_, (memory,))] = vitals.MEMORY.sample().rows
        assert 0 < memory < vitals.address_space()
        assert 0 < room.memory() < 1 << 50
    finally:
        for (kind, _), limits in zip(kinds, before, strict=True):
            resource.setrlimit(kind, limits)
