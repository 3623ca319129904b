"""The source distribution has all that a build needs, and nothing that a build makes."""

import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
