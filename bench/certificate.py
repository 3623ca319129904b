"""A certificate for the peers under test: P-256, its own authority."""

import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    certificate: Path
    key: Path

    def make(self) -> None:
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-out", str(self.certificate), "-keyout", str(self.key)]
        command = ["openssl", "req", "-x509", "-days", "2", *kind, *name, *files]
        subprocess.run(command, check=True, capture_output=True)
        self.key.chmod(0o644)  # for a peer that has given up its privileges


def of(folder: Path) -> Certificate:
    """Where the certificate of a run is."""
    return Certificate(folder / "certificate.pem", folder / "key.pem")
