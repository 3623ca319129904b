"""What the commands of `fastmta queue` say: pure, so without a server."""

import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from fastmta.cli.queue.orders import sentences
from fastmta.cli.queue.paths import about_path, obstacle
from fastmta.cli.queue.paths import together as joined
from fastmta.cli.queue.suppressed import Suppressed, about_suppressed
from fastmta.cli.queue.top import Line, picture
from fastmta.cli.queue.why import explain, together
from fastmta.cli.words import pace, visible
from fastmta.queue.orders import Action, Order
from fastmta.queue.requests import Allowances, HostPause, PathNow, Paths, Result, Waiting
from fastmta.queue.selector import Selector
from fastmta.queue.shared_path import Cause, PathReport
from fastmta.store.suppression import Entry

NOW = 1_000_000.0
ACME = Selector(tenant=("acme",))
WAITING = Waiting(
    0,
    site="mx.a.test",
    first=300.0,
    longest=14_400.0,
    later=2,
    next=NOW + 90,
    attempts=3,
    oldest=NOW - 3600,
    gives_up=NOW + 7200,
    last="450 later",
    last_time=NOW - 30,
    replies={"450 later": 2},
)


def said(waiting: Waiting, *holds: Order) -> str:
    return "\n".join(explain("a.test", waiting, list(holds), NOW))


def test_what_a_tired_operator_reads() -> None:
    assert said(WAITING).splitlines() == [
        "2 envelopes are in the queue for a.test",
        "it goes to the site mx.a.test",
        "2 wait for the next attempt, the first in 1m 30s (1970-01-12 13:48:10 UTC)",
        "the last answer, 30s ago: 450 later",
        "tried up to 3 times; after the first failure the next attempt comes in 5m, "
        "then in twice that, up to 4h",
        "the oldest came 1h ago and goes back in 2h (1970-01-12 15:46:40 UTC)",
    ]


PATH = PathNow(name="mx.a.test", site="mx.a.test", waiting=4, busy=2, idle=1, delivered=1.5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"site": "", "problem": "451 4.4.3 look-up failed"}, "where it goes is not known now"),
        ({"site": "", "problem": "550 5.1.2 no domain"}, "it cannot be delivered and goes back"),
        ({"due": 1}, "1 is due and has to wait for room on the path"),
        ({"out": 3}, "3 are on the way: ready to leave or being sent"),
        ({"is_all": False}, "at least 2 envelopes are in the queue"),
        ({"later": 0, "is_all": False}, "as far as was counted, nothing in the queue is for"),
        ({"paths": [PATH]}, "path mx.a.test: 4 envelopes ready to leave, 2 of 3 connections busy"),
        ({"pauses": [HostPause("mx1", NOW + 45, "451 gone")]}, "mx1 is left alone for 45s more"),
        ({"replies": {"450 later": 2, "451 x": 1}}, "    1 envelope got: 451 x"),
        ({"held": {3: 2}}, "hold 3 keeps 2 of them"),
        ({"route": "route *.test"}, "it goes to the site mx.a.test by [[route]] *.test"),
        ({"rerouted": {"mx9:25": 1}}, "1 goes to mx9:25 instead: rerouted by an operator"),
        ({"retry": "*.test"}, "in 5m, then in twice that, up to 4h (by [[retry.domain]] *.test)"),
    ],
)
def test_each_reason_has_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in said(replace(WAITING, **changes))


REPORT = PathReport(
    path="mx.a.test",
    site="mx.a.test",
    source="",
    open=3,
    connections=4,
    configured_connections=32,
    rate=None,
    configured_rate=None,
    waiting_to_connect=1,
    waiting_to_send=0,
    next_connection=0.0,
    next_message=0.0,
    next_step=0.0,
    slowed=None,
)
BUSY = Cause(NOW - 90, "421 4.7.0 Too many connections", "4.7.0 /too many/")
LIMITS = {"connections": "4", "connection_rate": "30/m", "message_rate": "5000/h"}
ORIGINS = dict.fromkeys(LIMITS, "domain a.test")


