"""What `fastmta demo` shows first: what runs where, and a command to try each."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from fastmta.cli.demo_people import PEOPLE

ALICE, BOB = PEOPLE
OUTSIDE = "friend@example.test"


class Service(NamedTuple):
    """One line of the table, and the command below it."""

    name: str
    address: str
    tls: str
    about: str
    command: str
    then: str = ""  # what to type into it


def services(folder: Path, ports: dict[str, int]) -> list[Service]:
    """Each command can be pasted as it is, in the folder where the demo was started."""
    at = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    data = shlex.quote(short(folder))
    trusted = f"{data}/certificate.pem"
    alice = f"-au {ALICE} -ap {PEOPLE[ALICE]} -f {ALICE}"
    typed = f"openssl s_client -quiet -verify_quiet -noservername -crlf -CAfile {trusted}"
    return [
        Service(
            *("smtp", at["smtp"], "STARTTLS", "anybody writes to bob"),
            f"swaks -s {at['smtp']} -f {OUTSIDE} -t {BOB}",
        ),
        Service(
            *("submission", at["submission"], "STARTTLS", "alice logs in and writes to bob"),
            f"swaks -s {at['submission']} -tls {alice} -t {BOB}",
        ),
        Service(
            *("submissions", at["submissions"], "implicit", "alice hears of a failure"),
            f"swaks -s {at['submissions']} -tlsc {alice} -t permfail@example.test",
        ),
        Service(
            *("pop3", at["pop3"], "STARTTLS", "bob reads his mail by hand"),
            f"{typed} -starttls pop3 -connect {at['pop3']}",
            f"then type: user {BOB.partition('@')[0]}, pass {PEOPLE[BOB]}, list, retr 1, quit",
        ),
        Service(
            *("pop3s", at["pop3s"], "implicit", "alice fetches her first message"),
            f"curl --cacert {trusted} -u {ALICE}:{PEOPLE[ALICE]} pop3s://{at['pop3s']}/1",
        ),
        Service(
            *("admin", at["admin"], "-", "metrics for Prometheus, and /healthz"),
            f"curl http://{at['admin']}/metrics",
        ),
        Service(
            *("queue", f"{data}/control", "-", "what waits, and why; Ctrl-C ends it"),
            f"{_program()} queue top -c {data}/fastmta.toml",
        ),
        Service(
            *("sink", at["sink"], "-", "where all other mail goes"),
            f"tail -n 20 {data}/arrived.mbox",
        ),
    ]


def introduce(console: Console, folder: Path, ports: dict[str, int]) -> None:
    lines = services(folder, ports)
    console.print("[bold]fastmta demo[/]: nothing leaves this machine.\n")
    for name, password in PEOPLE.items():
        console.print(f"  {name:<18} password [bold]{password}[/]")
    widths = [max(len(service[column]) for service in lines) for column in range(3)]
    console.print(
        f"\n[bold]{_row(widths, 'service', 'address', 'TLS', 'try it from another terminal')}[/]"
    )
    for service in lines:
        console.print(escape(_row(widths, *service[:4])), soft_wrap=True)
        # In one piece, however narrow the terminal, so that it can be copied.
        console.print(f"  [green]{escape(service.command)}[/]", soft_wrap=True)
        if service.then:
            console.print(f"    {service.then}", soft_wrap=True)
    console.print(
        "\nMail to tempfail@, permfail@, slow@, 421@ or drop@ elsewhere meets that fate."
        f"\nEverything is kept in {escape(str(folder))}",
        soft_wrap=True,
    )
    if wanting := [name for name in ("swaks", "openssl", "curl") if not shutil.which(name)]:
        packages = " ".join(wanting).replace("swaks", "swaks libnet-ssleay-perl")
        console.print(f"Not installed here: [bold]apt-get install {packages}[/]", soft_wrap=True)
    console.print("Ctrl-C ends the demo. Mail as it moves:\n")


def _row(widths: list[int], *cells: str) -> str:
    *fixed, last = cells
    padded = (f"{cell:<{width}}" for cell, width in zip(fixed, widths, strict=True))
    return "  ".join([*padded, last]).rstrip()


def _program() -> str:
    """How this program was called, as a person would type it from here."""
    return shlex.quote(short(Path(sys.argv[0]).absolute()))


def short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
