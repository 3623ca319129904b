"""What a message relayed costs beside what it must cost in Python; none is lost.

Two runs for each peer, in turns, as often as `--repeats` says, each on a fresh data folder and
after a short warm-up:

\b
outside   smtp-source -> the peer -> smtp-sink (Debian's postfix package), no pipelining: messages
          a second from the first connection until the sink has them all
numbered  bench.load -> the peer -> bench.sink, pipelined: latencies, and which of the
          acknowledged messages arrived, how often, and whether whole

With --tls each peer that can runs both without and with it, numbered alone: smtp-source and
smtp-sink speak no TLS. Load and sink are then Python's in all runs: bench.load --python and fastmta
sink know TLS, and take more of the cores. Handshakes of the load are before the first message and
count as CPU.

CPU is that of all processes of the peer until they are at rest, those that have ended included.
Peak memory is the sum of their peaks: pages that processes share count once for each. Resident
memory counts them once, when the last message is in.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from bench import certificate, processes, signing
from bench.load import Result
from bench.peers import PLAIN, Features, Peer
from fastmta.sink import Counts
from fastmta.sink.tally import parse_ranges

STALL = 10.0  # seconds without an arrival after which what is missing is lost
WARM_UP = 2  # messages of each client before the measurement
WARMING = 100  # clients at the most that send them
SLOWEST = 20.0  # messages a second below which an outside run is given up


class Options(Struct, frozen=True, kw_only=True):
    messages: int = 10_000
    size: int = 2048
    clients: int = 100
    repeats: int = 3
    workers: int = 1  # load and sink need cores too: of two, one is left
    domains: int = 0  # of the recipients; 0: one
    rate: float = 0.0  # messages a second; 0: as fast as they go in
    stall: float = STALL
    features: Features = PLAIN
    beside_tls: bool = False  # it is compared with runs that have TLS

    @property
    def in_python(self) -> bool:
        """Whether load and sink are those that know TLS: all runs of a claim have the same."""
        return self.beside_tls or self.features.tls != "none"


class Run(Struct, kw_only=True):
    """What one run of one peer came to."""

    peer: str = ""  # "fastmta", or "fastmta, TLS in"
    load: str = ""  # "outside" or "numbered"
    claim: str = "relay"
    point: dict[str, int | str] = {}  # what a sweep has varied, as in {"clients": 20}
    failed: str = ""  # why there are no figures
    messages: int = 0
    seconds: float = 0.0
    user: float = 0.0  # microseconds of CPU a message
    system: float = 0.0
    peak_memory: int = 0  # octets
    resident: int = 0  # octets, when the last message was in; what is shared counts once
    accept_p50: float = 0.0  # seconds from end of data to 250
    accept_p99: float = 0.0
    accept_p999: float = 0.0
    deliver_p50: float = 0.0  # seconds from sending the content to its arrival
    deliver_p99: float = 0.0
    deliver_p999: float = 0.0
    refused: int = 0  # messages without a 250, not sent again
    lost: int = 0  # acknowledged, but never arrived
    duplicated: int = 0
    corrupt: int = 0
    idle: float = 0.0  # cores of the machine that had nothing to do; of an outside run alone
    calls: float = 0.0  # system calls a message
    flushes: float = 0.0  # of them fsync and its like
    session: float = 0.0  # octets of memory an idle session

    @property
    def rate(self) -> float:
        return self.messages / self.seconds if self.seconds else 0.0

    @property
    def cpu(self) -> float:
        return self.user + self.system


def steps(under_test: dict[str, Peer], options: Options) -> int:
    """How many runs there are."""
    measures = 2 if options.features.tls == "none" else 1
    return options.repeats * measures * len(contenders(under_test, options.features))


def run_all(
    under_test: dict[str, Peer], options: Options, base: Path, progress: Callable[[str], None]
) -> Iterator[Run]:
    """Every run as it ends, peers alternating; files are kept only of one that fails."""
    measures = (outside, numbered) if options.features.tls == "none" else (numbered,)
    for repeat in range(options.repeats):
        for column, (name, features) in contenders(under_test, options.features).items():
            beside_tls = options.features.tls != "none"
            mine = structs.replace(options, features=features, beside_tls=beside_tls)
            for measure in measures:
                progress(f"{column}, {measure.__name__}, {repeat + 1} of {options.repeats}")
                with scratch(base) as folder:
                    if features.dkim != "none":
                        signing.of(folder).make(features.dkim)
                    run = measure(under_test[name], mine, folder)
                    run.peer = column
                yield run


def contenders(under_test: dict[str, Peer], features: Features) -> dict[str, tuple[str, Features]]:
    """What runs, as columns of the table: each peer as it is, then with the features it has."""
    columns = {}
    for name, peer in under_test.items():
        columns[name] = name, PLAIN
        if features != PLAIN and peer.can(features):
            columns[f"{name}, {features}"] = name, features
    return columns


@contextmanager
def scratch(base: Path) -> Iterator[Path]:
    """A folder that other users may enter (Postfix drops its privileges), removed at success."""
    folder = Path(tempfile.mkdtemp(dir=base, prefix="relay-"))
    folder.chmod(0o755)
    keep = False
    try:
        yield folder
    except Exception as error:
        keep = True
        error.add_note(f"what the processes wrote is in {folder}")
        raise
    finally:
        if not keep:
            shutil.rmtree(folder)


def outside(peer: Peer, options: Options, folder: Path) -> Run:
    """Debian's tools at both ends."""
    port, next_hop = processes.free_port(), processes.free_port()
    expected = options.messages + WARM_UP * min(options.clients, WARMING)
    with processes.running(_smtp_sink(next_hop, expected), folder / "sink") as sink:
        processes.greets(next_hop, sink)
        with peer.running(folder, port, next_hop, options.workers, options.features) as root:
            before = warmed_up(root, port, options.clients)
            begun, idle = time.monotonic(), processes.idle()
            _smtp_source(port, options.clients, options.messages, options.size)
            sink.wait(60 + options.messages / SLOWEST)
            seconds, idle = time.monotonic() - begun, processes.idle() - idle
            spent = processes.settled(root).since(before)
    run = run_of("outside", options, seconds, spent)
    run.idle = idle / seconds
    return run


