"""Real POP3 clients, each as a function that fetches a maildrop the way its users do.

Each gives the messages in their order. Programs that write files of Unix lines are asked for
those, and their lines are given their CRLF back; what else they do to a message is undone here.
"""

import json
import mailbox
import os
import poplib
import pty
import re
import select
import ssl
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from tests.integration.clients import HOST
from tests.integration.servers import LIMIT, program

NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"  # where `make test` has put them


class Maildrop(Struct):
    """Where a client finds somebody's mail; `folder` is the client's to write in."""

    pop3: int  # a port that offers STLS
    pop3s: int  # a port with TLS from the start
    certificate: Path
    name: str
    password: str
    folder: Path

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certificate)


class Fetcher(Protocol):
    __name__: str

    def __call__(self, drop: Maildrop, *, keep: bool) -> list[bytes]:
        """All messages; without `keep` they are deleted."""


def _run(command: list[str], **options: object) -> bytes:
    command = [program(command[0]), *command[1:]]
    environment = {**os.environ, "HOME": options.pop("home", "/nonexistent"), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, timeout=LIMIT, env=environment)  # type: ignore[arg-type]
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def _crlf(message: bytes) -> bytes:
    return message.replace(b"\n", b"\r\n")


def _files(folder: Path) -> list[bytes]:
    """What was written one after the other, by the time and the names of the files."""
    return [_crlf(path.read_bytes()) for path in sorted(folder.iterdir(), key=_number)]


def _number(path: Path) -> list[int]:
    return list(map(int, re.findall(r"\d+", path.name)))


def _maildir(folder: Path) -> Path:
    for name in ("new", "cur", "tmp"):
        (folder / name).mkdir(parents=True)
    return folder


# Programs.


def curl(drop: Maildrop, *, keep: bool) -> list[bytes]:
    """A message at a time, as scripts do."""
    return _curl(drop, f"pop3s://{HOST}:{drop.pop3s}", keep)


def curl_stls(drop: Maildrop, *, keep: bool) -> list[bytes]:
    return _curl(drop, f"pop3://{HOST}:{drop.pop3}", keep, "--ssl-reqd")


def _curl(drop: Maildrop, url: str, keep: bool, *options: str) -> list[bytes]:
    who = ["--user", f"{drop.name}:{drop.password}", "--cacert", str(drop.certificate)]
    command = ["curl", "--silent", "--show-error", *options, *who]
    numbers = [int(line.split()[0]) for line in _run([*command, f"{url}/"]).splitlines()]
    messages = [_run([*command, f"{url}/{number}"]) for number in numbers]
    for number in [] if keep else reversed(numbers):
        _run([*command, "--head", "--request", "DELE", f"{url}/{number}"])
    return messages


def _mpop(drop: Maildrop, keep: bool, *options: str) -> list[bytes]:
    folder = _maildir(drop.folder / "mpop")
    where = ["--file=/dev/null", f"--host={HOST}", f"--tls-trust-file={drop.certificate}"]
    who = [f"--user={drop.name}", f"--passwordeval=echo '{drop.password}'", "--tls=on"]
    what = [f"--delivery=maildir,{folder}", "--received-header=off", "--half-quiet"]
    uids = f"--uidls-file={drop.folder / 'uids'}"
    kept = "on" if keep else "off"
    _run(["mpop", *where, *who, *what, *options, uids, f"--keep={kept}"])
    found = [path.read_bytes() for path in sorted((folder / "new").iterdir(), key=_number)]
    return [_crlf(message) for message in found]


def mpop(drop: Maildrop, *, keep: bool) -> list[bytes]:
    """It pipelines, and takes the best mechanism."""
    return _mpop(drop, keep, f"--port={drop.pop3s}", "--tls-starttls=off", "--auth=on")


def mpop_stls(drop: Maildrop, *, keep: bool) -> list[bytes]:
    return _mpop(drop, keep, f"--port={drop.pop3}", "--tls-starttls=on", "--auth=user")


