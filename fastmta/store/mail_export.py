"""A mailbox goes into an mbox file or a Maildir; one that was cut short goes on where it was."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from fastmta.mail import mbox
from fastmta.mail.mbox import Mail
from fastmta.mail.message import parse
from fastmta.store.mail_reading import Snapshot
from fastmta.store.mail_records import Entry
from fastmta.store.mail_sources import maildir_letters
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.records import Unreadable
from fastmta.store.rows import READ_OCTETS

SAVE = 1000  # messages after which an mbox file notes how far it is


class Exists(Exception):
    """There is something else where the export is to go."""


class Target(Protocol):
    """Where messages go to."""

    def begin(self, mailbox: Snapshot) -> Callable[[int], bool]:
        """Whether a uid is there already; Exists or OSError."""

    def add(self, uid: int, mail: Mail) -> None: ...

    def end(self) -> None:
        """All is there."""

    def close(self) -> None:
        """Let go of what is open, whether all is there or not."""


class Place(Struct):
    """How far an mbox file is."""

    mailbox: int
    uidvalidity: int
    uid: int = 0
    octets: int = 0


class MboxTarget:
    """Written as FILE.partial, beside FILE.progress that says how much of it counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._note = path.with_name(path.name + ".progress")
        self._unsaved = 0

    def begin(self, mailbox: Snapshot) -> Callable[[int], bool]:
        if self._path.exists():
            raise Exists(f"{self._path} is there already")
        self._place = self._known(mailbox)
        self._file = open(self._partial, "ab", opener=_private)  # noqa: SIM115
        self._file.truncate(self._place.octets)
        done = self._place.uid
        return lambda uid: uid <= done

    def _known(self, mailbox: Snapshot) -> Place:
        fresh = Place(mailbox.mailbox, mailbox.uidvalidity)
        try:
            known = msgspec.json.decode(self._note.read_bytes(), type=Place)
        except (FileNotFoundError, msgspec.MsgspecError):
            return fresh
        is_same = (known.mailbox, known.uidvalidity) == (fresh.mailbox, fresh.uidvalidity)
        is_there = self._partial.exists() and self._partial.stat().st_size >= known.octets
        return known if is_same and is_there else fresh

    def add(self, uid: int, mail: Mail) -> None:
        self._file.write(mbox.write(mail, _sender(mail)))
        self._place.uid = uid
        self._unsaved += 1
        if self._unsaved == SAVE:
            self._save()

    def _save(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._place.octets = self._file.tell()
        beside = self._note.with_name(self._note.name + ".new")
        beside.write_bytes(msgspec.json.encode(self._place))
        beside.replace(self._note)
        self._unsaved = 0

    def end(self) -> None:
        self._save()
        self._partial.replace(self._path)
        self._note.unlink()

    def close(self) -> None:
        self._file.close()


class MaildirTarget:
    """The name of a file tells the mailbox and the uid, so what is there is known by its name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, mailbox: Snapshot) -> Callable[[int], bool]:
        for name in ("cur", "new", "tmp"):
            (self._path / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._infix = f".V{mailbox.uidvalidity}U"
        there = {uid for folder in ("cur", "new") for uid in self._uids(folder)}
        return there.__contains__

    def _uids(self, folder: str) -> list[int]:
        found: list[int] = []
        with os.scandir(self._path / folder) as names:
            for each in names:
                digits = each.name.partition(self._infix)[2].partition(".")[0]
                if digits.isdecimal():
                    found.append(int(digits))
        return found

    def add(self, uid: int, mail: Mail) -> None:
        when = mail.date or 0.0
        name = f"{int(when)}{self._infix}{uid:010}.fastmta"  # sorts as it came
        beside = self._path / "tmp" / name
        with open(beside, "wb", opener=_private) as file:
            file.write(mail.octets.replace(b"\r\n", b"\n"))
        os.utime(beside, (when, when))
        letters = maildir_letters(mail.flags, list(mail.keywords))
        beside.rename(self._path / "cur" / f"{name}:2,{letters}")

    def end(self) -> None:
        os.sync()

    def close(self) -> None:
        pass


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sender(mail: Mail) -> str:
    """Whom the Return-Path names, for the line "From "."""
    end = mail.octets.find(b"\r\n\r\n")
    headers = parse(mail.octets[: end if end >= 0 else len(mail.octets)]).headers
    path = headers.get("Return-Path").strip(b"<> \t").decode("utf-8", "replace")
    return path if path and path.isprintable() and " " not in path else ""


class Result(Struct):
    exported: int = 0
    before: int = 0  # of an earlier time
    damaged: list[int] = []  # uids that could not be read


async def export(
    boxes: Mailboxes, mailbox: Snapshot, target: Target, told: Callable[[int], None]
) -> Result:
    """Write all that a snapshot has; `told` hears of how many messages."""
    is_there = target.begin(mailbox)
    result, after = Result(), 0
    try:
        while page := await boxes.entries(mailbox.mailbox, after):
            wanted = [each for each in page if not is_there(each[0])]
            result.before += len(page) - len(wanted)
            for some in _together(wanted):
                await _export_some(boxes, mailbox.mailbox, some, target, result)
                told(result.before + result.exported)
            after = page[-1][0]
            await boxes.give_back_pages()
        target.end()
    finally:
        target.close()
    return result


def _together(wanted: list[tuple[int, Entry]]) -> Iterator[list[tuple[int, Entry]]]:
    """Messages that are read in one look, a large one by itself."""
    some: list[tuple[int, Entry]] = []
    octets = 0
    for uid, entry in wanted:
        if some and octets + entry.size > READ_OCTETS:
            yield some
            some, octets = [], 0
        some.append((uid, entry))
        octets += entry.size
    if some:
        yield some


async def _export_some(
    boxes: Mailboxes,
    mailbox: int,
    some: list[tuple[int, Entry]],
    target: Target,
    result: Result,
) -> None:
    found = await boxes.read_several(mailbox, [uid for uid, _ in some])
    for (uid, entry), octets in zip(some, found, strict=True):
        if not isinstance(octets, Exception) and len(octets) < entry.size:
            octets = await _read_whole(boxes, mailbox, uid)
        if isinstance(octets, Unreadable):
            result.damaged.append(uid)
        elif not isinstance(octets, Exception):  # else it is gone
            target.add(uid, Mail(octets, entry.date, entry.flags, tuple(entry.keywords)))
            result.exported += 1


async def _read_whole(boxes: Mailboxes, mailbox: int, uid: int) -> bytes | Exception:
    """A message that is longer than what one look gives, or what `read` raises."""
    pieces: list[bytes] = []
    try:
        while more := await boxes.read(mailbox, uid, len(pieces)):
            pieces += more
    except (KeyError, Unreadable) as error:
        return error
    return b"".join(pieces)
