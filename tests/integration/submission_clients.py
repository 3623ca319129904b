"""Real clients that log in, each as a function that submits one message the way its users do."""

import asyncio
import gc
import json
import os
import smtplib
import subprocess
import warnings
from base64 import b64encode
from typing import Protocol

import aiosmtplib
from msgspec import Struct

from tests.integration.clients import HOST, Post, Server, Typist, _context, _openssl, _run
from tests.integration.servers import LIMIT, program


class Login(Struct):
    name: str
    password: str


class Submitter(Protocol):
    __name__: str

    def __call__(self, server: Server, login: Login, post: Post) -> None: ...


# Programs that people script with.


def _swaks(server: Server, login: Login, post: Post, *options: str) -> None:
    who = ["--auth-user", login.name, "--auth-password", login.password]
    addresses = ["--from", post.sender, "--to", post.recipient, "--server", HOST]
    with post.file(crlf=True).open("ab") as file:
        file.write(b".\r\n")
    _run(["swaks", *addresses, *options, *who, "--data", f"@{file.name}"])


def swaks_login(server: Server, login: Login, post: Post) -> None:
    _swaks(server, login, post, "--port", str(server.smtp), "--tls", "--auth", "LOGIN")


def swaks_plain(server: Server, login: Login, post: Post) -> None:
    _swaks(server, login, post, "--port", str(server.smtp), "--tls", "--auth", "PLAIN")


def swaks_implicit(server: Server, login: Login, post: Post) -> None:
    _swaks(server, login, post, "--port", str(server.smtps), "--tlsc", "--auth", "PLAIN")


def _msmtp(server: Server, login: Login, post: Post, *options: str) -> None:
    where = ["--file=/dev/null", f"--host={HOST}", f"--tls-trust-file={server.certificate}"]
    who = [f"--user={login.name}", f"--passwordeval=echo {login.password}", "--tls=on"]
    command = ["msmtp", *where, *who, *options, f"--from={post.sender}", "--", post.recipient]
    _run(command, post.file(crlf=False))


def msmtp_plain(server: Server, login: Login, post: Post) -> None:
    _msmtp(server, login, post, f"--port={server.smtp}", "--tls-starttls=on", "--auth=plain")


def msmtp_login(server: Server, login: Login, post: Post) -> None:
    _msmtp(server, login, post, f"--port={server.smtps}", "--tls-starttls=off", "--auth=login")


def msmtp_scram(server: Server, login: Login, post: Post) -> None:
    options = "--tls-starttls=off", "--auth=scram-sha-256"
    _msmtp(server, login, post, f"--port={server.smtps}", *options)


def msmtp_best(server: Server, login: Login, post: Post) -> None:
    """It takes what it thinks is the best of what is offered."""
    _msmtp(server, login, post, f"--port={server.smtps}", "--tls-starttls=off", "--auth=on")


def _curl(server: Server, login: Login, post: Post, url: str, *options: str) -> None:
    addresses = ["--mail-from", post.sender, "--mail-rcpt", post.recipient]
    upload = [
        "--upload-file",
        str(post.file(crlf=True)),
        "--user",
        f"{login.name}:{login.password}",
    ]
    command = ["curl", "--silent", "--show-error", "--cacert", str(server.certificate)]
    _run([*command, *options, *addresses, *upload, f"{url}/client.example.test"])


def curl(server: Server, login: Login, post: Post) -> None:
    _curl(server, login, post, f"smtp://{HOST}:{server.smtp}", "--ssl-reqd")


def curl_login(server: Server, login: Login, post: Post) -> None:
    options = "--ssl-reqd", "--login-options", "AUTH=LOGIN"
    _curl(server, login, post, f"smtp://{HOST}:{server.smtp}", *options)


def curl_implicit(server: Server, login: Login, post: Post) -> None:
    _curl(server, login, post, f"smtps://{HOST}:{server.smtps}")


# Libraries.


def python_smtplib(server: Server, login: Login, post: Post) -> None:
    with smtplib.SMTP(HOST, server.smtp, timeout=LIMIT) as client:
        client.starttls(context=_context(server))
        client.login(login.name, login.password)
        client.sendmail(post.sender, [post.recipient], post.content, post.parameters)


