"""Whether all that is in a data directory is whole; and taking out what is not.

A look changes nothing, and a server may run. A repair has the data directory for itself.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import lmdb

from fastmta.store import accounts, mail_records, pages, records, suppression, view
from fastmta.store.aside import Aside
from fastmta.store.env import (
    LOCK,
    OWNER_LOCK,
    Databases,
    Locked,
    flush_names,
    open_environment,
    own,
    refuse_open,
)
from fastmta.store.findings import Finding, Look, Part
from fastmta.store.mail_verify import check_mail
from fastmta.store.spool_verify import check_spool
from fastmta.store.view import shard_folders

DATA = "data.mdb"


class Kind(NamedTuple):
    """What an environment holds: by the first folder of its name."""

    databases: tuple[str, ...]
    required: tuple[str, ...]  # that every release has made
    retired: tuple[str, ...] = ()
    check: Callable[[Look], dict[str, int]] | None = None  # of its rows; gives what there is


KINDS = {
    "spool": Kind(records.DATABASES, view.DATABASES, records.RETIRED, check_spool),
    "mail": Kind(mail_records.DATABASES, mail_records.DATABASES, (), check_mail),
    "accounts": Kind(accounts.DATABASES, accounts.DATABASES),
    "suppression": Kind((suppression.DATABASE,), (suppression.DATABASE,)),
}

LAST_TRANSACTION = 1 << 62  # that is believed of a broken file
ROUNDS = 100  # of mending at the most; what one mends may show what another has to
TOGETHER = 100  # mends in one transaction
COPIED = 1000  # rows of a file that is made anew, in one transaction

Told = Callable[[str, int, int], None]  # which part, how many rows of how many


def parts_of(data_dir: Path) -> list[Path]:
    """The folders of all environments of a data directory, or of a backup."""
    others = (data_dir / name for name in ("mail/0", "accounts", "suppression"))
    folders = [*shard_folders(data_dir), *others]
    return [folder for folder in folders if (folder / DATA).exists()]


def verify(data_dir: Path, told: Told) -> Iterator[Part]:
    """Look at each environment in turn; its pages too, where no server has it."""
    online = _is_in_use(data_dir)
    for folder in parts_of(data_dir):
        yield _Environment(data_dir, folder, told).look(online=online)


def repair(data_dir: Path, told: Told) -> Iterator[Part]:
    """The same, and what is wrong is taken out of the way; Locked while a server runs."""
    with ExitStack() as stack:
        stack.callback(os.close, own(data_dir / LOCK))
        for folder in shard_folders(data_dir):
            stack.callback(os.close, own(folder / OWNER_LOCK))
        aside = Aside(data_dir)
        for folder in parts_of(data_dir):
            yield _Environment(data_dir, folder, told).repair(aside)


def _is_in_use(data_dir: Path) -> bool:
    locks = [data_dir / LOCK, *(folder / OWNER_LOCK for folder in shard_folders(data_dir))]
    try:
        for lock in filter(Path.exists, locks):
            os.close(own(lock))
    except Locked:
        return True
    return False


class _Environment:
    """One environment, looked at or mended."""

    def __init__(self, data_dir: Path, folder: Path, told: Told) -> None:
        self._folder, self._told = folder, told
        self._part = Part(str(folder.relative_to(data_dir)))
        self._kind = KINDS[self._part.name.partition("/")[0]]
        self._is_broken = False  # the file itself, so that LMDB is not to touch it

    def look(self, *, online: bool) -> Part:
        self._part.online = online
        try:
            self._look(online=online)
        except lmdb.Error as error:
            self._break(f"cannot be read: {error}")
        return self._part

    def _break(self, *problems: str) -> None:
        self._is_broken = True
        self._part.problems += problems

    def _look(self, *, online: bool) -> None:
        self._look_at_pages(online=online)
        if self._is_broken:
            return
        with self._opened() as (env, db):
            missing = [name for name in self._kind.required if name not in db]
            if db and missing:  # without any, it was made and never used
                self._break(*(f"database {name} is not there" for name in missing))
            elif db:
                look = self._rows(env, db)
                self._part.problems += [each.what for each in look.findings]
                self._part.more += look.more

    def _look_at_pages(self, *, online: bool) -> None:
        if pages.is_cut(self._folder / DATA):
            self._break("the file ends before its last page")
        elif not online:
            env, _ = open_environment(self._folder, (), readonly=True)
            with env, env.begin():  # another command's writes leave these pages as they are
                if broken := pages.check(self._folder):
                    self._break(*broken)

    @contextmanager
    def _opened(self, *, readonly: bool = True) -> Iterator[tuple[lmdb.Environment, Databases]]:
        there = self._kind.databases if not readonly else ()
        others = (*self._kind.databases, *self._kind.retired)
        env, db = open_environment(self._folder, there, others, readonly=readonly)
        with env:
            yield env, db

    def _rows(self, env: lmdb.Environment, db: Databases) -> Look:
        look = Look(env, db, self._folder / DATA, self._hear)
        if self._kind.check is not None:
            self._part.counts = self._kind.check(look)
        if "aside" in db:
            with env.begin() as txn:
                self._part.aside = look.entries(txn, "aside")
        return look

    def _hear(self, done: int, of: int) -> None:
        self._told(self._part.name, done, of)

    # Repair

    def repair(self, aside: Aside) -> Part:
        aside.part = self._part.name
        self.look(online=False)
        if not self._part.found:
            return self._part
        if self._is_broken:
            self._make_anew(aside)
        self._part.more = 0  # they are told in later rounds
        with self._opened(readonly=False) as (env, db):
            for _ in range(ROUNDS):
                findings = self._rows(env, db).findings
                if not findings:
                    break
                self._mend(env, db, findings, aside)
        return self._part

    def _mend(
        self, env: lmdb.Environment, db: Databases, findings: list[Finding], aside: Aside
    ) -> None:
        known, left = {*self._part.problems}, iter(findings)
        while some := list(islice(left, TOGETHER)):
            with env.begin(write=True) as txn:
                for what, mend in some:
                    self._part.mended.append(f"{what}: {mend(txn, db, aside)}")
                aside.flush()
        self._part.problems += [each.what for each in findings if each.what not in known]

    def _make_anew(self, aside: Aside) -> None:
        """A file with the rows that can still be read takes the place of one that is broken.

        Locked while another command has that one open: what it stores would go with it.
        """
        refuse_open(self._folder)
        beside = self._folder / "anew"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(mode=0o700)
        with (self._folder / DATA).open("rb") as octets:
            salvage = pages.Salvage(octets)
            count = _copy(salvage.rows(), beside, self._kind.databases)
            last = max((meta.transaction for meta in salvage.metas()), default=0)
        pages.set_transaction(beside / DATA, min(last, LAST_TRANSACTION))
        refuse_open(self._folder)  # copying takes long
        kept = aside.keep(self._folder / DATA)
        (beside / DATA).rename(self._folder / DATA)
        (self._folder / "lock.mdb").unlink(missing_ok=True)
        shutil.rmtree(beside)
        flush_names(self._folder)
        self._part.mended.append(f"the broken file is kept as {kept}, {count} rows of it go on")
        self._part.problems += salvage.lost


def _copy(found: Iterator[pages.Row], folder: Path, databases: tuple[str, ...]) -> int:
    env, db = open_environment(folder, databases)
    count = 0
    with env:
        while some := list(islice(found, COPIED)):
            for name in {row.database for row in some} - db.keys():  # of an older release
                db[name] = env.open_db(name.encode())
            with env.begin(write=True) as txn:
                count += sum(txn.put(row.key, row.value, db=db[row.database]) for row in some)
    return count