def _smtp_sink(port: int, messages: int) -> list[str]:
    command = ["smtp-sink", "-M", str(messages), f"127.0.0.1:{port}", "1000"]
    return command if os.geteuid() else [command[0], "-u", "nobody", *command[1:]]


def warmed_up(root: int, port: int, clients: int) -> processes.Usage:
    """Send a few messages, so that processes and connections are there; usage after that."""
    clients = min(clients, WARMING)
    few = Options(clients=clients, messages=WARM_UP * clients, size=1024)
    # Not by smtp-source, which connects them all at once: see `bench.load.send`.
    _run_load([*_load(port, few), "--warm-up"])
    return processes.settled(root)


def _smtp_source(port: int, clients: int, messages: int, size: int) -> None:
    counts = ["-s", str(clients), "-m", str(messages), "-l", str(size)]
    addresses = ["-f", "load@client.example.test", "-t", "user@example.test"]
    command = ["smtp-source", "-d", *counts, *addresses, f"127.0.0.1:{port}"]
    subprocess.run(command, check=True)


def numbered(peer: Peer, options: Options, folder: Path) -> Run:
    """Our own ends, which know each message."""
    port, next_hop = processes.free_port(), processes.free_port()
    if options.features.tls != "none":
        certificate.of(folder).make()
    log = folder / "sink"
    with receiving(next_hop, folder, options) as sink:
        with peer.running(folder, port, next_hop, options.workers, options.features) as root:
            before = warmed_up(root, port, options.clients)
            sent = send(port, options)
            resident = processes.resident(root)
            arrived(sink, log, parse_ranges(sent.acknowledged), options.stall)
            spent = processes.settled(root).since(before)
        counts = ask(sink, log)
    run = run_of("numbered", options, counts.last - sent.started, spent)
    run.resident = resident
    return judge(run, sent, counts)