def about(waits_for: str, until: float = 0.0, **report: Any) -> list[str]:
    """What is said of a path, its first line left out."""
    path = replace(
        PATH,
        waits_for=waits_for,
        until=until,
        limits=LIMITS,
        origins=ORIGINS,
        shared=replace(REPORT, **report),
    )
    return [line.strip() for line in about_path(path, NOW)][1:]


@pytest.mark.parametrize(
    ("waits_for", "facts", "sentence"),
    [
        (
            "connection limit",
            {"open": 4, "configured_connections": 4},
            "it has as many connections as it may have: 4 open of 4 (domain a.test)",
        ),
        (
            "connection limit",
            {"until": NOW + 60},
            "its hosts take no more connections; another is tried in 1m (1970-01-12 13:47:40 UTC)",
        ),
        (
            "connection rate",
            {"next_connection": 2.0},
            "connection rate 30/m (domain a.test): the next one may be opened "
            "in 2s (1970-01-12 13:46:42 UTC)",
        ),
        (
            "message rate",
            {"next_message": 60.0},
            "message rate 5000/h (domain a.test): the next one may begin "
            "in 1m (1970-01-12 13:47:40 UTC)",
        ),
        (
            "message rate",
            {"next_message": 0.3},
            "message rate 5000/h (domain a.test): the next one may begin within a second",
        ),
        (
            "host paused",
            {"until": NOW + 5},
            "its hosts did not answer and are left alone; one is tried "
            "in 5s (1970-01-12 13:46:45 UTC)",
        ),
        ("no slots", {}, "this worker has no connection left for it: other paths have them all"),
    ],
)
def test_each_limit_says_what_when_and_whose(
    waits_for: str, facts: dict[str, Any], sentence: str
) -> None:
    assert about(waits_for, **facts) == [sentence]


def test_mailboxes_have_words_of_their_own() -> None:
    local = PathNow(name="local", site="local", waiting=1, delivered=1.5, deferred=0.25)
    assert said(replace(WAITING, site="local", paths=[local])).splitlines()[1:3] == [
        "it goes into mailboxes here (the site local)",
        "1 envelope on the way into mailboxes here, 1.5/s delivered, 0.2/s deferred",
    ]


def test_a_path_that_was_slowed_says_by_what_and_when_more_comes() -> None:
    assert about("ready", slowed=BUSY, rate=2.5, configured_rate=5.0, next_step=43.0) == [
        "slowed down: for now 4 of 32 connections and 2.5/s of 5/s, 3 open",
        "asked for by 421 4.7.0 Too many connections (rule 4.7.0 /too many/), "
        "1m 30s ago (1970-01-12 13:45:10 UTC)",
        "a tenth comes back each minute in which it delivers, the next in 43s",
    ]
    lines = about("connection limit", open=4, slowed=BUSY)
    assert lines[0] == "it has as many connections as it may have: 4 open of 4"
    assert lines[1] == "slowed down: for now 4 of 32 connections, 4 open"
    assert lines[3].endswith("the next with the next delivery")


@pytest.mark.parametrize(
    ("waits_for", "facts", "sentence"),
    [
        ("connection limit", {"open": 4}, "it waits for a connection, {}: 4 open of 4"),
        (
            "connection limit",
            {"next_connection": 3.0},
            "connection rate, {}: the next one may be opened in 3s (1970-01-12 13:46:43 UTC)",
        ),
        (
            "message rate",
            {"rate": 0.5, "next_message": 0.1},
            "message rate 30/m, {}: the next one may begin within a second",
        ),
    ],
)
def test_a_group_that_refuses_is_named(
    waits_for: str, facts: dict[str, Any], sentence: str
) -> None:
    member = replace(REPORT, group="provider big", refused_by_group=True)
    group = replace(REPORT, path="provider big", slowed=BUSY, **facts)
    (path,) = joined([replace(PATH, waits_for=waits_for)], Allowances([member], [group]))
    lines = [line.strip() for line in about_path(path, NOW)]
    assert lines[1] == sentence.format("what all paths of provider big share")
    assert lines[2].startswith("slowed down with all paths of provider big: for now 4 of 32")
    (line,) = picture([], Allowances([member], [group]), "busy").paths
    assert line.slowed_by.startswith("421 4.7.0")


