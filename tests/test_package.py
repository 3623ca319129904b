"""The source distribution has all that a build needs, and nothing that a build makes."""

import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_what_runs_is_compiled_of_what_is_here() -> None:
    """A compiled module hides the file of its name, whatever that says by now: `make build`."""
    described = [path.with_suffix(".py") for path in ROOT.glob("fastmta/*/*.pxd")]
    modules = [path for path in described if path.exists()]
    assert modules
    for path in modules:
        found = find_spec(".".join(path.relative_to(ROOT).with_suffix("").parts))
        assert found is not None and found.origin is not None
        compiled = Path(found.origin)
        assert compiled.suffix == ".so"
        newest = max(each.stat().st_mtime for each in (path, path.with_suffix(".pxd")))
        assert compiled.stat().st_mtime >= newest, path


def test_the_sdist_is_whole(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    sources = {
        str(path.relative_to(ROOT))
        for package in ("fastmta", "bench")
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".pyx", ".pyi", ".pxd", ".typed", ".toml"}
    }
    assert sources | {"LICENSE", "Makefile", "docs/configuration.md"} <= names
    assert not [name for name in names if name.endswith((".c", ".so", ".pyc"))]
