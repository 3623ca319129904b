"""Selectors: what each criterion means."""

import re
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import Envelope, Priority, Recipient, format_id
from fastmta.mail.reply import Reply
from fastmta.queue.selector import MAX_PATTERN, MAX_PATTERNS, Selector, checked, fits

LAST = Disposition(Kind.DEFERRED, Reply(421, "4.7.0", "Try again\nlater"), "mx.test", 1500.0)
ENVELOPE = Envelope(
    message=77 << 20,
    index=2,
    sender="News@Lists.example.test",
    domain="bücher.example".encode("idna").decode(),
    recipients=[Recipient("bob@example.test")],
    received=1000.0,
    size=10,
    last=LAST,
    tenant="acme",
    campaign="Summer [1]",
    pool="bulk",
    priority=Priority.BULK,
    held="3: too many complaints",
)
SITE = "(mx1|mx2).example.test"
ID = format_id(ENVELOPE.message)

MATCHING: list[dict[str, Any]] = [
    {},
    {"domain": ("xn--bcher-kva.example",)},
    {"domain": ("BÜCHER.example",)},
    {"domain": ("*.example",)},
    {"domain": ("other.test", "xn--b*")},
    {"site": (SITE.upper(),)},
    {"site": ("*.example.test",)},
    {"sender": ("news@lists.example.test",)},
    {"sender": ("lists.example.test",)},
    {"sender": ("*.example.test",)},
    {"sender": ("news@*",)},
    {"tenant": ("ACME",)},
    {"tenant": ("a??e",)},
    {"campaign": ("summer [1]",)},
    {"campaign": ("summer*",)},
    {"pool": ("bulk",)},
    {"id": (ID,)},
    {"id": (ID.lower(),)},
    {"id": (f"{ID}.2", format_id(1))},
    {"priority": (Priority.URGENT, Priority.BULK)},
    {"held": True},
    {"before": 1000.5},
    {"after": 999.5},
    {"reply": "^421 4\\.7"},
    {"reply": "AGAIN later$"},
    {"domain": ("*",), "tenant": ("acme",), "held": True},
]
OTHERS: list[dict[str, Any]] = [
    {"domain": ("example",)},
    {"domain": ("*.xn--bcher-kva.example",)},
    {"site": ("mx1.example.test",)},
    {"sender": ("example.test",)},
    {"sender": ("<>",)},
    {"sender": ("ews@lists.example.test",)},
    {"tenant": ("acm",)},
    {"tenant": ("acme?",)},
    {"campaign": ("summer 1",)},
    {"campaign": ("",)},
    {"pool": ("b",)},
    {"id": (format_id(1),)},
    {"id": (f"{ID}.1",)},
    {"priority": (Priority.NORMAL,)},
    {"before": 1000.0},
    {"after": 1000.0},
    {"reply": "^450"},
    {"domain": ("*",), "tenant": ("other",)},
]


@pytest.mark.parametrize("criteria", MATCHING, ids=str)
def test_it_matches(criteria: dict[str, Any]) -> None:
    assert checked(Selector(**criteria)).matches(ENVELOPE, SITE)


@pytest.mark.parametrize("criteria", OTHERS, ids=str)
def test_it_does_not_match(criteria: dict[str, Any]) -> None:
    assert not checked(Selector(**criteria)).matches(ENVELOPE, SITE)


def test_the_null_sender() -> None:
    bounce = replace(ENVELOPE, sender="")
    assert checked(Selector(sender=("<>",))).matches(bounce, "")
    assert checked(Selector(sender=("",))).matches(bounce, "")
    assert not checked(Selector(sender=("*@*",))).matches(bounce, "")


def test_what_was_never_tried_has_no_reply() -> None:
    assert not Selector(reply=".*").matches(replace(ENVELOPE, last=None), SITE)


def test_octets_of_a_reply_that_are_not_utf_8() -> None:
    reply = Reply(450, "", b"caf\xe9 closed".decode("utf-8", "surrogateescape"))
    odd = replace(ENVELOPE, last=replace(LAST, reply=reply))
    assert Selector(reply="closed").matches(odd, SITE)


