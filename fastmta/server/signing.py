"""DKIM: messages are signed after they came in and before they are queued, so before their 250.

What takes long, an RSA signature, is made by threads, on all cores. A session does nothing else
while its message is signed, so never more wait here than there are sessions.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter

from fastmta import metrics
from fastmta._core.dkim import IncomingBody
from fastmta.mail.arrival import Arrival
from fastmta.mail.dkim import Signers, Unseen, Unsigned, prepare, see
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
_AT_ONCE = 8  # messages that a thread signs before it tells of them

Done = Callable[[Reply | None], None]


class Job:
    """What takes long of a signature."""

    __slots__ = ("_work", "done", "error")

    def __init__(self, work: Callable[[], None], done: Callable[["Job"], None]) -> None:
        self._work, self.done = work, done
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:  # told in the loop
            self.error = error


class Threads:
    """Do jobs; `done` of each is called in the loop, in the order in which they are done."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[Thread] = []

    def submit(self, job: Job) -> None:
        if not self._threads:
            self._start()
        self._waiting.put(job)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        for number in range(self._count):
            thread = Thread(target=self._run, args=(loop,), name=f"dkim-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while jobs := self._take():
            for job in jobs:
                job.run()
            loop.call_soon_threadsafe(_tell, jobs)

    def _take(self) -> list[Job]:
        """Some jobs as soon as there is one; none at the end."""
        first = self._waiting.get()
        if first is None:
            return []
        jobs = [first]
        # A share of what waits: the others' wake-ups are spared, and nobody sits idle meanwhile.
        for _ in range(min(self._waiting.qsize() // self._count, _AT_ONCE - 1)):
            try:
                job = self._waiting.get_nowait()
            except Empty:
                break
            if job is None:
                self._waiting.put(None)
                break
            jobs.append(job)
        return jobs

    def close(self) -> None:
        """Sign what waits, and end."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _tell(jobs: list[Job]) -> None:
    for job in jobs:
        job.done(job)


class Signing:
    """Stands before the backend that queues mail."""

    def __init__(self, intake: Backend, signers: Signers, threads: int) -> None:
        self._intake = intake
        self.signers = signers
        self._threads = Threads(threads)
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
        fields: list[bytes] = []

        def work() -> None:
            fields.extend([each.complete(each.key.sign(each.digest)) for each in unsigned])

        def signed(job: Job) -> None:
            SECONDS.observe(perf_counter() - began)
            if job.error:
                done(_failed(arrival, job.error))
            else:
                _finish(arrival, unsigned, fields)
                done(None)

        job = Job(work, signed)
        if all(each.key.algorithm == "ed25519-sha256" for each in unsigned):
            job.run()  # 30 us: a thread's turn costs more than it would spare
            signed(job)
        else:
            self._threads.submit(job)

    def _sign_unseen(self, arrival: Arrival, forms: set[bool], done: Done) -> None:
        """A policy has changed the author of a long message."""

        def seen(job: Job) -> None:
            if job.error:
                done(_failed(arrival, job.error))
            else:
                self.sign(arrival, done)

        self._threads.submit(Job(partial(see, arrival, forms), seen))

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
        await asyncio.get_running_loop().run_in_executor(None, self._threads.close)


def _failed(arrival: Arrival, error: Exception) -> Reply:
    log.error("%s cannot be signed", format_id(arrival.message), exc_info=error)
    return _NOT_SIGNED


def _finish(arrival: Arrival, unsigned: list[Unsigned], fields: list[bytes]) -> None:
    # The top is where fields of the way belong (RFC 6376 section 5.6).
    arrival.parts[:0] = fields
    arrival.size += sum(map(len, fields))
    for each in unsigned:
        SIGNED.count(each.key.algorithm)
