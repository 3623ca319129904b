"""fastmta as a POP3 server, nothing tuned: mailboxes in LMDB, as local delivery fills them."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from bench import processes
from bench.peers import fastmta
from bench.peers.fastmta import PROGRAM
from bench.peers.local_fastmta import make_accounts
from bench.pop3_load import PASSWORD, Maildrops, head_of
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.post import Drop, Post

missing, version = fastmta.missing, fastmta.version

CONFIGURATION = """
hostname = "fastmta.example.test"
data_dir = "data"
workers  = {workers}

[[listener]]
service = "pop3"
bind    = "127.0.0.1:{port}"

[domains."example.test"]

[pop3]
plaintext_networks = ["127.0.0.0/8"]
"""


def fill(folder: Path, maildrops: Maildrops) -> None:
    (folder / "data").mkdir()
    make_accounts(folder, maildrops.accounts, PASSWORD)
    uvloop.run(_fill(folder / "data" / "mail" / "0", maildrops))


async def _fill(folder: Path, maildrops: Maildrops) -> None:
    mailboxes = Mailboxes(folder, lambda account: 0)
    for account in maildrops.accounts:
        await _fill_one(mailboxes, account, maildrops)
    await mailboxes.close()


async def _fill_one(mailboxes: Mailboxes, account: str, maildrops: Maildrops) -> None:
    body, name = maildrops.body(), account.encode()
    stored = []
    for number in maildrops.numbers:
        stored.append(asyncio.get_running_loop().create_future())
        content = head_of(name, number) + body
        post = Post(b"", [content], len(content), time.time(), [Drop(account)])
        mailboxes.deliver(post, stored[-1].set_result)
    await asyncio.gather(*stored)


@contextmanager
def running(folder: Path, maildrops: Maildrops, port: int, workers: int) -> Iterator[int]:
    """The supervisor and its workers."""
    configuration = folder / "fastmta.toml"
    configuration.write_text(CONFIGURATION.format(port=port, workers=workers))
    command = [str(PROGRAM), "serve", "-c", str(configuration)]
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process, b"+OK")
        yield process.pid
