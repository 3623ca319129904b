"""Real clients, each as a function that sends one message the way its users do."""

import asyncio
import gc
import os
import re
import smtplib
import ssl
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import aiosmtplib
from msgspec import Struct

from tests.integration.servers import LIMIT, program

HOST = "127.0.0.1"


class Server(Struct):
    """Where a client finds the relay."""

    smtp: int  # a port that offers STARTTLS
    smtps: int  # a port with TLS from the start
    certificate: Path


class Post(Struct):
    """One message to send; `folder` is the client's to write in."""

    sender: str
    recipient: str
    content: bytes  # lines end in CRLF
    folder: Path

    @property
    def is_ascii(self) -> bool:
        return (self.sender + self.recipient).isascii()

    @property
    def parameters(self) -> list[str]:
        """What a client that knows its RFCs says behind MAIL FROM."""
        eight_bit = [] if self.content.isascii() else ["BODY=8BITMIME"]
        return eight_bit if self.is_ascii else ["BODY=8BITMIME", "SMTPUTF8"]

    def file(self, *, crlf: bool) -> Path:
        path = self.folder / "message"
        path.write_bytes(self.content if crlf else self.content.replace(b"\r\n", b"\n"))
        return path


class Client(Protocol):
    __name__: str

    def __call__(self, server: Server, post: Post) -> None: ...


def _run(command: list[str], stdin: Path | None = None) -> None:
    command = [program(command[0]), *command[1:]]
    with (stdin or Path(os.devnull)).open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, timeout=LIMIT)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])


def _context(server: Server) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=server.certificate)


# Programs that people script with.


def swaks(server: Server, post: Post) -> None:
    where = ["--server", HOST, "--port", str(server.smtp), "--helo", "client.example.test"]
    addresses = ["--from", post.sender, "--to", post.recipient]
    # It takes a last dot away and puts "CRLF." behind whatever is left.
    with post.file(crlf=True).open("ab") as file:
        file.write(b".\r\n")
    _run(["swaks", *where, *addresses, "--data", f"@{file.name}"])


def _msmtp(server: Server, post: Post, *tls: str, port: int) -> None:
    where = ["--file=/dev/null", f"--host={HOST}", f"--port={port}", *tls]
    command = ["msmtp", *where, f"--from={post.sender}", "--", post.recipient]
    _run(command, post.file(crlf=False))


def msmtp(server: Server, post: Post) -> None:
    _msmtp(server, post, "--tls=off", port=server.smtp)


def msmtp_starttls(server: Server, post: Post) -> None:
    trust = f"--tls-trust-file={server.certificate}"
    _msmtp(server, post, "--tls=on", "--tls-starttls=on", trust, port=server.smtp)


def msmtp_tls(server: Server, post: Post) -> None:
    trust = f"--tls-trust-file={server.certificate}"
    _msmtp(server, post, "--tls=on", "--tls-starttls=off", trust, port=server.smtps)


def _curl(server: Server, post: Post, url: str, *tls: str) -> None:
    addresses = ["--mail-from", post.sender, "--mail-rcpt", post.recipient]
    upload = ["--upload-file", str(post.file(crlf=True))]
    command = ["curl", "--silent", "--show-error", *tls, *addresses, *upload]
    _run([*command, f"{url}/client.example.test"])


def curl(server: Server, post: Post) -> None:
    _curl(server, post, f"smtp://{HOST}:{server.smtp}")


def curl_starttls(server: Server, post: Post) -> None:
    trust = ["--ssl-reqd", "--cacert", str(server.certificate)]
    _curl(server, post, f"smtp://{HOST}:{server.smtp}", *trust)


def curl_tls(server: Server, post: Post) -> None:
    _curl(server, post, f"smtps://{HOST}:{server.smtps}", "--cacert", str(server.certificate))


# Libraries.


def python_smtplib(server: Server, post: Post) -> None:
    with smtplib.SMTP(HOST, server.smtp, timeout=LIMIT) as client:
        client.sendmail(post.sender, [post.recipient], post.content, post.parameters)


def python_smtplib_starttls(server: Server, post: Post) -> None:
    with smtplib.SMTP(HOST, server.smtp, timeout=LIMIT) as client:
        client.starttls(context=_context(server))
        client.sendmail(post.sender, [post.recipient], post.content, post.parameters)


def _aiosmtplib(server: Server, post: Post, port: int, *, tls: bool, starttls: bool) -> None:
    sent = aiosmtplib.send(
        post.content,
        sender=post.sender,
        recipients=[post.recipient],
        mail_options=post.parameters,
        hostname=HOST,
        port=port,
        timeout=LIMIT,
        use_tls=tls,
        start_tls=starttls,
        tls_context=_context(server) if tls or starttls else None,
    )
    with warnings.catch_warnings():
        # It does not wait for the end of its connection, which the end of the loop then leaks.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(sent)
        gc.collect()


