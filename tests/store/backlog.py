"""Many envelopes that wait, written at once."""

import time
from collections.abc import Iterable
from pathlib import Path

from fastmta.mail.envelope import Envelope, Priority, Recipient
from fastmta.store import env as store_env
from fastmta.store import records, rows
from fastmta.store.spool import Spool

BODY = b"Subject: x\r\n\r\nHi\r\n"


def waiting(
    number: int,
    domain: str,
    due: float,
    *,
    priority: Priority = Priority.NORMAL,
    tenant: str = "",
    held: str = "",
    attempts: int = 1,
    received: float | None = None,
) -> Envelope:
    """An envelope that was deferred once."""
    return Envelope(
        message=number << 20,
        index=0,
        sender="alice@from.test",
        domain=domain,
        recipients=[Recipient(f"u{number}@{domain}")],
        received=time.time() - 60 if received is None else received,
        size=len(BODY),
        attempts=attempts,
        due=due,
        priority=priority,
        tenant=tenant,
        held=held,
    )


def fill(folder: Path, envelopes: Iterable[Envelope]) -> None:
    """Put them into the files of a shard that nobody has open."""
    env, db = store_env.open_environment(folder, records.DATABASES)
    with env, env.begin(write=True) as txn:
        for envelope in envelopes:
            rows.put_envelope(txn, db, envelope)
            rows.put_body(txn, db, envelope.message, [BODY])


async def change(one: Spool, envelope: Envelope, remaining: Envelope | None) -> bool:
    """Settle an envelope that is not out; False: it is out, or was changed meanwhile."""
    if not await one.claim([envelope]):
        return False
    one.settle(envelope, remaining)
    return True
