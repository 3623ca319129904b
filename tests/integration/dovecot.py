"""Debian's Dovecot as an LMTP server, in a folder of its own."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from grp import getgrgid
from pathlib import Path
from pwd import getpwnam

from bench.processes import free_port
from tests.certificates import Certificate
from tests.integration.servers import LIMIT, program, wait_until

# Whose mailboxes there are, and what fits into one.
USERS = """
bob@lists.test:::::{folder}/mail/bob::
carol@lists.test:::::{folder}/mail/carol::
full@lists.test:::::{folder}/mail/full::userdb_quota_rule=*:bytes=10B
"""

CONFIGURATION = """
base_dir = {folder}/base
state_dir = {folder}/base
log_path = {folder}/log
protocols = lmtp
listen = 127.0.0.1
hostname = relay.example.test
default_internal_user = {user}
default_login_user = {user}
default_internal_group = {group}
first_valid_uid = 1
mail_uid = {user}
mail_gid = {group}
mail_location = maildir:{folder}/mail/%n
mail_plugins = quota
plugin {{
  quota = count:User quota
  quota_vsizes = yes
}}
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
service lmtp {{
  inet_listener lmtp {{
    port = {port}
  }}
  unix_listener lmtp {{
    mode = 0666
  }}
}}
{tls}
"""


class Dovecot:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.tcp, self.unix = f"127.0.0.1:{port}", f"unix:{folder}/base/lmtp"

    def mail(self, user: str) -> list[bytes]:
        """What lies in a mailbox."""
        return [path.read_bytes() for path in (self.folder / "mail" / user / "new").glob("*")]


@contextmanager
def dovecot(certificate: Certificate | None = None) -> Iterator[Dovecot]:
    # Not pytest's folder: Dovecot gives up its privileges, and could not enter it.
    folder = Path(tempfile.mkdtemp(prefix="dovecot-"))
    folder.chmod(0o755)
    running = Dovecot(folder, free_port())
    process = subprocess.Popen([program("dovecot"), "-F", "-c", _configured(running, certificate)])
    try:
        for address in (running.tcp, running.unix):
            wait_until(lambda it=address: _greets(it), lambda: process.poll() is None)  # type: ignore[misc]
        yield running
    finally:
        process.terminate()
        process.wait(LIMIT)
        if (folder / "log").exists():
            print((folder / "log").read_text())  # shown where a test fails
        shutil.rmtree(folder)


def _configured(running: Dovecot, certificate: Certificate | None) -> Path:
    folder = running.folder
    user = "nobody" if os.geteuid() == 0 else getpass.getuser()
    entry = getpwnam(user)
    mail = folder / "mail"
    mail.mkdir()
    os.chown(mail, entry.pw_uid, entry.pw_gid)
    (folder / "users").write_text(USERS.format(folder=folder))
    files = certificate and f"ssl_cert = <{certificate.certificate}\nssl_key = <{certificate.key}"
    text = CONFIGURATION.format(
        folder=folder,
        user=user,
        group=getgrgid(entry.pw_gid).gr_name,
        port=running.tcp.rpartition(":")[2],
        tls=f"ssl = yes\n{files}" if files else "ssl = no",
    )
    (folder / "dovecot.conf").write_text(text)
    return folder / "dovecot.conf"


def _greets(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        if host == "unix":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(LIMIT)
                sock.connect(port)
                return sock.recv(100).startswith(b"220")
        with socket.create_connection((host, int(port)), LIMIT) as sock:
            return sock.recv(100).startswith(b"220")
    except OSError:
        return False
