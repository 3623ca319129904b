"""Compile fastmta/_core, and each module with a .pxd beside it; the rest is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

PACKAGE = Path("fastmta")
sources = sorted(PACKAGE.glob("_core/*.pyx"))
sources += sorted(path for path in PACKAGE.rglob("*.py") if path.with_suffix(".pxd").exists())
extensions = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        extra_compile_args=["-O3", "-Wno-unused-function"],
    )
    for path in sources
]
directives = {"language_level": "3", "annotation_typing": False, "auto_pickle": False}
cores = len(os.sched_getaffinity(0))
setup(
    ext_modules=cythonize(extensions, compiler_directives=directives, nthreads=cores),
    options={"build_ext": {"parallel": cores}},
)
