"""A backup goes back into a data directory in which there is no mail.

It is copied beside what is there, and moved into its place when all of it is on the disk. While
it moves, no server starts: one that was cut short goes on when the command is given again.
"""

import os
import shutil
from pathlib import Path

import msgspec

from fastmta.store import mail_records as records
from fastmta.store.backup import FILES, FORMAT, NOTE, CannotCopy, Note, Told, flush_tree
from fastmta.store.env import LOCK, flush_names, make_private, open_environment, own
from fastmta.store.mail_records import Mailbox
from fastmta.store.records import Unreadable
from fastmta.store.verify import DATA

MOVING = "restoring"  # in the data directory: a whole copy, of which parts may have moved already
PARTS = ("spool", "mail", "accounts", "suppression", "orders.json")
AT_ONCE = 16 << 20  # octets
_MAILBOXES = 1000  # in one transaction
# So far ahead of all that clients may have seen since the backup (RFC 9051 section 2.3.1.1:
# a uid is never used again; RFC 7162 section 3.1.1: nor is a modseq).
UIDS_AHEAD = 1 << 20
MODSEQS_AHEAD = 1 << 32


def restore(source: Path, data_dir: Path, told: Told) -> Note:
    """Bring a backup back; CannotCopy, Locked while a server runs, lmdb.Error or OSError."""
    note = _note_of(source)
    make_private(data_dir)
    lock = own(data_dir / LOCK)
    try:
        if not (data_dir / MOVING).exists():
            _check_empty(data_dir)
            _bring(source, data_dir, note, told)
        _move(data_dir)
    finally:
        os.close(lock)
    return note


def _note_of(source: Path) -> Note:
    """What a backup says it is, if all of it is there."""
    try:
        note = msgspec.json.decode((source / NOTE).read_bytes(), type=Note)
    except (OSError, msgspec.MsgspecError):
        raise CannotCopy(f"{source} is no backup") from None
    if note.format != FORMAT:
        raise CannotCopy(f"{source} is of format {note.format}, which is not known here")
    for part in note.parts:
        file = source / part.name / DATA
        if not file.exists() or file.stat().st_size != part.octets:
            raise CannotCopy(f"{file} is not as the backup was made")
    return note


def _check_empty(data_dir: Path) -> None:
    for name in PARTS:
        if (data_dir / name).exists():
            raise CannotCopy(f"{data_dir / name} is there already; move it away first")


def _bring(source: Path, data_dir: Path, note: Note, told: Told) -> None:
    partial = data_dir / f"{MOVING}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    for part in note.parts:
        make_private(partial / part.name)
        _copy(source / part.name / DATA, partial / part.name / DATA, part.name, told)
        if part.name.startswith("mail/"):
            skip_numbers(partial / part.name)
    for name in FILES:
        if (source / name).exists():
            make_private((partial / name).parent)
            _copy(source / name, partial / name, name, told)
    flush_tree(partial)
    partial.rename(data_dir / MOVING)
    flush_names(data_dir)


def _copy(source: Path, target: Path, name: str, told: Told) -> None:
    target.touch(mode=0o600)
    total, done = source.stat().st_size, 0
    with source.open("rb") as octets, target.open("r+b") as written:
        while done < total:
            sent = os.sendfile(written.fileno(), octets.fileno(), done, AT_ONCE)
            if not sent:
                raise CannotCopy(f"{source} became shorter")
            done += sent
            told(name, done, total)


def _move(data_dir: Path) -> None:
    for name in PARTS:
        if (data_dir / MOVING / name).exists():
            (data_dir / MOVING / name).rename(data_dir / name)
    flush_names(data_dir)
    (data_dir / MOVING).rmdir()
    flush_names(data_dir)


def skip_numbers(folder: Path) -> None:
    """What clients have seen since the backup is not to be taken for what comes from now on."""
    env, db = open_environment(folder, records.DATABASES)
    with env:
        with env.begin(write=True) as txn:
            txn.drop(db["changes"], delete=False)
        start: bytes | None = b""
        while start is not None:
            with env.begin(write=True) as txn, txn.cursor(db["mailboxes"]) as cursor:
                more = cursor.set_range(start)
                count = 0
                while more and count < _MAILBOXES:
                    cursor.put(*_ahead(*cursor.item()))
                    more = cursor.next()
                    count += 1
                start = cursor.key() if more else None
    (folder / "lock.mdb").unlink()


def _ahead(key: bytes, row: bytes) -> tuple[bytes, bytes]:
    try:
        mailbox: Mailbox = records.unpack_mailbox(row)
    except Unreadable:  # it is made anew with another UIDVALIDITY
        return key, row
    if mailbox.uidnext + UIDS_AHEAD <= records.LAST_UID:
        mailbox.uidnext += UIDS_AHEAD
    mailbox.modseq = mailbox.floor = mailbox.modseq + MODSEQS_AHEAD
    mailbox.history = 0
    return key, records.pack_mailbox(mailbox)
