"""`python -m fastmta`."""

from fastmta.cli import main

main(prog_name="fastmta")
