"""The truth about what workers share of each path; no I/O, the clock is given."""

import heapq
from collections.abc import Callable, Container
from itertools import islice
from math import inf

from fastmta import metrics
from fastmta.metrics import LONGEST, Rows
from fastmta.queue.limits import Answer, Group, Request, Word
from fastmta.queue.shared_group import Words
from fastmta.queue.shared_path import PathGroup, PathReport, SharedPath, report_of

CONNECTIONS = metrics.gauges(
    "fastmta_slowed_path_connections",
    "Connections that a slowed path may have now, and the rule that set this",
    ("path", "rule"),
)
RATE = metrics.gauges(
    "fastmta_slowed_path_messages_per_second",
    "Messages a second that a slowed path may begin now, and the rule that set this",
    ("path", "rule"),
)
SHOWN = 100  # slowed paths whose values are exported, those slowed last; and of busy paths
HELD = metrics.gauges(
    "fastmta_path_connections", "Connections that a path has, of the busiest", ("path",)
)
MOST = metrics.gauges(
    "fastmta_path_connections_limit", "Connections that a path may have now", ("path",)
)
MOST_RATE = metrics.gauges(
    "fastmta_path_rate_limit",
    "Messages a second that a path may begin now, where there is such a limit",
    ("path",),
)
LOOK_LIFE = 0.5  # seconds for which one look at all paths serves

PATHS = 50_000  # that are remembered; those that workers use are bounded by the workers
REPORTED = 500  # paths that people are told of at a time
SWEEP = 10.0  # seconds between looks for paths that are over

Answers = list[tuple[int, Answer]]  # (worker, what it is told)


