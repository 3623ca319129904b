"""Fetch the mail servers that the benchmark runs beside fastmta, into .build/peers alone.

Exim and OpenSMTPD exclude each other and Postfix as packages of a Debian system, so their programs
are taken out of the packages and nothing is installed. Haraka comes by npm. Where one cannot be
had, that is said, and the benchmark says it again and goes on without it.

python tools/bench_peers.py
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PEERS = Path(__file__).parent.parent / ".build" / "peers"
DEBIAN = {"exim": ("exim4-daemon-light", "exim4"), "opensmtpd": ("opensmtpd", "smtpd")}
HARAKA = "Haraka@^3.1"
PATIENCE = 120  # seconds


def debian(name: str) -> str:
    """Take a package apart, and the libraries that this machine has not; why not, or ""."""
    package, program = DEBIAN[name]
    if (PEERS / name / "usr" / "sbin" / program).exists():
        return ""
    if not shutil.which("apt-get"):
        return "no apt-get"
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        subprocess.run(["chmod", "755", folder], check=True)  # apt downloads as another user
        command = ["apt-get", "download", package, *missing_libraries(package)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        packages = list(Path(folder).glob("*.deb"))
        if done.returncode or not packages:
            return done.stderr.strip().splitlines()[-1] if done.stderr else "not downloaded"
        for each in packages:
            subprocess.run(["dpkg", "-x", str(each), str(PEERS / name)], check=True)
    return ""


def missing_libraries(package: str) -> list[str]:
    depends = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True)
    libraries = re.findall(r"(?m)Depends: (lib\S+)", depends.stdout)
    return [name for name in libraries if not installed(name)]


def installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${Status}", package]
    return subprocess.run(query, capture_output=True, text=True).stdout.endswith(" installed")


def haraka() -> str:
    if (PEERS / "haraka" / "node_modules" / "Haraka").exists():
        return ""
    if not shutil.which("npm"):
        return "no npm"
    quiet = ["--no-audit", "--no-fund", "--omit=optional", "--loglevel=error"]
    command = ["npm", "install", "--prefix", str(PEERS / "haraka"), *quiet, HARAKA]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"npm has not answered for {PATIENCE} seconds"
    return f"npm: {done.stderr.strip()[-200:]}" if done.returncode else ""


def main() -> int:
    PEERS.mkdir(parents=True, exist_ok=True)
    reasons = {name: debian(name) for name in DEBIAN} | {"haraka": haraka()}
    for name, reason in reasons.items():
        print(f"{name}: {reason or 'there'}", flush=True)
    return 0  # the benchmark runs without


if __name__ == "__main__":
    sys.exit(main())
