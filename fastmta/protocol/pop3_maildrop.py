"""A maildrop as one session sees it: numbered messages, and which of them QUIT will delete.

Always true: what came in after the login is not in it, and a number means the same message until
the session ends (RFC 1939 section 4).
"""

from array import array

from fastmta._core.lines import LineBuffer
from fastmta._core.pop3 import list_ids, list_sizes
from fastmta._core.pop3_runs import delete_run, retrieve_run

LISTED_AT_ONCE = 4096  # messages; about a hundred kilobytes of listings


class Maildrop:
    """`uids` ("I") and `sizes` ("Q") have a number for each message, in order."""

    __slots__ = ("_all_octets", "_deleted", "_sizes", "_uids", "_validity", "count", "octets")

    def __init__(self, validity: int, uids: "array[int]", sizes: "array[int]") -> None:
        """`validity` and a uid together never mean another message."""
        self._validity, self._uids, self._sizes = validity, uids, sizes
        self._all_octets = sum(sizes)
        self.reset()

    def __len__(self) -> int:
        """With those that are deleted."""
        return len(self._uids)

    def reset(self) -> None:
        """Nothing is deleted."""
        self._deleted = bytearray(len(self._uids))
        self.count = len(self._uids)  # without those that are deleted, as the next
        self.octets = self._all_octets

    def has(self, number: int) -> bool:
        return 1 <= number <= len(self._uids) and not self._deleted[number - 1]

    def delete(self, number: int) -> None:
        """Mark what `has` has."""
        self._deleted[number - 1] = 1
        self.count -= 1
        self.octets -= self._sizes[number - 1]

    def delete_run(self, lines: LineBuffer) -> int:
        """Mark what the DELEs say that come next; how many they are."""
        count, octets = delete_run(lines, self._sizes, self._deleted)
        self.count -= count
        self.octets -= octets
        return count

    def retrieve_run(
        self, number: int, lines: LineBuffer, at_hand: dict[int, bytes], room: int
    ) -> bytes:
        """The replies to RETR of a message at hand, and to RETRs that come next: see `_core`."""
        return retrieve_run(number, lines, at_hand, self._sizes, self._deleted, room)

    @property
    def deleted(self) -> list[int]:
        """The uids of what is to go."""
        if self.count == len(self._uids):
            return []
        return [uid for uid, gone in zip(self._uids, self._deleted, strict=True) if gone]

    def uid(self, number: int) -> int:
        return self._uids[number - 1]

    def size(self, number: int) -> int:
        return self._sizes[number - 1]

    def run(self, number: int, octets: int, most: int) -> "tuple[array[int], array[int]]":
        """The numbers of a message and of those behind it that fit, and their uids."""
        sizes, deleted = self._sizes, self._deleted
        numbers, uids = array("I", [number]), array("I", [self._uids[number - 1]])
        left = octets - sizes[number - 1]
        for i in range(number, min(number + most, len(sizes))):
            if deleted[i]:
                continue
            left -= sizes[i]
            if left < 0:
                break
            numbers.append(i + 1)
            uids.append(self._uids[i])
        return numbers, uids

    def sizes(self, first: int, count: int) -> bytes:
        """Scan listings of up to `count` messages behind the `first`."""
        return list_sizes(self._sizes, self._deleted, first, count)

    def ids(self, first: int, count: int) -> bytes:
        """Unique-id listings of those."""
        return list_ids(self._validity, self._uids, self._deleted, first, count)
