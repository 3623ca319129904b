"""Who is in `fastmta demo`: accounts, with a welcome in each mailbox, and a certificate."""

import os
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fastmta.mail.compose import Body, Options, compose
from fastmta.store import passwords
from fastmta.store.accounts import Accounts
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.post import Drop, Post

DOMAIN = "demo.test"
PEOPLE = {f"alice@{DOMAIN}": "thirsty", f"bob@{DOMAIN}": "hungry"}  # name -> password

WELCOME = """\
Hello {name},

this mailbox is a folder of your machine, and so is everything that this demo
sends. Its commands are in the terminal in which you started it:

  - Write to the other one of alice and bob, and fetch it as you fetched this.
  - Write to permfail@example.test: the report that it failed comes back here.
  - Write to tempfail@example.test, and look into the queue why it waits.
  - End the demo with Ctrl-C and start it again: this message is still here.
"""
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


def make_accounts(folder: Path) -> None:
    """Those that are not there from another time."""
    with closing(Accounts(folder / "accounts")) as accounts:
        for name, password in PEOPLE.items():
            if accounts.get(name) is None:
                hashed, keys = passwords.hash_password(password), passwords.scram_keys(password)
                accounts.add(name, hashed, keys)


async def welcome(folder: Path) -> None:
    """Put a message into each mailbox that has never had one."""
    mailboxes = Mailboxes(folder / "mail" / "0", lambda account: 0)
    try:
        for name in PEOPLE:
            if (await mailboxes.open(name)).uidnext == 1:
                await mailboxes.append(_welcome(name))
    finally:
        await mailboxes.close()


def _welcome(name: str) -> Post:
    fields = [("From", f"fastmta demo <postmaster@{DOMAIN}>"), ("To", name)]
    fields.append(("Subject", "Welcome to fastmta"))
    content = compose(fields, Body(WELCOME.format(name=name)), Options(hostname=DOMAIN))
    return Post(b"", [content], len(content), time.time(), [Drop(name)])
