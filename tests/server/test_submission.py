"""Submission over real sockets: who may send as whom, and what is done to the message."""

import asyncio
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import cast

import pytest
from scramp import ScramClient

from fastmta.config import Submission
from fastmta.mail.envelope import Priority
from fastmta.protocol.sasl import MECHANISMS, Context, Exchange, Kind, Password, Proven
from fastmta.protocol.scram import Keys, derive
from fastmta.server import binding
from fastmta.server.access import Access, Attempt, Refusal
from fastmta.store.accounts import Account
from tests.protocol.test_smtp_in_threats import RELAY_FORMS
from tests.server.test_smtp import (
    MESSAGE,
    Client,
    Server,
    _time_stands_still,
    certificate,
    serving,
    trusting,
)
from tests.support import run, until

__all__ = ["_time_stands_still", "certificate"]  # fixtures

NAME, PASSWORD = "bob@example.test", "secret"
KEYS = derive(PASSWORD, b"0123456789abcdef", 4096)
ACCOUNT = Account(NAME, "", KEYS, 0.0, 0.0, aliases=("sales@example.test",))
LOGIN = "AUTH PLAIN " + b64encode(f"\0{NAME}\0{PASSWORD}".encode()).decode()
NOBODY = (ip_network("192.0.2.0/24"),)  # relay_networks that no test is in


class OneAccount:
    """Lets Bob in, by his password."""

    kind = Kind.CREDENTIALS  # why others are not

    def mechanisms(self, bindings: Mapping[str, bytes]) -> tuple[str, ...]:
        return ("SCRAM-SHA-256-PLUS",) * bool(bindings) + ("PLAIN", "LOGIN")

    def exchange(
        self, mechanism: str, bindings: Mapping[str, bytes], domain: str = ""
    ) -> Exchange | None:
        name = mechanism.upper()
        return Exchange(name, Context(self._keys, bindings)) if name in MECHANISMS else None

    def _keys(self, name: str) -> Keys:
        return KEYS

    def named(self, name: str) -> Account | None:
        return ACCOUNT if name == NAME else None

    async def verify(self, attempt: Attempt, client: str) -> Account | Refusal:
        if attempt == Password("", NAME, PASSWORD) or isinstance(attempt, Proven):
            return ACCOUNT
        return Refusal(self.kind)


@asynccontextmanager
async def submitting(
    tls: tuple[Path, Path], service: str = "submission", **options: object
) -> AsyncIterator[Server]:
    options = {"relay_networks": NOBODY, **options}
    access = cast(Access, OneAccount())
    async with serving(tls, mode="implicit", service=service, access=access, **options) as server:  # type: ignore[arg-type]
        yield server


async def logged_in(server: Server) -> Client:
    client = await server.greeted(ssl=trusting())
    assert await client.say(LOGIN) == "235 2.7.0"
    return client


