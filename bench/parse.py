"""Reading messages beside Python's email and what PyPI has: headers and structure, and addresses.

Every contender works on the same messages, in turns. "Headers and structure" is the tree of parts
with every header field of every part, as name and value; email has not decoded anything by then
either. Figures are microseconds of processor time a message, medians of the repeats; the ratio
is to the peer that the claim names.
"""

import email
import email.headerregistry
import email.policy
import email.utils
import importlib
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench import command
from bench.codec import longest_wait
from fastmta.mail.downgrade import to_seven_bit
from fastmta.mail.email_address import parse_addresses
from fastmta.mail.message import parse

Reader = Callable[[bytes], Any]

FIXTURES = Path(__file__).parent.parent.parent / "shared" / "fixtures" / "messages"
SAMPLE = 0.01  # seconds that one sample takes at the least
NAMES = ["fastmta", "email", "mail-parser", "fast-mail-parser", "headerregistry"]


@dataclass
class Work:
    name: str
    messages: list[bytes]
    peer: str  # that the ratio is to
    contenders: dict[str, Reader]
    aim: float
    seconds: dict[str, float] = field(default_factory=dict)  # a message

    @property
    def ratio(self) -> float:
        return self.seconds[self.peer] / self.seconds["fastmta"]


def headers_and_structure(data: bytes) -> object:
    return [part.headers.items() for part in parse(data).walk()]


def structure_alone(data: bytes) -> object:
    return parse(data).walk()


def with_email(data: bytes) -> object:
    return [part.items() for part in email.message_from_bytes(data).walk()]


def readers() -> dict[str, Reader]:
    found: dict[str, Reader] = {"fastmta": headers_and_structure, "email": with_email}
    try:
        found["mail-parser"] = importlib.import_module("mailparser").parse_from_bytes
        found["fast-mail-parser"] = importlib.import_module("fast_mail_parser").parse_email
    except ImportError as error:
        print(f"{error.name} is not installed: left out", file=sys.stderr)
    return found


