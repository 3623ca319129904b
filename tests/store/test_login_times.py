"""When mailboxes were opened last."""

from pathlib import Path

from fastmta.store.login_times import LoginTimes

NOW = 1_800_000_000


def test_a_mailbox_is_opened_again_after_the_delay(tmp_path: Path) -> None:
    times = LoginTimes(tmp_path / "logins")
    assert times.begin(7, NOW, 60)
    assert not times.begin(7, NOW + 59, 60)
    assert times.begin(7, NOW + 60, 60)  # from the login, not from the attempt
    assert times.begin(8, NOW + 60, 60)
    assert times.begin(6, NOW + 60, 60)
    times.close()


def test_other_processes_know_of_it(tmp_path: Path) -> None:
    one, other = LoginTimes(tmp_path / "logins"), LoginTimes(tmp_path / "logins")
    assert one.begin(1_000_000, NOW, 60)
    assert not other.begin(1_000_000, NOW + 1, 60)
    one.close()
    other.close()


def test_a_clock_that_went_back_locks_nobody_out(tmp_path: Path) -> None:
    times = LoginTimes(tmp_path / "logins")
    assert times.begin(1, NOW, 60)
    assert times.begin(1, NOW - 86400, 60)
    times.close()
