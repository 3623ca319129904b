"""The transfer codecs beside pybase64 and binascii: base64 in lines and without, quoted-printable.

Every contender works on the same data, in turns, and must give the same octets. Rates are decoded
octets a second of processor time, medians of the repeats; the ratio is to the named peer.
"""

import base64 as stdlib
import binascii
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import click
import msgspec
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench import command
from fastmta._core import base64, quopri

Codec = Callable[[bytes], bytes]

SIZES = (2_000, 100_000, 4_000_000)
SAMPLE = 0.004  # seconds that one sample takes at the least
TEXTS = {
    "English": "The quick brown fox jumps over the lazy dog, and 2 + 2 = 4 was all it had to say.",
    "German": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, hieß es gestern.",
    "French": "Dès Noël où un zéphyr haï me vêt de glaçons würmiens, je dîne d’exquis rôtis.",
    "Russian": "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία των λόγων εκείνων.",
    "Chinese": "我 能 吞下 玻璃 而 不 伤 身体， 天地 玄黄 宇宙 洪荒。",
}


@dataclass
class Work:
    name: str
    size: int  # decoded octets
    data: bytes
    peer: str  # that the ratio is to
    contenders: dict[str, Codec]
    aim: float
    expected: bytes
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.rates["fastmta"] / self.rates[self.peer]


def base64_works(size: int) -> Iterator[Work]:
    import pybase64  # of the bench extra, as is matplotlib

    data = random.Random(size).randbytes(size)
    letters, lines = stdlib.b64encode(data), base64.encode(data, lines=True)
    yield Work("base64 lines, encode", size, data, "pybase64", {
        "fastmta": lambda data: base64.encode(data, lines=True),
        "pybase64": pybase64.encodebytes,
        "binascii": stdlib.encodebytes,
    }, 3, lines)  # fmt: skip
    yield Work("base64 lines, decode", size, lines, "pybase64", {
        "fastmta": base64.decode,
        "pybase64": pybase64.b64decode,
        "binascii": binascii.a2b_base64,
    }, 3, data)  # fmt: skip
    yield Work("base64, encode", size, data, "pybase64", {
        "fastmta": base64.encode,
        "pybase64": pybase64.b64encode,
        "binascii": lambda data: binascii.b2a_base64(data, newline=False),
    }, 1, letters)  # fmt: skip
    yield Work("base64, decode", size, letters, "pybase64", {
        "fastmta": base64.decode,
        "pybase64": pybase64.b64decode,
        "binascii": binascii.a2b_base64,
    }, 1, data)  # fmt: skip
    yield Work("base64, decode strict", size, letters, "pybase64", {
        "fastmta": lambda data: base64.decode(data, strict=True),
        "pybase64": lambda data: pybase64.b64decode(data, validate=True),
        "binascii": lambda data: binascii.a2b_base64(data, strict_mode=True),
    }, 1, data)  # fmt: skip


def quopri_works(size: int) -> Iterator[Work]:
    texts = {name: text(name, size) for name in TEXTS}
    lines = b"".join(texts.values()).splitlines(keepends=True)
    random.Random(size).shuffle(lines)
    texts["mixed"] = b"".join(lines)[:size].decode(errors="ignore").encode()
    for name, data in texts.items():
        encoded = quopri.encode(data)
        yield Work(f"quoted-printable {name}, encode", len(data), data, "binascii", {
            "fastmta": quopri.encode, "binascii": binascii.b2a_qp,
        }, 10, encoded)  # fmt: skip
        yield Work(f"quoted-printable {name}, decode", len(data), encoded, "binascii", {
            "fastmta": quopri.decode, "binascii": binascii.a2b_qp,
        }, 3, data)  # fmt: skip


