"""Certificates for the tests: each its own authority."""

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    certificate: Path
    key: Path

    @property
    def context(self) -> ssl.SSLContext:
        """For a server that shows it."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self)
        return context


def make_certificate(folder: Path, *names: str, days: int = 2) -> Certificate:
    """For these names, as in "DNS:mx.test" and "IP:127.0.0.1"; whoever trusts it trusts itself.

    With days = 0 it has expired as soon as a second is over.
    """
    folder.mkdir(exist_ok=True)
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", made.key]
    name = ["-subj", "/CN=test"]
    if names:
        name += ["-addext", f"subjectAltName={','.join(names)}"]
    command = ["openssl", "req", "-x509", "-days", str(days), *key, *name, "-out", made.certificate]
    subprocess.run(command, check=True, capture_output=True)
    return made
