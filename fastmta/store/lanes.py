"""What memory knows of the envelopes that wait: of each lane, when it is next due.

A lane is a priority and a hash of tenant and domain (`records.lane_of`). What is always true: a
row of a lane that is not out lies at the lane's `position` or after it, and is not due before the
lane's `due`; a lane without such rows is forgotten. So memory grows with the lanes, of which there
are 196,608 at the most, and not with the envelopes.

A lane whose path has no room is blocked: it waits for that path, and takes its turn again when
there is room. Meanwhile a blocked lane is looked through now and then, for it may hold what goes
another way. Where hashes collide that is another domain: a blocked lane knows for whom it is
blocked, by their marks (`records.mark_of`), and where it may hold others too, these are sought
past the rows of the blocked. And one domain may have several paths: that shows in what is read.
"""

from heapq import heapify, heappop, heappush
from itertools import islice
from math import inf

from fastmta.store import records
from fastmta.store.turns import Turns

TURN = 32  # envelopes that are read of a lane in one turn
MOST = 256  # in one transaction, of a lane that has several turns in it
LOOK = 100  # envelopes that are read of a blocked lane in one look
LOOKS = 8  # blocked lanes that are looked through at a time
SOUGHT = 32  # blocked lanes in which others are sought at a time
MARKS = 8  # whom a lane is known to be blocked for; more than these are tried in vain
LOOK_INTERVAL = 2.0  # seconds between these
RELEASE = 32  # lanes that may try a path that has room again, at a time
SOME = 1024  # lanes that are moved about at a time: the loop has others to serve
WIDTH = (32, 1024)  # turns in one transaction, at the least and at the most
PATHS = 20_000  # paths that lanes are known to wait for; for others they are looked through

END = b"\xff" * 9  # after each position of a row


class Lane:
    """One lane that has rows, or is blocked."""

    __slots__ = (
        "blocked",
        "due",
        "is_blocked",
        "is_mixed",
        "is_queued",
        "is_read",
        "key",
        "mark",
        "noted",
        "onward",
        "others",
        "passed",
        "paths",
        "position",
    )

    def __init__(self, key: bytes, mark: bytes, *, is_mixed: bool) -> None:
        self.key = key
        self.mark = mark  # of the row that comes first
        self.due = inf  # seconds since the epoch
        self.position = END  # of the first row that is not out: the rest of its key
        self.noted = inf  # the earliest that came while the lane is being read
        self.is_mixed = is_mixed  # there may be rows with other marks too
        self.onward = b""  # blocked: where the next look goes on
        self.blocked: tuple[bytes, ...] = ()  # the marks of those who have no room
        self.others = inf  # blocked: no row of anybody else is due before
        self.passed = b""  # and where it is sought next
        self.is_queued = False  # it waits for its turn
        self.is_read = False  # just now, in the reader's thread
        self.is_blocked = False
        self.paths: set[str] = set()  # among whose lanes it is

    @property
    def priority(self) -> int:
        return self.key[0]

    @property
    def tenant(self) -> bytes:
        return records.tenant_of(self.mark)


class Look:
    """What is to be read of one lane: at most `count` envelopes from `position` on."""

    __slots__ = ("count", "is_turn", "key", "lane", "past", "position", "start")

    def __init__(
        self,
        lane: Lane,
        position: bytes,
        count: int,
        *,
        is_turn: bool,
        past: tuple[bytes, ...] = (),
    ) -> None:
        self.lane, self.key = lane, lane.key
        self.position, self.count = position, count
        self.start = lane.position  # where the lane stays if nothing comes of it
        self.is_turn = is_turn  # else it is a look through a blocked lane
        self.past = past  # the marks of rows to pass over: others are sought


