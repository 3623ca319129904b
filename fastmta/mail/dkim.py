"""DKIM signatures (RFC 6376, RFC 8463): who signs a message, what is signed, and the field."""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

from msgspec import Struct

from fastmta._core.address_list import address_list
from fastmta._core.dkim import IncomingBody, SignedFields, canonical_field
from fastmta._core.headers import end_of_header, find
from fastmta._core.signatures import PrivateKey, Unavailable
from fastmta.mail.address import normal_domain
from fastmta.mail.arrival import Arrival

# RFC 6376 section 5.4.1, and what says how a body is read (section 8.2): what stands once.
USUAL_FIELDS = (
    *("From", "Reply-To", "Subject", "Date", "To", "Cc", "Message-ID", "In-Reply-To"),
    *("References", "MIME-Version", "Content-Type", "Content-Transfer-Encoding"),
    *("Resent-Date", "Resent-From", "Resent-To", "Resent-Cc", "List-Id", "List-Help"),
    *("List-Unsubscribe", "List-Subscribe", "List-Post", "List-Owner", "List-Archive"),
    "List-Unsubscribe-Post",
)
# Signed where they are there, but who passes a message on may add some: RFC 5322 section 3.6.6,
# RFC 2369.
_MAY_BE_ADDED = ("resent-", "list-")
_MOST_DOMAINS = 4  # of one From field
_MOST_AUTHORS = 100  # that are looked at
_SHORT = 1 << 18  # octets of a message whose body can be hashed in the loop
_WIDTH = 72  # octets of a folded line
_KEPT = 1000  # different texts of h=, and values of From
_KEPT_VALUE = 1000  # octets of such a value
_STRING = 255  # octets of one string of a TXT record (RFC 1035 section 3.3.14)

LEAST_BITS = 1024  # of an RSA key: a signer must not use less (RFC 8301 section 3.2)
GOOD_BITS = 2048  # and should not use less than this
MOST_BITS = 4096  # what every verifier can check


_PROBE = bytes(32)  # any digest


class BadKey(Exception):
    """There is no key to sign with; the text says why."""


class Sign:
    """Signs what has a given SHA-256; `quick` does the same without the GIL."""

    def __init__(
        self, sign: Callable[[bytes], bytes], der: Callable[[], bytes], *, rsa: bool
    ) -> None:
        """`der` gives the key as PKCS #8; `rsa` or Ed25519."""
        self._sign, self._der, self._rsa = sign, der, rsa

    def __call__(self, digest: bytes) -> bytes:
        return self._sign(digest)

    @cached_property
    def quick(self) -> PrivateKey | None:
        """Made when it is wanted, since that takes 3 ms and there may be thousands of keys.

        None where it would not do the same: Python may have no libcrypto that can be found, or one
        that refuses this key, as in FIPS mode.
        """
        try:
            quick = PrivateKey(self._der(), rsa=self._rsa)
            return quick if quick(_PROBE) == self._sign(_PROBE) else None
        except (Unavailable, ValueError):
            return None


class DkimKey(Struct, frozen=True):
    """A private key, ready to sign."""

    algorithm: str  # the tag a=: "rsa-sha256" or "ed25519-sha256"
    bits: int
    public: bytes  # the tag p= of its record, before base64
    sign: Callable[[bytes], bytes]  # what has this SHA-256

    @property
    def record(self) -> str:
        """The TXT record that publishes it (RFC 6376 section 3.6.1)."""
        kind = self.algorithm.partition("-")[0]
        return f"v=DKIM1; k={kind}; p={base64.b64encode(self.public).decode()}"


def record_name(domain: str, selector: str) -> str:
    """Where that record is (RFC 6376 section 3.6.2.1)."""
    return f"{selector}._domainkey.{domain}"


