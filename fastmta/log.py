"""What fastmta says: diagnostics on standard error, and one JSON line for each disposition."""

import errno
import logging
import os
import stat
import sys
import time
from collections.abc import Callable
from logging import Formatter, LogRecord, StreamHandler
from typing import Any, Literal

from msgspec import Struct, json, structs

from fastmta import metrics

_FLUSH_AT = 64 * 1024
# The most that waits while the disk is full or a reader of standard output stands still.
_KEEP_AT_MOST = 4 << 20
_PIPE_BUF = 4096  # pipe(7): writers of a pipe do not mix lines up to here

LOST = metrics.counter(
    "fastmta_log_lines_lost_total", "Disposition log lines that could not be written"
)
logger = logging.getLogger(__name__)


def set_up(level: Literal["debug", "info", "warning", "error"], name: str) -> None:
    """Send this process's diagnostics to standard error; `name` is "worker-1" or the like."""
    handler = StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(name))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _OneLine(Formatter):
    """Time, level, process, module and text; what a peer sent cannot begin a line of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{{asctime}}.{{msecs:03.0f}}Z {{levelname}} {name} {{name}}: {{message}}",
            datefmt="%Y-%m-%dT%H:%M:%S",
            style="{",
        )
        self.converter = time.gmtime

    def format(self, record: LogRecord) -> str:
        text = super().format(record).replace("\n", " | ")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Event(Struct, tag_field="event", kw_only=True):
    """One line of the disposition log. Times are seconds since the epoch."""

    time: float
    id: str  # of the message in Received, of the envelope elsewhere
    sender: str  # "" is the null reverse-path


class Received(Event, tag="received", kw_only=True):
    """A message was acknowledged."""

    recipients: list[str]
    size: int
    client: str
    account: str = ""  # who had logged in
    protocol: str  # RFC 3848
    tls: str = ""  # version and cipher


class Attempt(Event, kw_only=True):
    """What became of one recipient, and by whose word."""

    recipient: str
    domain: str
    site: str
    source: str = ""
    host: str
    tls: str = ""  # version and cipher, then "verified" where the host proved its name
    code: int
    enhanced: str
    reply: str
    attempts: int
    received: float
    category: str = ""  # of a reply that is no success, as replies are classified
    dsn: str = ""  # id of the message that tells of it; "" where none is sent


class Delivered(Attempt, tag="delivered", kw_only=True):
    pass


class Deferred(Attempt, tag="deferred", kw_only=True):
    due: float


class Bounced(Attempt, tag="bounced", kw_only=True):
    pass


class Suppressed(Event, tag="suppressed", kw_only=True):
    """A recipient of an acknowledged message that was left out."""

    recipient: str
    reason: str  # and the rest as the suppression list has it
    category: str
    added: float
    source: str


class BounceReceived(Event, tag="bounce-received", kw_only=True):
    """What a bounce that came in says of one address; nobody has proven it."""

    recipient: str  # the address that it came to
    address: str
    permanent: bool
    category: str
    code: int
    enhanced: str
    reply: str
    reporter: str
    original: str  # Message-ID of the message that bounced; "" where it is not told


class ComplaintReceived(Event, tag="complaint", kw_only=True):
    """A feedback report (RFC 5965) about one address; "" where it is kept back."""

    recipient: str
    address: str
    kind: str  # Feedback-Type
    reporter: str
    client: str  # Source-IP
    original: str


class Forwarded(Event, tag="forwarded", kw_only=True):
    """Mail of an account goes on to addresses elsewhere, as a message of its own."""

    recipients: list[str]
    account: str
    original: str  # id of the message that came in


class ReportUnknown(Event, tag="report-unknown", kw_only=True):
    """A message to an address of [bounces] in which nothing was recognised."""

    recipient: str
    size: int


class Ordered(Event, kw_only=True):
    """An operator moved an envelope; which command, whose, and why."""

    domain: str
    order: int
    by: str
    reason: str


class Held(Ordered, tag="held", kw_only=True):
    """It waits until it is released."""

    recipients: list[str]


class Released(Ordered, tag="released", kw_only=True):
    """It is due now."""

    recipients: list[str]


class Retried(Ordered, tag="retried", kw_only=True):
    """It is due now."""

    recipients: list[str]


class Rerouted(Ordered, tag="rerouted", kw_only=True):
    """It is due now, elsewhere."""

    recipients: list[str]
    next_hop: str  # "" is by MX or [[route]] again


class Returned(Ordered, tag="returned", kw_only=True):
    """It goes back; a line for each recipient follows."""

    recipients: list[str]


class Deleted(Ordered, tag="deleted", kw_only=True):
    """One recipient is gone, and nobody is told."""

    recipient: str


class DispositionLog:
    """Lines are gathered in memory and appended whole; workers share the file.

    The owner calls `flush` now and then. A file that cannot be written never stops mail: lines
    wait up to a bound, then they are counted as lost and that is said once.
    """

    def __init__(self, path: str) -> None:
        """`path` is a file, or "-" for standard output; OSError where it cannot be opened."""
        self._path = path
        self._use(_open(path))
        self._encoder = json.Encoder()
        self._buffer = bytearray()
        self._failing = False
        self._lost = 0  # since writing began to fail
        self.listener: Callable[[Event], None] | None = None  # hears of each line

    def write(self, event: Event) -> None:
        if self.listener is not None:
            self.listener(event)
        buffer = self._buffer
        if len(buffer) >= _KEEP_AT_MOST:
            self._lost += 1
            LOST.value += 1
            return
        before = len(buffer)
        try:
            self._encoder.encode_into(event, buffer, -1)
        except UnicodeEncodeError:  # octets of a reply that are not UTF-8
            del buffer[before:]
            self._encoder.encode_into(_printable(event), buffer, -1)
        buffer += b"\n"
        if len(buffer) > _FLUSH_AT and not self._failing:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting, in whole lines."""
        try:
            while self._buffer:
                self._write_lines()
        except BlockingIOError:
            pass  # a slow reader of standard output
        except OSError as error:
            self._fail(error)
        else:
            self._recover()

    def reopen(self, path: str) -> str:
        """Go on in another file, or in a new one after the old was renamed.

        Keeps the old one if that fails, and says why.
        """
        self.flush()
        try:
            fd = _open(path)
        except OSError as error:
            return f"{path} cannot be opened: {error.strerror}"
        os.close(self._fd)
        self._path = path
        self._use(fd)
        return ""

    def _use(self, fd: int) -> None:
        self._fd = fd
        self._pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)

    def close(self) -> None:
        self.flush()
        if waiting := self._buffer.count(b"\n"):
            LOST.value += waiting
            logger.error("%s: %d lines were lost at the end", self._path, waiting)
        os.close(self._fd)

    def _write_lines(self) -> None:
        buffer = self._buffer
        end = len(buffer)
        if self._pipe and end > _PIPE_BUF:
            end = buffer.rfind(b"\n", 0, _PIPE_BUF) + 1 or buffer.index(b"\n") + 1
        with memoryview(buffer) as view, view[:end] as lines:
            written = os.write(self._fd, lines)
        if not written:
            raise BlockingIOError
        if written == end or buffer[written - 1] == 10:
            del buffer[:written]
            return
        # Half a line is out. Another worker may write next, so the whole line comes again, on a
        # line of its own.
        begin = buffer.rfind(b"\n", 0, written) + 1
        buffer[:begin] = b"\n"

    def _fail(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            reason = errno.errorcode.get(error.errno or 0, "")
            logger.error("%s cannot be written: %s %s", self._path, error.strerror, reason)

    def _recover(self) -> None:
        if self._lost:
            logger.error("%s: %d lines were lost", self._path, self._lost)
        elif self._failing:
            logger.info("%s can be written again, no line was lost", self._path)
        self._failing, self._lost = False, 0


def _open(path: str) -> int:
    """A descriptor of our own that appends and never blocks."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if path != "-":
        return os.open(path, flags, 0o600)
    try:
        return os.open("/proc/self/fd/1", flags)
    except OSError:  # a socket cannot be opened again
        os.set_blocking(1, False)
        return os.dup(1)


def _printable(event: Event) -> Event:
    """A copy in which what is not UTF-8 is written as an escape."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace").decode()
        return value

    return type(event)(**{name: clean(value) for name, value in structs.asdict(event).items()})
