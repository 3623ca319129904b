"""A server that knows fixed places and users only, in a root folder of its own.

Some servers of Debian have `/var/spool/...` and the names of their users built in. Here they get
both without a change to the machine: a mount namespace (unshare(1)) in which the scratch folder is
the root, with the system's programs and libraries seen through bind mounts, and `etc` and `var`
of its own. The mounts end with the last process.
"""

import shutil
from pathlib import Path

SYSTEM = ("bin", "sbin", "usr", "lib", "lib64", "dev", "proc", "sys")
FIRST_ID = 60_801  # of users that the system does not have
PROGRAMS = "opt/peer"  # where those of the peer are


def prepare(root: Path, programs: Path, users: list[str]) -> None:
    """Make the folders, and users with these names; `programs` is what a .deb was taken apart to.

    Each user has a group of the same name and number.
    """
    for name in (*SYSTEM, PROGRAMS, "etc", "run", "tmp", "var/run", "var/spool", "var/empty"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    passwd = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
    group = "root:x:0:\nnogroup:x:65534:\nmail:x:8:\n"
    for number, name in enumerate(users, FIRST_ID):
        passwd += f"{name}:x:{number}:{number}::/var/empty:/bin/false\n"
        group += f"{name}:x:{number}:\n"
    (root / "etc/passwd").write_text(passwd)
    (root / "etc/group").write_text(group)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    (root / "etc/ld.so.conf").write_text(f"/{PROGRAMS}/usr/lib/x86_64-linux-gnu\n")
    (root / "mount").write_text(_script(root, programs))


def _script(root: Path, programs: Path) -> str:
    seen = [f"[ ! -e /{name} ] || mount --rbind /{name} '{root}/{name}'" for name in SYSTEM]
    seen.append(f"mount --bind '{programs}' '{root}/{PROGRAMS}'")
    return "\n".join(["set -e", *seen, f"ldconfig -r '{root}' || :", f'exec chroot "{root}" "$@"'])


def command(root: Path, *inside: str) -> list[str]:
    """Run a command there; paths are those inside."""
    return ["unshare", "--mount", "sh", str(root / "mount"), *inside]


def own(path: Path, user_number: int, mode: int) -> None:
    """`user_number`: its place in the list that `prepare` got."""
    path.mkdir(parents=True, exist_ok=True)
    shutil.chown(path, FIRST_ID + user_number)
    path.chmod(mode)