class Lanes:
    """Which lanes are due, which take turns now, and which wait for a path."""

    def __init__(self) -> None:
        self._lanes: dict[bytes, Lane] = {}
        self._heap: list[tuple[float, bytes]] = []  # of lanes that are not due; some are outdated
        self._turns: Turns[Lane] = Turns()
        self._paths: dict[str, Turns[Lane]] = {}  # the lanes that wait for each
        self._open: dict[str, None] = {}  # paths that have room again, until they say "full"
        self._blocked: dict[bytes, Lane] = {}  # the one that was looked through longest ago first
        self._mixed: dict[bytes, Lane] = {}  # of these, in which others wait or may wait
        self._next_look = 0.0
        self._width = WIDTH[0]

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def blocked(self) -> int:
        """How many wait for a path that has no room."""
        return len(self._blocked)

    # What comes and goes

    def found(self, key: bytes, mark: bytes, position: bytes, due: float) -> None:
        """At the start: this is the first row of a lane, whoever's the others are."""
        self._lanes[key] = Lane(key, mark, is_mixed=True)
        self.note(key, mark, position, due)

    def note(self, key: bytes, mark: bytes, position: bytes, due: float) -> bool:
        """There is a row that is not out, at this position and due then.

        True where the lane may have to be read sooner than was known.
        """
        lane = self._lane(key, mark)
        if lane.is_blocked and mark not in lane.blocked:
            self._seek(lane, due)
        lane.position = min(lane.position, position)
        lane.noted = min(lane.noted, due)
        if due >= lane.due:
            return False
        lane.due = due
        if not lane.is_queued:
            self._schedule(lane)
        return not lane.is_blocked

    def has_backlog(self, key: bytes, mark: bytes, now: float) -> bool:
        """Whether something of this lane should leave before what comes in now with this mark."""
        lane = self._lanes.get(key)
        if lane is None:
            return False
        return mark in lane.blocked if lane.is_blocked else lane.due <= now

    def _lane(self, key: bytes, mark: bytes) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, mark, is_mixed=False)
        lane.is_mixed = lane.is_mixed or lane.mark != mark
        return lane

    def _schedule(self, lane: Lane) -> None:
        heappush(self._heap, (lane.due, lane.key))
        if len(self._heap) > 2 * len(self._lanes) + 64:
            self._heap = [(each.due, key) for key, each in self._lanes.items() if each.due < inf]
            heapify(self._heap)

    # Turns

    def next_time(self, now: float, *, urgent: bool) -> float:
        """When there is next something to read; with `urgent`, of urgent lanes alone.

        Seconds since the epoch, 0 for now.
        """
        self._ripen(now)
        if self._turns.of(0) or any(self._paths[path].of(0) for path in self._open):
            return 0.0
        if (self._turns or self._open) and not urgent:
            return 0.0
        soonest = self._heap[0][0] if self._heap else inf
        return min(soonest, self._next_look) if self._blocked and not urgent else soonest

    def take(self, now: float, *, urgent: bool) -> list[Look]:
        """The lanes whose turn it is, to be read; each comes back through `read` or `give_back`."""
        self._ripen(now)
        last = 0 if urgent else 2
        looks = [] if urgent else self._look_through(now)
        self._release(now, last)
        return looks + self._take_turns(now, last)

    def _take_turns(self, now: float, last: int) -> list[Look]:
        """As many turns as there are to be in one transaction; a lane may have several of them.

        So a tenant with few lanes gets as much as one with many.
        """
        looks: dict[bytes, Look] = {}
        turns = 0
        while turns < self._width and (lane := self._turns.take(last)):
            lane.is_queued = False
            if look := looks.get(lane.key):
                look.count += TURN
            elif self._may_be_read(lane, now):
                look = looks[lane.key] = self._begin(Look(lane, lane.position, TURN, is_turn=True))
            else:
                continue
            turns += 1
            if look.count < MOST:
                self._queue(lane)
        return list(looks.values())

    def read(self, look: Look, position: bytes, soonest: float, mark: bytes, now: float) -> None:
        """The rows up to `position` are out now, and the next one is due at `soonest`."""
        lane = look.lane
        lane.is_read = False
        if look.is_turn:
            lane.position = min(lane.position, position)
            lane.due = min(lane.noted, soonest)
            self._came_to(lane, mark)
        else:
            lane.position = min(lane.position, look.start)
            if look.past:
                self._sought(lane, position, soonest, now)
            elif soonest <= now:
                lane.onward = position
            else:  # that was the last: its next turn begins with the first
                self._unblock(lane)
        self._place(lane, now)

    def _came_to(self, lane: Lane, mark: bytes) -> None:
        """Its first row is this one's now; b"": of those that were read, none is left."""
        if mark:
            lane.is_mixed = lane.is_mixed or mark != lane.mark
            lane.mark = mark

    def has_read(self, asked: int, reached: int) -> None:
        """So many lanes were read of those that were taken, until there were enough envelopes."""
        least, most = WIDTH
        self._width = min(most, self._width * 2) if reached == asked else max(least, reached)

    def give_back(self, looks: list[Look]) -> None:
        """Nothing was read of these; their turn is still to come."""
        for look in reversed(looks):
            lane = look.lane
            lane.is_read = False
            lane.position = min(lane.position, look.start)
            if lane.is_blocked and look.past:
                self._seek(lane, 0.0)
            if not lane.is_blocked and not lane.is_queued:
                lane.is_queued = True
                self._turns.put_first(lane.priority, lane.tenant, lane)

    def _begin(self, look: Look) -> Look:
        lane = look.lane
        lane.is_read, lane.position, lane.noted = True, END, inf
        return look

    def _may_be_read(self, lane: Lane, now: float) -> bool:
        """It may have changed since it was queued; then it is where it belongs, or goes there."""
        if lane.is_read or lane.is_blocked or self._lanes.get(lane.key) is not lane:
            return False
        if lane.due > now:  # the clock went back
            self._place(lane, now)
            return False
        return True

    def _ripen(self, now: float) -> None:
        """Queue what has fallen due."""
        for _ in range(SOME):
            if not self._heap or self._heap[0][0] > now:
                break
            lane = self._lanes.get(heappop(self._heap)[1])
            if lane is not None and lane.due <= now:
                self._place(lane, now)

    def _place(self, lane: Lane, now: float) -> None:
        """To where it waits for what comes next."""
        if lane.is_read or lane.is_blocked or lane.is_queued:
            return
        if lane.due == inf:
            if self._lanes.get(lane.key) is lane:
                del self._lanes[lane.key]
        elif lane.due <= now:
            self._queue(lane)
        else:
            self._schedule(lane)

    def _queue(self, lane: Lane) -> None:
        lane.is_queued = True
        self._turns.put(lane.priority, lane.tenant, lane)

    # Paths without room

    def block(self, key: bytes, mark: bytes, path: str) -> None:
        """This lane waits for a path that has no room for who has this mark."""
        lane = self._lane(key, mark)
        self._open.pop(path, None)
        if not lane.is_blocked:
            lane.is_blocked, lane.onward = True, b""
            self._blocked[key] = lane
            if lane.is_mixed:
                self._seek(lane, 0.0)
        if mark not in lane.blocked and len(lane.blocked) < MARKS:
            lane.blocked += (mark,)
        if path not in lane.paths and (path in self._paths or len(self._paths) < PATHS):
            lane.paths.add(path)
            self._paths.setdefault(path, Turns()).put(lane.priority, lane.tenant, lane)

    def room(self, path: str) -> bool:
        """The path has room again, or is gone; False where no lane waits for it."""
        if path not in self._paths:
            return False
        self._open[path] = None
        return True

    def reconsider(self) -> None:
        """Whatever lanes wait for, it may be another path by now."""
        self._open.update(dict.fromkeys(self._paths))

    def _unblock(self, lane: Lane) -> None:
        lane.is_blocked, lane.blocked = False, ()
        lane.others, lane.passed = inf, b""
        self._blocked.pop(lane.key, None)
        self._mixed.pop(lane.key, None)

    def _release(self, now: float, last: int) -> None:
        """Some lanes at a time, or all would be read for the few that the path can take."""
        for path in list(islice(self._open, SOME // RELEASE)):
            waiting = self._paths[path]
            for _ in range(RELEASE):
                if (lane := waiting.take(last)) is None:
                    break
                lane.paths.discard(path)
                if self._lanes.get(lane.key) is lane:
                    self._unblock(lane)
                    self._place(lane, now)
            del self._open[path]
            if waiting:
                self._open[path] = None  # after the others
            else:
                del self._paths[path]

    def _look_through(self, now: float) -> list[Look]:
        if self._blocked and now < self._next_look <= now + LOOK_INTERVAL:
            return []
        self._next_look = now + LOOK_INTERVAL
        looks = self._look_for_others(now)
        for key in list(islice(self._blocked, LOOKS)):
            lane = self._blocked[key] = self._blocked.pop(key)
            if lane.is_read:
                continue
            if lane.due <= now:
                position = lane.onward or lane.position
                looks.append(self._begin(Look(lane, position, LOOK, is_turn=False)))
            elif lane.due == inf:  # nothing waits in it any more
                self._unblock(lane)
                self._place(lane, now)
        return looks

    # Who is not blocked, in lanes that are

    def _seek(self, lane: Lane, due: float) -> None:
        lane.others = min(lane.others, due)
        self._mixed[lane.key] = lane

    def _look_for_others(self, now: float) -> list[Look]:
        looks: list[Look] = []
        for key in list(islice(self._mixed, SOME)):
            if len(looks) == SOUGHT:
                break
            lane = self._mixed[key] = self._mixed.pop(key)
            if lane.others <= now and not lane.is_read:
                position = lane.passed or lane.position
                look = Look(lane, position, LOOK, is_turn=False, past=lane.blocked)
                looks.append(self._begin(look))
                lane.others = inf
        return looks

    def _sought(self, lane: Lane, position: bytes, soonest: float, now: float) -> None:
        """The next row of somebody else, or that may be, is due at `soonest`."""
        if not lane.is_blocked:  # there was room meanwhile
            return
        lane.passed = position if soonest <= now else b""
        if soonest < inf:
            self._seek(lane, soonest)
        elif lane.others == inf:
            del self._mixed[lane.key]
            lane.is_mixed = len(lane.blocked) > 1
            lane.mark = lane.blocked[0]
