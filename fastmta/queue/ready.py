"""What is ready to leave now: jobs in memory, one bounded queue for each path."""

from fastmta.mail.envelope import Envelope


class Job:
    """An envelope on its way out, with its message where memory still has it."""

    __slots__ = ("envelope", "parts")

    def __init__(self, envelope: Envelope, parts: list[bytes] | None = None) -> None:
        self.envelope = envelope
        self.parts = parts  # None: read it from the spool
