"""Certificates for the tests: each its own authority."""

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)


class Certificate(NamedTuple):
    certificate: Path
    key: Path

    @property
    def context(self) -> ssl.SSLContext:
        """For a server that shows it."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self)
        return context


def expire(certificate: Certificate) -> Certificate:
    """The same, but its time has been over since yesterday."""
    again = ["openssl", "x509", "-in", certificate.certificate, "-signkey", certificate.key]
    command = [*again, "-days", "-1", "-out", certificate.certificate]
    subprocess.run(command, check=True, capture_output=True)
    return certificate


def make_certificate(folder: Path, *names: str) -> Certificate:
    """For these names, as in "DNS:mx.test" and "IP:127.0.0.1"; whoever trusts it trusts itself."""
    folder.mkdir(exist_ok=True)
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", made.key]
    name = ["-subj", "/CN=test"]
    if names:
        name += ["-addext", f"subjectAltName={','.join(names)}"]
    command = ["openssl", "req", "-x509", "-days", "2", *key, *name, "-out", made.certificate]
    subprocess.run(command, check=True, capture_output=True)
    return made


def make_expired(folder: Path, days: int) -> Certificate:
    """One that ended so many days ago; `openssl req` makes none of these."""
    folder.mkdir(exist_ok=True)
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    ended = datetime.now(UTC) - timedelta(days)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(ended - timedelta(90)).not_valid_after(ended)
    made.certificate.write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    made.key.write_bytes(text)
    return made
