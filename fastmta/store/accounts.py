"""Accounts: who may log in, and whose which address is, in an LMDB environment of its own.

All workers and the commands have it open at a time. A look into it is a get in a short read
transaction, some microseconds, and sees what was last committed; changes are synced transactions,
one process after the other.

    accounts  name          -> version, Account as msgpack
    aliases   address       -> name of the account that it belongs to
    meta      "salts"       -> a secret: the salts of names that nobody has come from it

Always true: an address is the name of one account, or an alias of one account, or of nobody.
Names and aliases are in the form of `name_of`.
"""

import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct, structs

from fastmta.mail.address import is_mailbox
from fastmta.protocol.sasl_text import prepare_name
from fastmta.protocol.scram import Keys
from fastmta.store.env import (
    LONGEST_KEY,
    Databases,
    Transaction,
    make_private,
    open_environment,
)
from fastmta.store.passwords import SALT_SIZE, unknown_keys
from fastmta.store.records import UNDECODABLE, Unreadable

DATABASES = ("accounts", "aliases", "meta")
MAX_ALIASES = 1000
MAX_FORWARD = 50  # addresses that an account forwards to
BATCH = 1000  # rows that are read in one transaction
_VERSION = b"\x01"

T = TypeVar("T")


class Account(Struct, frozen=True, array_like=True):
    """Who may log in. Times are seconds since the epoch."""

    name: str  # the main address
    password: str  # argon2id, in the form of the PHC
    scram: Keys
    created: float
    changed: float
    aliases: tuple[str, ...] = ()  # sorted
    quota: int = 0  # octets; 0: none
    disabled: bool = False
    forward: tuple[str, ...] = ()  # where its mail goes; empty: into its mailbox
    keep: bool = False  # where it forwards, a copy goes into its mailbox too

    def __repr__(self) -> str:  # no secret in a log
        return f"Account({self.name!r})"

    @property
    def keeps(self) -> bool:
        """Whether its mail goes into its mailbox."""
        return self.keep or not self.forward

    def owns(self, address: str) -> bool:
        """Whether an address, however it is written, is its name or an alias."""
        try:
            normal = name_of(address)
        except ValueError:
            return False
        return normal == self.name or normal in self.aliases


