"""The key that the peers under test sign with, and how fast it could be done at best."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from bench.peers import Dkim


class Signing(NamedTuple):
    domain: str  # of the load's From field
    selector: str
    private: Path

    def make(self, kind: Dkim) -> None:
        options = {"rsa2048": ["rsa", "-pkeyopt", "rsa_keygen_bits:2048"], "ed25519": ["ed25519"]}
        command = ["openssl", "genpkey", "-out", str(self.private), "-algorithm", *options[kind]]
        subprocess.run(command, check=True, capture_output=True)
        self.private.chmod(0o644)  # for a peer that has given up its privileges


def of(folder: Path) -> Signing:
    """Where the key of a run is."""
    return Signing("client.example.test", "s1", folder / "dkim.pem")


def speed(kind: Dkim, seconds: int = 2) -> float:
    """Signatures a second that openssl makes on one core."""
    command = ["openssl", "speed", "-seconds", str(seconds), kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"([\d.]+)\s+[\d.]+\s*$", done.stdout)
    assert found, done.stdout
    return float(found[1])