class Arbiter:
    """Answers the workers' requests; one for all of them.

    Each method gives what is to be sent, in order. `tick` wants to be called at `next_time`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paths: dict[str, SharedPath] = {}
        self._groups: dict[str, PathGroup] = {}  # as many as the configuration makes
        self._due: dict[str, float] = {}  # when a path wants to be served
        self._times: list[tuple[float, str]] = []  # a heap of those, and of some that changed
        self._sweep = clock() + SWEEP
        self._looked = -inf
        self._busiest: list[PathReport] = []
        HELD.read = lambda: self._busy(lambda report: float(report.open))
        MOST.read = lambda: self._busy(lambda report: float(report.connections))
        MOST_RATE.read = lambda: self._busy(lambda report: report.rate)
        CONNECTIONS.read = lambda: self._slowed(lambda report: float(report.connections))
        RATE.read = lambda: self._slowed(lambda report: report.rate)

    def handle(self, worker: int, request: Request) -> Answers:
        """What follows from what a worker says."""
        now = self.now()
        touched: dict[str, SharedPath] = {}
        for news in request.news:
            path = touched[news.path] = self._path(news.path, now)
            path.hear(worker, news, self._group(news.group, now), now)
        return self._serve(list(touched.values()), now)

    def gone(self, worker: int) -> Answers:
        """The worker is dead: nothing of what it had is in use."""
        now = self.now()
        paths = [path for path in self._paths.values() if path.has(worker)]
        for path in paths:
            path.leave(worker, now)
        return self._serve(paths, now)

    def now(self) -> float:
        return self._clock()

    def next_time(self) -> float | None:
        """When `tick` has something to do, if nobody says anything; None: never."""
        while self._times and self._due.get(self._times[0][1]) != self._times[0][0]:
            heapq.heappop(self._times)
        if not (self._paths or self._groups):
            return None
        return min(self._sweep, self._times[0][0]) if self._times else self._sweep

    def tick(self) -> Answers:
        """What follows from the time."""
        now = self.now()
        paths = []
        while self._times and self._times[0][0] <= now:
            time, name = heapq.heappop(self._times)
            if self._due.get(name) == time:
                paths.append(self._paths[name])
                del self._due[name]
        if now >= self._sweep:
            self._forget(now)
        return self._serve(paths, now)

    def report(self) -> list[PathReport]:
        """How paths stand that are used, or slowed; of too many those, and the busiest."""
        paths = [
            path for path in self._paths.values() if path.budget.slowed or not path.is_unused()
        ]
        now = self.now()
        return [path.report(now) for path in heapq.nlargest(REPORTED, paths, SharedPath.weight)]

    def report_of(self, names: Container[str], sites: Container[str]) -> list[PathReport]:
        """How the paths of these names stand, and those to these sites; not more than REPORTED.

        Nobody may use them now, as long as something of them counts.
        """
        now = self.now()
        paths = self._paths.values()
        meant = (path for path in paths if path.name in names or path.site in sites)
        known = (path for path in meant if not path.is_over(now))
        return [path.report(now) for path in islice(known, REPORTED)]

    def _slowed(self, value: Callable[[PathReport], float | None]) -> Rows:
        now = self.now()
        reports = [path.report(now) for path in self._paths.values() if path.budget.slowed]
        reports += [each for each in self.groups() if each.slowed]
        told = [(each.slowed, each.path, value(each)) for each in reports]
        rows = [
            (by.time, (path[:LONGEST], by.rule), n) for by, path, n in told if by and n is not None
        ]
        return [(labels, number) for _, labels, number in sorted(rows, reverse=True)[:SHOWN]]

    def _busy(self, value: Callable[[PathReport], float | None]) -> Rows:
        now = self.now()
        if now - self._looked > LOOK_LIFE:
            held = [path for path in self._paths.values() if path.held]
            busiest = heapq.nlargest(SHOWN, held, lambda path: path.held)
            self._looked, self._busiest = now, [path.report(now) for path in busiest]
        rows = [((report.path[:LONGEST],), value(report)) for report in self._busiest]
        return [(labels, number) for labels, number in rows if number is not None]

    def groups(self) -> list[PathReport]:
        """How all groups stand."""
        now = self.now()
        return [report_of(each.budget, each.name, each.held, now) for each in self._groups.values()]

    def _path(self, name: str, now: float) -> SharedPath:
        path = self._paths.get(name)
        if path is None:
            if len(self._paths) >= PATHS:
                self._make_room()
            path = self._paths[name] = SharedPath(name, now)
        return path

    def _group(self, named: Group | None, now: float) -> PathGroup | None:
        if named is None:
            return None
        group = self._groups.get(named.name)
        if group is None:
            group = self._groups[named.name] = PathGroup(named.name, now)
        return group

    def _make_room(self) -> None:
        """The oldest that nobody uses; its history is lost."""
        unused = (path for path in self._paths.values() if path.is_unused())
        if path := next(unused, None):
            self._drop(path)

    def _forget(self, now: float) -> None:
        self._sweep = now + SWEEP
        for path in [path for path in self._paths.values() if path.is_over(now)]:
            self._drop(path)
        for group in [group for group in self._groups.values() if group.is_over(now)]:
            group.budget.end()
            del self._groups[group.name]

    def _drop(self, path: SharedPath) -> None:
        path.budget.end()
        del self._paths[path.name]
        self._due.pop(path.name, None)

    def _serve(self, paths: list[SharedPath], now: float) -> Answers:
        words: Words = []
        groups: dict[PathGroup, None] = {}
        for path in paths:
            if path.name in self._paths:
                words += self._serve_path(path, now)
                if path.group is not None:
                    groups[path.group] = None
        for group in groups:
            words += group.serve(now)
            for line in (group.connecting, group.sending):
                words += self._serve_line(line, now)
        of_worker: dict[int, list[Word]] = {}
        for worker, word in words:
            of_worker.setdefault(worker, []).append(word)
        return [(worker, Answer(said)) for worker, said in of_worker.items()]

    def _serve_path(self, path: SharedPath, now: float) -> Words:
        words = path.serve(now)
        self._set_time(path, now)
        return words

    def _serve_line(self, line: dict[SharedPath, None], now: float) -> Words:
        """Those who wait for what their group has, until there is nothing for the first."""
        words: Words = []
        while line:
            path = next(iter(line))
            words += self._serve_path(path, now)
            if next(iter(line), None) is path:
                break
        return words

    def _set_time(self, path: SharedPath, now: float) -> None:
        """To be early costs one look, so that only sooner times are noted."""
        time = path.next_time(now)
        if time < self._due.get(path.name, inf):
            self._due[path.name] = time
            heapq.heappush(self._times, (time, path.name))
