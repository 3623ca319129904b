"""Root at the start, for its ports and its keys, and never again: the settings user and group.

Always true: nothing is created, opened for writing or locked as root in a folder that the user
can write to, since a link there would lead root elsewhere.
"""

import ctypes
import fnmatch
import os
import pwd
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from grp import getgrnam
from pathlib import Path
from typing import NamedTuple

import fastmta
from fastmta.config import Config

_PR_SET_DUMPABLE = 4  # prctl(2)
_PR_SET_NO_NEW_PRIVS = 38


class CannotBecome(Exception):
    """The text says why the server cannot run as the user that is wanted."""


class Identity(NamedTuple):
    """Who the server is to be."""

    user: str
    uid: int
    gid: int


def to_become(config: Config) -> Identity | None:
    """Who is to be become; None where the server is that already, or nobody is named."""
    if not config.user:
        return None
    account = pwd.getpwnam(config.user)
    gid = getgrnam(config.group).gr_gid if config.group else account.pw_gid
    identity = Identity(config.user, account.pw_uid, gid)
    if os.getresuid() == (identity.uid,) * 3 and os.getresgid() == (identity.gid,) * 3:
        return None
    if os.geteuid() != 0:
        raise CannotBecome(f"only root can become {config.user}; start as root, or as that user")
    return identity


def owner_of(data_dir: Path) -> Identity | None:
    """Who runs the server of a data directory, for root alone; None where that is root.

    Files that root left in it would keep the server from starting.
    """
    there = [path for path in (data_dir / "lock", data_dir) if path.exists()]
    if os.geteuid() != 0 or not there:
        return None
    facts = there[0].lstat()
    try:
        name = pwd.getpwuid(facts.st_uid).pw_name
    except KeyError:
        raise CannotBecome(f"{there[0]} is of user {facts.st_uid}, who has no name") from None
    return Identity(name, facts.st_uid, facts.st_gid) if facts.st_uid else None


def make_folder(folder: Path, owner: Identity) -> None:
    """Make a folder and those above it for the owner alone; what is there stays as it is."""
    if folder.is_dir():
        return
    make_folder(folder.parent, owner)
    folder.mkdir(mode=0o700)
    os.chown(folder, owner.uid, owner.gid, follow_symlinks=False)


@contextmanager
def acting_as(identity: Identity | None) -> Iterator[None]:
    """Do something as the user, with root to come back to."""
    if identity is None:
        yield
        return
    groups = os.getgroups()
    os.initgroups(identity.user, identity.gid)
    os.setegid(identity.gid)
    os.seteuid(identity.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def become(identity: Identity) -> None:
    """Give root up for good, in all threads; CannotBecome if any way back is left.

    The order matters: groups can be set by root alone. With the user all capabilities go
    (capabilities(7)), and NO_NEW_PRIVS keeps setuid programs from giving any back.
    """
    os.initgroups(identity.user, identity.gid)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    keep_memory_private()
    with suppress(PermissionError):
        os.setresuid(0, 0, 0)
        raise CannotBecome("root could be had again")
    _check_reach(identity)


def keep_memory_private() -> None:
    """No core file, and no other process of the user may read this one's mail and keys."""
    _prctl(_PR_SET_DUMPABLE, 0)


def _check_reach(identity: Identity) -> None:
    """Whether the user can start the program that workers are."""
    for path in map(os.path.realpath, (sys.executable, fastmta.__file__)):
        if not os.access(path, os.R_OK):
            raise CannotBecome(f"{identity.user} cannot read {path}: install it elsewhere")


def check_owner(folder: Path) -> None:
    """CannotBecome where somebody else made the data directory, or something in it."""
    for path in (folder, folder / "lock", *_kept(folder)):
        if path.exists() and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
            user = _name(os.geteuid())
            raise CannotBecome(f"{path} is not {user}'s: chown -R {user} {folder}")


def _kept(data_dir: Path) -> Iterator[Path]:
    """Folders and files of LMDB; what is in a folder of somebody else cannot be seen."""
    for where, folders, files in os.walk(data_dir):
        for name in (*folders, *fnmatch.filter(files, "*.mdb")):
            yield Path(where, name)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
