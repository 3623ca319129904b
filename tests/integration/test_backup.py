"""A copy made under load has all that was acknowledged; a look under load sees no ghosts."""

import asyncio
import os
import random
from pathlib import Path

import uvloop

from fastmta.sink import Behaviour
from fastmta.store import verify
from tests.faults.reader import DOMAINS, LOCAL, add_accounts, reader
from tests.integration.ledger import PROGRAM, Ledger, Node, load, node, sink
from tests.support import until

# FASTMTA_VERIFY_ROUNDS=100 is what a release wants.
ROUNDS = int(os.environ.get("FASTMTA_VERIFY_ROUNDS", "5"))


async def fastmta(one: Node, *words: str | Path) -> tuple[int, str]:
    """Run a command; its exit code, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(str(PROGRAM), *map(str, words), "-c", str(one.configuration)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def problems(folder: Path) -> list[str]:
    parts = verify.verify(folder, lambda part, done, total: None)
    return [f"{part.name}: {each}" for part in parts for each in part.problems]


def test_nothing_that_was_acknowledged_before_a_backup_is_missing_in_it(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()

    async def scenario() -> None:
        ledger = Ledger()
        async with sink(ledger, Behaviour(tempfail=0.7)) as destination:
            hop = destination.endpoint[1]
            async with node(tmp_path / "first", hop, DOMAINS, workers=2) as one:
                add_accounts(one.data)
                async with load(ledger, one.port):
                    await ledger.acknowledges(300)
                    before = list(ledger.acknowledged)
                    code, said = await fastmta(one, "backup", tmp_path / "copy")
                    assert code == 0, said
                    await ledger.acknowledges(50)
                    await one.kill()
            assert problems(tmp_path / "copy") == []
            async with node(tmp_path / "second", hop, DOMAINS, workers=2) as other:
                assert await other.stop() == 0
            await restored(ledger, before, other, tmp_path / "copy")

    uvloop.run(scenario())


async def restored(ledger: Ledger, before: list[int], other: Node, copy: Path) -> None:
    """Bring the copy back elsewhere; all that was acknowledged before it is there in the end."""
    code, said = await fastmta(other, "restore", copy)
    assert code == 1, said  # it has run, so there are files
    other.data.rename(other.data.with_name("empty"))
    code, said = await fastmta(other, "restore", copy)
    assert code == 0, said
    await other.start()
    await until(lambda: not other.has_mail(), 0.05)
    assert await other.stop() == 0
    async with reader(ledger, other.data, random.Random(1)) as somebody:
        await somebody.read()  # and nothing is there twice
    assert not {number for number, _ in ledger.missing()} & {*before}
    assert not ledger.corrupt
    assert problems(other.data) == []


def test_a_look_under_load_finds_nothing_wrong(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger, looks = Ledger(), 0
        async with (
            sink(ledger, Behaviour(tempfail=0.5)) as destination,
            node(tmp_path, destination.endpoint[1], DOMAINS, workers=2) as one,
        ):
            add_accounts(one.data)
            async with load(ledger, one.port):
                await ledger.acknowledges(50)
                for turn in range(ROUNDS):
                    mail = f"all@{LOCAL[turn % 2]}"
                    emptying = asyncio.ensure_future(
                        fastmta(one, "mailbox", "empty", mail, "--yes")
                    )
                    while not emptying.done():
                        assert await asyncio.to_thread(problems, one.data) == []
                        looks += 1
                        await ledger.acknowledges(1)
                    assert emptying.result()[0] == 0, emptying.result()[1]
            code, said = await fastmta(one, "verify", "--repair")
            assert (code, "a server is running" in said) == (1, True), said
            assert await one.stop() == 0
            code, said = await fastmta(one, "verify")
            assert code == 0, said
        print(f"{looks} looks while {len(ledger.acknowledged)} messages came")

    uvloop.run(scenario())
