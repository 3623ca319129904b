"""What a path may do, who says so, and what is said about it between workers and supervisor."""

from typing import Protocol

from msgspec import Struct

from fastmta.config_reader import Rate
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_client import TlsPolicy
from fastmta.protocol.smtp_steps import Timeouts


class SharedLimits(Struct, frozen=True, array_like=True):
    """Those limits of a path that hold for all workers together."""

    connections: int
    connection_rate: Rate | None
    message_rate: Rate | None


class Limits(Struct, frozen=True, kw_only=True):
    """What the configuration allows one path, its parts merged; times in seconds."""

    connections: int = 32  # open at a time, of all workers
    connection_rate: Rate | None = None  # how many are opened
    messages_per_connection: int = 1000
    message_rate: Rate | None = None  # transactions begun
    recipients: int = 100  # of one transaction
    ready: int = 5000  # jobs that wait in memory, of one worker
    tls: TlsPolicy = "opportunistic"
    connect_timeout: float = 30.0
    command_timeout: float = 300.0
    data_timeout: float = 180.0
    end_timeout: float = 600.0
    idle_timeout: float = 5.0  # how long a connection is kept without a job

    @property
    def shared(self) -> SharedLimits:
        return SharedLimits(self.connections, self.connection_rate, self.message_rate)

    @property
    def timeouts(self) -> Timeouts:
        command = self.command_timeout
        return Timeouts(
            connect=self.connect_timeout,
            greeting=command,
            hello=command,
            mail=command,
            rcpt=command,
            data=self.data_timeout,
            block=self.data_timeout,
            end=self.end_timeout,
        )


class Group(Struct, frozen=True, array_like=True):
    """Limits that the paths to many sites share beside their own."""

    name: str  # "provider big", or "source>provider big"
    limits: SharedLimits


class Shape(Struct, frozen=True):
    """A path by its name, with its limits and, for people, which rule set each of them."""

    # "site", or "source>site"; a domain with limits of its own: "site#domain"; mail whose sender
    # has a word in it: "site!requiretls"
    path: str
    limits: Limits
    origins: dict[str, str]  # name of a limit -> "default", "provider google", "route"
    provider: str = ""  # whose hosts these are: "google"
    site: str = ""
    source: str = ""
    group: Group | None = None

    @property
    def is_paced(self) -> bool:
        """Whether transactions need a permit, also where nobody has slowed the path."""
        group = self.group
        paced = group is not None and group.limits.message_rate is not None
        return paced or self.limits.message_rate is not None


class Holder(Protocol):
    """A path of one worker, as the permits see it. Called on the loop, never within a call."""

    def wake(self) -> None:
        """Something that was refused may be had now: ask again."""

    def recall(self) -> None:
        """Others wait for a connection: end one as soon as its transaction is over."""


class Permits(Protocol):
    """What the workers share of each path. All answers are at once; False: `wake` will come."""

    def connect(self, shape: Shape, holder: Holder) -> bool:
        """May one more connection be opened? True counts it, until `disconnect`."""

    def disconnect(self, shape: Shape, holder: Holder) -> None:
        """A connection that was permitted is gone, or was never opened."""

    def send(self, shape: Shape, holder: Holder) -> bool:
        """May one more transaction begin? True counts it."""

    def heard(self, shape: Shape, reply: Reply) -> None:
        """The last reply of a transaction, or why a connection failed: what adapting goes by."""

    def forget(self, shape: Shape, holder: Holder) -> None:
        """The path is gone from this worker: waits and permits of it are void."""


# What a worker says to the arbiter, and what it is answered. Times are of the clock that all
# processes of a machine share (time.monotonic), so that both sides mean the same by them.


class Used(Struct, frozen=True, array_like=True):
    """What became of a grant that had a time limit: how much of it was used, and when last."""

    count: int
    last: float


class SlowDown(Struct, frozen=True, array_like=True):
    """A host asked for less."""

    time: float  # seconds since the epoch
    reply: str  # "421 4.7.28 ..."
    rule: str  # which rule of the data file or the configuration took it for that
    rate: float  # messages a second that this worker delivered there lately


class News(Struct, kw_only=True, array_like=True):
    """What has changed at one path of a worker since it last spoke of it."""

    path: str
    visit: int  # grows each time that the path is new to the worker
    site: str = ""  # at first
    source: str = ""
    limits: SharedLimits | None = None  # at first, and when they or the group have changed
    group: Group | None = None  # goes with the limits
    wants_connection: bool = False
    opened: Used | None = None  # ends the grant of a connection
    ended: int = 0  # permits for connections that come back
    wants_messages: bool = False
    begun: Used | None = None  # ends the grant of transactions
    delivered: int = 0  # told only of a path that is slowed
    slow_down: SlowDown | None = None
    gone: bool = False  # the worker has nothing of this path any more


class Request(Struct, frozen=True, tag="permits-request"):
    news: list[News]


class Word(Struct, frozen=True, kw_only=True, array_like=True):
    """What the arbiter has to say of one path."""

    path: str
    visit: int  # of the worker to which it is said; an older one's word is void
    paced: bool  # transactions need a permit
    slowed: bool  # deliveries are to be told
    connection: bool = False  # one may be opened
    messages: int = 0  # transactions that may begin
    until: float = 0.0  # when either must have happened
    recall: int = 0  # connections to end


class Answer(Struct, frozen=True, tag="permits-answer"):
    words: list[Word]
