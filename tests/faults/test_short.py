"""Every fault, a few times."""

from pathlib import Path

import pytest

from tests.faults.frame import Fault, faults, perform


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.name)
def test_nothing_is_lost(fault: Fault, tmp_path: Path) -> None:
    if reason := fault.missing():
        pytest.skip(reason)
    row = perform(fault, tmp_path, fault.short, seed=1)
    print(row)
    assert not row.complaints()
    assert row.cycles == fault.short
