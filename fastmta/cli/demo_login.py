"""What `fastmta demo` needs so that one can log in: a certificate, and an account."""

import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fastmta.store import passwords
from fastmta.store.accounts import Accounts

_DAYS = 30


def make_certificate(folder: Path) -> None:
    """For 127.0.0.1 and by itself, so that a client who is given it can verify it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fastmta demo")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(here, critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    kept = folder / "key.pem"
    with open(kept, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def make_account(folder: Path, name: str, password: str) -> None:
    """One that may log in, unless it is there from another time."""
    with closing(Accounts(folder / "accounts")) as accounts:
        if accounts.get(name) is None:
            accounts.add(name, passwords.hash_password(password), passwords.scram_keys(password))