def test_a_rate_that_only_a_slow_down_has_set() -> None:
    path = replace(PATH, waits_for="message rate", shared=replace(REPORT, rate=0.5, slowed=BUSY))
    assert obstacle(path, NOW).startswith("message rate 30/m: the next one")


def test_paths_of_all_workers_are_one() -> None:
    stuck = replace(PATH, waiting=9, waits_for="message rate", last="250 ok", last_time=NOW)
    remembered = replace(REPORT, path="out1>mx.b.test#c.test", site="mx.b.test", source="out1")
    one, other = joined([PATH, stuck], Allowances([REPORT, remembered], []))
    assert (one.waiting, one.busy, one.idle, one.delivered) == (13, 4, 2, 3.0)
    assert (one.waits_for, one.last, one.shared) == ("message rate", "250 ok", REPORT)
    assert (other.name, other.site, other.source) == (remembered.path, "mx.b.test", "out1")
    assert next(about_path(other, NOW)) == (
        "path out1>mx.b.test#c.test: nothing is ready to leave, no connection is open"
    )


@pytest.mark.parametrize(
    ("events", "text"), [(100.0, "100/s"), (2.5, "2.5/s"), (1 / 60, "1/m"), (20 / 3600, "20/h")]
)
def test_rates_have_a_number_above_one(events: float, text: str) -> None:
    assert pace(events) == text


ENTRY = Entry("bob@a.test", "bounce", NOW - 60, NOW + 60, "bad-mailbox", "1M8", "550 5.1.1 who?")


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (None, []),
        (
            Suppressed(drops=False, entry=ENTRY, others=0),
            [
                "new mail for bob@a.test is refused: suppressed, bounce (bad-mailbox) since "
                "1970-01-12 13:45:40 UTC until 1970-01-12 13:47:40 UTC: 550 5.1.1 who?"
            ],
        ),
        (
            Suppressed(drops=True, entry=Entry("@a.test", "manual", NOW), others=2),
            [
                "new mail for the whole domain a.test is left out in silence: suppressed, "
                "manual since 1970-01-12 13:46:40 UTC",
                "2 more recipients of the domain are suppressed: "
                "see fastmta suppression list --domain a.test",
            ],
        ),
    ],
)
def test_what_is_suppressed(found: Suppressed | None, lines: list[str]) -> None:
    assert list(about_suppressed("a.test", found)) == lines


