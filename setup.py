"""Compile fastmta/_core; everything static is in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

sources = sorted(Path("fastmta/_core").glob("*.pyx"))
extensions = [
    Extension(f"fastmta._core.{path.stem}", [str(path)], extra_compile_args=["-O3"])
    for path in sources
]
setup(ext_modules=cythonize(extensions, compiler_directives={"language_level": "3"}))