def text(language: str, size: int) -> bytes:
    """Words of the language at random, in lines of some sixty characters."""
    chance, words = random.Random(language), TEXTS[language].split()
    blank = "" if language == "Chinese" else " "
    block = b""
    while len(block) < min(size, 200_000):
        line = blank.join(chance.choices(words, k=10))
        block += line.encode() + b"\r\n"
    return (block * (size // len(block) + 1))[:size].decode(errors="ignore").encode()


def measure(work: Work, repeats: int) -> None:
    samples: dict[str, list[float]] = {name: [] for name in work.contenders}
    for codec in work.contenders.values():
        if _unfolded(codec(work.data), work) != _unfolded(work.expected, work):
            raise AssertionError(f"{work.name}: contenders differ")
    for _ in range(repeats):
        for name, codec in work.contenders.items():
            samples[name].append(_sample(codec, work.data))
    for name, seconds in samples.items():
        work.rates[name] = work.size / statistics.median(seconds) / 1e9


def _unfolded(output: bytes, work: Work) -> bytes:
    """Peers fold elsewhere and end lines in LF: compared is what the lines hold."""
    if work.name.startswith("quoted") and work.name.endswith("encode"):
        return binascii.a2b_qp(output)
    return output.replace(b"\r\n", b"\n") if work.name.endswith("encode") else output


def _sample(codec: Codec, data: bytes) -> float:
    """Seconds of processor time for one call: what else the machine does is left out."""
    calls, start = 0, time.thread_time()
    while (taken := time.thread_time() - start) < SAMPLE or not calls:
        for _ in range(max(1, 100_000 // len(data))):
            codec(data)
            calls += 1
    return taken / calls


def longest_wait(codec: Codec, data: bytes, repeats: int) -> float:
    """Seconds for which another thread waits for the GIL at the most; the best of the repeats."""
    waits = []
    for _ in range(repeats):
        done, gaps = threading.Event(), [0.0]
        ticker = threading.Thread(target=_tick, args=(threading.get_native_id(), done, gaps))
        ticker.start()
        result = codec(data)
        done.set()
        ticker.join()
        del result  # the system takes its time to take back 50 MB, whoever asked for them
        waits.append(max(gaps))
    return min(waits)


def _tick(caller: int, done: threading.Event, gaps: list[float]) -> None:
    # That one of the two threads waits for a processor is not the codec's doing.
    threads = (caller, threading.get_native_id())
    tasks = [Path(f"/proc/self/task/{thread}/schedstat") for thread in threads]
    last, queued = time.perf_counter(), 0.0
    while not done.is_set():
        delay = sum(int(task.read_text().split()[1]) for task in tasks) / 1e9
        now = time.perf_counter()
        gaps.append(now - last - (delay - queued))
        last, queued = now, delay


def gil_works() -> Iterator[tuple[str, Codec, bytes]]:
    size = 50_000_000
    data, words = random.Random(50).randbytes(size), text("German", size)
    yield "base64 lines, encode", lambda data: base64.encode(data, lines=True), data
    yield "base64 lines, decode", base64.decode, base64.encode(data, lines=True)
    yield "base64, encode", base64.encode, data
    yield "base64, decode", base64.decode, base64.encode(data)
    yield "quoted-printable, encode", quopri.encode, words
    yield "quoted-printable, decode", quopri.decode, quopri.encode(words)


def table(works: list[Work]) -> Table:
    names = ["fastmta", "pybase64", "binascii"]
    made = Table(
        "work", "octets", *(f"{name} GB/s" for name in names), "ratio", "aim", box=MARKDOWN
    )
    for column in made.columns:
        column.no_wrap = True
    for work in works:
        rates = [f"{work.rates[name]:.2f}" if name in work.rates else "" for name in names]
        ratio = f"{work.ratio:.1f}"
        made.add_row(work.name, f"{work.size:,}", *rates, ratio, f"{work.aim:g}")
    return made


def plot(works: list[Work], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot

    largest = [work for work in works if work.size > 1_000_000] or works
    figure, axes = pyplot.subplots(figsize=(10, 0.45 * len(largest) + 1))
    for at, name in enumerate(("fastmta", "pybase64", "binascii")):
        places = [y + (at - 1) * 0.27 for y, work in enumerate(largest) if name in work.rates]
        axes.barh(places, [w.rates[name] for w in largest if name in w.rates], 0.25, label=name)
    axes.set_yticks(range(len(largest)), [work.name for work in largest])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("GB/s of decoded octets")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


@click.command(help=__doc__)
@click.option("--repeats", type=click.IntRange(1), default=9, show_default=True)
@click.option("--only", default="", help="Works whose name contains this.")
@click.option("--gil/--no-gil", default=True, help="Also how long 50 MB keep the GIL.")
@command.json_option
@click.option("--plot", "picture", type=click.Path(dir_okay=False, path_type=Path))
def main(repeats: int, only: str, gil: bool, output: Path | None, picture: Path | None) -> None:
    console = Console(width=110)
    chosen = f"base64 {base64.kernels()[0]}, quoted-printable {quopri.kernels()[0]}"
    console.print(f"kernels: {chosen}; pybase64 {version('pybase64')}")
    works = [work for size in SIZES for made in (base64_works, quopri_works) for work in made(size)]
    works = [work for work in works if only in work.name]
    for work in works:
        measure(work, repeats)
    console.print(table(works))
    waits = {name: longest_wait(codec, data, 5) for name, codec, data in gil_works()} if gil else {}
    for name, seconds in waits.items():
        console.print(f"{name}, 50 MB: another thread waits {seconds * 1e3:.1f} ms at the most")
    if output:
        rows = [{"work": w.name, "octets": w.size, "rates": w.rates, "aim": w.aim} for w in works]
        output.write_bytes(msgspec.json.encode({"works": rows, "longest_wait": waits}))
    if picture:
        plot(works, picture)


if __name__ == "__main__":
    sys.exit(main())
