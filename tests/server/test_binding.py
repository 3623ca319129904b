"""Channel bindings, as another hand makes them and over real connections."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from scramp.core import CBindData

from fastmta.server import binding
from tests.certificates import Certificate, make_certificate
from tests.support import run


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (("ec", "ec_paramgen_curve:P-256", "-sha256"), 32),
        (("ec", "ec_paramgen_curve:P-256", "-sha384"), 48),
        (("rsa", "rsa_keygen_bits:2048", "-sha1"), 32),
        (("rsa", "rsa_keygen_bits:2048", "-sha512"), 64),
    ],
)
def test_the_hash_of_a_certificate(tmp_path: Path, kind: tuple[str, str, str], size: int) -> None:
    file = tmp_path / "certificate.pem"
    make(file, "-newkey", kind[0], "-pkeyopt", *kind[1:])
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    der = ssl.PEM_cert_to_DER_cert(file.read_text())
    assert binding.end_point(certificate) == bytes(CBindData.from_der(der))
    assert len(binding.end_point(certificate)) == size


def make(file: Path, *key: str) -> None:
    command = ["openssl", "req", "-x509", "-days", "2", "-nodes", "-subj", "/CN=test"]
    subprocess.run(
        [*command, *key, "-keyout", file.parent / "key.pem", "-out", file],
        check=True,
        capture_output=True,
    )


def test_a_signature_without_a_hash_binds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "certificate.pem"
    make(file, "-newkey", "ed25519")
    assert binding.end_point(x509.load_pem_x509_certificate(file.read_bytes())) == b""


async def over(made: Certificate, version: ssl.TLSVersion) -> tuple[dict[str, bytes], bytes | None]:
    """What the server finds of a connection, and what the client has as "tls-unique"."""
    context = made.context
    binding.note(context, made.certificate)
    found: asyncio.Future[dict[str, bytes]] = asyncio.get_running_loop().create_future()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.set_result(binding.bindings(writer.transport))
        writer.close()

    client = ssl.create_default_context(cafile=made.certificate)
    client.maximum_version = version
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname="mx.test"
        )
        unique = writer.get_extra_info("ssl_object").get_channel_binding("tls-unique")
        here = await found
        writer.close()
        return here, unique


def test_what_both_sides_know(tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "DNS:mx.test")
    der = ssl.PEM_cert_to_DER_cert(made.certificate.read_text())
    data = {"tls-server-end-point": bytes(CBindData.from_der(der))}

    async def scenario() -> None:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        found, _ = await over(made, ssl.TLSVersion.TLSv1_3)
        assert found == {}
        found, unique = await over(made, ssl.TLSVersion.TLSv1_2)
        assert found == {**data, "tls-unique": unique}

    run(scenario())


def test_nothing_binds_in_the_clear() -> None:
    async def scenario() -> None:
        found: asyncio.Future[dict[str, bytes]] = asyncio.get_running_loop().create_future()

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(binding.bindings(writer.transport))
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await found == {}
            writer.close()

    run(scenario())
