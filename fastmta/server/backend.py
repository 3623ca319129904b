"""Where sessions of every protocol put the messages that they take."""

from collections.abc import Callable
from typing import Protocol

from fastmta.mail.arrival import Arrival
from fastmta.mail.reply import Reply


class Backend(Protocol):
    """Where messages go: the spool."""

    def new_id(self) -> int:
        """An id for a message, 64 bits."""

    def accept(self, arrival: Arrival, done: Callable[[Reply | None], None]) -> None:
        """Make it safe; `done` is called in the loop, once, with None or with why not (4xx)."""

    def refusal(self) -> Reply | None:
        """Why no mail can be taken now, or None."""
