"""Looking into a spool that another process owns: short reads, nothing changed."""

from collections.abc import Iterator
from pathlib import Path

from fastmta.mail.envelope import Envelope
from fastmta.store import records, rows, segment
from fastmta.store.env import Transaction, open_environment

# Rows in one read transaction: one that lasts keeps the writer from using freed pages again.
BATCH = 500
DATABASES = ("fresh", "chunks", "envelopes")  # that every release has
SINCE_SEGMENTS = ("settled",)


class SpoolView:
    """One shard, read-only; lmdb.Error where it cannot be opened."""

    def __init__(self, folder: Path) -> None:
        self._env, self._db = open_environment(folder, DATABASES, SINCE_SEGMENTS, readonly=True)

    def envelopes(self) -> Iterator[Envelope]:
        """Those that are on their way for the first time, then those that wait; oldest first.

        What comes, goes or moves meanwhile may be missed or be there twice; a row that cannot
        be read is left out, for its owner to report.
        """
        with self._env.begin() as txn:
            fresh = segment.recover(txn, self._db).envelopes
        yield from (envelope for _, envelope in fresh)
        key: bytes | None = b""
        while key is not None:
            with self._env.begin() as txn:
                found, key = self._waiting(txn, key)
            yield from found

    def envelopes_of(self, message: int) -> list[Envelope]:
        """All envelopes of one message."""
        with self._env.begin() as txn:
            fresh = segment.recover(txn, self._db).envelopes
            waiting, _ = self._waiting(txn, prefix := records.message_key(message), prefix)
        return [envelope for _, envelope in fresh if envelope.message == message] + waiting

    def beginning(self, message: int) -> bytes:
        """The first octets of a message, about 1 MiB at the most."""
        with self._env.begin() as txn:
            for inside, envelope in segment.recover(txn, self._db).envelopes:
                if envelope.message == message:
                    body = segment.find_body(txn, self._db, inside.key, message)
                    if body:
                        return body
            return b"".join(rows.read_chunks(message, 0, txn, self._db))

    def close(self) -> None:
        self._env.close()

    def _waiting(
        self, txn: Transaction, key: bytes, prefix: bytes = b""
    ) -> tuple[list[Envelope], bytes | None]:
        """Some envelopes from `key` on, and the key to go on from; None at the end."""
        found: list[Envelope] = []
        with txn.cursor(self._db["envelopes"]) as cursor:
            more = cursor.set_range(key)
            for _ in range(BATCH):
                if not more or not cursor.key().startswith(prefix):
                    return found, None
                try:
                    found.append(records.unpack_envelope(cursor.value()))
                except records.Unreadable:
                    pass
                more = cursor.next()
            return found, cursor.key() if more else None


def shard_folders(data_dir: Path) -> list[Path]:
    """The folders of all shards below a data directory, in their order."""
    folders = [path for path in (data_dir / "spool").glob("*") if path.name.isdigit()]
    return sorted(folders, key=lambda path: int(path.name))
