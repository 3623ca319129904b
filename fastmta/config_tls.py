"""[tls]: the certificates that listeners show, what is in them, and what must be true of them."""

import ssl
from collections.abc import Iterator
from pathlib import Path

from msgspec import UNSET, Struct, UnsetType

from fastmta.config_reader import DomainPattern, Problem, Table


class TlsHost(Table, frozen=True, kw_only=True):
    """Shown to who asks for one of its names (SNI, RFC 6066 section 3)."""

    certificate: Path
    key: Path
    names: tuple[DomainPattern, ...] | UnsetType = UNSET  # those of the certificate


class Tls(Table, frozen=True, kw_only=True):
    certificate: Path  # for all others
    key: Path
    host: tuple[TlsHost, ...] = ()


class Leaf(Struct, frozen=True):
    """The first certificate of a file."""

    names: tuple[str, ...]  # DNS names of subjectAltName, in lower case
    begins: float  # seconds since the epoch
    ends: float


def read_leaf(path: Path) -> Leaf:
    """OSError, or ValueError where there is no certificate in PEM form."""
    # Late: 8 MB and 30 ms that only who has a certificate should pay.
    from cryptography import x509

    leaf = x509.load_pem_x509_certificate(path.read_bytes())
    names: list[str] = []
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        pass  # a common name is none of its names (RFC 9525 section 2)
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    return Leaf(tuple(map(str.lower, names)), begins.timestamp(), ends.timestamp())


def names_of(host: TlsHost) -> tuple[str, ...]:
    """For whom a certificate is shown; errors as for `read_leaf`."""
    return read_leaf(host.certificate).names if host.names is UNSET else host.names


def pairs_of(tls: Tls) -> Iterator[tuple[str, Tls | TlsHost]]:
    """All that has a certificate and a key, and where in the file it stands."""
    yield "tls", tls
    yield from ((f"tls.host[{i}]", host) for i, host in enumerate(tls.host))


def matches(pattern: str, name: str) -> bool:
    """Whether a name of a certificate stands for this one (RFC 9525 section 6.3)."""
    first, _, rest = name.partition(".")
    return pattern == name or (pattern == f"*.{rest}" and bool(first))


def check_tls(tls: Tls) -> Iterator[Problem]:
    """What keeps a certificate from being used; not its time, see `check_times`."""
    seen: dict[str, str] = {}  # name -> where it is shown
    for key, pair in pairs_of(tls):
        files = {f"{key}.certificate": pair.certificate, f"{key}.key": pair.key}
        unreadable = [each for name, path in files.items() for each in check_file(name, path)]
        problems = unreadable or list(check_pair(key, "", pair.certificate, pair.key))
        problems = problems or list(_check_leaf(key, pair))
        yield from problems
        if not problems and isinstance(pair, TlsHost):
            yield from _check_names(key, pair, seen)


def check_file(key: str, path: Path) -> Iterator[Problem]:
    """Whether a file can be read."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        yield Problem(key, f"{path} cannot be read: {error.strerror}")


def check_pair(table: str, prefix: str, certificate: Path, key: Path) -> Iterator[Problem]:
    """Whether these files, which can be read, go together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certificate, key, password=b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            yield Problem(f"{table}.{prefix}key", f"{key} is not the key of {certificate}")
        else:
            reason = error.reason or "no certificate or key in PEM form"
            yield Problem(table, f"{certificate} and {key} cannot be loaded: {reason}")


def _check_leaf(key: str, pair: Tls | TlsHost) -> Iterator[Problem]:
    try:
        read_leaf(pair.certificate)
    except ValueError as error:
        yield Problem(f"{key}.certificate", f"{pair.certificate} cannot be understood: {error}")


def _check_names(key: str, host: TlsHost, seen: dict[str, str]) -> Iterator[Problem]:
    known, names = read_leaf(host.certificate).names, names_of(host)
    if not names:
        text = "the certificate has no names (subjectAltName)" if not known else "names is empty"
        yield Problem(key, f'is never shown: {text}; write names = ["mail.example.test"]')
    for name in names if host.names is not UNSET else ():
        if known and not any(matches(one, name) for one in known):
            yield Problem(f"{key}.names", f'"{name}" is no name of {host.certificate}')
    for name in names:
        if (first := seen.setdefault(name, key)) != key:
            text = f'"{name}" is a name of {first} too; only one of them can be shown'
            yield Problem(f"{key}.names", text)


def check_times(tls: Tls, now: float) -> Iterator[Problem]:
    """Certificates that no client should accept now; a server starts with them all the same.

    Mail comes in under any certificate from most who send it (RFC 7435), and a restart must not
    end that.
    """
    for key, pair in pairs_of(tls):
        leaf = read_leaf(pair.certificate)
        if leaf.ends <= now:
            text = f"{pair.certificate} expired {_ago(now - leaf.ends)} ago"
            yield Problem(f"{key}.certificate", f"{text}; get another and send SIGHUP")
        elif leaf.begins > now:
            text = f"{pair.certificate} begins in {_ago(leaf.begins - now)}; is the clock right?"
            yield Problem(f"{key}.certificate", text)


def _ago(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else f"{seconds / 3600:.0f} hours"
