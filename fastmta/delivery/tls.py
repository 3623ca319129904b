"""TLS to other hosts: what is asked of them, what is known of them, and which are left alone."""

import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct

from fastmta import metrics
from fastmta.protocol.smtp_client import TlsPolicy

RESULTS = ("full", "resumed", "untrusted", "failed", "absent")
HANDSHAKES = metrics.counters(
    "fastmta_delivery_tls_total",
    "Connections out that were to have TLS, by what came of it: a full or a resumed handshake, "
    "a certificate that is not good, another failure, or a host that does not offer it",
    "result",
    RESULTS,
)

AVOID_SECONDS = 3600.0
MAX_AVOIDED = 10_000  # hosts; beyond them the one that failed first is tried again
# After that a certificate is looked at again, however long the host would take its tickets.
SESSION_SECONDS = 3600.0
MAX_SESSIONS = 1000  # hosts, of each context; with a chain of certificates each has some kB


class ClientCertificate(NamedTuple):
    """What we show to hosts that ask who we are; files in PEM form."""

    certificate: Path
    key: Path


class _Known(Struct):
    """A host that had a full handshake."""

    until: float  # by the clock; what was verified is not taken for granted after that
    session: ssl.SSLSession | None
    offered: bool = False  # since: a full handshake now means that it was refused


class Context(ssl.SSLContext):
    """One that takes up the sessions it has had (RFC 8446 section 2.2, RFC 5077).

    A session belongs to the context that made it, so what was verified, and what we have shown,
    is the same again; and to the name of the host, which its certificate was good for. uvloop
    has no place for a session in `start_tls`, but asks the context for each connection.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)
    _known: OrderedDict[str, _Known]  # by name

    def forget(self) -> None:
        """Begin with full handshakes."""
        self._known = OrderedDict()

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        known = self._known.get(str(server_hostname))
        if known is not None and known.until > self.clock():
            session, known.offered = known.session, True
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def remember(self, name: str, connection: ssl.SSLObject) -> None:
        """After the host has spoken: what it gives for the next time comes behind the handshake.

        A session that was taken up stays, so that it ends in its time. To have a session costs a
        third of the handshake, so it is kept from the second one on: many hosts are met once.
        """
        if connection.session_reused:
            return
        known = self._known.get(name)
        if known is None or known.until <= self.clock():
            self._note(name, None)
        elif known.session is None or known.offered:  # not what another has just stored
            self._note(name, connection.session)

    def _note(self, name: str, session: ssl.SSLSession | None) -> None:
        self._known[name] = _Known(self.clock() + SESSION_SECONDS, session)
        self._known.move_to_end(name)
        if len(self._known) > MAX_SESSIONS:
            self._known.popitem(last=False)


class Tls:
    """The contexts, each made once, and the hosts whose handshake failed of late."""

    def __init__(
        self, ca_file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`ca_file` holds whom to trust, in PEM form; None: whom the system trusts."""
        self._ca_file = ca_file
        self._clock = clock  # seconds
        self._avoided: OrderedDict[str, float] = OrderedDict()  # host -> until when
        self._contexts: dict[tuple[bool, ClientCertificate | None], Context] = {}

    def reload(self, ca_file: Path | None) -> None:
        """Read all files anew; connections under way go on as they began."""
        self._ca_file = ca_file
        self._contexts.clear()

    def context(self, policy: TlsPolicy, shown: ClientCertificate | None = None) -> Context:
        """Raises OSError where a file cannot be read any more."""
        verifies = policy in ("verified", "requiretls")
        context = self._contexts.get((verifies, shown))
        if context is None:
            context = self._verifying() if verifies else _trusting()
            context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
            context.clock = self._clock
            if shown is not None:
                context.load_cert_chain(*shown, password=b"")
            self._contexts[verifies, shown] = context
        return context

    def avoids(self, host: str) -> bool:
        """Whether TLS failed with this host ("mx.example.test [192.0.2.1]") within the hour."""
        return self._avoided.get(host, 0.0) > self._clock()

    def avoid(self, host: str) -> None:
        self._avoided[host] = self._clock() + AVOID_SECONDS
        self._avoided.move_to_end(host)
        if len(self._avoided) > MAX_AVOIDED:
            self._avoided.popitem(last=False)

    def _verifying(self) -> Context:
        """The chain up to somebody trusted, and the name (RFC 6125): reads a file of 200 kB."""
        context = _new_context()
        if self._ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            context.load_verify_locations(self._ca_file)
        return context


def _trusting() -> Context:
    """Any certificate: hidden from those who listen, not from those who pretend (RFC 7435)."""
    context = _new_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _new_context() -> Context:
    context = Context(ssl.PROTOCOL_TLS_CLIENT)
    context.forget()  # SSLContext has no __init__ to extend
    return context


def describe(session: Any, policy: TlsPolicy) -> str:
    """As dispositions tell it: "TLSv1.3 TLS_AES_256_GCM_SHA384 verified"."""
    verified = " verified" if policy in ("verified", "requiretls") else ""
    return f"{session.version()} {session.cipher()[0]}{verified}"


def result_of(error: Exception) -> str:
    """Which of RESULTS a handshake that failed is."""
    return "untrusted" if isinstance(error, ssl.SSLCertVerificationError) else "failed"


def reason(error: Exception) -> str:
    """In the words of OpenSSL, without where in its source it was."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not good: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"the handshake failed: {error.reason.replace('_', ' ').lower()}"
    return f"the handshake failed: {error or type(error).__name__}"
