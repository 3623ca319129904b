"""A server with accounts, POP3 listeners and mail in its mailboxes."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.processes import free_port
from fastmta.store import passwords
from fastmta.store.accounts import Accounts
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.post import Drop, Post, Stored
from tests.certificates import make_certificate
from tests.integration.clients import HOST
from tests.integration.pop3_clients import Maildrop
from tests.integration.servers import Relay, relay
from tests.support import run

PASSWORD = "hungry"
DOMAIN = "example.test"
_LISTENERS = """
[[listener]]
service = "pop3"
bind = "{host}:{pop3}"

[[listener]]
service = "pop3"
bind = "{host}:{pop3s}"
tls = "implicit"

[tls]
certificate = "{made.certificate}"
key = "{made.key}"
"""


class Server(NamedTuple):
    relay: Relay
    pop3: int
    pop3s: int
    certificate: Path

    def maildrop(self, user: str, folder: Path) -> Maildrop:
        name = f"{user}@{DOMAIN}"
        return Maildrop(self.pop3, self.pop3s, self.certificate, name, PASSWORD, folder)

    def deliver(self, user: str, *messages: bytes) -> None:
        """Into the INBOX; from a process of its own, as far as the workers can tell."""
        deliver(self.relay.data, user, *messages)


def deliver(data: Path, user: str, *messages: bytes) -> None:
    async def scenario() -> None:
        mailboxes = Mailboxes(data / "mail" / "0", lambda account: 0)
        for message in messages:
            pieces = [message[i : i + (1 << 16)] for i in range(0, len(message), 1 << 16)]
            post = Post(b"", pieces, len(message), 0.0, [Drop(f"{user}@{DOMAIN}")])
            (outcome,) = await mailboxes.append(post)
            assert isinstance(outcome, Stored)
        await mailboxes.close()

    run(scenario())


def contents(data: Path, user: str) -> list[int]:
    """The uids in somebody's INBOX."""

    async def scenario() -> list[int]:
        mailboxes = Mailboxes(data / "mail" / "0", lambda account: 0)
        snapshot = await mailboxes.open(f"{user}@{DOMAIN}")
        await mailboxes.close()
        return list(snapshot.uids)

    return run(scenario())


def add_accounts(data: Path, users: list[str]) -> None:
    """With one password, which is hashed once."""
    hashed, keys = passwords.hash_password(PASSWORD), passwords.scram_keys(PASSWORD)
    with closing(Accounts(data / "accounts")) as accounts:
        for user in users:
            accounts.add(f"{user}@{DOMAIN}", hashed, keys)


@contextmanager
def pop3_server(folder: Path, users: list[str], *tables: str, workers: int = 1) -> Iterator[Server]:
    made = make_certificate(folder, f"IP:{HOST}", "DNS:localhost")
    add_accounts(folder / "data", users)
    pop3, pop3s = free_port(), free_port()
    listeners = _LISTENERS.format(host=HOST, pop3=pop3, pop3s=pop3s, made=made)
    with relay(folder, listeners, *tables, workers=workers) as running:
        yield Server(running, pop3, pop3s, made.certificate)