@contextmanager
def receiving(
    port: int, folder: Path, options: Options | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A sink, which counts into `sink` in this folder."""
    command = sink_command(f"127.0.0.1:{port}", options.in_python if options else False)
    if options and options.features.tls == "out":
        command += ["--tls", *map(str, certificate.of(folder))]
    with processes.running(command, folder / "sink") as sink:
        processes.greets(port, sink)
        yield sink


def sink_command(listen: str, in_python: bool = False) -> list[str]:
    module = ["fastmta.cli.sink", "--json"] if in_python else ["bench.sink"]
    return [sys.executable, "-m", *module, "--listen", listen]


def send(port: int, options: Options) -> Result:
    """Run bench.load; RuntimeError with what it says where it fails."""
    return _run_load(_load(port, options))


def _run_load(command: list[str]) -> Result:
    load = subprocess.run(command, capture_output=True, check=False)
    if load.returncode:
        lines = load.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"the load failed: {lines[-1] if lines else load.returncode}")
    return msgspec.json.decode(load.stdout, type=Result)


def _load(port: int, options: Options) -> list[str]:
    command = [sys.executable, "-m", "bench.load", f"127.0.0.1:{port}"]
    for name in ("messages", "size", "clients", "domains", "rate"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--python"] * options.in_python
    return [*command, *(["--tls", "starttls"] if options.features.tls == "in" else [])]


def arrived(
    sink: "subprocess.Popen[bytes]", log: Path, acknowledged: set[int], stall: float
) -> None:
    """Wait until the sink has all of them, or nothing came for so many seconds."""
    messages, deadline = -1, 0.0
    while True:
        counts = ask(sink, log)
        if acknowledged <= parse_ranges(counts.numbers):
            return
        if counts.messages != messages:
            messages, deadline = counts.messages, time.monotonic() + stall
        elif time.monotonic() > deadline:
            return
        time.sleep(0.1)


def ask(sink: "subprocess.Popen[bytes]", log: Path) -> Counts:
    """What the sink has counted so far."""
    known = len(_answers(log))
    sink.send_signal(signal.SIGUSR1)
    while len(answers := _answers(log)) == known:
        if sink.poll() is not None:
            raise RuntimeError("the sink has ended")
        time.sleep(0.01)
    return msgspec.json.decode(answers[-1], type=Counts)


def _answers(log: Path) -> list[bytes]:
    return [line for line in log.read_bytes().splitlines(True) if line[:1] + line[-1:] == b"{\n"]


def judge(run: Run, sent: Result, counts: Counts) -> Run:
    """Compare what was acknowledged with what arrived."""
    acknowledged = parse_ranges(sent.acknowledged)
    run.lost = len(acknowledged - parse_ranges(counts.numbers))
    run.duplicated, run.corrupt = counts.duplicates, counts.corrupt
    run.deliver_p50, run.deliver_p99 = counts.delay_p50, counts.delay_p99
    run.deliver_p999 = counts.delay_p999
    return note_accepted(run, sent)


def note_accepted(run: Run, sent: Result) -> Run:
    """What the load knows."""
    # Those never sent, too.
    run.refused = max(sent.refused, run.messages - len(parse_ranges(sent.acknowledged)))
    run.accept_p50, run.accept_p99 = sent.accept_p50, sent.accept_p99
    run.accept_p999 = sent.accept_p999
    return run


def run_of(load: str, options: Options, seconds: float, spent: processes.Usage) -> Run:
    return Run(
        load=load,
        messages=options.messages,
        seconds=seconds,
        user=spent.user / options.messages * 1e6,
        system=spent.system / options.messages * 1e6,
        peak_memory=spent.peak_memory,
    )