class Refused(Exception):
    """A change that cannot be; the text says why."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Account).decode


def name_of(address: str) -> str:
    """An address as accounts know it; ValueError for what is none."""
    try:
        name = prepare_name(address.encode())
    except ValueError:
        name = ""
    is_normal = is_mailbox(name) and name.rpartition("@")[2].isascii()
    if not (is_mailbox(address) and is_normal) or len(name.encode()) > LONGEST_KEY:
        raise ValueError(f"{address[:80]!r} is no address; write bob@example.test")
    return name


def _is_named(name: str, address: str) -> bool:
    """Whether an address is this name, however it is written."""
    try:
        return name_of(address) == name
    except ValueError:
        return False


def _unpack(row: bytes) -> Account:
    if row[:1] != _VERSION:
        raise Unreadable(f"version {row[0] if row else 'none'} is not known to this release")
    try:
        return _decode(row[1:])
    except UNDECODABLE as error:
        raise Unreadable(str(error)) from error


class Accounts:
    """The accounts as a worker or a command has them open. lmdb.Error where a disk fails."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Open `folder`, making it if need be."""
        make_private(folder)
        self._env, self._db = open_environment(folder, DATABASES)
        self._env.reader_check()  # who was killed while looking would keep old pages from use
        self._clock = clock
        self._salts = self._secret()

    def _secret(self) -> bytes:
        key, db = b"salts", self._db["meta"]
        with self._env.begin() as txn:
            known = txn.get(key, db=db)
        if known is not None:
            return bytes(known)
        with self._env.begin(write=True) as txn:
            txn.put(key, secrets.token_bytes(32), db=db, overwrite=False)
            return bytes(txn.get(key, db=db) or b"")

    # Looking; Unreadable where a row is there and cannot be read.

    def get(self, name: str) -> Account | None:
        """The account of a name in the form of `name_of`, or of `sasl.prepare_name`."""
        return self._look(lambda txn, db: _get(txn, db, name))

    def owner_of(self, address: str) -> Account | None:
        """The account whose name or alias an address is, however that is written."""
        try:
            normal = name_of(address)
        except ValueError:
            return None
        return self.owner_of_name(normal)

    def owner_of_name(self, normal: str) -> Account | None:
        """The same for an address in the form of `name_of`."""
        with self._env.begin() as txn:
            return _get(txn, self._db, normal) or _alias(txn, self._db, normal)

    def keys_of(self, name: str) -> Keys:
        """What SCRAM needs; of a name that nobody has, something that looks the same each time."""
        if account := self.get(name):
            return account.scram
        return unknown_keys(hmac.digest(self._salts, name.encode(), "sha256")[:SALT_SIZE])

    def names(self) -> Iterator[str]:
        """Of all accounts, sorted. Short reads only."""
        key = b""
        while found := self._look(partial(_some, start=key)):
            yield from (name.decode() for name in found)
            key = found[-1] + b"\0"

    def _look(self, look: Callable[[Transaction, Databases], T]) -> T:
        with self._env.begin() as txn:
            return look(txn, self._db)

    # Changing; Refused where that cannot be. Each is one synced transaction.

    def check_free(self, address: str) -> None:
        """Refused where an address is somebody's."""
        self._look(lambda txn, db: _check_free(txn, db, address))

    def add(self, name: str, password: str, scram: Keys, quota: int = 0) -> Account:
        now = self._clock()
        account = Account(name, password, scram, now, now, quota=quota)
        with self._env.begin(write=True) as txn:
            _check_free(txn, self._db, name)
            _put(txn, self._db, account)
        return account

    def change(self, name: str, **values: object) -> Account:
        """Set some fields of an account, aliases not among them."""
        with self._env.begin(write=True) as txn:
            account = structs.replace(_known(txn, self._db, name), **values, changed=self._clock())
            _put(txn, self._db, account)
        return account

    def forward(self, name: str, targets: Iterable[str], *, keep: bool) -> Account:
        """Send its mail on to these addresses and no others; to none: it stays here."""
        known = tuple(dict.fromkeys(targets))
        if len(known) > MAX_FORWARD:
            raise Refused(f"an account forwards to at most {MAX_FORWARD} addresses")
        for target in known:
            if not is_mailbox(target) or len(target.encode()) > LONGEST_KEY:
                raise Refused(f"{target[:80]!r} is no address; write bob@example.test")
            if _is_named(name, target):
                raise Refused(
                    f"{name} cannot forward to itself; its mailbox keeps a copy by --keep"
                )
        return self.change(name, forward=known, keep=keep and bool(known))

    def delete(self, name: str) -> None:
        """Take an account away with its aliases."""
        with self._env.begin(write=True) as txn:
            for alias in _known(txn, self._db, name).aliases:
                txn.delete(alias.encode(), db=self._db["aliases"])
            txn.delete(name.encode(), db=self._db["accounts"])

    def add_aliases(self, name: str, aliases: Iterable[str]) -> None:
        """All of them or none; those that it has already are no fault."""
        with self._env.begin(write=True) as txn:
            account = _known(txn, self._db, name)
            known = {*account.aliases}
            for alias in {*aliases} - known:
                _check_free(txn, self._db, alias)
                txn.put(alias.encode(), name.encode(), db=self._db["aliases"])
                known.add(alias)
            if len(known) > MAX_ALIASES:
                raise Refused(f"an account has at most {MAX_ALIASES} aliases")
            self._put_aliases(txn, account, known)

    def remove_aliases(self, name: str, aliases: Iterable[str]) -> None:
        """All of them or none."""
        with self._env.begin(write=True) as txn:
            account = _known(txn, self._db, name)
            known = {*account.aliases}
            for alias in {*aliases}:
                if alias not in known:
                    raise Refused(f"{alias} is no alias of {name}")
                txn.delete(alias.encode(), db=self._db["aliases"])
                known.remove(alias)
            self._put_aliases(txn, account, known)

    def _put_aliases(self, txn: Transaction, account: Account, aliases: set[str]) -> None:
        ordered = tuple(sorted(aliases))
        _put(txn, self._db, structs.replace(account, aliases=ordered, changed=self._clock()))

    def close(self) -> None:
        self._env.close()


# In a transaction.


def _get(txn: Transaction, db: Databases, name: str) -> Account | None:
    key = name.encode()
    row = txn.get(key, db=db["accounts"]) if 0 < len(key) <= LONGEST_KEY else None
    return None if row is None else _unpack(row)


def _alias(txn: Transaction, db: Databases, alias: str) -> Account | None:
    owner = _owner(txn, db, alias)
    return None if owner is None else _get(txn, db, owner)


def _owner(txn: Transaction, db: Databases, alias: str) -> str | None:
    row = txn.get(alias.encode(), db=db["aliases"])
    return None if row is None else bytes(row).decode()


def _some(txn: Transaction, db: Databases, start: bytes) -> list[bytes]:
    with txn.cursor(db["accounts"]) as cursor:
        found: list[bytes] = []
        more = cursor.set_range(start)
        while more and len(found) < BATCH:
            found.append(bytes(cursor.key()))
            more = cursor.next()
        return found


def _known(txn: Transaction, db: Databases, name: str) -> Account:
    account = _get(txn, db, name)
    if account is None:
        raise Refused(f"there is no account {name}")
    return account


def _check_free(txn: Transaction, db: Databases, address: str) -> None:
    if txn.get(address.encode(), db=db["accounts"]) is not None:
        raise Refused(f"{address} is an account already")
    if owner := _owner(txn, db, address):
        raise Refused(f"{address} is an alias of {owner} already")


def _put(txn: Transaction, db: Databases, account: Account) -> None:
    txn.put(account.name.encode(), _VERSION + _encode(account), db=db["accounts"])
