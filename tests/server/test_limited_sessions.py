"""Rate limits and checks over real sockets, with logins."""

from base64 import b64encode
from pathlib import Path
from typing import Any

from fastmta.config import Limits as Settings
from fastmta.config_abuse import AccountLimits, ClientLimits
from fastmta.config_reader import Rate
from fastmta.server.judges import Judges
from fastmta.server.limits import Limits
from tests.server.test_smtp import (
    Client,
    Server,
    _time_stands_still,
    certificate,
    serving,
    trusting,
)
from tests.server.test_submission import LOGIN, NAME, NOBODY, logged_in, submitting
from tests.support import run, until

__all__ = ["_time_stands_still", "certificate"]  # fixtures

WRONG = "AUTH PLAIN " + b64encode(f"\0{NAME}\0wrong".encode()).decode()
HOUR = 3600.0


def judges(**tables: Any) -> tuple[Limits, Judges]:
    one = Limits(Settings(**tables), lambda rows: None)
    return one, Judges([one], one.note)


def test_threat_11_who_guesses_passwords_is_shut_out(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        _, asked = judges(client=ClientLimits(auth_failures=Rate(2, HOUR)))
        async with submitting(certificate, judges=asked) as server:
            client = await server.greeted(ssl=trusting())
            for _ in range(2):
                assert await late(server, client, WRONG) == "535 5.7.8"
            assert await late(server, client, LOGIN) == "454 4.7.0"
            refused = await server.connect(ssl=trusting())
            assert await refused.reply() == "421 4.7.0"

    run(scenario())


async def late(server: Server, client: Client, command: str) -> str:
    """A reply that is held back, as those to failed logins are."""
    session = server.session
    client.writer.write(command.encode() + b"\r\n")
    await until(lambda: session._delayed_until)
    server.pass_time(10.0)
    return await client.reply()


def test_errors_count_as_they_happen() -> None:
    async def scenario() -> None:
        limits, asked = judges(client=ClientLimits(errors=Rate(3, HOUR)))
        async with serving(judges=asked, relay_networks=NOBODY) as server:
            client = await server.greeted()
            assert await client.say("VRFY someone", "NOOP", "MAIL FROM:<a@example.test>") == (
                "250 2.1.0"
            )
            for _ in range(3):
                assert await client.say("RCPT TO:<guess@example.test>") == "550 5.7.1"
            assert len(limits.counts) == 1
            refused = await server.connect()
            assert await refused.reply() == "421 4.7.0"
            assert await refused.reply() == ""
            assert await client.say("NOOP") == "250 2.0.0"

    run(scenario())


def test_errors_of_who_may_relay_do_not_count() -> None:
    async def scenario() -> None:
        limits, asked = judges(client=ClientLimits(errors=Rate(1, HOUR)))
        async with serving(judges=asked) as server:
            client = await server.greeted()
            assert await client.say("NONSENSE", "NONSENSE") == "500 5.5.1"
            await server.greeted()
            assert len(limits.counts) == 0

    run(scenario())


def test_an_account_has_its_limit_whatever_the_session(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        _, asked = judges(
            client=ClientLimits(messages=Rate(1, HOUR)),
            account=AccountLimits(messages=Rate(2, HOUR), recipients=Rate(3, HOUR)),
        )
        mail = f"MAIL FROM:<{NAME}>"
        async with submitting(certificate, judges=asked) as server:
            first, second = await logged_in(server), await logged_in(server)
            rcpt = "RCPT TO:<any@example.net>"
            assert await first.say(mail, rcpt, rcpt) == "250 2.1.5"
            assert await second.say(mail, rcpt) == "250 2.1.5"
            assert await second.say(rcpt) == "450 4.7.1"
            assert await second.say("DATA") == "354"
            assert await second.say_data("Subject: a\r\n\r\nhello") == "250 2.0.0"
            assert await second.say(mail) == "450 4.7.1"

    run(scenario())
