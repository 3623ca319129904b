"""Whether mailboxes are whole, for tests that have them open or have just let go of them."""

from pathlib import Path

from fastmta.store import mail_records as records
from fastmta.store.env import open_environment
from fastmta.store.findings import Look
from fastmta.store.mail_verify import check_mail


def problems(folder: Path) -> list[str]:
    """What is wrong with the mailboxes in a folder."""
    env, db = open_environment(folder, records.DATABASES, readonly=True)
    with env:
        look = Look(env, db, folder / "data.mdb", lambda done, total: None)
        check_mail(look)
        return [each.what for each in look.findings]
