"""What of a TLS connection a login can be bound to (RFC 5056): -PLUS mechanisms ask for it.

Under TLS 1.3 clients want "tls-exporter" (RFC 9266), which Python's ssl does not give. They take
-PLUS where it is offered and then fail, so that connection has nothing to be bound to.
"""

import asyncio
import ssl
from pathlib import Path
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

# A context, which a name may have chosen -> the hash of the certificate that it shows
_END_POINTS: WeakKeyDictionary[ssl.SSLContext, bytes] = WeakKeyDictionary()


def note(context: ssl.SSLContext, certificate: Path) -> None:
    """Tell what a context shows; ValueError where that file holds no certificate."""
    _END_POINTS[context] = end_point(x509.load_pem_x509_certificate(certificate.read_bytes()))


def end_point(certificate: x509.Certificate) -> bytes:
    """The data of "tls-server-end-point" (RFC 5929 section 4.1).

    b"" where it has none: of a certificate whose signature has no hash of its own, as Ed25519's.
    """
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        algorithm = None
    if algorithm is None:
        return b""
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    return certificate.fingerprint(algorithm)


def bindings(transport: asyncio.BaseTransport) -> dict[str, bytes]:
    """Of a connection after its handshake: type -> data."""
    session = transport.get_extra_info("ssl_object")
    if session is None or session.version() != "TLSv1.2":
        return {}
    found = {
        "tls-server-end-point": _END_POINTS.get(session.context),
        "tls-unique": session.get_channel_binding("tls-unique"),
    }
    return {kind: data for kind, data in found.items() if data}
