"""What a repair takes out, kept in files."""

import os
from pathlib import Path

from fastmta.store.aside import MOST_OPEN, Aside


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_one_mend_may_take_out_more_than_may_be_open_at_a_time(tmp_path: Path) -> None:
    aside, before = Aside(tmp_path), open_files()
    aside.part = "mail/0"
    most = 0
    for number in range(MOST_OPEN):
        aside.save(str(number), [b"Subject: x\r\n"], {"number": number}, b"row")
        most = max(most, open_files() - before)
    assert 0 < most <= MOST_OPEN
    aside.flush()
    assert open_files() == before
    assert len(list(aside.path.iterdir())) == 3 * MOST_OPEN
