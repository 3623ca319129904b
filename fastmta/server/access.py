"""Who is let in: what a SASL exchange came to is checked here, for every protocol alike.

A session asks `exchange` for each login, feeds it, and hands what it comes to to `verify`:

    Challenge                    goes out, and its answer is the next step
    Password, Token, Failed      `verify`; a Refusal with a `last` says that as a challenge first,
                                 reads whatever answers it, and is then told
    Proven                       `verify`; then `last` is said as a challenge, the answer is read
                                 (it is empty), and then the success
"""

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from fastmta.protocol.sasl import Context, Exchange, Failed, Kind, Password, Proven, Token
from fastmta.store.accounts import Account, Accounts

Attempt: TypeAlias = Password | Token | Proven | Failed


class Refusal(Struct, frozen=True):
    """Nobody is let in; what may be said of it is `kind.value`."""

    kind: Kind
    last: bytes = b""  # a challenge that comes before it


class Access:
    """One worker's door. Bound to the running loop."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def mechanisms(self, bindings: Mapping[str, bytes]) -> tuple[str, ...]:
        """What is offered on a connection with these channel bindings, under TLS."""
        raise NotImplementedError

    def exchange(self, mechanism: str, bindings: Mapping[str, bytes]) -> Exchange | None:
        """Begin to log in; None for a mechanism, in whatever case, that is not offered."""
        name = mechanism.upper()
        if name not in self.mechanisms(bindings):
            return None
        return Exchange(name, Context(self._accounts.keys_of, bindings))

    async def verify(self, attempt: Attempt, client: str) -> Account | Refusal:
        """Whether somebody is let in; `client` is the address that he comes from."""
        raise NotImplementedError
