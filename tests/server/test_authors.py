"""Whom a message is from to those who read it, where `check_from` asks."""

from pathlib import Path

import pytest

from fastmta.config import Submission
from tests.server.test_smtp import _time_stands_still, certificate
from tests.server.test_submission import NAME, logged_in, submitting
from tests.support import run

__all__ = ["_time_stands_still", "certificate"]  # fixtures


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("Bob <bob@example.test>", "250 2.0.0"),
        ("bob@example.test, Sales <sales@example.test>", "250 2.0.0"),
        ("Us: bob@example.test, SALES@example.test;", "250 2.0.0"),
        ("Alice <alice@example.test>", "550 5.7.1"),
        ("bob@example.test, alice@example.test", "550 5.7.1"),
        ("bob@example.test\r\nFrom: alice@example.test", "554 5.6.0"),
        ('"bob@example.test" <alice@example.test>', "550 5.7.1"),
        ("Us: alice@example.test;", "550 5.7.1"),
        ("", "554 5.6.0"),
        ("nobody:;", "554 5.6.0"),
        ("bob@example.test (Bob)", "250 2.0.0"),
        ('"Bob, of Sales" <bob@example.test>\r\nSender: sales@example.test', "250 2.0.0"),
        ("=?utf-8?q?B=C3=B6b?=\r\n <bob@example.test>", "250 2.0.0"),
        ("bob@example.test\r\nSender: alice@example.test", "550 5.7.1"),
        ("B\udcf6b <bob@example.test>", "250 2.0.0"),  # Latin-1, undeclared
        # What mail readers do not agree about.
        ("alice@example.test <bob@example.test>", "554 5.6.0"),
        ("<alice@example.test> <bob@example.test>", "554 5.6.0"),
        ("<alice@example.test <bob@example.test>>", "554 5.6.0"),
        ("<bob@example.test>alice@example.test", "554 5.6.0"),
        ("[alice@example.test] <bob@example.test>", "554 5.6.0"),
        ("<alice@example.test>\\, <bob@example.test>", "554 5.6.0"),
        ("<@alice.test,@example.test:bob@example.test>", "554 5.6.0"),
        ("bob@example.test (, alice@example.test", "554 5.6.0"),
        ("alice@example.test\0 <bob@example.test>", "554 5.6.0"),
        ("bob@example.test\r\nFrom\0: alice@example.test", "554 5.6.0"),
        ("bob@example.test, " * 10_000 + "alice@example.test", "554 5.6.0"),
    ],
)
def test_whose_addresses_the_author_has(
    certificate: tuple[Path, Path], value: str, answer: str
) -> None:
    async def scenario() -> None:
        async with submitting(certificate, submission=Submission(check_from=True)) as server:
            client = await logged_in(server)
            await client.say(f"MAIL FROM:<{NAME}>", "RCPT TO:<any@example.net>", "DATA")
            assert await client.say_data(f"From: {value}\r\n\r\nhello") == answer
            await client.say(f"MAIL FROM:<{NAME}>", "RCPT TO:<any@example.net>", "DATA")
            assert await client.say_data("Subject: no author\r\n\r\nhello") == "554 5.6.0"

    run(scenario())


def test_a_line_that_some_take_for_the_author(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with submitting(certificate, submission=Submission(check_from=True)) as server:
            client = await logged_in(server)
            await client.say(f"MAIL FROM:<{NAME}>", "RCPT TO:<any@example.net>", "DATA")
            said = f" From: alice@example.test\r\nFrom: {NAME}\r\n\r\nhello"
            assert await client.say_data(said) == "554 5.6.0"

    run(scenario())


def test_the_author_is_checked_on_every_listener_with_logins(
    certificate: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        rules = Submission(check_from=True)
        async with submitting(certificate, "smtp", auth=True, submission=rules) as server:
            client = await logged_in(server)
            await client.say(f"MAIL FROM:<{NAME}>", "RCPT TO:<any@example.net>", "DATA")
            assert await client.say_data("From: alice@example.test\r\n\r\nhello") == "550 5.7.1"

    run(scenario())
