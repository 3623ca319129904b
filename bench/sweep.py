"""How rate, CPU and delays of each peer change with one thing: numbered messages, peers in turns.

How many messages a run sends follows from the rate that the peer had before, so that slow and fast
ones are measured for about as long. A run that fails is told, and the others go on.
"""

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from bench import relay, signing
from bench.peers import DKIM, SCALE, TLS, Peer
from bench.relay import Options, Run

SWEEPS: dict[str, tuple[int | str, ...]] = {
    "size": (1_024, 10_240, 102_400, 1_048_576),
    "clients": (1, 20, 100, 500, 2_000),
    "domains": (100, 10_000),
    "workers": (1, 2),
    "tls": TLS,
    "dkim": DKIM,
}
FIRST = 300.0  # messages a second that a peer is taken to do before it was measured
FEWEST, MOST = 100, 50_000  # messages of a run
OCTETS = 400 << 20  # of a run at the most


class Step(NamedTuple):
    """A run to be made."""

    name: str  # of the peer
    peer: Peer
    claim: str
    point: dict[str, int | str]

    def __str__(self) -> str:
        varied = " ".join(f"{name}={value}" for name, value in self.point.items())
        return f"{self.claim} {varied} {self.name}".replace("  ", " ")


class Pace:
    """How many messages make a run of so many seconds, learnt from the run before."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rates: dict[str, float] = {}

    def messages(self, name: str, options: Options) -> int:
        rate = self._rates.get(name, FIRST)
        if options.clients == 1:
            rate = min(rate, FIRST)
        return self.count(rate, options)

    def count(self, rate: float, options: Options) -> int:
        count = min(rate * self._seconds, MOST, OCTETS / options.size)
        return int(max(count, FEWEST, options.clients))

    def knows(self, name: str) -> bool:
        return name in self._rates

    def learn(self, name: str, run: Run) -> None:
        if run.rate > 0:
            self._rates[name] = run.rate

    def rate(self, name: str) -> float:
        return self._rates.get(name, FIRST)


def steps(what: str, under_test: Mapping[str, Peer]) -> Iterator[Step]:
    """Point by point, and at each the peers in turns; those that cannot are left out."""
    for value in SWEEPS[what]:
        for name, peer in under_test.items():
            if what == "workers" and name not in SCALE:
                continue
            if peer.can(at(Options(), {what: value}).features):
                yield Step(name, peer, what, {what: value})


def at(options: Options, point: Mapping[str, int | str]) -> Options:
    """The options with what a point says."""
    plain = {name: value for name, value in point.items() if name in Options.__struct_fields__}
    features = {name: value for name, value in point.items() if name in ("tls", "dkim")}
    changed = structs.replace(options.features, **features)
    return structs.replace(options, features=changed, beside_tls="tls" in point, **plain)


def measure(step: Step, options: Options, pace: Pace, base: Path) -> Run:
    if not pace.knows(step.name):  # a run that counts for nothing else
        first = structs.replace(options, messages=pace.messages(step.name, options))
        pace.learn(step.name, attempt(step, first, base))
    mine = at(options, step.point)
    mine = structs.replace(mine, messages=pace.messages(step.name, mine))
    run = attempt(step, mine, base)
    if (enough := pace.count(run.rate, mine)) > 2 * mine.messages:  # it ended too soon to tell
        run = attempt(step, structs.replace(mine, messages=enough), base)
    pace.learn(step.name, run)
    return run


def attempt(step: Step, options: Options, base: Path) -> Run:
    """One run; one that fails says why, and leaves its folder."""
    try:
        with relay.scratch(base) as folder:
            if options.features.dkim != "none":
                signing.of(folder).make(options.features.dkim)
            run = relay.numbered(step.peer, options, folder)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        run = failure(error)
    if run.refused:
        run.failed = f"{run.refused} of {run.messages} messages got no 250"
    return named(run, step)


def failure(error: Exception) -> Run:
    return Run(failed="; ".join([str(error), *getattr(error, "__notes__", [])]))


def named(run: Run, step: Step) -> Run:
    return structs.replace(run, peer=step.name, claim=step.claim, point=step.point)
