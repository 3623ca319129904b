"""Postfix from Debian, delivering into Maildirs, in a folder and on a port of its own.

virtual(8) writes each message into a file and fsyncs it before it says "sent" (mail_copy.c), as
its queue file was before the 250. Left at their defaults are all settings but those that are named
here, each with its reason.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pwd import getpwnam

from bench.peers import postfix

missing, version = postfix.missing, postfix.version

LOG, DELIVERED = "maillog", b"status=sent (delivered to maildir)"
OWNER = "nobody"

MAIN = """
virtual_mailbox_domains = example.test
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = texthash:{folder}/mailboxes
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}

# One recipient at a time, so that the limit of 20 is for each mailbox and not for the domain: as
# many deliveries at once as there are processes (100).
virtual_destination_recipient_limit = 1
# Take mail as fast as it comes, also where its delivery is slower.
in_flow_delay = 0
"""
SERVICES = """
virtual   unix  - n n - - virtual
"""


@contextmanager
def running(folder: Path, users: list[str], port: int, workers: int) -> Iterator[int]:
    """`workers` has no meaning here."""
    owner = getpwnam(OWNER)
    (folder / "mail").mkdir()
    shutil.chown(folder / "mail", owner.pw_uid, owner.pw_gid)
    (folder / "mailboxes").write_text("".join(f"{u}@example.test {u}/\n" for u in users))
    main = MAIN.format(folder=folder, uid=owner.pw_uid, gid=owner.pw_gid)
    with postfix.started(folder, port, main, SERVICES) as root:
        yield root


def mailboxes(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Each message with whose it is, in CRLF form."""
    for path in folder.glob("mail/*/new/*"):
        yield path.parent.parent.name, path.read_bytes().replace(b"\n", b"\r\n")
