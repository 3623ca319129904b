"""Install the Debian packages that a step needs; without root, say which are missing.

python tools/system_packages.py build    a C compiler, Python's headers and its venv
python tools/system_packages.py test     the real peers that the tests talk to
python tools/system_packages.py bench    the peers of the benchmark that do not exclude each other
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

# program that must be on the path, or file -> Debian package that brings it
NEEDS = {
    "build": {"cc": "gcc"},
    "test": {
        "smtp-source": "postfix",
        "smtp-sink": "postfix",
        "swaks": "swaks",
        "msmtp": "msmtp",
        "curl": "curl",
        "openssl": "openssl",
        "nc": "netcat-openbsd",
        "dnsmasq": "dnsmasq-base",
        "lmtp": "dovecot-lmtpd",
        "/usr/lib/dovecot/pop3": "dovecot-pop3d",
        "strace": "strace",
        "faketime": "faketime",
        "mkfs.ext4": "e2fsprogs",
        "/usr/share/doc/libnet-ssleay-perl": "libnet-ssleay-perl",  # swaks over TLS
        "node": "nodejs",
        "/usr/share/nodejs/nodemailer": "node-nodemailer",
        "npm": "npm",  # other builds of Node.js have it always
        "mpop": "mpop",
        "fetchmail": "fetchmail",
        "getmail": "getmail6",
        "mutt": "mutt",
        "haproxy": "haproxy",
        "opendkim": "opendkim",
        "opendkim-testkey": "opendkim-tools",
        "promtool": "prometheus",
    },
    "bench": {
        "smtp-source": "postfix",
        "opendkim": "opendkim",
        "strace": "strace",
        "unshare": "util-linux",
        "openssl": "openssl",
        "node": "nodejs",
        "npm": "npm",
    },
}
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/lib/dovecot"])


def missing(step: str) -> list[str]:
    packages = {
        package
        for program, package in NEEDS[step].items()
        if not (Path(program).exists() or shutil.which(program, path=SEARCH))
    }
    return sorted(packages | (missing_of_python() if step == "build" else set()))


def missing_of_python() -> set[str]:
    """Debian packages these parts of Python apart; other builds of it have them always."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = set()
    if not find_spec("ensurepip"):
        packages.add(f"{python}-venv")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        packages.add(f"{python}-dev")
    return packages


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in NEEDS:
        print(__doc__, file=sys.stderr)
        return 2
    packages = missing(sys.argv[1])
    if not packages:
        return 0
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print(f"missing programs; install them with: sudo {' '.join(command)}", file=sys.stderr)
        return 1
    print(f"installing {' '.join(packages)}", flush=True)
    # Services must not start by themselves: the tests run their own, on their own ports.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run(["apt-get", "update"], check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    left = missing(sys.argv[1])
    if left:
        print(f"still missing after installation: {' '.join(left)}", file=sys.stderr)
    return bool(left)


if __name__ == "__main__":
    sys.exit(main())
