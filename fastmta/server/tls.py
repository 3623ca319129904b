"""TLS for those who connect to us: certificates by the name that is asked for, and what was agreed.

The settings are those of Mozilla's "intermediate" (Server Side TLS 5.7) without its DHE suites,
which would need parameters. ALPN is not asked for: SMTP has no identifier there.
"""

import asyncio
import logging
import ssl
from collections.abc import Iterable
from pathlib import Path

from fastmta import metrics
from fastmta.config import Tls, TlsHost
from fastmta.config_tls import names_of, pairs_of, read_leaf
from fastmta.server import binding

log = logging.getLogger(__name__)

HANDSHAKES = metrics.counter("fastmta_tls_in_handshakes_total", "TLS handshakes with clients")
RESUMED = metrics.counter(
    "fastmta_tls_in_resumed_total", "TLS handshakes with clients that went on with a session"
)
FAILED = metrics.counter(
    "fastmta_tls_in_failed_total", "TLS handshakes with clients that failed or took too long"
)
EXPIRY = metrics.gauges(
    "fastmta_tls_certificate_expiry_timestamp_seconds",
    "When a certificate of [tls] ends, in seconds since the epoch",
    ("certificate",),
)

HANDSHAKE_SECONDS = 30.0
CIPHERS = (  # of TLS 1.2; those of 1.3 are all good (RFC 8446 section 9.1)
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)


class ServerTls:
    """The contexts of one configuration; files are read when it is made.

    Each service has one of its own, and with it keys for tickets of its own: a session that was
    begun with one service cannot go on with another. OpenSSL takes ticket keys from the context
    that a handshake began with, so what is shown by name can be shared by all services.
    """

    def __init__(self, tls: Tls, services: Iterable[str] = ()) -> None:
        """OSError or ValueError (ssl.SSLError) where a certificate or key cannot be used."""
        self._tls = tls
        self._of_names: dict[str, ssl.SSLContext] = {}
        self._of_services: dict[str, ssl.SSLContext] = {}
        self._default = _context(tls)
        if tls.host:  # the default's names too, or a pattern of another would take one of them
            self._of_names |= dict.fromkeys(read_leaf(tls.certificate).names, self._default)
        for host in tls.host:
            self._of_names |= dict.fromkeys(names_of(host), _context(host))
        for service in services:
            self.context(service)

    def context(self, service: str) -> ssl.SSLContext:
        """What a service shakes hands with."""
        if service not in self._of_services:
            self._of_services[service] = context = _context(self._tls)
            if self._of_names:
                context.sni_callback = self._choose
        return self._of_services[service]

    def _choose(
        self, session: ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> int | None:
        if name is not None:
            session.context = self._shown_to(name.lower())
        return None

    def _shown_to(self, name: str) -> ssl.SSLContext:
        above = f"*.{name.partition('.')[2]}"
        return self._of_names.get(name) or self._of_names.get(above) or self._default


def _context(pair: Tls | TlsHost) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    context.set_ciphers(":".join(CIPHERS))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # All are good, and a client knows which of them it is fast at.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.load_cert_chain(pair.certificate, pair.key, password=b"")
    binding.note(context, pair.certificate)
    return context


# What all sessions under TLS read into: it is emptied before the next one reads.
_BUFFER = memoryview(bytearray(1 << 16))


class UnderTls(asyncio.BufferedProtocol):
    """Gives a session what comes under TLS, out of a buffer that all share.

    To a protocol that wants octets, uvloop gives an object of 256 KiB for each read, cut to its
    size: three system calls and fresh pages.
    """

    __slots__ = ("_session",)

    def __init__(self, session: asyncio.Protocol) -> None:
        self._session = session

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._session.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._session.data_received(bytes(_BUFFER[:nbytes]))

    def eof_received(self) -> bool | None:
        return self._session.eof_received()

    def pause_writing(self) -> None:
        self._session.pause_writing()

    def resume_writing(self) -> None:
        self._session.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.connection_lost(exc)
        # uvloop keeps get_buffer, so that a session and its transport would hold each other until
        # the collector comes: 250 KB and more.
        del self._session


async def upgrade(
    session: asyncio.Protocol, transport: asyncio.Transport, context: ssl.SSLContext
) -> asyncio.Transport | None:
    """Shake hands on a connection that was in the clear; None where that fails.

    What is in the transport's buffer goes out before. The loop resumes who awaits this before it
    delivers the first octets that came under TLS.
    """
    try:
        return await asyncio.get_running_loop().start_tls(
            transport,
            UnderTls(session),
            context,
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
        )
    except OSError as error:  # ssl.SSLError and all timeouts among them
        FAILED.value += 1
        log.info("no TLS with %s: %s", transport.get_extra_info("peername"), error)
        return None


def agreed(transport: asyncio.BaseTransport) -> str:
    """What a handshake that is over came to: "TLSv1.3 TLS_AES_256_GCM_SHA384"; "": no TLS."""
    session = transport.get_extra_info("ssl_object")
    if session is None:
        return ""
    HANDSHAKES.value += 1
    RESUMED.value += session.session_reused
    name, version, _ = session.cipher()
    return f"{version} {name}"


def show_expiry(tls: Tls | None) -> None:
    """Let the gauge tell of these certificates; for one process of all."""
    pairs = [pair for _, pair in pairs_of(tls)] if tls else []
    rows = {str(pair.certificate): _ends(pair.certificate) for pair in pairs}
    EXPIRY.read = lambda: [((path,), ends) for path, ends in rows.items()]


def _ends(certificate: Path) -> float:
    return read_leaf(certificate).ends