def python_smtplib_implicit(server: Server, login: Login, post: Post) -> None:
    with smtplib.SMTP_SSL(HOST, server.smtps, context=_context(server), timeout=LIMIT) as client:
        client.user, client.password = login.name, login.password
        client.ehlo()
        client.auth("LOGIN", client.auth_login, initial_response_ok=False)  # type: ignore[arg-type]
        client.sendmail(post.sender, [post.recipient], post.content, post.parameters)


def _aiosmtplib(server: Server, login: Login, post: Post, port: int, **tls: bool) -> None:
    sent = aiosmtplib.send(
        post.content,
        sender=post.sender,
        recipients=[post.recipient],
        hostname=HOST,
        port=port,
        username=login.name,
        password=login.password,
        timeout=LIMIT,
        tls_context=_context(server),
        **tls,  # type: ignore[arg-type]
    )
    with warnings.catch_warnings():
        # It does not wait for the end of its connection, which the end of the loop then leaks.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(sent)
        gc.collect()


def aiosmtplib_starttls(server: Server, login: Login, post: Post) -> None:
    _aiosmtplib(server, login, post, server.smtp, start_tls=True)


def aiosmtplib_implicit(server: Server, login: Login, post: Post) -> None:
    _aiosmtplib(server, login, post, server.smtps, use_tls=True)


_NODEMAILER = """
const { options, mail } = JSON.parse(process.argv[1]);
require('nodemailer').createTransport(options).sendMail(mail)
  .catch(error => { console.error(error); process.exitCode = 1; });
"""


def _nodemailer(server: Server, login: Login, post: Post, **options: object) -> None:
    auth = {"user": login.name, "pass": login.password}
    options = {"host": HOST, "auth": auth, "tls": {"ca": server.certificate.read_text()}, **options}
    envelope = {"from": post.sender, "to": post.recipient}
    argument = {"options": options, "mail": {"envelope": envelope, "raw": post.content.decode()}}
    done = subprocess.run(
        [program("node"), "-e", _NODEMAILER, json.dumps(argument)],
        env={**os.environ, "NODE_PATH": "/usr/share/nodejs"},  # where Debian has it
        capture_output=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr.decode()


def nodemailer(server: Server, login: Login, post: Post) -> None:
    _nodemailer(server, login, post, port=server.smtp, requireTLS=True)


def nodemailer_login(server: Server, login: Login, post: Post) -> None:
    _nodemailer(server, login, post, port=server.smtps, secure=True, authMethod="LOGIN")


# A person at a terminal.


def _type(command: list[str], login: Login, post: Post, recipient: bytes) -> None:
    """As in a lecture on SMTP."""
    with Typist(command, post.folder / "stderr") as typist:
        typist.answer(b"220 ")
        typist.type(b"EHLO client.example.test\n")
        typist.answer(b"250 AUTH ")
        typist.type(b"auth login\n")
        typist.answer(b"334 VXNlcm5hbWU6")
        typist.type(b64encode(login.name.encode()) + b"\n")
        typist.answer(b"334 UGFzc3dvcmQ6")
        typist.type(b64encode(login.password.encode()) + b"\n")
        typist.answer(b"235 2.7.0")
        typist.type(f"MAIL FROM: <{post.sender}>\n".encode())
        typist.answer(b"250 2.1.0")
        typist.type(recipient + f" <{post.recipient}>\n".encode())
        typist.answer(b"250 2.1.5")
        typist.type(b"DATA\n")
        typist.answer(b"354")
        typist.type(post.content.replace(b"\r\n", b"\n").replace(b"\n.", b"\n..") + b".\n")
        typist.answer(b"250 2.0.0 Ok: queued")
        typist.type(b"quit\n")
        typist.answer(b"221")
        typist.leave()


def openssl(server: Server, login: Login, post: Post) -> None:
    """Without -quiet, a line that begins with R is a command to openssl: hence "rcpt"."""
    command = _openssl(server, port=server.smtps)
    command.remove("-quiet")
    _type(command, login, post, b"rcpt to:")


def openssl_quiet(server: Server, login: Login, post: Post) -> None:
    _type(_openssl(server, port=server.smtps), login, post, b"RCPT TO:")


ALL: list[Submitter] = [
    *(swaks_login, swaks_plain, swaks_implicit, msmtp_plain, msmtp_login, msmtp_scram, msmtp_best),
    *(curl, curl_login, curl_implicit, python_smtplib, python_smtplib_implicit),
    *(aiosmtplib_starttls, aiosmtplib_implicit, nodemailer, nodemailer_login),
    *(openssl, openssl_quiet),
]
