"""What an operator's commands ask of the supervisor and of workers, as it goes over the wire."""

from msgspec import Struct

from fastmta.queue.orders import Order
from fastmta.queue.shared_path import PathReport


class Request(Struct, frozen=True, tag=str.lower):
    pass


class Give(Request, frozen=True):
    """To the supervisor: number this order, let it stand if it is a hold, have it carried out.

    Answered with Given, and by each worker with its Result.
    """

    order: Order


class Given(Struct, frozen=True, tag="given"):
    """The order as it is carried out."""

    order: Order


class Result(Struct, frozen=True, tag="result"):
    """What a command did in one worker."""

    worker: int
    envelopes: int
    recipients: int
    kept: int = 0  # left alone, because they are held
    under_way: int = 0  # in a transaction that did not end in time: they may be delivered


class Carry(Request, frozen=True):
    """To a worker: these holds stand, and this order is to be carried out."""

    order: Order
    holds: list[Order]


class Stand(Request, frozen=True):
    """To a worker: these holds stand, and no others. No answer."""

    holds: list[Order]


class Holds(Request, frozen=True):
    """Which holds stand. The supervisor answers with a list of orders, each worker with Kept."""


class Kept(Struct, frozen=True, tag="kept"):
    """How much each hold keeps in one worker, by its number."""

    worker: int
    envelopes: dict[int, int]
    is_all: bool  # False: there was no time to count more


class Allowance(Request, frozen=True):
    """What paths may do now: those of these names and sites, or else the slowed and the busiest.

    The supervisor alone answers, with Allowances.
    """

    paths: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()


class Allowances(Struct, frozen=True, tag="allowances"):
    paths: list[PathReport]
    groups: list[PathReport]  # all that there are; the configuration bounds them


class Why(Request, frozen=True):
    """What the mail for a domain waits for. Each worker answers with Waiting."""

    domain: str


class Top(Request, frozen=True):
    """What the paths are doing. Each worker answers with Paths."""


class Show(Request, frozen=True):
    """Where the envelopes of a message are now. Each worker answers with Places."""

    message: int
    sites: tuple[str, ...] = ()  # whose paths are to be told of too


ToWorker = Carry | Stand | Holds | Why | Top | Show


class HostPause(Struct, frozen=True):
    """A host that nobody connects to for now."""

    host: str
    until: float  # seconds since the epoch
    reply: str


class PathNow(Struct, frozen=True):
    """One path of one worker, or of all together."""

    name: str
    site: str
    source: str = ""
    waiting: int = 0  # jobs in its ready queue
    busy: int = 0  # connections
    idle: int = 0
    opening: int = 0
    capacity: int = 0  # jobs that may wait
    delivered: float = 0.0  # transactions a second, over about ten seconds
    deferred: float = 0.0
    last: str = ""  # the last reply
    last_time: float = 0.0  # seconds since the epoch
    waits_for: str = "ready"  # "connection limit", "message rate", "host paused", ...
    until: float = 0.0  # seconds since the epoch; 0 where that is not known
    limits: dict[str, str] = {}  # name -> as the configuration sets it
    origins: dict[str, str] = {}  # name -> which rule set it
    shared: PathReport | None = None  # of all workers: what the supervisor adds
    group: PathReport | None = None  # whose limits it shares with other paths


class Paths(Struct, frozen=True, tag="paths"):
    """What one worker is doing."""

    worker: int
    envelopes: int  # in the queue
    held: int
    out: int  # in ready queues and in transactions
    paths: list[PathNow]


class Waiting(Struct, frozen=True, tag="waiting"):
    """What a domain's mail waits for in one worker."""

    worker: int
    site: str = ""
    problem: str = ""  # why there is no site
    route: str = ""  # the [[route]] that names it: "route *.test"; "" is DNS
    rerouted: dict[str, int] = {}  # next hop that an operator chose -> envelopes
    paths: list[PathNow] = []
    pauses: list[HostPause] = []
    is_all: bool = True  # False: there was no time to count more
    out: int = 0  # envelopes in ready queues and in transactions
    due: int = 0  # that wait for room
    later: int = 0  # that wait for their next attempt
    next: float = 0.0  # when the first of those is due, seconds since the epoch
    retry: str = ""  # the [[retry.domain]] that the next two come from; "" is [retry]
    first: float = 0.0  # seconds from the first failure to the next attempt, doubling
    longest: float = 0.0  # up to so many
    attempts: int = 0  # of the envelope that was tried most often
    oldest: float = 0.0  # when the first of all came
    gives_up: float = 0.0  # when that one goes back
    held: dict[int, int] = {}  # hold -> envelopes
    replies: dict[str, int] = {}  # last reply -> envelopes
    last: str = ""  # the latest reply of all
    last_time: float = 0.0


class Place(Struct, frozen=True):
    """Where one envelope is."""

    index: int  # of the message's envelopes
    state: str  # "waits", "held", "ready", "sending", "moving"
    path: str = ""


class Places(Struct, frozen=True, tag="places"):
    worker: int
    places: list[Place] = []
    paths: list[PathNow] = []
