"""What the commands of `fastmta queue` say: pure, so without a server."""

import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from fastmta.cli.queue.orders import sentences
from fastmta.cli.queue.top import Line, picture
from fastmta.cli.queue.why import explain, together
from fastmta.cli.words import visible
from fastmta.queue.orders import Action, Order
from fastmta.queue.requests import HostPause, PathNow, Paths, Waiting
from fastmta.queue.selector import Selector
from fastmta.queue.steward import Result

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
        (
            {
                "paths": [
                    replace(
                        PATH,
                        waits_for="connection limit",
                        limits={"connections": "3"},
                        origins={"connections": "provider big"},
                    )
                ]
            },
            "it has as many connections as it may have: 3, by provider big",
        ),
        (
            {"paths": [replace(PATH, waits_for="message rate", until=NOW + 60)]},
            "it may send no more messages until 1970-01-12 13:47:40 UTC",
        ),
        ({"paths": [replace(PATH, waits_for="no slots")]}, "no connection left for it"),
        ({"paths": [replace(PATH, slowed_by="421 4.7.28")]}, "it is slowed down: 421 4.7.28"),
        ({"pauses": [HostPause("mx1", NOW + 45, "451 gone")]}, "mx1 is left alone for 45s more"),
        ({"replies": {"450 later": 2, "451 x": 1}}, "    1 envelope got: 451 x"),
        ({"held": {3: 2}}, "hold 3 keeps 2 of them"),
    ],
)
def test_each_reason_has_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in said(replace(WAITING, **changes))


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
    seen = picture(
        [
            Paths(0, envelopes=5, held=1, out=2, paths=[quick, dead]),
            Paths(1, envelopes=5, held=0, out=1, paths=[replace(quick, last="421", last_time=6.0)]),
        ],
        "waiting",
    )
    assert (seen.envelopes, seen.held, seen.out, seen.delivered) == (10, 1, 3, 18.0)
    assert seen.paths == [
        Line("d", "", 7, 0, 0, 0.0, 0.0, "2", "host paused", ""),
        Line("q", "", 0, 2, 0, 18.0, 0.0, "", "", "421"),
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
