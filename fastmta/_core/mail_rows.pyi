from array import array
from collections.abc import Iterable, Iterator, Sequence

Rows = list[tuple[bytes, bytes]]

def entry_keys(mailbox: int, uids: Iterable[int]) -> list[bytes]: ...
def body_keys(entries: Rows) -> list[bytes]: ...
def place_of(row: bytes) -> tuple[bytes, int, int] | None: ...
def join_messages(
    keys: Sequence[bytes], entries: Rows, bodies: Rows, most_inline: int
) -> list[bytes | None]: ...
def list_entries(
    rows: Iterator[tuple[bytes, bytes]],
    mailbox: bytes,
    most: int,
    uids: array[int],
    sizes: array[int],
    unreadable: list[int],
) -> int: ...