_FETCHMAIL = """
set no syslog
set invisible
poll {host} protocol pop3 port {port} {uidl}
  user "{name}" password "{password}" {tls} sslcertck sslcertfile "{certificate}"
  sslcommonname "localhost"
  {keep} fetchall no rewrite no mimedecode
  mda "sh -c 'cat > {folder}/$(ls {folder} | wc -l)'"
"""


def _fetchmail(drop: Maildrop, keep: bool, port: int, tls: str) -> list[bytes]:
    home = drop.folder / "fetchmail"
    folder = home / "mail"
    folder.mkdir(parents=True)
    control = home / "control"
    control.write_text(
        _FETCHMAIL.format(
            host=HOST,
            port=port,
            uidl="uidl" if keep else "",
            name=drop.name,
            password=drop.password,
            tls=tls,
            certificate=drop.certificate,
            keep="keep" if keep else "nokeep",
            folder=folder,
        )
    )
    control.chmod(0o600)
    files = ["--pidfile", str(home / "pid"), "--idfile", str(home / "ids")]
    _run(["fetchmail", "--fetchmailrc", str(control), *files, "--silent"], home=str(home))
    return _files(folder)


def fetchmail(drop: Maildrop, *, keep: bool) -> list[bytes]:
    return _fetchmail(drop, keep, drop.pop3s, "ssl")


def fetchmail_stls(drop: Maildrop, *, keep: bool) -> list[bytes]:
    return _fetchmail(drop, keep, drop.pop3, 'sslproto "TLS1.2+"')


_GETMAIL = """
[retriever]
type = SimplePOP3SSLRetriever
server = {host}
port = {port}
username = {name}
password = {password}
ca_certs = {certificate}
[destination]
type = MDA_external
path = /bin/sh
arguments = ("-c", "cat > {folder}/$(ls {folder} | wc -l)")
allow_root_commands = true
[options]
delete = {delete}
delivered_to = false
received = false
verbose = 0
"""


def getmail(drop: Maildrop, *, keep: bool) -> list[bytes]:
    """It puts in front what it knows of the sender: nothing."""
    home = drop.folder / "getmail"
    folder = home / "mail"
    folder.mkdir(parents=True)
    (home / "rc").write_text(
        _GETMAIL.format(
            host=HOST,
            port=drop.pop3s,
            name=drop.name,
            password=drop.password,
            certificate=drop.certificate,
            folder=folder,
            delete=str(not keep).lower(),
        )
    )
    _run(["getmail", f"--getmaildir={home}", "--rcfile=rc"], home=str(home))
    return [message.removeprefix(b"Return-Path: <unknown>\r\n") for message in _files(folder)]


# A mail reader at a terminal.

_MUTT = """
set folder = "{folder}"
set pop_user = "{name}"
set pop_pass = "{password}"
set ssl_ca_certificates_file = "{certificate}"
set certificate_file = "{certificate}"
set ssl_verify_host = no
set pop_delete = {delete}
set pop_last = no
set spoolfile = "{folder}/mutt.mbox"
set mbox_type = mbox
set quit = yes
set delete = yes
set confirmappend = no
set move = no
push "{keys}"
"""


def mutt(drop: Maildrop, *, keep: bool) -> list[bytes]:
    """Opens the maildrop, copies or saves all that is there into an mbox, and leaves."""
    mbox = drop.folder / "mutt.mbox"
    mbox.touch()
    what = "<tag-prefix><copy-message>" if keep else "<tag-prefix><save-message>"
    keys = f"<tag-pattern>~A<enter>{what}{mbox}<enter><sync-mailbox><quit>"
    control = drop.folder / "muttrc"
    control.write_text(
        _MUTT.format(
            folder=drop.folder,
            name=drop.name,
            password=drop.password,
            certificate=drop.certificate,
            delete="no" if keep else "yes",
            keys=keys,
        )
    )
    _at_terminal(["mutt", "-n", "-F", str(control), "-f", f"pops://{HOST}:{drop.pop3s}"])
    with closing(mailbox.mbox(mbox)) as found:
        return [_crlf(_without_status(found.get_bytes(key))) for key in found.keys()]  # noqa: SIM118


