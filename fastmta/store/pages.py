"""The pages of an LMDB file, looked at as octets: what is broken there could end the process.

LMDB trusts its file: a page that points elsewhere, or one behind the end of a truncated file, is
a crash of whoever comes across it.
"""

import os
import sys
from collections.abc import Iterator
from mmap import PAGESIZE
from pathlib import Path
from struct import Struct as Layout
from typing import BinaryIO, NamedTuple

from lmdb.verify import VerifyError
from lmdb.verify import verify as verify_file

from fastmta.store.env import LONGEST_KEY

# Of LMDB 0.9's file format (mdb.c), in the byte order of the machine.
_PAGE = Layout("=QHHHH")  # number, pad, flags, end of the node offsets, begin of the nodes
_NODE = Layout("=HHHH")  # size of the value, or page of the child, in two; flags; octets of the key
_META = Layout("=IIQQ")  # magic, version, address, size of the map
_DB = Layout("=IHHQQQQQ")  # pad, flags, depth, pages of three kinds, entries, root
_TAIL = Layout("=QQ")  # the last page, the transaction
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4  # flags of a page
_BIG = 1  # flag of a node: its value is in pages of its own
_NO_PAGE = (1 << 64) - 1
_DEEPEST = 32


def check(folder: Path) -> list[str]:
    """What is wrong with the pages of an environment that nobody writes to."""
    try:
        return list(verify_file(str(folder), subdir=True))  # type: ignore[no-untyped-call]
    except (VerifyError, OSError) as error:
        return [str(error)]


def is_cut(file: Path) -> bool:
    """Whether a file ends before its last page: a look behind its end would be a SIGBUS.

    A server may run: it writes pages before the meta page that tells of them.
    """
    with file.open("rb") as octets:
        last = max((meta.last for meta in Salvage(octets).metas()), default=0)
        return os.fstat(octets.fileno()).st_size < (last + 1) * PAGESIZE


def set_transaction(file: Path, number: int) -> None:
    """Let a copy go on with the numbers of transactions that its original had.

    LMDB begins again with 1, and rows name transactions. Those of a meta page are all even, or odd.
    """
    with file.open("r+b") as octets:
        newest, _, _ = Salvage(octets).metas()[0]
        number, page = max(number, newest), newest % 2
        at = page * PAGESIZE + _PAGE.size + _META.size + 2 * _DB.size
        octets.seek(at)
        last, _ = _TAIL.unpack(octets.read(_TAIL.size))
        octets.seek(at)
        octets.write(_TAIL.pack(last, number + (number + page) % 2))
        octets.flush()
        os.fsync(octets.fileno())


class Meta(NamedTuple):
    transaction: int
    root: int  # page of the tree of names
    last: int  # page of the file


class Row(NamedTuple):
    database: str
    key: bytes
    value: bytes


class Salvage:
    """All rows of a file that can still be read, from whatever is left of it."""

    def __init__(self, octets: BinaryIO) -> None:
        self._octets, self._size = octets, PAGESIZE
        self._end = os.fstat(octets.fileno()).st_size
        self._seen: set[int] = set()  # pages of trees: each is in one, once
        self.lost: list[str] = []  # what could not be read

    def rows(self) -> Iterator[Row]:
        for name, root in self._databases():
            for key, value in self._walk(name, root, _DEEPEST):
                yield Row(name, key, value)

    def _databases(self) -> list[tuple[str, int]]:
        """Names and roots, by the newest meta page whose tree of names can be read."""
        for _, root, _ in self.metas():
            found = [
                (key.decode("ascii", "replace"), _DB.unpack(value)[7])
                for key, value in self._walk("", root, _DEEPEST)
                if len(value) == _DB.size
            ]
            if found:
                return found
        self.lost.append("neither meta page leads to databases")
        return []

    def metas(self) -> list[Meta]:
        """Those of the two meta pages that can be read, the newest first."""
        found: list[Meta] = []
        for number in (0, 1):
            page = self._page(number)
            if page is None or _META.unpack_from(page, _PAGE.size)[:2] != (_MAGIC, _VERSION):
                continue
            at = _PAGE.size + _META.size + _DB.size
            last, transaction = _TAIL.unpack_from(page, at + _DB.size)
            found.append(Meta(transaction, _DB.unpack_from(page, at)[7], last))
        return sorted(found, reverse=True)

    def _page(self, number: int, count: int = 1) -> bytes | None:
        """Pages by their number; None where they are not all there, or say they are another."""
        if (number + count) * self._size > self._end:
            return None
        self._octets.seek(number * self._size)
        octets = self._octets.read(count * self._size)
        return octets if _PAGE.unpack_from(octets)[0] == number else None

    def _walk(self, name: str, number: int, deepest: int) -> Iterator[tuple[bytes, bytes]]:
        """The rows of a tree, below a page."""
        if number == _NO_PAGE:
            return
        page = self._page(number) if deepest and number not in self._seen else None
        if page is None:
            self.lost.append(f"page {number} of {name or 'the names'} cannot be read")
            return
        self._seen.add(number)
        flags = _PAGE.unpack_from(page)[2]
        for low, high, kind, key, at in self._nodes(page):
            if flags & _BRANCH:
                yield from self._walk(name, low | high << 16 | kind << 32, deepest - 1)
            elif flags & _LEAF:
                value = self._value(page, at, low | high << 16, kind)
                if value is None or not 0 < len(key) <= LONGEST_KEY:
                    self.lost.append(f"a value of {name or 'the names'} cannot be read")
                else:
                    yield key, value

    def _nodes(self, page: bytes) -> Iterator[tuple[int, int, int, bytes, int]]:
        """Size or child in two halves, flags, key, and where the value begins."""
        lower = min(_PAGE.unpack_from(page)[3], self._size)
        for at in range(_PAGE.size, lower - 1, 2):
            start = int.from_bytes(page[at : at + 2], sys.byteorder)
            if _PAGE.size <= start <= self._size - _NODE.size:
                low, high, kind, length = _NODE.unpack_from(page, start)
                start += _NODE.size
                yield low, high, kind, page[start : start + length], start + length

    def _value(self, page: bytes, at: int, length: int, kind: int) -> bytes | None:
        if not kind & _BIG:
            return page[at : at + length] if at + length <= self._size else None
        count = (_PAGE.size - 1 + length) // self._size + 1
        pages = self._page(int.from_bytes(page[at : at + 8], sys.byteorder), count)
        if pages is None or not _PAGE.unpack_from(pages)[2] & _OVERFLOW:
            return None
        return pages[_PAGE.size : _PAGE.size + length]
