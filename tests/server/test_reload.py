"""An SMTP service that goes on with another configuration, and ports that close."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from bench.processes import free_port
from fastmta.config import Config, Endpoint, Listener, Smtp, Tls
from fastmta.server.smtp import SmtpService
from fastmta.server.tls import ServerTls
from tests.server.test_smtp import Client, Memory, make_certificate, trusting
from tests.support import run


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Tls]]:
    folder = tmp_path_factory.mktemp("tls")
    yield [make_certificate(folder, name) for name in ("one", "two")]


def configuration(tls: Tls | None = None, **modes: str) -> Config:
    """With a listener for each of these modes."""
    listeners = [
        Listener(service="smtp", bind=Endpoint("127.0.0.1", free_port()), tls=mode)
        for mode in modes.values()
    ]
    smtp = Smtp(max_recipients=3)
    return Config(
        hostname="one.test", data_dir=Path(), listener=tuple(listeners), tls=tls, smtp=smtp
    )


@asynccontextmanager
async def serving(config: Config) -> AsyncIterator[SmtpService]:
    service = SmtpService(config, Memory(), config.tls and ServerTls(config.tls))
    for listener in config.listener:
        await service.start(listener)
    try:
        yield service
    finally:
        await service.drain(0.0)


async def connect(config: Config, index: int = 0, **options: Any) -> Client:
    return Client(*await asyncio.open_connection(*config.listener[index].bind, **options))


async def greeted(config: Config) -> Client:
    client = await connect(config)
    assert await client.reply() == "220"
    assert await client.say("EHLO client.example.test") == "250"
    return client


def shown(client: Client) -> bytes:
    """The certificate that the server showed."""
    found: bytes = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return found


def der(tls: Tls) -> bytes:
    return ssl.PEM_cert_to_DER_cert(tls.certificate.read_text())


def test_new_handshakes_get_the_new_certificate_and_no_session_is_dropped(
    certificates: list[Tls],
) -> None:
    async def scenario() -> None:
        one, two = certificates
        before = configuration(one, plain="starttls", implicit="implicit")
        async with serving(before) as service:
            clients = [await connect(before, 1, ssl=trusting()), await greeted(before)]
            assert await clients[0].reply() == "220"
            assert await clients[1].say("STARTTLS") == "220 2.0.0"
            await clients[1].writer.start_tls(trusting())
            waiting = await greeted(before)
            assert [shown(client) for client in clients] == [der(one)] * 2
            assert await service.reload(structs.replace(before, tls=two), ServerTls(two)) == []
            later = await connect(before, 1, ssl=trusting())
            assert await later.reply() == "220"
            assert await waiting.say("STARTTLS") == "220 2.0.0"
            await waiting.writer.start_tls(trusting())
            assert [shown(later), shown(waiting)] == [der(two)] * 2
            for client in (*clients, later, waiting):
                assert await client.say("EHLO a", "NOOP") == "250 2.0.0"
                await client.close()

    run(scenario())


def test_starttls_that_was_offered_still_works_when_tls_is_gone(certificates: list[Tls]) -> None:
    async def scenario() -> None:
        before = configuration(certificates[0], plain="starttls")
        after = structs.replace(
            before, tls=None, listener=(structs.replace(before.listener[0], tls="none"),)
        )
        async with serving(before) as service:
            client = await greeted(before)
            assert await service.reload(after, None) == []
            assert await client.say("STARTTLS") == "220 2.0.0"
            await client.writer.start_tls(trusting())
            assert await client.say("EHLO a", "NOOP") == "250 2.0.0"
            other = await greeted(after)
            assert await other.say("STARTTLS") == "502 5.5.1"
            await client.close()
            await other.close()

    run(scenario())


def test_a_session_keeps_what_was_offered_but_not_the_right_to_relay() -> None:
    async def scenario() -> None:
        before = configuration(plain="none")
        stricter = structs.replace(before, hostname="two.test", smtp=Smtp(max_recipients=1))
        nobody = Smtp(relay_networks=(ip_network("192.0.2.0/24"),))
        async with serving(before) as service:
            client = await greeted(before)
            assert await client.say("MAIL FROM:<>", "RCPT TO:<a@b.test>") == "250 2.1.5"
            await service.reload(stricter, None)
            assert await client.say("RCPT TO:<c@b.test>", "RCPT TO:<d@b.test>") == "250 2.1.5"
            other = await greeted(before)
            said = await other.say("MAIL FROM:<>", "RCPT TO:<a@b.test>", "RCPT TO:<c@b.test>")
            assert said == "452 4.5.3"
            await service.reload(structs.replace(before, smtp=nobody), None)
            assert await client.say("RSET", "MAIL FROM:<>", "RCPT TO:<a@b.test>") == "550 5.7.1"
            await client.close()
            await other.close()

    run(scenario())


def test_listeners_come_and_go_and_the_others_are_not_touched() -> None:
    async def scenario() -> None:
        before = configuration(one="none", two="none")
        third = configuration(three="none").listener[0]
        after = structs.replace(before, listener=(before.listener[0], third))
        async with serving(before) as service:
            port = service._ports[before.listener[0].bind]
            server = port._server
            client = await connect(before, 1)
            assert await client.reply() == "220"
            assert await service.reload(after, None) == []
            assert service._ports.keys() == {each.bind for each in after.listener}
            assert port._server is server
            assert await client.say("EHLO a", "NOOP") == "250 2.0.0"
            with pytest.raises(ConnectionRefusedError):
                await connect(before, 1)
            other = await greeted(structs.replace(after, listener=after.listener[1:]))
            await client.close()
            await other.close()

    run(scenario())


def test_a_listener_that_cannot_be_had_is_named_and_the_others_are_there() -> None:
    async def scenario() -> None:
        before, more = configuration(one="none"), configuration(two="none")
        with socket.create_server(more.listener[0].bind) as taken:
            assert taken
            async with serving(before) as service:
                after = structs.replace(before, listener=(*more.listener, *before.listener))
                assert await service.reload(after, None) == [
                    f"cannot listen on {more.listener[0].bind}: Address already in use"
                ]
                await (await greeted(before)).close()

    run(scenario())


def test_who_waits_in_the_queue_of_a_port_that_closes_is_served() -> None:
    async def scenario() -> None:
        before = configuration(one="none", two="none")
        after = structs.replace(before, listener=before.listener[1:])
        async with serving(before) as service:
            # The loop has no turn between these: the kernel alone has accepted them.
            waiting = [socket.create_connection(before.listener[0].bind) for _ in range(50)]
            assert await service.reload(after, None) == []
            for each in waiting:
                each.setblocking(False)
                client = Client(*await asyncio.open_connection(sock=each))
                assert await client.reply() == "220"
                await client.close()

    run(scenario())


def test_whose_mail_is_taken_counts_at_once_also_in_sessions_under_way() -> None:
    async def scenario() -> None:
        config = structs.replace(configuration(a="none"), smtp=Smtp(relay_networks=()))
        async with serving(config) as service:
            client = await greeted(config)
            assert await client.say("MAIL FROM:<>") == "250 2.1.0"
            assert await client.say("RCPT TO:<bob@a.test>") == "550 5.7.1"
            service.vet = lambda address, may_relay, arrival: b""
            await service.reload(config, None)
            assert await client.say("RCPT TO:<bob@a.test>") == "250 2.1.5"
            service.vet = None
            await service.reload(config, None)
            assert await client.say("RCPT TO:<bob@a.test>") == "550 5.7.1"
            await client.close()

    run(scenario())
