"""TLS to other hosts: what is asked of them, and which are better left alone."""

import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from fastmta import metrics
from fastmta.protocol.smtp_client import TlsPolicy

HANDSHAKES = metrics.counter("fastmta_delivery_tls_total", "TLS handshakes on connections out")
FAILED = metrics.counter(
    "fastmta_delivery_tls_failed_total", "TLS handshakes on connections out that failed"
)

AVOID_SECONDS = 3600.0
MAX_AVOIDED = 10_000  # hosts; beyond them the one that failed first is tried again


class Tls:
    """A context for each policy, made once, and the hosts whose handshake failed of late."""

    def __init__(
        self, ca_file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`ca_file` holds whom to trust, in PEM form; None: whom the system trusts."""
        self._ca_file = ca_file
        self._clock = clock  # seconds
        self._avoided: OrderedDict[str, float] = OrderedDict()  # host -> until when

    def context(self, policy: TlsPolicy) -> ssl.SSLContext:
        return self._verifying if policy == "verified" else self._trusting

    def avoids(self, host: str) -> bool:
        """Whether TLS failed with this host ("mx.example.test [192.0.2.1]") within the hour."""
        return self._avoided.get(host, 0.0) > self._clock()

    def avoid(self, host: str) -> None:
        self._avoided[host] = self._clock() + AVOID_SECONDS
        self._avoided.move_to_end(host)
        if len(self._avoided) > MAX_AVOIDED:
            self._avoided.popitem(last=False)

    @cached_property
    def _verifying(self) -> ssl.SSLContext:
        """The chain up to somebody trusted, and the name (RFC 6125): reads a file of 200 kB."""
        return _modern(ssl.create_default_context(cafile=self._ca_file))

    @cached_property
    def _trusting(self) -> ssl.SSLContext:
        """Any certificate: hidden from those who listen, not from those who pretend (RFC 7435)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return _modern(context)


def _modern(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    return context
