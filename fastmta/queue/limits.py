"""What a path may do, and who says so: its limits are shared by all workers."""

from typing import Protocol

from msgspec import Struct

from fastmta.config_reader import Rate
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_client import TlsPolicy


class Limits(Struct, frozen=True, kw_only=True):
    """What the configuration allows one path, its parts merged."""

    connections: int = 32  # open at a time, of all workers
    connection_rate: Rate | None = None  # how many are opened
    messages_per_connection: int = 1000
    message_rate: Rate | None = None  # transactions begun
    recipients: int = 100  # of one transaction
    ready: int = 1000  # jobs that wait in memory, of one worker
    tls: TlsPolicy = "opportunistic"


class Shape(Struct, frozen=True):
    """A path by its name, with its limits and, for people, which rule set each of them."""

    path: str  # "site", or "source>site"; a domain with limits of its own: "site#domain"
    limits: Limits
    origins: dict[str, str]  # name of a limit -> "default", "provider google", "domain x.test"


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