class Unsigned(NamedTuple):
    """A signature that lacks the one thing that takes long."""

    key: DkimKey
    field: bytes  # DKIM-Signature, up to "b="
    digest: bytes  # what `key` is to sign

    def complete(self, signature: bytes) -> bytes:
        """The field with its CRLF."""
        return self.field + _folded(base64.b64encode(signature)) + b"\r\n"


class Signer:
    """What signs with one key."""

    def __init__(
        self,
        domain: str,
        selector: str,
        key: DkimKey,
        *,
        relaxed: tuple[bool, bool] = (True, True),
        fields: Iterable[str] = USUAL_FIELDS,
        expire_after: float = 0,
    ) -> None:
        """`relaxed` is for header and body, `expire_after` in seconds, 0: never."""
        self.domain, self.selector, self.key = domain, selector, key
        self.relaxed_header, self.relaxed_body = relaxed
        self._names = tuple(fields)
        lower = [name.lower() for name in self._names]
        self._fields = SignedFields([name.encode() for name in lower])
        self._once_more = [not name.startswith(_MAY_BE_ADDED) for name in lower]
        self._expire_after = int(expire_after)
        forms = "/".join("relaxed" if each else "simple" for each in relaxed)
        self._begin = (
            f"DKIM-Signature: v=1; a={key.algorithm}; c={forms};\r\n\td={domain}; s={selector};"
        )
        self._lists: dict[tuple[int, ...], str] = {}

    def prepare(self, head: bytes, end: int, body_hash: bytes, time: float) -> Unsigned | None:
        """What remains to be signed of a message; None where its header section is none.

        `head` begins with the header section, which ends at `end`; `time` is in seconds since the
        epoch.
        """
        found = self._fields.select(head, end, self.relaxed_header)
        if found is None:
            return None
        counts, signed = found
        now = int(time)
        expiry = f" x={now + self._expire_after};" if self._expire_after else ""
        bh = base64.b64encode(body_hash).decode()
        field = (
            f"{self._begin} t={now};{expiry}\r\n\th={self._list(counts)};\r\n\tbh={bh};\r\n\tb="
        ).encode()
        # Section 3.7: the field itself comes last, without its CRLF.
        own = canonical_field(field, 0, len(field), self.relaxed_header)[:-2]
        return Unsigned(self.key, field, sha256(signed + own).digest())

    def _list(self, counts: tuple[int, ...]) -> str:
        """The text of h= for so many fields of each name."""
        text = self._lists.get(counts)
        if text is None:
            if len(self._lists) >= _KEPT:
                self._lists.clear()
            text = self._lists[counts] = _fold_names(self._covered(counts))
        return text

    def _covered(self, counts: tuple[int, ...]) -> list[str]:
        """Each name as often as it is there, and once more, so that none can be added (8.15)."""
        result: list[str] = []
        for name, count, more in zip(self._names, counts, self._once_more, strict=True):
            result += [name] * (count + more)
        return result


def _fold_names(names: list[str]) -> str:
    lines, line = [], ""
    for name in names:
        if line and len(line) + len(name) > _WIDTH:
            lines.append(line)
            line = ""
        line += f"{name}:"
    return "\r\n\t".join([*lines, line.removesuffix(":")])


def _folded(text: bytes) -> bytes:
    return b"\r\n\t".join(text[i : i + _WIDTH] for i in range(0, len(text), _WIDTH))


