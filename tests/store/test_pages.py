"""What is still read of a file whose pages are broken."""

import struct
from pathlib import Path

import pytest

from fastmta.store import records, verify
from fastmta.store.env import open_environment

ROWS = [b"a key %06d" % number for number in range(120)]


def fill(folder: Path) -> None:
    env, db = open_environment(folder, records.DATABASES)
    with env, env.begin(write=True) as txn:
        for key in ROWS:
            txn.put(key, b"value", db=db["aside"])


def keys(folder: Path) -> list[bytes]:
    env, db = open_environment(folder, records.DATABASES, readonly=True)
    with env, env.begin() as txn, txn.cursor(db["aside"]) as cursor:
        return list(cursor.iternext(values=False))


def last_transaction(folder: Path) -> int:
    env, _ = open_environment(folder, records.DATABASES, readonly=True)
    with env:
        return int(env.info()["last_txnid"])


@pytest.mark.parametrize("later", [0, 1, 200])
def test_transactions_of_a_file_that_is_made_anew_go_on(tmp_path: Path, later: int) -> None:
    folder = tmp_path / "spool" / "0"
    folder.mkdir(parents=True)
    fill(folder)
    env, db = open_environment(folder, records.DATABASES)
    with env:
        for _ in range(later):
            with env.begin(write=True) as txn:
                txn.put(b"another", b"value", db=db["settled"])
    before = last_transaction(folder)
    file = folder / "data.mdb"
    octets = bytearray(file.read_bytes())
    octets[octets.index(ROWS[110])] -= 1
    file.write_bytes(octets)
    list(verify.repair(tmp_path, lambda part, done, total: None))
    assert before <= last_transaction(folder) <= before + 20  # with those of the mending
    assert set(keys(folder)) >= {*ROWS} - {ROWS[110]}


@pytest.mark.parametrize("length", [0, 1000])
def test_a_row_whose_key_is_none_does_not_keep_the_others(tmp_path: Path, length: int) -> None:
    folder = tmp_path / "spool" / "0"
    folder.mkdir(parents=True)
    fill(folder)
    file = folder / "data.mdb"
    octets = bytearray(file.read_bytes())
    at = octets.index(ROWS[100])
    struct.pack_into("=H", octets, at - 2, length)  # of the key, in its node
    octets[octets.index(ROWS[110])] -= 1  # and one is out of its order, so all is made anew
    file.write_bytes(octets)
    [part] = verify.repair(tmp_path, lambda part, done, total: None)
    assert "a value of aside cannot be read" in part.problems
    assert set(keys(folder)) & set(ROWS) == {*ROWS} - {ROWS[100], ROWS[110]}
    assert next(verify.verify(tmp_path, lambda part, done, total: None)).problems == []
