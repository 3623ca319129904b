"""Dovecot from Debian as a POP3 server, in a folder and on a port of its own.

Set as its documentation advises for speed, each line with its reason; passwords are compared in
the clear and the comparison is cached, which is no more than fastmta does for a password that it
remembers. Mailboxes are in mdbox, its own format "for high performance": many messages in a file,
out of which what was deleted is only taken by `doveadm purge`, which is not measured. An instance
of the system is not touched.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from grp import getgrgid
from pathlib import Path
from pwd import getpwnam

from bench import processes
from bench.pop3_load import PASSWORD, Maildrops, head_of

PROGRAM = shutil.which("dovecot", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
OWNER = "nobody"
MDBOX = "mdbox:~/mdbox"

CONFIGURATION = """
base_dir = {folder}/base
state_dir = {folder}/base
log_path = {folder}/log
protocols = pop3
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no

# All its processes and mail belong to one user that every system has.
default_internal_user = {owner}
default_login_user = {owner}
default_internal_group = {group}
first_valid_uid = 1
mail_uid = {owner}
mail_gid = {group}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}

passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = home={folder}/mail/%n
}}
auth_cache_size = 10M

# "High-performance mode" of login processes, one for each core; and processes for sessions that
# are there before they are needed and serve one session after another.
service pop3-login {{
  chroot =
  service_count = 0
  process_min_avail = {workers}
  client_limit = 1000
  inet_listener pop3 {{
    port = {port}
  }}
}}
service pop3 {{
  process_min_avail = {clients}
  process_limit = 200
  service_count = 1000
}}

mail_location = {location}
maildir_very_dirty_syncs = yes   # nobody else changes them
pop3_no_flag_updates = yes       # what was fetched need not be marked as seen
pop3_fast_size_lookups = yes     # sizes as the file names have them
"""


def missing() -> str:
    if not PROGRAM or not Path("/usr/lib/dovecot/pop3").exists():
        return "no dovecot with pop3: install Debian's dovecot-pop3d"
    return "" if os.geteuid() == 0 else "Dovecot's master must be started by root"


def version() -> str:
    assert PROGRAM
    shown = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    return f"Dovecot {shown.stdout.split()[0]}"


def fill(folder: Path, maildrops: Maildrops) -> None:
    fill_maildirs(folder, maildrops)
    owner = (f"mail_uid={OWNER}", f"mail_gid={_group()}", "first_valid_uid=1")
    settings = [f"-o{each}" for each in (f"mail_location={MDBOX}", "mail_fsync=never", *owner)]
    for home in (folder / "mail").iterdir():
        source = f"maildir:{home}/Maildir"
        command = ["doveadm", "-c", "/dev/null", *settings, "import", source, "", "all"]
        subprocess.run(command, check=True, env={**os.environ, "HOME": str(home), "USER": OWNER})
        shutil.rmtree(home / "Maildir")


def fill_maildirs(folder: Path, maildrops: Maildrops) -> None:
    """As its own delivery fills them: lines end with LF, and names tell the sizes.

    S is the size of the file, W that with CRLF.
    """
    body = maildrops.body()
    for account in maildrops.accounts:
        maildir = folder / "mail" / account.partition("@")[0] / "Maildir"
        for name in ("cur", "new", "tmp"):
            (maildir / name).mkdir(parents=True)
        for number in maildrops.numbers:
            content = head_of(account.encode(), number) + body
            stored = content.replace(b"\r\n", b"\n")
            name = f"{1_700_000_000 + number}.M1P1.bench,S={len(stored)},W={len(content)}:2,"
            (maildir / "cur" / name).write_bytes(stored)
    subprocess.run(["chown", "-R", OWNER, str(folder / "mail")], check=True)


def _group() -> str:
    return getgrgid(getpwnam(OWNER).pw_gid).gr_name


@contextmanager
def running(
    folder: Path, maildrops: Maildrops, port: int, workers: int, location: str = MDBOX
) -> Iterator[int]:
    assert PROGRAM
    text = CONFIGURATION.format(
        folder=folder,
        location=location,
        owner=OWNER,
        group=_group(),
        password=PASSWORD,
        port=port,
        workers=workers,
        clients=maildrops.clients,
    )
    configuration = folder / "dovecot.conf"
    configuration.write_text(text)
    with processes.running([PROGRAM, "-F", "-c", str(configuration)], folder / "output") as process:
        processes.greets(port, process, b"+OK")
        yield process.pid
