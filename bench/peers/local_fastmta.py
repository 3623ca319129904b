"""fastmta with mailboxes for one domain, nothing tuned."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import uvloop

from bench import processes
from bench.peers import fastmta
from bench.peers.fastmta import PROGRAM
from fastmta.store import passwords
from fastmta.store.accounts import Accounts
from fastmta.store.mailboxes import Mailboxes

missing, version = fastmta.missing, fastmta.version

LOG, DELIVERED = "data/dispositions.jsonl", b'"event":"delivered"'

CONFIGURATION = """
hostname = "fastmta.example.test"
data_dir = "data"
workers  = {workers}

[[listener]]
service = "smtp"
bind    = "127.0.0.1:{port}"

[domains."example.test"]
"""


def make_accounts(folder: Path, names: list[str], password: str) -> None:
    """All with one hash: it is no use to spend half a minute on a thousand."""
    hashed, keys = passwords.hash_password(password), passwords.scram_keys(password)
    with closing(Accounts(folder / "data" / "accounts")) as accounts:
        for name in names:
            accounts.add(name, hashed, keys)


@contextmanager
def running(folder: Path, users: list[str], port: int, workers: int) -> Iterator[int]:
    """The supervisor and its workers."""
    (folder / "data").mkdir()
    make_accounts(folder, [f"{user}@example.test" for user in users], "hungry")
    configuration = folder / "fastmta.toml"
    configuration.write_text(CONFIGURATION.format(port=port, workers=workers))
    command = [str(PROGRAM), "serve", "-c", str(configuration)]
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process)
        yield process.pid


def mailboxes(folder: Path) -> list[tuple[str, bytes]]:
    """Each message with whose it is."""
    with closing(Accounts(folder / "data" / "accounts")) as accounts:
        return uvloop.run(_read(folder / "data" / "mail" / "0", list(accounts.names())))


async def _read(folder: Path, accounts: list[str]) -> list[tuple[str, bytes]]:
    store, found = Mailboxes(folder, lambda account: 0), []
    for account in accounts:
        inbox = await store.open(account)
        for uid in inbox.uids:
            octets = await store.read(inbox.mailbox, uid)
            found.append((account.partition("@")[0], b"".join(octets)))
    await store.close()
    return found
