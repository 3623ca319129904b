"""Who follows mailboxes hears of changes, of whichever process they are.

One timer looks at the number of the environment's last transaction, which is in memory. Only
where that is another one, `touched` is asked which mailboxes each transaction changed; nothing is
asked of the mailboxes themselves, however many are followed.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

import lmdb

from fastmta.store import mail_records as records
from fastmta.store.env import Databases, Environment, Transaction

INTERVAL = 0.05  # seconds between looks

Heard = Callable[[], None]


class Followers:
    """Those of this process. Nothing runs while there are none."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._heard: dict[int, set[Heard]] = {}  # by mailbox
        self._seen = 0  # the last transaction that was told
        self._timer: asyncio.TimerHandle | None = None

    def add(self, mailbox: int, heard: Heard) -> Callable[[], None]:
        """Call `heard` after changes of a mailbox, until what this returns is called."""
        if not self._heard:
            self._seen = self._env.last_change()
            self._look_later()
        self._heard.setdefault(mailbox, set()).add(heard)
        return partial(self._remove, mailbox, heard)

    def _remove(self, mailbox: int, heard: Heard) -> None:
        followers = self._heard.get(mailbox, set())
        followers.discard(heard)
        if not followers:
            self._heard.pop(mailbox, None)
        if not self._heard:
            self.close()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look)

    def _look(self) -> None:
        self._look_later()
        try:
            if self._env.last_change() != self._seen:
                self._tell()
        except lmdb.Error:
            pass  # the disk failed; the next look tells

    def _tell(self) -> None:
        now, mailboxes = self._env.read_now(partial(_touched_since, self._seen))
        self._seen = now
        for mailbox in self._heard.keys() if mailboxes is None else mailboxes & self._heard.keys():
            for heard in tuple(self._heard.get(mailbox, ())):
                heard()


def _touched_since(seen: int, txn: Transaction, db: Databases) -> tuple[int, set[int] | None]:
    """The last transaction, and what was changed behind `seen`; None if nobody knows any more."""
    now = txn.id()
    if now - seen > records.SLOTS:
        return now, None
    touched: set[int] = set()
    for number in range(seen + 1, now + 1):
        row = txn.get(records.touched_key(number), db=db["touched"])
        if row is not None:
            touched.update(_of(number, row))
    return now, touched


def _of(number: int, row: bytes) -> Iterable[int]:
    written, mailboxes = records.unpack_touched(row)
    return mailboxes if written == number else ()