def aiosmtplib_plain(server: Server, post: Post) -> None:
    _aiosmtplib(server, post, server.smtp, tls=False, starttls=False)


def aiosmtplib_starttls(server: Server, post: Post) -> None:
    _aiosmtplib(server, post, server.smtp, tls=False, starttls=True)


def aiosmtplib_tls(server: Server, post: Post) -> None:
    _aiosmtplib(server, post, server.smtps, tls=True, starttls=False)


# A person at a terminal.


class Typist:
    """Types into a program line by line, and waits for each answer."""

    def __init__(self, command: list[str], errors: Path) -> None:
        command = [program(command[0]), *command[1:]]
        with errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
            )
        self._said = b""

    def type(self, text: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def answer(self, pattern: bytes) -> None:
        """Wait for a line that begins like this; what came before it is old."""
        assert self._process.stdout
        while not (match := re.search(rb"(?m)^" + pattern + rb"[^\n]*\n", self._said)):
            read = self._process.stdout.read1()  # type: ignore[attr-defined]
            assert read, f"{pattern!r} was not answered, but {self._said!r}"
            self._said += read
        self._said = self._said[match.end() :]

    def leave(self) -> None:
        self._process.communicate(timeout=LIMIT)
        assert self._process.returncode == 0

    def __enter__(self) -> "Typist":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _type(command: list[str], post: Post, *, greeted: bool = True) -> None:
    """As people type: lower case, a space behind the colon, and dots doubled by hand."""
    parameters = " ".join(["", *post.parameters]).lower()
    lines = b"\n" + post.content.replace(b"\r\n", b"\n")
    with Typist(command, post.folder / "stderr") as typist:
        if greeted:
            typist.answer(b"220 ")
        typist.type(b"ehlo client.example.test\n")
        typist.answer(b"250 [A-Z]")  # the last line of several
        typist.type(f"mail from: <{post.sender}>{parameters}\n".encode())
        typist.answer(b"250 2.1.0")
        typist.type(f"rcpt to: <{post.recipient}>\n".encode())
        typist.answer(b"250 2.1.5")
        typist.type(b"data\n")
        typist.answer(b"354")
        typist.type(lines.replace(b"\n.", b"\n..")[1:] + b".\n")
        typist.answer(b"250 2.0.0 Ok: queued")
        typist.type(b"quit\n")
        typist.answer(b"221")
        typist.leave()


def nc(server: Server, post: Post) -> None:
    _type(["nc", "-C", HOST, str(server.smtp)], post)


def _openssl(server: Server, *options: str, port: int) -> list[str]:
    # Without -quiet a line that begins with R or Q is a command to openssl itself.
    trust = ["-CAfile", str(server.certificate), "-verify_return_error"]
    where = ["-connect", f"{HOST}:{port}"]
    return ["openssl", "s_client", "-quiet", "-crlf", *trust, *options, *where]


def openssl_starttls(server: Server, post: Post) -> None:
    """s_client speaks the first EHLO and STARTTLS itself."""
    _type(_openssl(server, "-starttls", "smtp", port=server.smtp), post, greeted=False)


def openssl_tls(server: Server, post: Post) -> None:
    _type(_openssl(server, port=server.smtps), post)


# With BDAT (RFC 3030), which none of the above speaks.


class BdatClient(smtplib.SMTP):
    """smtplib with chunks."""

    def bdat(self, post: Post, sizes: Callable[[int], int]) -> None:
        """Send the content in chunks; `sizes` gives the next one's size by its number."""
        self.ehlo_or_helo_if_needed()
        self.command_encoding = "utf-8"
        self._expect(self.mail(post.sender, post.parameters))
        self._expect(self.rcpt(post.recipient))
        position = number = 0
        while position < len(post.content):
            chunk = post.content[position : position + sizes(number)]
            position += len(chunk)
            number += 1
            self.send(b"BDAT %d\r\n%b" % (len(chunk), chunk))  # in one, for Nagle's algorithm
            self._expect(self.getreply())
        self._expect(self.docmd("BDAT 0 LAST"))

    @staticmethod
    def _expect(reply: tuple[int, bytes]) -> None:
        assert reply[0] == 250, reply


def bdat(server: Server, post: Post) -> None:
    """Chunks of all sizes, so that lines and dots are cut anywhere."""
    with BdatClient(HOST, server.smtp, timeout=LIMIT) as client:
        client.bdat(post, lambda number: 1 + number**3 % 65_521)


def bdat_bytewise(server: Server, post: Post) -> None:
    with BdatClient(HOST, server.smtp, timeout=LIMIT) as client:
        client.bdat(post, lambda number: 1)