def test_a_message_of_who_has_logged_in(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with submitting(certificate) as server:
            client = await logged_in(server)
            said = f"MAIL FROM:<{NAME}> AUTH=<>", "RCPT TO:<any@example.net>", "DATA"
            assert await client.say(*said) == "354"
            assert await client.say_data("Subject: a\r\n\r\nhello") == "250 2.0.0"
            [arrival] = server.memory.arrivals
            assert (arrival.account, arrival.tenant) == (NAME, NAME)
            assert arrival.protocol == "ESMTPSA"
            assert b" with ESMTPSA (TLSv1.3" in arrival.parts[0]
            added, content = arrival.parts[1].decode().splitlines(), b"".join(arrival.parts[2:])
            assert added[0].startswith("Date: ")
            assert added[1:] == ["Message-ID: <0000000000001@relay.example.test>"]
            assert content == MESSAGE
            assert arrival.size == len(b"".join(arrival.parts))

    run(scenario())


@pytest.mark.parametrize(
    ("head", "added"),
    [
        ("Date: Mon, 23 Nov 2026 05:00:00 +0000\r\nMessage-ID: <1@a.test>\r\n", []),
        ("date: x\r\n", ["Message-ID"]),
        ("message-id:\r\n <1@a.test>\r\n", ["Date"]),
        ("X-Date: x\r\n", ["Date", "Message-ID"]),
        ("", ["Date", "Message-ID"]),
    ],
)
def test_only_what_is_missing_is_added(
    certificate: tuple[Path, Path], head: str, added: list[str]
) -> None:
    async def scenario() -> None:
        async with submitting(certificate) as server:
            client = await logged_in(server)
            await client.say(f"MAIL FROM:<{NAME}>", "RCPT TO:<any@example.net>", "DATA")
            await client.say_data(f"{head}\r\nDate: in the body")
            parts = server.memory.arrivals[0].parts
            fields = b"".join(parts[1:]).decode().removesuffix(f"{head}\r\nDate: in the body\r\n")
            assert [line.partition(":")[0] for line in fields.splitlines()] == added

    run(scenario())


def test_nothing_is_added_by_setting(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        rules = Submission(add_missing=False, tenant="domain")
        async with submitting(certificate, submission=rules) as server:
            client = await logged_in(server)
            await client.say(f"MAIL FROM:<{NAME}>", "RCPT TO:<any@example.net>", "DATA")
            await client.say_data("Subject: a\r\n\r\nhello")
            [arrival] = server.memory.arrivals
            assert b"".join(arrival.parts[1:]) == MESSAGE
            assert arrival.tenant == "example.test"
            assert arrival.priority is Priority.NORMAL

    run(scenario())


OWN = [NAME, "sales@example.test", "BOB@Example.TEST", ""]


@pytest.mark.parametrize("sender", OWN)
def test_ones_own_addresses(certificate: tuple[Path, Path], sender: str) -> None:
    async def scenario() -> None:
        async with submitting(certificate) as server:
            client = await logged_in(server)
            assert await client.say(f"MAIL FROM:<{sender}>") == "250 2.1.0"

    run(scenario())


def test_threat_04_anothers_sender_is_refused_in_every_form(
    certificate: tuple[Path, Path],
) -> None:
    """Forms that must not open a relay are no way to send as somebody else either."""
    anothers = ["alice@example.test", "bob@example.net", "bob%x@example.test", "b.ob@example.test"]
    quoted = ['"bob@example.test"@example.test', "bob+tag@example.test", "bob@example.test."]

    async def scenario() -> None:
        async with submitting(certificate, max_errors=1000, max_sessions=10_000) as server:
            server.service._note_stress = lambda: None  # type: ignore[method-assign]
            client = await logged_in(server)
            forms = [form for form in RELAY_FORMS if form]
            for sender in [*anothers, *quoted, *forms]:
                said = await client.say(f"MAIL FROM:<{sender}> SMTPUTF8")
                assert said in ("550 5.7.1", "501 5.1.7", "501 5.5.4"), sender
            assert server.memory.arrivals == []

    run(scenario())


def test_threat_04_nothing_is_relayed_without_a_login(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        networks = (ip_network("127.0.0.0/8"),)
        async with submitting(certificate, relay_networks=networks) as server:
            client = await server.greeted(ssl=trusting())
            said = "MAIL FROM:<bob@example.test>", "RCPT TO:<any@example.net>"
            assert not server.session.may_relay
            assert await client.say(said[0]) == "530 5.7.0"
            assert await client.say(said[1]) == "503 5.5.1"
            client.writer.write(b"AUTH PLAIN AGJvYkBleGFtcGxlLnRlc3QAd3Jvbmc=\r\n")
            assert await _late(server, client) == "535 5.7.8"
            assert await client.say(*said) == "503 5.5.1"

    run(scenario())


def test_a_listener_for_anybody_with_logins(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with submitting(certificate, "smtp", auth=True) as server:
            client = await server.greeted(ssl=trusting())
            said = f"MAIL FROM:<{NAME}>", "RCPT TO:<any@example.net>"
            assert await client.say(*said) == "550 5.7.1"
            assert await client.say("RSET", LOGIN, *said, "DATA") == "354"
            assert await client.say_data("Subject: a\r\n\r\nhello") == "250 2.0.0"
            [arrival] = server.memory.arrivals
            assert arrival.protocol == "ESMTPSA"
            assert b"".join(arrival.parts[1:]) == MESSAGE

    run(scenario())


def test_who_has_logged_in_stays_so_over_a_reload(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with submitting(certificate) as server:
            client = await logged_in(server)
            await server.service.reload(server.service._config, None)
            said = f"MAIL FROM:<{NAME}>", "RCPT TO:<any@example.net>"
            assert await client.say(*said) == "250 2.1.5"

    run(scenario())


@pytest.mark.parametrize(
    ("kind", "answer"), [(Kind.LATER, "454 4.7.0"), (Kind.UNAVAILABLE, "454 4.7.0")]
)
def test_why_nobody_is_let_in(
    certificate: tuple[Path, Path], kind: Kind, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(OneAccount, "kind", kind)
        async with submitting(certificate) as server:
            client = await server.greeted(ssl=trusting())
            client.writer.write(b"AUTH PLAIN AGEAYg==\r\n")
            assert await _late(server, client) == answer

    run(scenario())


async def _late(server: Server, client: Client) -> str:
    await until(lambda: server.session._delayed_until)
    server.pass_time(10.0)
    return await client.reply()


def test_threat_07_a_silent_client_in_the_exchange(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with submitting(certificate) as server:
            client = await server.greeted(ssl=trusting())
            assert await client.say("AUTH LOGIN") == "334"
            server.pass_time(299.0)
            assert len(server.service.sessions) == 1
            server.pass_time(2.0)
            assert await client.reply() == "421 4.4.2"

    run(scenario())


def test_a_drain_ends_an_exchange(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with submitting(certificate) as server:
            client = await server.greeted(ssl=trusting())
            assert await client.say("AUTH LOGIN") == "334"
            await server.service.drain(50.0)
            assert await client.reply() == "421 4.3.2"

    run(scenario())


def test_a_client_that_goes_while_its_password_is_checked(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        asked, never = asyncio.Event(), asyncio.Event()

        async def verify(*_: object) -> Refusal:
            asked.set()
            await never.wait()
            return Refusal(Kind.CREDENTIALS)

        monkeypatch.setattr(OneAccount, "verify", verify)
        async with submitting(certificate) as server:
            client = await server.greeted(ssl=trusting())
            client.writer.write(f"{LOGIN}\r\n".encode())
            await asked.wait()
            client.reset()
            await until(lambda: not server.service._tasks)
            assert len(server.service.sessions) == 0

    run(scenario())


def test_threat_11_a_check_that_breaks_lets_nobody_in(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async def verify(*_: object) -> Refusal:
            raise RuntimeError("planted")

        monkeypatch.setattr(OneAccount, "verify", verify)
        async with submitting(certificate) as server:
            client = await server.greeted(ssl=trusting())
            client.writer.write(f"{LOGIN}\r\n".encode())
            assert await _late(server, client) == "451 4.3.0"
            assert await client.say("MAIL FROM:<>") == "530 5.7.0"

    run(scenario())


# Channel bindings.


async def _scram(client: Client, binding: tuple[str, bytes]) -> str:
    scram = ScramClient(["SCRAM-SHA-256-PLUS"], NAME, PASSWORD, channel_binding=binding)
    first = b64encode(scram.get_client_first().encode()).decode()
    client.writer.write(f"AUTH SCRAM-SHA-256-PLUS {first}\r\n".encode())
    scram.set_server_first(b64decode((await client.reader.readline())[4:]).decode())
    client.writer.write(b64encode(scram.get_client_final().encode()) + b"\r\n")
    answer = await client.reader.readline()
    if answer.startswith(b"334 "):
        scram.set_server_final(b64decode(answer[4:]).decode())
        return await client.say("")
    return answer[:9].decode()


def test_a_login_is_bound_to_its_connection(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with submitting(certificate) as server:
            context = trusting()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            der = ssl.PEM_cert_to_DER_cert(certificate[0].read_text())
            for _ in range(2):
                client = await server.greeted(ssl=context)
                unique = client.writer.get_extra_info("ssl_object").get_channel_binding()
                assert await _scram(client, ("tls-unique", unique)) == "235 2.7.0"
            assert server.service.tls is not None
            binding.note(server.service.tls, certificate[0])
            client = await server.greeted(ssl=context)
            end_point = sha256(der).digest()
            assert await _scram(client, ("tls-server-end-point", end_point)) == "235 2.7.0"

    run(scenario())


def test_threat_11_a_login_of_another_connection_is_none(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with submitting(certificate) as server:
            context = trusting()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            other = await server.greeted(ssl=context)
            unique = other.writer.get_extra_info("ssl_object").get_channel_binding()
            await other.close()
            await until(lambda: not len(server.service.sessions))
            client = await server.greeted(ssl=context)
            scram = asyncio.ensure_future(_scram(client, ("tls-unique", unique)))
            await until(lambda: server.session._delayed_until)
            server.pass_time(10.0)
            assert await scram == "535 5.7.8"

    run(scenario())


def test_nothing_is_bound_where_the_certificate_is_not_known(
    certificate: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        async with submitting(certificate) as server:
            await server.greeted(ssl=trusting())
            assert server.session._machine.door is not None
            assert server.session._machine.door.mechanisms() == ("PLAIN", "LOGIN")

    run(scenario())


# XCLIENT.

LOOPBACK = (ip_network("127.0.0.0/8"),)


def test_a_trusted_host_speaks_for_others(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        trusted = {"xclient_hosts": LOOPBACK, "relay_networks": (ip_network("192.0.2.7/32"),)}
        async with submitting(certificate, "smtp", auth=True, **trusted) as server:
            client = await server.greeted(ssl=trusting())
            said = "EHLO a", "MAIL FROM:<>", "RCPT TO:<any@example.net>"
            assert await client.say(*said) == "550 5.7.1"
            assert await client.say("RSET", "XCLIENT ADDR=192.0.2.7 HELO=x") == "220"
            assert await client.say(*said, "DATA", ".") == "250 2.0.0"
            assert server.memory.arrivals[0].client == "a [192.0.2.7]"
            assert server.service.sessions._per_client == {"192.0.2.7": 1}
            assert await client.say("XCLIENT ADDR=192.0.2.8") == "220"
            assert await client.say(*said) == "550 5.7.1"
            assert await client.say("RSET", f"XCLIENT LOGIN={NAME}") == "220"
            assert await client.say(*said) == "250 2.1.5"
            assert await client.say("DATA", ".") == "250 2.0.0"
            assert server.memory.arrivals[1].account == NAME
            assert await client.say("XCLIENT LOGIN=nobody@example.test") == "550 5.7.0"
            assert await client.say("XCLIENT ADDR=192.0.2.8") == "220"
            assert await client.say(*said) == "550 5.7.1"
        assert not server.service.sessions._per_client

    run(scenario())


def test_threat_04_a_client_that_not_even_the_host_knows_relays_nothing(
    certificate: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        trusted = {"xclient_hosts": LOOPBACK, "relay_networks": LOOPBACK}
        async with submitting(certificate, "smtp", auth=True, **trusted) as server:
            client = await server.greeted(ssl=trusting())
            said = "EHLO a", "MAIL FROM:<>", "RCPT TO:<any@example.net>"
            assert await client.say("XCLIENT ADDR=[UNAVAILABLE]") == "220"
            assert await client.say(*said) == "550 5.7.1"
            assert await client.say("RSET", "XCLIENT ADDR=127.0.0.1") == "220"
            assert await client.say(*said) == "250 2.1.5"

    run(scenario())


def test_sessions_of_whom_is_spoken_for_are_counted(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        trusted = {"xclient_hosts": LOOPBACK, "max_sessions_per_client": 2}
        async with submitting(certificate, "smtp", auth=True, **trusted) as server:
            for answer in ("220", "220", "421 4.7.0"):
                client = await server.greeted(ssl=trusting())
                assert await client.say("XCLIENT ADDR=198.51.100.7") == answer

    run(scenario())


def test_others_may_not(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with submitting(certificate, xclient_hosts=NOBODY) as server:
            client = await server.greeted(ssl=trusting())
            assert await client.say(f"XCLIENT ADDR=192.0.2.7 LOGIN={NAME}") == "550 5.7.0"
            assert await client.say("MAIL FROM:<>") == "530 5.7.0"

    run(scenario())


def test_threat_02_starttls_forgets_who_was_named(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        access = cast(Access, OneAccount())
        options = {"relay_networks": NOBODY, "xclient_hosts": LOOPBACK, "auth": True}
        async with serving(certificate, access=access, **options) as server:  # type: ignore[arg-type]
            client = await server.greeted()
            assert await client.say(f"XCLIENT LOGIN={NAME}", "EHLO a") == "250"
            assert server.session.account == NAME
            assert await client.say("STARTTLS") == "220 2.0.0"
            await client.writer.start_tls(trusting())
            await until(lambda: server.session._machine.tls)
            assert (server.session.account, server.session.may_relay) == ("", False)
            said = "EHLO a", "MAIL FROM:<>", "RCPT TO:<any@example.net>"
            assert await client.say(*said) == "550 5.7.1"

    run(scenario())
