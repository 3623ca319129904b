import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.fuzzing import HERE, targets

TARGETS = targets()
RUNS = 2000


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once(name):
    found = sorted((HERE / "corpus" / name).iterdir())
    assert found
    for path in found:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run(name, tmp_path: Path):
    if not importlib.util.find_spec("atheris"):
        pytest.skip("atheris has no wheel for this Python or processor")
    # New finds go to the first folder, so that a test leaves the corpus as it is.
    options = [f"-runs={RUNS}", "-verbosity=0", f"-artifact_prefix={tmp_path}/", tmp_path]
    command = [sys.executable, "-m", "tests.fuzz.fuzzing", name, *options]
    done = subprocess.run(
        command, cwd=HERE.parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