def plain() -> bytes:
    """2 KB as a relay sees it: three Received fields, a short text."""
    hops = "".join(
        f"Received: from h{hop}.example.test (h{hop}.example.test [192.0.2.{hop}])\r\n"
        f"\tby mx{hop}.example.test (Postfix) with ESMTPS id 4ABCDEF{hop}\r\n"
        f"\tfor <user@example.test>; Tue, 7 Apr 2026 10:00:0{hop} +0000 (UTC)\r\n"
        for hop in range(3)
    )
    fields = (
        "From: Alice Example <alice@example.test>\r\nTo: Bob <bob@example.test>, c@example.test\r\n"
        "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= from here\r\nDate: Tue, 7 Apr 2026 10:00:00 +0000\r\n"
        "Message-ID: <123@example.test>\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    )
    text = "This is a line of the text of a plain message.\r\n" * 50
    return (hops + fields + text)[:2048].encode()


def made(html: str, images: int, attachments: int, octets: int) -> bytes:
    message = EmailMessage(email.policy.SMTP)
    message["From"], message["To"] = "Alice <alice@example.test>", "bob@example.test"
    message["Subject"], message["Date"] = "made", "Tue, 7 Apr 2026 10:00:00 +0000"
    message.set_content("A line of text.\n" * 20)
    message.add_alternative(html, subtype="html")
    shown = list(message.iter_parts())[-1]
    chance = random.Random(0)
    for _ in range(images):
        shown.add_related(chance.randbytes(octets), "image", "png", cid="<image@example.test>")
    for _ in range(attachments):
        message.add_attachment(chance.randbytes(octets), "application", "pdf", filename="a.pdf")
    return bytes(message)


def addresses() -> bytes:
    forms = (
        "user{}@example.test",
        "John Doe <user{}@example.test>",
        '"Doe, John" <user{}@example.test>',
        "Jim Q. Public <user{}@mail.example.test>",
    )
    chance = random.Random(0)
    return ", ".join(chance.choice(forms).format(n) for n in range(1000)).encode()


def address_readers() -> dict[str, Reader]:
    registry = email.headerregistry.HeaderRegistry()
    return {
        "fastmta": parse_addresses,
        "email": lambda value: email.utils.getaddresses([value.decode()]),
        "headerregistry": lambda value: vars(registry("to", value.decode())),
    }


def works() -> list[Work]:
    paragraph = "<p>Some text of a message in HTML.</p>\n"
    messages = {
        "plain, 2 KB": [plain()],
        "HTML with images, 50 KB": [made(paragraph * 150, 4, 0, 8000)],
        "attachments, 5 MB": [made(paragraph, 0, 4, 950_000)],
        "corpus of 33": [path.read_bytes() for path in sorted(FIXTURES.glob("*/*.eml"))],
    }
    found = []
    for name, each in messages.items():
        if each:
            found.append(Work(f"{name}: headers and structure", each, "email", readers(), 30))
            alone: dict[str, Reader] = {"fastmta": structure_alone, "email": with_email}
            found.append(Work(f"{name}: structure alone", each, "email", alone, 30))
    return [*found, Work("1,000 addresses", [addresses()], "email", address_readers(), 20)]


def drop_failing(work: Work) -> None:
    """Leave out of a work who cannot read all of its messages."""
    for name, reader in list(work.contenders.items()):
        try:
            for message in work.messages:
                reader(message)
        except Exception as error:
            print(f"{name} fails on {work.name}: {error}", file=sys.stderr)
            del work.contenders[name]


def measure(work: Work, repeats: int) -> None:
    drop_failing(work)
    samples: dict[str, list[float]] = {name: [] for name in work.contenders}
    for _ in range(repeats):
        for name, reader in work.contenders.items():
            samples[name].append(_sample(reader, work.messages))
    work.seconds = {name: statistics.median(seconds) for name, seconds in samples.items()}


def _sample(reader: Reader, messages: list[bytes]) -> float:
    """Seconds of processor time for one message: what else the machine does is left out."""
    calls, start = 0, time.thread_time()
    batch = max(1, 20_000 // sum(map(len, messages)))
    while (taken := time.thread_time() - start) < SAMPLE or not calls:
        for _ in range(batch):
            for message in messages:
                reader(message)
        calls += batch
    return taken / calls / len(messages)


def gil_works() -> dict[str, tuple[Reader, bytes]]:
    """Messages of 50 MB, and how to read them."""
    line = b"A line of text in a long message, none of them a boundary.\r\n"
    return {
        "headers and structure": (
            headers_and_structure, made("<p>", 0, 4, 9_200_000)
        ),
        "structure of text": (structure_alone, b"Subject: x\r\n\r\n" + line * 850_000),
        "one header field": (headers_and_structure, b"Subject: " + b"x" * 50_000_000),
        "a header field unfolded": (
            lambda data: parse(data).headers.get("subject"),
            b"Subject: x" + b"\r\n folded" * 5_500_000,
        ),
        "a body decoded": (
            lambda data: parse(data).decode(), b"A: b\r\n\r\n" + line * 850_000
        ),
        "converted to seven bits": (
            to_seven_bit, b"A: b\r\n\r\n" + line * 850_000 + b"\xc3\xbc\r\n"
        ),
    }  # fmt: skip


def table(measured: list[Work]) -> Table:
    made_table = Table(
        "work", "octets", *(f"{name} us" for name in NAMES), "ratio", "aim", box=MARKDOWN
    )
    for column in made_table.columns:
        column.no_wrap = True
    for work in measured:
        octets = sum(map(len, work.messages)) // len(work.messages)
        figures = [
            f"{work.seconds[name] * 1e6:,.1f}" if name in work.seconds else "" for name in NAMES
        ]
        ratio = f"{work.ratio:.1f}"
        made_table.add_row(work.name, f"{octets:,}", *figures, ratio, f"{work.aim:g}")
    return made_table


@click.command(help=__doc__)
@click.option("--repeats", type=click.IntRange(1), default=9, show_default=True)
@click.option("--only", default="", help="Works whose name contains this.")
@click.option("--gil/--no-gil", default=True, help="Also how long 50 MB keep the GIL.")
@command.json_option
def main(repeats: int, only: str, gil: bool, output: Path | None) -> None:
    console = Console(width=180)
    measured = [work for work in works() if only in work.name]
    for work in measured:
        measure(work, repeats)
    console.print(table(measured))
    waits = {name: longest_wait(*each, 9) for name, each in gil_works().items()} if gil else {}
    for name, seconds in waits.items():
        console.print(f"{name}, 50 MB: another thread waits {seconds * 1e3:.1f} ms at the most")
    if output:
        rows = [{"work": w.name, "seconds": w.seconds, "aim": w.aim} for w in measured]
        output.write_bytes(msgspec.json.encode({"works": rows, "longest_wait": waits}))


if __name__ == "__main__":
    sys.exit(main())
