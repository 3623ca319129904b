"""What a policy module works with, and which modules can be loaded."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.config import ConfigError, parse
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Priority, Recipient
from fastmta.policy import MAX_RECIPIENTS, Defer, Message, Reject
from fastmta.policy_file import PolicyError, load

TRACE = b"Received: by us\r\n"
HEAD = b"Subject: one\r\n two\r\nX-A: 1\r\nx-a: 2\r\n\r\n"


def arrival(*parts: bytes, utf8: bool = False) -> Arrival:
    recipients = [Recipient("a@one.test", "NEVER"), Recipient("b@one.test")]
    return Arrival(1, "s@s.test", recipients, [TRACE, *parts], 0, 0.0, utf8=utf8)


# Answers.


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reject(450),
        lambda: Defer(550),
        lambda: Reject(550, "4.7.1"),
        lambda: Reject(550, "5.7"),
        lambda: Reject(550, "5.7.1\r\n"),
        lambda: Reject(text="one\r\n250 two"),
        lambda: Reject(text="one\ntwo"),
        lambda: Defer(text=""),
        lambda: Defer(text="x" * 451),
    ],
)
def test_an_answer_is_one_reply(make: object) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        make()  # type: ignore[operator]


def test_answers_as_replies() -> None:
    assert bytes(Reject(552, "5.7.0", "No").reply) == b"552 5.7.0 No\r\n"
    assert bytes(Defer().reply) == b"451 4.7.1 Try again later\r\n"


# Messages.


def test_fields_are_found_whatever_the_pieces() -> None:
    whole = HEAD + b"X-A: body\r\n"
    for at in range(len(whole)):
        message = Message(arrival(whole[:at], whole[at:]))
        assert message.header("SUBJECT") == "one two"
        assert message.headers("X-A") == ["1", "2"]
        assert message.header("X-B") == ""
        assert message.content == whole
        assert message.size == len(whole)


def test_fields_are_changed_behind_our_own() -> None:
    came = arrival(HEAD[:7], HEAD[7:], b"X-A: body\r\n")
    message = Message(came)
    message.replace_header("x-A", "3")
    message.add_header("X-B", "4")
    message.remove_header("Received")
    assert message.headers("X-A") == ["3"]
    assert came.parts[1] == HEAD[:7]  # not before it takes effect
    message.apply(came, frozenset())
    changed = b"X-B: 4\r\nx-A: 3\r\nSubject: one\r\n two\r\n\r\nX-A: body\r\n"
    assert b"".join(came.parts) == TRACE + changed


@pytest.mark.parametrize("content", [b"", b"\r\n", b"\r\nX-A: body\r\n", b"no field\r\n\r\nx"])
def test_a_message_without_fields(content: bytes) -> None:
    came = arrival(content)
    message = Message(came)
    assert message.header("X-A") == ""
    message.remove_header("X-A")
    message.add_header("X-A", "1")
    message.apply(came, frozenset())
    assert b"".join(came.parts) == TRACE + b"X-A: 1\r\n" + content


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "a\r\nBcc: b"),
        ("X-A", "a\nb"),
        ("X-A", "\0"),
        ("X A", "a"),
        ("X-A:", "a"),
        ("", "a"),
        ("X-Ä", "a"),
        ("X-A", "ä"),
        ("X-A", "x" * 999),
    ],
)
def test_what_is_no_field_is_refused_and_nothing_changes(name: str, value: str) -> None:
    message = Message(arrival(HEAD))
    with pytest.raises(ValueError, match=r"\S"):
        message.replace_header(name, value)
    assert message.content == HEAD


@given(st.lists(st.text(max_size=20), max_size=6), st.text(max_size=20))
def test_whatever_is_added_stays_one_field(values: list[str], body: str) -> None:
    content = b"X-Last: 1\r\n\r\n" + body.encode("utf-8", "replace")
    message = Message(arrival(content, utf8=True))
    good = []
    for value in values:
        try:
            message.add_header("X-A", value)
        except ValueError:
            continue
        good.insert(0, value)
    assert message.content == b"".join(f"X-A: {v}\r\n".encode() for v in good) + content
    message.remove_header("x-a")
    assert message.content == content


def test_recipients_and_labels_are_changed() -> None:
    came = arrival(HEAD)
    message = Message(came)
    message.recipients = ["b@one.test", "c@two.test", "c@two.test"]
    message.tenant, message.campaign, message.pool = "t", "c", "bulk"
    message.priority = "bulk"
    message.apply(came, frozenset({"bulk"}))
    assert came.recipients == [Recipient("b@one.test"), Recipient("c@two.test")]
    assert (came.tenant, came.campaign, came.pool) == ("t", "c", "bulk")
    assert came.priority is Priority.BULK


def test_what_a_client_asked_for_is_kept() -> None:
    came = arrival(HEAD)
    Message(came).apply(came, frozenset())
    assert came.recipients[0].notify == "NEVER"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipients", ["c"]),
        ("recipients", ["c@two.test>\r\nRCPT TO:<d@two.test"]),
        ("recipients", ["ü@two.test"]),
        ("recipients", [f"a{n}@one.test" for n in range(MAX_RECIPIENTS + 1)]),
        ("tenant", "a b"),
        ("campaign", "x" * 101),
        ("pool", "none"),
        ("priority", "soon"),
    ],
)
def test_changes_that_make_no_sense_change_nothing(field: str, value: object) -> None:
    came = arrival(HEAD)
    before = came.__copy__()
    message = Message(came)
    message.add_header("X-B", "1")
    setattr(message, field, value)
    with pytest.raises((ValueError, KeyError)):
        message.apply(came, frozenset({"bulk"}))
    assert came == before


# Modules.


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def on_rcpt(session):\n  pass", "line 1: on_rcpt(session) cannot be called as on_rcpt("),
        ("\ndef on_recipient(a, b): pass", "line 2: there is no hook on_recipient; did you mean"),
        ("\n\ndef on_rctp(a, b): pass", "did you mean on_rcpt?"),
        ("def choose_routes(e): pass", "did you mean choose_route?"),
        (
            "def on_mail(session, sender, *, x): pass",
            "cannot be called as on_mail(session, sender)",
        ),
        ("on_mail = 1", "on_mail is no function"),
        ("def on_mail(a, b): yield 1", "on_mail has a yield in it"),
        ("def on_mail(a, b)", "line 1: expected ':'"),
        ("x = 1\n1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "line 1: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "line 1: SystemExit: 3"),
        ("x = 1", "defines no hook; the hooks are on_connect, "),
        ("\0", "null bytes"),
    ],
)
def test_a_module_that_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(PolicyError) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_every_wrong_function_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        load(written(tmp_path, "def on_mail(): pass\ndef on_rcpt(): pass\ndef on_x(): pass"))
    assert len(str(caught.value).splitlines()) == 3


def test_only_the_hooks_that_it_defines_are_known(tmp_path: Path) -> None:
    text = """
from dataclasses import dataclass
from fastmta.policy import Reject

@dataclass
class Rule:
    name: str

one_thing = choose_nothing = 1

async def on_mail(session, sender): return None
def on_rcpt(*arguments): return Reject()
def on_message(session, message, more=None): return None
"""
    policy = load(written(tmp_path, text))
    assert list(policy.hooks) == ["on_mail", "on_rcpt", "on_message"]


# The setting.

TEXT = (
    'hostname = "a.test"\ndata_dir = "d"\n{}\n[[listener]]\nservice="smtp"\nbind="127.0.0.1:2525"'
)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('policy = "none.py"', "policy: "),
        ('policy = "."', "policy: "),
        ('policy_timeout = "1s"', "policy_timeout: is without effect; write policy too"),
    ],
)
def test_a_setting_that_cannot_take_effect(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(TEXT.format(line), tmp_path)
    assert str(caught.value).startswith(said)
