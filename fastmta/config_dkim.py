"""The tables [[dkim]]: who signs with which key, and what must be true of them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from fastmta.config_reader import DomainName, Duration, Problem, Selector, Table
from fastmta.mail.dkim import (
    GOOD_BITS,
    MOST_BITS,
    USUAL_FIELDS,
    BadKey,
    DkimKey,
    Signer,
    Signers,
    record_name,
)

_DAY = 86400
_FIELD_NAME = re.compile(r"[!-9<-~]{1,76}")  # RFC 5322 section 2.2, without ";" (RFC 6376 3.5)
_LARGEST_KEY = 1 << 16  # octets of a file
_READABLE_BY_OTHERS = 0o007

Canonicalization = Literal["relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"]


class Dkim(Table, frozen=True, kw_only=True):
    domain: DomainName
    selector: Selector
    key: Path
    canonicalization: Canonicalization = "relaxed/relaxed"  # of header and body
    headers: tuple[str, ...] = USUAL_FIELDS
    expire_after: Annotated[Duration, Meta(gt=0, le=3650 * _DAY)] | None = None
    subdomains: bool = False

    @property
    def record_name(self) -> str:
        """Where DNS has its public key."""
        return record_name(self.domain, self.selector)


def read_key(path: Path, *, thorough: bool = False) -> DkimKey:
    """The key in a file; BadKey, or OSError."""
    from fastmta.mail.dkim_key import load_key  # late: it costs 4 MB, and not everybody signs

    with path.open("rb") as file:
        return load_key(file.read(_LARGEST_KEY), thorough=thorough)


def load_signers(tables: Sequence[Dkim]) -> Signers:
    """All that sign, with their keys; BadKey, or OSError."""
    signers = [_signer(table) for table in tables]
    below = [one for one, table in zip(signers, tables, strict=True) if table.subdomains]
    return Signers(signers, below)


def _signer(table: Dkim) -> Signer:
    header, _, body = table.canonicalization.partition("/")
    return Signer(
        table.domain,
        table.selector,
        read_key(table.key),
        relaxed=(header == "relaxed", body == "relaxed"),
        fields=table.headers,
        expire_after=table.expire_after or 0,
    )


def check_dkim(tables: Sequence[Dkim]) -> Iterator[Problem]:
    names = [table.record_name for table in tables]
    for i, table in enumerate(tables):
        if names.index(names[i]) != i:
            text = f'"{table.selector}" is that of dkim[{names.index(names[i])}] too'
            yield Problem(f"dkim[{i}].selector", f"{text}; each key has one of its own")
        yield from _check_fields(f"dkim[{i}].headers", table.headers)
        yield from check_key(table, i)


def check_key(table: Dkim, i: int, *, thorough: bool = False) -> Iterator[Problem]:
    key = f"dkim[{i}].key"
    try:
        read_key(table.key, thorough=thorough)
    except OSError as error:
        yield Problem(key, f"{table.key} cannot be read: {error.strerror}")
    except BadKey as error:
        yield Problem(key, f"{table.key} {error}")


def _check_fields(key: str, names: Sequence[str]) -> Iterator[Problem]:
    lower = [name.lower() for name in names]
    if "from" not in lower:  # RFC 6376 section 5.4
        yield Problem(key, 'has no "From", which every signature covers; add it')
    for i, name in enumerate(lower):
        if not _FIELD_NAME.fullmatch(name):
            yield Problem(f"{key}[{i}]", f'"{names[i]}" is no name of a header field')
        elif name in _NEVER_SIGNED:
            yield Problem(f"{key}[{i}]", f'"{names[i]}" changes on the way; leave it out')
        elif name in lower[:i]:
            yield Problem(f"{key}[{i}]", f'"{names[i]}" is there twice')


# RFC 6376 section 5.4.1 for the first two; a signature covers itself anyway (section 3.7).
_NEVER_SIGNED = ("return-path", "received", "dkim-signature")


def dkim_warnings(tables: Iterable[Dkim]) -> Iterator[Problem]:
    """What works but should be otherwise."""
    for i, table in enumerate(tables):
        if table.key.stat().st_mode & _READABLE_BY_OTHERS:
            text = f"{table.key} is open to every user of this machine; write chmod o= {table.key}"
            yield Problem(f"dkim[{i}].key", text)
        key = read_key(table.key)
        if key.algorithm == "rsa-sha256" and not GOOD_BITS <= key.bits <= MOST_BITS:
            text = f"{table.key} has {key.bits} bits; RFC 8301 wants {GOOD_BITS} to {MOST_BITS}"
            yield Problem(f"dkim[{i}].key", text)
