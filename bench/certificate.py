"""A certificate for the peers under test, its own authority."""

import subprocess
from pathlib import Path
from typing import Literal, NamedTuple, get_args

Kind = Literal["p256", "rsa2048"]
KINDS = get_args(Kind)
_KEYS = {
    "p256": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "rsa2048": ("rsa:2048",),
}


class Certificate(NamedTuple):
    certificate: Path
    key: Path

    def make(self, kind: Kind = "p256") -> None:
        key = ["-newkey", *_KEYS[kind], "-nodes"]
        name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-out", str(self.certificate), "-keyout", str(self.key)]
        command = ["openssl", "req", "-x509", "-days", "2", *key, *name, *files]
        subprocess.run(command, check=True, capture_output=True)
        self.key.chmod(0o644)  # for a peer that has given up its privileges


def of(folder: Path) -> Certificate:
    """Where the certificate of a run is."""
    return Certificate(folder / "certificate.pem", folder / "key.pem")
