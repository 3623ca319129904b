"""The accounts and mailboxes of a server, as its files have them; it may run or not."""

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

from fastmta.store.accounts import Accounts
from fastmta.store.mailboxes import Mailboxes
from tests.store.test_accounts import HASH, KEYS
from tests.support import run


def add_account(data: Path, name: str, *aliases: str, quota: int = 0, **changes: Any) -> None:
    """Without a password that would take time to hash."""
    with closing(Accounts(data / "accounts")) as accounts:
        accounts.add(name, HASH, KEYS, quota)
        if aliases:
            accounts.add_aliases(name, aliases)
        if changes:
            accounts.change(name, **changes)


def change_account(data: Path, name: str, **changes: Any) -> None:
    with closing(Accounts(data / "accounts")) as accounts:
        accounts.change(name, **changes)


def mail_of(data: Path, *accounts: str) -> dict[str, list[bytes]]:
    """The messages of each account, whole, in the order in which they came."""

    async def read() -> dict[str, list[bytes]]:
        mailboxes = Mailboxes(data / "mail" / "0", lambda _: 0)
        try:
            return {name: [each async for each in messages(mailboxes, name)] for name in accounts}
        finally:
            await mailboxes.close()

    return run(read())


async def messages(mailboxes: Mailboxes, account: str) -> AsyncIterator[bytes]:
    found = await mailboxes.open(account)
    for uid in found.uids:
        octets: list[bytes] = []
        while some := await mailboxes.read(found.mailbox, uid, len(octets)):
            octets += some
        yield b"".join(octets)
