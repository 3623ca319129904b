"""Fuzz one target with atheris: `python -m tests.fuzz.fuzzing TARGET [options of libFuzzer]`.

TARGET is the name of a function `fuzz_TARGET` in one of the `*_targets.py` beside this file. What
was found before is in corpus/TARGET; what is found now goes to the first folder that is named, or
there; a crash is written to the current directory. Typical:

    nice python -m tests.fuzz.fuzzing base64 -max_total_time=300
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent


def targets() -> dict[str, Callable[[bytes], None]]:
    names = sorted(path.stem for path in HERE.glob("*_targets.py"))
    modules = [importlib.import_module(f"tests.fuzz.{name}") for name in names]
    return {
        name.removeprefix("fuzz_"): function
        for module in modules
        for name, function in vars(module).items()
        if name.startswith("fuzz_")
    }


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["fastmta", "tests"]):
        known = targets()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        sys.exit(f"{__doc__}\nTargets: {', '.join(known)}")
    name = sys.argv.pop(1)
    atheris.Setup([*sys.argv, str(HERE / "corpus" / name)], known[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
