"""fastmta: a mail transfer agent in Python and Cython."""

from importlib.metadata import version

__version__ = version("fastmta")