def _without_status(message: bytes) -> bytes:
    """Readers of mboxes note there what they need to know."""
    head, empty, body = message.partition(b"\n\n")
    lines = re.sub(rb"(?mi)^(Status|Content-Length|Lines|X-Status): .*\n", b"", head + b"\n")
    return lines + empty[1:] + re.sub(rb"(?m)^>(>*From )", rb"\1", body)


def _at_terminal(command: list[str]) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "LINES": "24", "COLUMNS": "80"}
    process = subprocess.Popen(
        [program(command[0]), *command[1:]],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    screen, deadline = b"", time.monotonic() + LIMIT
    try:
        while select.select([ours], [], [], deadline - time.monotonic())[0]:
            screen = (screen + os.read(ours, 1 << 16))[-10_000:]
    except OSError:
        pass  # EIO: the program has left
    finally:
        os.close(ours)
        process.kill()
    assert process.wait(LIMIT) == 0, screen


# Libraries.


def python_poplib(drop: Maildrop, *, keep: bool) -> list[bytes]:
    with_tls = poplib.POP3_SSL(HOST, drop.pop3s, context=drop.context, timeout=LIMIT)
    return _poplib(with_tls, drop, keep)


def python_poplib_stls(drop: Maildrop, *, keep: bool) -> list[bytes]:
    client = poplib.POP3(HOST, drop.pop3, timeout=LIMIT)
    client.stls(drop.context)
    return _poplib(client, drop, keep)


def _poplib(client: poplib.POP3, drop: Maildrop, keep: bool) -> list[bytes]:
    client.user(drop.name)
    client.pass_(drop.password)
    messages = []
    for i in range(1, len(client.list()[1]) + 1):
        messages.append(b"".join(line + b"\r\n" for line in client.retr(i)[1]))
        if not keep:
            client.dele(i)
    client.quit()
    return messages


_NODE = """
const Pop3Command = require('node-pop3'), { writeFileSync } = require('fs');
const { options, keep, folder } = JSON.parse(process.argv[1]);
(async () => {
  const client = new Pop3Command(options);
  for (const [number] of await client.UIDL()) {
    writeFileSync(`${folder}/${number}`, await client.RETR(number));
    if (!keep) await client.DELE(number);
  }
  await client.QUIT();
})().catch(error => { console.error(error); process.exitCode = 1; });
"""


def _node_pop3(drop: Maildrop, keep: bool, **options: object) -> list[bytes]:
    """It gives text without its last line end, and leaves the dots to who asked."""
    folder = drop.folder / "node"
    folder.mkdir()
    options = {"user": drop.name, "password": drop.password, "host": HOST, **options}
    argument = json.dumps({"options": options, "keep": keep, "folder": str(folder)})
    done = subprocess.run(
        [program("node"), "-e", _NODE, argument],
        env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
        capture_output=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = [path.read_bytes() for path in sorted(folder.iterdir(), key=_number)]
    return [re.sub(rb"(?m)^\.\.", b".", text.removesuffix(b"\r\n") + b"\r\n") for text in found]


def node_pop3_tls(drop: Maildrop, *, keep: bool) -> list[bytes]:
    trust = {"ca": drop.certificate.read_text()}
    return _node_pop3(drop, keep, port=drop.pop3s, tls=True, tlsOptions=trust)


def node_pop3(drop: Maildrop, *, keep: bool) -> list[bytes]:
    """In the clear, where that is allowed."""
    return _node_pop3(drop, keep, port=drop.pop3)


ALL: list[Fetcher] = [
    *(curl, curl_stls, mpop, mpop_stls, fetchmail, fetchmail_stls, getmail, mutt),
    *(python_poplib, python_poplib_stls, node_pop3, node_pop3_tls),
]
# It copies all that it has for each record of TLS: gigabytes.
LARGE = [client for client in ALL if client is not node_pop3_tls]