def test_a_hold_says_whose_it_is() -> None:
    hold = Order(action=Action.HOLD, selector=ACME, number=3, by="eve", reason="complaints")
    text = said(replace(WAITING, held={3: 2}), hold)
    assert "hold 3 (--tenant acme, by eve) keeps 2 of them: complaints" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bj\u00f6rn <b@x.test>\n\tfor", "Bj\u00f6rn <b@x.test>\n\tfor"),
        ("\x1b]0;owned\x07\x1b[2J", r"\x1b]0;owned\x07\x1b[2J"),
        ("\x9b31m a\rb\x00", r"\x9b31m a\rb\x00"),
        ("tset.a@\u202ebob", r"tset.a@\u202ebob"),
    ],
)
def test_what_others_wrote_cannot_steer_the_terminal(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_workers_are_one() -> None:
    other = replace(
        WAITING, later=3, next=NOW + 10, oldest=0.0, held={1: 1}, last="421 no", last_time=NOW
    )
    both = together([replace(WAITING, held={1: 2}), other])
    assert (both.later, both.next, both.oldest) == (5, NOW + 10, NOW - 3600)
    assert (both.held, both.last) == ({1: 3}, "421 no")


def test_the_longest_pause_of_a_host_counts() -> None:
    pauses = [HostPause("mx1", NOW + 45, "451 x"), HostPause("mx1", NOW + 20, "451 x")]
    text = said(replace(WAITING, pauses=pauses))
    assert text.count("is left alone") == 1 and "45s" in text


def test_top_adds_up_what_workers_do_on_one_path() -> None:
    quick = PathNow(name="q", site="q", busy=1, delivered=9.0, last="250 ok", last_time=5.0)
    dead = PathNow(
        name="d", site="d", waiting=7, waits_for="host paused", limits={"connections": "2"}
    )
    slowed = replace(REPORT, path="q", rate=0.5, slowed=BUSY)
    limited = replace(
        quick, name="q#a", waits_for="message rate", limits={"message_rate": "5000/h"}
    )
    seen = picture(
        [
            Paths(0, envelopes=5, held=1, out=2, paths=[quick, dead]),
            Paths(
                1,
                envelopes=5,
                held=0,
                out=1,
                paths=[replace(quick, last="421", last_time=6.0), replace(limited, busy=0)],
            ),
        ],
        Allowances([slowed], []),
        "waiting",
    )
    assert (seen.envelopes, seen.held, seen.out, seen.delivered) == (10, 1, 3, 27.0)
    assert seen.paths == [
        Line("d", "d", "", 7, 0, 0, 0.0, 0.0, "2", "host paused", ""),
        Line("q", "q", "", 0, 2, 0, 18.0, 0.0, "4/32", "421 4.7.0: 30/m", "421"),
        Line("q#a", "q", "", 0, 0, 0, 9.0, 0.0, "", "message rate 5000/h", "250 ok"),
    ]


def order(action: Action, **fields: Any) -> Order:
    return Order(action=action, selector=ACME, number=4, **fields)


@pytest.mark.parametrize(
    ("one", "results", "lines"),
    [
        (
            order(Action.HOLD),
            [Result(0, 2, 3), Result(1, 1000, 1000)],
            [
                "held: 1,002 envelopes for 1,003 recipients: 2 in worker 0, 1,000 in worker 1",
                "hold 4 stands",
                "end it with: fastmta queue release --hold 4",
            ],
        ),
        (
            order(Action.HOLD, until=NOW),
            [Result(0, 0, 0)],
            [
                "hold 4 stands until 1970-01-12 13:46:40 UTC, and matches nothing in the queue now",
                "end it with: fastmta queue release --hold 4",
            ],
        ),
        (
            order(Action.RELEASE, ends=(1, 2)),
            [Result(0, 1, 1, kept=1)],
            [
                "released: 1 envelope for 1 recipient",
                "ended: holds 1, 2",
                "1 envelope stayed: another hold keeps it; see fastmta queue holds",
            ],
        ),
        (order(Action.DELETE), [Result(0, 0, 0)], ["nothing in the queue matches"]),
        (
            order(Action.DELETE),
            [Result(0, 1, 1, under_way=2)],
            [
                "deleted: 1 envelope for 1 recipient",
                "2 envelopes are still being sent after 30 s: what is not delivered stays as it is",
            ],
        ),
    ],
)
def test_what_was_done(one: Order, results: list[Result], lines: list[str]) -> None:
    assert list(sentences(one, results)) == lines


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "show",
        "why",
        "top",
        "hold",
        "holds",
        "release",
        "retry",
        "reroute",
        "bounce",
        "delete",
    ],
)
def test_each_command_has_an_example(command: str) -> None:
    from fastmta.cli.queue import queue

    result = CliRunner().invoke(queue, [command, "--help"])
    assert result.exit_code == 0
    assert f"  fastmta queue {command} -c FILE" in result.output


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["hold"], "say which mail"),
        (["delete", "--reply", "("], "no regular expression"),
        (["retry", "--id", "5"], "13 characters"),
        (["hold", "--older-than", "soon", "--all"], "no duration"),
        (["reroute", "--all", "--to", "x"], 'no "host:port"'),
        (["bounce", "--all", "--reason", "250 ok"], "500 to 599"),
        (["release", "--hold", "1", "--all"], ""),
    ],
)
def test_wrong_usage_is_2(words: list[str], problem: str) -> None:
    command = [sys.executable, "-m", "fastmta", "queue", *words, "-c", "/nowhere.toml"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == (2 if problem else 1)
    assert problem in " ".join(result.stderr.split())
