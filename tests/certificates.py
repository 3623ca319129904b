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


def expire(certificate: Certificate) -> Certificate:
    """The same, but its time has been over since yesterday."""
    again = ["openssl", "x509", "-in", certificate.certificate, "-signkey", certificate.key]
    command = [*again, "-days", "-1", "-out", certificate.certificate]
    subprocess.run(command, check=True, capture_output=True)
    return certificate


def make_certificate(folder: Path, *names: str) -> Certificate:
    """For these names, as in "DNS:mx.test" and "IP:127.0.0.1"; whoever trusts it trusts itself."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", made.key]
    name = ["-subj", "/CN=test", "-addext", f"subjectAltName={','.join(names)}"]
    command = ["openssl", "req", "-x509", "-days", "2", *key, *name, "-out", made.certificate]
    subprocess.run(command, check=True, capture_output=True)
    return made
