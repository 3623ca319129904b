"""DKIM: messages are signed after they came in and before they are queued, so before their 250.

What takes long, the signature, is made by threads, on all cores. A session does nothing else while
its message is signed, so never more wait here than there are sessions.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Thread
from time import perf_counter
from typing import TypeVar

from fastmta import metrics
from fastmta._core.dkim import IncomingBody
from fastmta._core.signatures import PrivateKey, SignatureQueue
from fastmta.mail.arrival import Arrival
from fastmta.mail.dkim import DkimKey, Sign, Signers, Unseen, Unsigned, prepare, see
from fastmta.mail.envelope import format_id
from fastmta.mail.reply import Reply
from fastmta.server.backend import Backend

log = logging.getLogger(__name__)

SIGNED = metrics.counters(
    "fastmta_dkim_signatures_total",
    "DKIM signatures made",
    "algorithm",
    ("rsa-sha256", "ed25519-sha256"),
)
UNSIGNED = metrics.counter(
    "fastmta_dkim_unsigned_total", "Messages with a header section that cannot be signed"
)
SECONDS = metrics.histogram(
    "fastmta_dkim_seconds", "From the end of a message until it is signed", metrics.SECONDS
)

_NOT_SIGNED = Reply(451, "4.3.0", "The message could not be signed, try again later")

T = TypeVar("T")
Done = Callable[[Reply | None], None]
Signed = Callable[[list[bytes] | Exception], None]


class Pool:
    """Do what takes long and needs Python; `done` hears in the loop what came of it."""

    def __init__(self, threads: int) -> None:
        self._count = threads
        self._threads: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="dkim")
        loop = asyncio.get_running_loop()
        self._threads.submit(lambda: loop.call_soon_threadsafe(done, _outcome(work)))

    async def close(self) -> None:
        """Do what waits, tell of it, and end."""
        if self._threads is not None:
            threads, self._threads = self._threads, None
            await asyncio.get_running_loop().run_in_executor(None, threads.shutdown)


def _outcome(work: Callable[[], T]) -> T | Exception:
    try:
        return work()
    except Exception as error:  # told in the loop
        return error


class Signatures:
    """Sign with keys of `_core.signatures`, in threads that never wait for the GIL."""

    def __init__(self, threads: int) -> None:
        self._count = threads
        self._queue: SignatureQueue | None = None
        self._threads: list[Thread] = []

    def submit(self, wanted: list[tuple[PrivateKey, bytes]], done: Signed) -> None:
        queue = self._queue or self._start()
        if queue.submit(wanted, done):
            # At the end of this turn of the loop: what else it brings shares the wake-up.
            asyncio.get_running_loop().call_soon(queue.flush)

    def _start(self) -> SignatureQueue:
        queue = SignatureQueue(self._count)
        threads = [
            Thread(target=queue.run, name=f"dkim-{number}", daemon=True)
            for number in range(self._count)
        ]
        for thread in threads:
            thread.start()
        asyncio.get_running_loop().add_reader(queue.descriptor, _tell, queue)
        self._queue, self._threads = queue, threads
        return queue

    async def close(self) -> None:
        """Sign what waits, tell of it, and end."""
        if self._queue is None:
            return
        queue, self._queue = self._queue, None
        queue.close()
        loop = asyncio.get_running_loop()
        threads, self._threads = self._threads, []
        for thread in threads:
            await loop.run_in_executor(None, thread.join)
        loop.remove_reader(queue.descriptor)
        _tell(queue)


def _tell(queue: SignatureQueue) -> None:
    for done, signatures in queue.collect():
        try:
            done(signatures)
        except Exception:  # the others still have to hear
            log.exception("nobody could be told of a signature")


class Signing:
    """Stands before the backend that queues mail."""

    def __init__(self, intake: Backend, signers: Signers, threads: int) -> None:
        self._intake = intake
        self.signers = signers
        self._signatures, self._pool = Signatures(threads), Pool(threads)
        self.new_id = intake.new_id
        self.refusal = intake.refusal

    @property
    def watch(self) -> Callable[[], IncomingBody] | None:
        """Gives what is to see a message as it comes in; None where nobody signs."""
        return self.signers.incoming if self.signers else None

    def accept(self, arrival: Arrival, done: Done) -> None:
        """Queue it; before that it is signed, if its client may relay and its author has a key."""
        if arrival.body is None:
            self._intake.accept(arrival, done)
        else:
            self.sign(arrival, lambda refusal: self._pass_on(arrival, refusal, done))

    def _pass_on(self, arrival: Arrival, refusal: Reply | None, done: Done) -> None:
        if refusal is not None:
            done(refusal)
            return
        try:
            self._intake.accept(arrival, done)
        except Exception:
            log.exception("the spool failed to take %s", format_id(arrival.message))
            done(_NOT_SIGNED)

    def sign(self, arrival: Arrival, done: Done) -> None:
        """Put the signatures in front of it, if its author's domain has a key."""
        began = perf_counter()
        try:
            unsigned = prepare(self.signers, arrival)
        except Unseen as error:
            self._sign_unseen(arrival, error.forms, done)
            return
        if unsigned is None:
            UNSIGNED.value += 1
            log.info("%s is not signed: its header section is broken", format_id(arrival.message))
        if not unsigned:
            done(None)
            return

        def signed(signatures: list[bytes] | Exception) -> None:
            SECONDS.observe(perf_counter() - began)
            if isinstance(signatures, Exception):
                done(_failed(arrival, signatures))
            else:
                _finish(arrival, unsigned, signatures)
                done(None)

        self._sign_all(unsigned, signed)

    def _sign_all(self, unsigned: list[Unsigned], signed: Signed) -> None:
        wanted = [(quick, each.digest) for each in unsigned if (quick := _quick(each.key))]
        if len(wanted) == len(unsigned):
            self._signatures.submit(wanted, signed)
        else:
            self._pool.submit(lambda: [each.key.sign(each.digest) for each in unsigned], signed)

    def _sign_unseen(self, arrival: Arrival, forms: set[bool], done: Done) -> None:
        """A policy has changed the author of a long message."""

        def seen(error: Exception | None) -> None:
            if error:
                done(_failed(arrival, error))
            else:
                self.sign(arrival, done)

        self._pool.submit(partial(see, arrival, forms), seen)

    async def sign_report(self, arrival: Arrival) -> None:
        """Sign what we say ourselves; where that fails it goes without."""
        signed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(_: Reply | None) -> None:
            if not signed.done():  # or nobody waits any longer
                signed.set_result(None)

        self.sign(arrival, done)
        await signed

    async def finish(self) -> None:
        """Sign what waits; all of it was passed on when this returns."""
        await self._pool.close()
        await self._signatures.close()


def _failed(arrival: Arrival, error: Exception) -> Reply:
    log.error("%s cannot be signed", format_id(arrival.message), exc_info=error)
    return _NOT_SIGNED


def _quick(key: DkimKey) -> PrivateKey | None:
    return key.sign.quick if isinstance(key.sign, Sign) else None


def _finish(arrival: Arrival, unsigned: list[Unsigned], signatures: list[bytes]) -> None:
    fields = [each.complete(made) for each, made in zip(unsigned, signatures, strict=True)]
    # The top is where fields of the way belong (RFC 6376 section 5.6).
    arrival.parts[:0] = fields
    arrival.size += sum(map(len, fields))
    for each in unsigned:
        SIGNED.count(each.key.algorithm)