class Signers:
    """Who signs, by the domain of the author; false where nobody does."""

    def __init__(self, signers: Iterable[Signer] = (), below: Iterable[Signer] = ()) -> None:
        """`below` sign for all subdomains of theirs that have no signers of their own."""
        self._exact = _by_domain(signers)
        self._below = _by_domain(below)
        self._by_author: dict[bytes, list[Signer]] = {}

    def __bool__(self) -> bool:
        return bool(self._exact)

    def of_domain(self, domain: str) -> list[Signer]:
        """`domain` in normal form."""
        if found := self._exact.get(domain):
            return found
        if self._below:
            _, _, domain = domain.partition(".")
            while domain:
                if found := self._below.get(domain):
                    return found
                _, _, domain = domain.partition(".")
        return []

    def of_header(self, head: bytes, end: int) -> list[Signer]:
        """Those of each domain in the From field, of which there has to be one (RFC 5322 3.6).

        An author may be several (RFC 5322 section 3.6.2): each domain that can sign does.
        """
        fields = find(head, 0, end, b"from")
        if len(fields) != 1:
            return []
        start, stop = fields[0]
        return self._of_authors(head[start:stop])

    def _of_authors(self, value: bytes) -> list[Signer]:
        """For each message this is asked twice, and many come from one author."""
        known = self._by_author.get(value)
        if known is None:
            domains = list(dict.fromkeys(_author_domains(value)))[:_MOST_DOMAINS]
            known = [one for domain in domains for one in self.of_domain(domain)]
            if len(value) <= _KEPT_VALUE:
                if len(self._by_author) >= _KEPT:
                    self._by_author.clear()
                self._by_author[value] = known
        return known

    def incoming(self) -> IncomingBody:
        """What is to see a message as it comes in, so that its body is hashed by its end."""
        return IncomingBody(self._forms)

    def _forms(self, head: bytes) -> set[bool]:
        """Which forms of the body those want who will sign it."""
        return {one.relaxed_body for one in self.of_header(head, end_of_header(head))}


def _by_domain(signers: Iterable[Signer]) -> Mapping[str, list[Signer]]:
    result: dict[str, list[Signer]] = {}
    for signer in signers:
        result.setdefault(signer.domain, []).append(signer)
    return result


def _author_domains(value: bytes) -> Iterator[str]:
    """Of the first authors alone, and no names are read: a field may have a megabyte."""
    for entry in address_list(value, _MOST_AUTHORS):
        members = [entry] if len(entry) == 3 else entry[1]
        yield from (_normal(domain) for _, _, domain in members)


def _normal(domain: str) -> str:
    try:
        return normal_domain(domain)
    except ValueError:
        return ""


def header_of(parts: list[bytes]) -> tuple[bytes, int]:
    """Octets that begin with the header section of a message in pieces, and where it ends."""
    head = parts[0] if parts else b""
    for part in parts[1:]:
        if (end := end_of_header(head)) < len(head):
            return head, end
        head += part
    return head, end_of_header(head)


class Unseen(Exception):
    """A long body that was not hashed as it came in; has the forms that are wanted."""

    def __init__(self, forms: set[bool]) -> None:
        super().__init__(forms)
        self.forms = forms


def see(arrival: Arrival, forms: set[bool]) -> None:
    """Hash the body of a message that is whole; that takes some 5 ms for a megabyte."""
    body = IncomingBody(lambda _: forms)
    for part in arrival.parts:
        body.feed(part)
    arrival.body = body


def prepare(signers: Signers, arrival: Arrival) -> list[Unsigned] | None:
    """What remains to be signed of a message, for each key of its author's domain.

    None where there are keys, but its header section is none. Unseen where `see` has to come first:
    nobody saw the body, or its author was another then.
    """
    head, end = header_of(arrival.parts)
    chosen = signers.of_header(head, end)
    forms = {signer.relaxed_body for signer in chosen}
    if None in [arrival.body and arrival.body.digest(form) for form in forms]:
        if arrival.size > _SHORT:
            raise Unseen(forms)
        see(arrival, forms)
    result = []
    for signer in chosen:
        digest = arrival.body.digest(signer.relaxed_body) if arrival.body else None
        assert digest is not None
        if unsigned := signer.prepare(head, end, digest, arrival.received):
            result.append(unsigned)
    return result if result or not chosen else None


def zone_line(name: str, record: str) -> str:
    """The record as a line of a zone file; a long text is several strings."""
    strings = [record[i : i + _STRING] for i in range(0, len(record), _STRING)]
    quoted = " ".join(f'"{each}"' for each in strings)
    return f"{name}. IN TXT ( {quoted} )"