@pytest.mark.parametrize(
    ("criteria", "text"),
    [
        ({"reply": "(4"}, "'(4' is no regular expression (RE2 syntax): missing ): (4"),
        ({"reply": "a" * (MAX_PATTERN + 1)}, "--reply: an expression has at most"),
        ({"domain": ("a" * (MAX_PATTERN + 1),)}, "--domain: a pattern has at most"),
        ({"tenant": ("a",) * (MAX_PATTERNS + 1)}, "--tenant: at most 1000"),
        ({"id": ("17",)}, "a message id has 13 characters"),
        ({"id": (f"{ID}.x",)}, "'x' is no number of an envelope"),
    ],
)
def test_a_criterion_that_cannot_be_used_is_said(criteria: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        checked(Selector(**criteria))


def test_no_expression_takes_long() -> None:
    """Backtracking would try this for longer than the universe lasts."""
    slow = replace(ENVELOPE, last=replace(LAST, reply=Reply(450, "", "a" * 2000)))
    assert not checked(Selector(reply="(a*)*(a+)+b$")).matches(slow, SITE)
    began = time.process_time()
    assert not fits(("*a" * 100 + "*b",), "a" * 1000)
    assert time.process_time() - began < 5


COVERING: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({}, {"tenant": ("acme",)}, True),
    ({"tenant": ("acme",)}, {}, False),
    ({"tenant": ("acme",)}, {"tenant": ("acme",), "domain": ("a.test",)}, True),
    ({"tenant": ("acme",), "domain": ("a.test",)}, {"tenant": ("acme",)}, False),
    ({"domain": ("*.test",)}, {"domain": ("a.test", "*.b.test")}, True),
    ({"domain": ("a.test",)}, {"domain": ("*.test",)}, False),
    ({"domain": ("?.test",)}, {"domain": ("*.test",)}, False),
    ({"sender": ("a.test",)}, {"sender": ("news@a.test",)}, True),
    ({"reply": "^421"}, {"reply": "^421"}, True),
    ({"reply": "^4"}, {"reply": "^421"}, False),
    ({"before": 10.0}, {"before": 5.0}, True),
    ({"before": 5.0}, {"before": 10.0}, False),
    ({"after": 5.0}, {"after": 10.0}, True),
    ({"priority": (Priority.BULK, Priority.NORMAL)}, {"priority": (Priority.BULK,)}, True),
    ({"held": True}, {"tenant": ("acme",)}, True),
]


@pytest.mark.parametrize(("one", "other", "answer"), COVERING, ids=str)
def test_which_selector_covers_another(
    one: dict[str, Any], other: dict[str, Any], answer: bool
) -> None:
    assert checked(Selector(**one)).covers(checked(Selector(**other))) is answer


LETTERS = st.text("ab.*", max_size=6)
PATTERNS = st.lists(LETTERS.filter(bool), max_size=2).map(tuple)
TEXTS = st.text("ab.", max_size=6)
SELECTORS = st.builds(
    Selector, tenant=PATTERNS, domain=PATTERNS, before=st.sampled_from([0.0, 2000.0])
)


def written_out(pattern: str, text: str) -> bool:
    """The definition of `*`, by trying every length."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(written_out(pattern[1:], text[n:]) for n in range(len(text) + 1))
    return text[:1] == pattern[0] and written_out(pattern[1:], text[1:])


@given(LETTERS, TEXTS)
def test_a_star_stands_for_anything(pattern: str, text: str) -> None:
    assert fits((pattern,), text) is written_out(pattern, text)


@given(SELECTORS, SELECTORS, TEXTS, TEXTS)
def test_covering_keeps_its_word(one: Selector, other: Selector, tenant: str, domain: str) -> None:
    envelope = replace(ENVELOPE, tenant=tenant, domain=domain)
    if one.covers(other) and other.matches(envelope, SITE):
        assert one.matches(envelope, SITE)


@given(st.text(max_size=20), st.text(max_size=30))
def test_any_expression_is_an_answer_or_an_error(expression: str, reply: str) -> None:
    odd = replace(ENVELOPE, last=replace(LAST, reply=Reply(450, "", reply)))
    try:
        selector = checked(Selector(reply=expression))
    except ValueError as error:
        assert "no regular expression" in str(error)
    else:
        assert selector.matches(odd, SITE) in (True, False)


def test_it_goes_over_the_wire() -> None:
    selector = Selector(domain=("a.test",), priority=(Priority.BULK,), held=True)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(selector), type=Selector) == selector


def test_how_it_is_shown() -> None:
    selector = Selector(domain=("*.a.test",), campaign=("Summer 1",), priority=(Priority.BULK,))
    assert str(selector) == "--domain *.a.test --campaign 'Summer 1' --priority bulk"
    assert str(Selector(before=0.0)) == "--all"
    assert str(Selector(before=3600.0)) == "received before 1970-01-01 01:00:00 UTC"
