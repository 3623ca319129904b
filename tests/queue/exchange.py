"""Workers, their permits and the arbiter on a clock that the test owns."""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

import msgspec

from fastmta.queue.adapt import SlowDownRules
from fastmta.queue.arbiter import Arbiter
from fastmta.queue.limits import Answer, Limits, Request, Shape
from fastmta.queue.permits import ArbiterLoop, SharedPermits

Callback = Callable[[], None]


class Handle:
    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class World:
    """Timers in virtual time: `run` goes from event to event."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._soon: deque[Callback] = deque()
        self._later: list[tuple[float, int, Handle]] = []
        self._numbers = count()

    def clock(self) -> float:
        return self.now

    def call_soon(self, callback: Callback, /) -> None:
        self._soon.append(callback)

    def call_later(self, delay: float, callback: Callback, /) -> Handle:
        handle = Handle(callback)
        heapq.heappush(self._later, (self.now + delay, next(self._numbers), handle))
        return handle

    def settle(self) -> None:
        """What happens at this moment."""
        while self._soon:
            self._soon.popleft()()

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        self.settle()
        while self._later and self._later[0][0] <= until:
            time, _, handle = heapq.heappop(self._later)
            self.now = max(self.now, time)
            if handle.callback is not None:
                handle.callback()
            self.settle()
        self.now = until


class Server:
    """The supervisor with its arbiter, and its workers; messages go through the real encoding."""

    def __init__(self, workers: int, rules: SlowDownRules | None = None) -> None:
        self.world = World()
        self.rules = rules
        self.messages = 0
        self.loop = ArbiterLoop(Arbiter(self.world.clock), self._deliver, self.world)
        self.workers: dict[int, SharedPermits] = {}
        for worker in range(workers):
            self.start(worker)

    def start(self, worker: int) -> SharedPermits:
        permits: SharedPermits

        def send(request: Request) -> None:
            self.messages += 1
            if self.workers.get(worker) is permits:  # the dead say nothing
                self.loop.handle(worker, copied(request))

        permits = SharedPermits(send, self.world, self.world.clock, self.rules)
        self.workers[worker] = permits
        return permits

    def kill(self, worker: int) -> None:
        del self.workers[worker]
        self.loop.gone(worker)

    def _deliver(self, worker: int, answer: Answer) -> None:
        copy = copied(answer)
        permits = self.workers[worker]

        def receive() -> None:
            if self.workers.get(worker) is permits:
                permits.receive(copy)

        self.world.call_soon(receive)


Message = Request | Answer
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def copied(message: Message) -> Message:
    return _decoder.decode(msgspec.msgpack.encode(message))


class Sender:
    """A path of one worker that does all that it may: opens connections, and begins transactions.

    What it did stands in the lists that it is given.
    """

    def __init__(self, server: Server, worker: int, shape: Shape) -> None:
        self.permits = server.workers[worker]
        self.shape = shape
        self.world = server.world
        self.open = 0
        self.wants_connections = 0  # open at a time
        self.wants_messages = 0
        self.opened: list[float] = []
        self.begun: list[float] = []
        self.recalls = 0

    def wake(self) -> None:
        self.go()

    def recall(self) -> None:
        self.recalls += 1
        if self.open:
            self.world.call_soon(self.close)

    def go(self) -> None:
        while self.open < self.wants_connections and self.permits.connect(self.shape, self):
            self.open += 1
            self.opened.append(self.world.now)
        while self.wants_messages and self.permits.send(self.shape, self):
            self.wants_messages -= 1
            self.begun.append(self.world.now)

    def close(self) -> None:
        if self.open:
            self.open -= 1
            self.permits.disconnect(self.shape, self)
            self.go()


def shape(path: str = "mx.test", provider: str = "", **limits: object) -> Shape:
    return Shape(path, Limits(**limits), {}, provider)  # type: ignore[arg-type]
