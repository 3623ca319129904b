"""DKIM: what is signed, by whom, and that others find the signatures good."""

import base64
import random
import re
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fastmta._core.dkim import SignedFields, canonical_field
from fastmta.mail.arrival import Arrival
from fastmta.mail.dkim import BadKey, DkimKey, Signer, Signers, prepare, see, zone_line
from fastmta.mail.dkim_key import generate_key, load_key
from tests.integration.servers import program

MESSAGES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "messages"
DOMAIN = "example.test"
PEM = {
    "rsa": rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ),
    "ed25519": generate_key("ed25519"),
}
KEYS = {name: load_key(pem) for name, pem in PEM.items()}
FORMS = [(header, body) for header in (True, False) for body in (True, False)]


def signer(kind: str = "rsa", domain: str = DOMAIN, **settings: object) -> Signer:
    return Signer(domain, kind, KEYS[kind], **settings)  # type: ignore[arg-type]


def signed(message: bytes, *signers: Signer, time: float = 1e9) -> bytes:
    """The message with a field of each that can sign it."""
    middle = len(message) // 2
    arrival = Arrival(1, "", [], [message[:middle], message[middle:]], len(message), time)
    fields = [
        each.complete(each.key.sign(each.digest))
        for each in prepare(Signers(signers), arrival) or []
    ]
    return b"".join(fields) + message


def dns(name: bytes, timeout: int = 5) -> bytes:
    """What dkimpy asks instead of a nameserver."""
    return KEYS[name.decode().partition(".")[0]].record.encode()


def is_good(message: bytes, index: int = 0) -> bool:
    try:
        return bool(dkim.DKIM(message).verify(idx=index, dnsfunc=dns))
    except dkim.ValidationError:
        return False


HEAD = b"From: A <a@example.test>\r\nTo: b@example.test\r\nSubject: Hi  there\r\n"
MESSAGE = HEAD + b"\r\nHello,\t world \r\n\r\nBye\r\n\r\n"


# The examples of RFC 6376 (appendices A.2 and C) and of RFC 8463 (appendix A).

RFC_6376 = b"""\
DKIM-Signature: v=1; a=rsa-sha256; s=brisbane; d=example.com;
      c=simple/simple; q=dns/txt; i=joe@football.example.com;
      h=Received : From : To : Subject : Date : Message-ID;
      bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
      b=AuUoFEfDxTDkHlLXSZEpZj79LICEps6eda7W3deTVFOk4yAUoqOB
      4nujc7YopdG5dWLSdNg6xNAZpOPr+kHxt1IrE+NahM6L/LbvaHut
      KVdkLLkpVaVVQPzeRDI009SO2Il5Lu7rDNH6mZckBdrIx0orEtZV
      4bmp/YzhwvcubU4=;
Received: from client1.football.example.com  [192.0.2.1]
      by submitserver.example.com with SUBMISSION;
      Fri, 11 Jul 2003 21:01:54 -0700 (PDT)
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game. Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")
RFC_6376_KEY = b"""\
-----BEGIN RSA PRIVATE KEY-----
MIICXwIBAAKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYtIxN2SnFC
jxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gb
to/NMqJ0fzfVjH4OuKhitdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB
AoGBALmn+XwWk7akvkUlqb+dOxyLB9i5VBVfje89Teolwc9YJT36BGN/l4e0l6QX
/1//6DWUTB3KI6wFcm7TWJcxbS0tcKZX7FsJvUz1SbQnkS54DJck1EZO/BLa5ckJ
gAYIaqlA9C0ZwM6i58lLlPadX/rtHb7pWzeNcZHjKrjM461ZAkEA+itss2nRlmyO
n1/5yDyCluST4dQfO8kAB3toSEVc7DeFeDhnC1mZdjASZNvdHS4gbLIA1hUGEF9m
3hKsGUMMPwJBAPW5v/U+AWTADFCS22t72NUurgzeAbzb1HWMqO4y4+9Hpjk5wvL/
eVYizyuce3/fGke7aRYw/ADKygMJdW8H/OcCQQDz5OQb4j2QDpPZc0Nc4QlbvMsj
7p7otWRO5xRa6SzXqqV3+F0VpqvDmshEBkoCydaYwc2o6WQ5EBmExeV8124XAkEA
qZzGsIxVP+sEVRWZmW6KNFSdVUpk3qzK0Tz/WjQMe5z0UunY9Ax9/4PVhp/j61bf
eAYXunajbBSOLlx4D+TunwJBANkPI5S9iylsbLs6NkaMHV6k5ioHBBmgCak95JGX
GMot/L2x0IYyMLAz6oLWh2hm7zwtb0CgOrPo1ke44hFYnfc=
-----END RSA PRIVATE KEY-----
"""
RFC_8463 = b"""\
DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")
RFC_8463_KEYS = {
    "ed25519": (
        Ed25519PrivateKey.from_private_bytes(
            base64.b64decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
        ).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    ),
    "rsa": (
        b"""-----BEGIN RSA PRIVATE KEY-----
MIICXQIBAAKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQi
Y/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqM
KrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB
AoGAH0cxOhFZDgzXWhDhnAJDw5s4roOXN4OhjiXa8W7Y3rhX3FJqmJSPuC8N9vQm
6SVbaLAE4SG5mLMueHlh4KXffEpuLEiNp9Ss3O4YfLiQpbRqE7Tm5SxKjvvQoZZe
zHorimOaChRL2it47iuWxzxSiRMv4c+j70GiWdxXnxe4UoECQQDzJB/0U58W7RZy
6enGVj2kWF732CoWFZWzi1FicudrBFoy63QwcowpoCazKtvZGMNlPWnC7x/6o8Gc
uSe0ga2xAkEA8C7PipPm1/1fTRQvj1o/dDmZp243044ZNyxjg+/OPN0oWCbXIGxy
WvmZbXriOWoSALJTjExEgraHEgnXssuk7QJBALl5ICsYMu6hMxO73gnfNayNgPxd
WFV6Z7ULnKyV7HSVYF0hgYOHjeYe9gaMtiJYoo0zGN+L3AAtNP9huqkWlzECQE1a
licIeVlo1e+qJ6Mgqr0Q7Aa7falZ448ccbSFYEPD6oFxiOl9Y9se9iYHZKKfIcst
o7DUw1/hz2Ck4N5JrgUCQQCyKveNvjzkkd8HjYs0SwM0fPjK16//5qDZ2UiDGnOe
uEzxBDAr518Z8VFbR41in3W4Y3yCDgQlLlcETrS+zYcL
-----END RSA PRIVATE KEY-----
""",
        "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6"
        "Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6l"
        "HvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB",
    ),
}


def check_example(
    message: bytes, index: int, key: DkimKey, names: list[bytes], relaxed: bool
) -> None:
    """That we make of a message what its signature number `index` says."""
    head, _, body = message.partition(b"\r\n\r\n")
    arrival = Arrival(1, "", [], [b"\r\n" + body], 0, 0.0)
    see(arrival, {relaxed})
    digest = arrival.body.digest(relaxed) if arrival.body else None
    assert digest is not None
    assert base64.b64encode(digest) in head
    field = b"DKIM-Signature:" + head.split(b"DKIM-Signature:")[index + 1]
    field = re.split(rb"\r\n(?=[A-Z])", field)[0] + b"\r\n"
    before, tag, signature = field.partition(b" b=")
    found = SignedFields(names).select(head + b"\r\n", len(head) + 2, relaxed)
    assert found is not None
    own = before + tag + b";" * signature.endswith(b";\r\n") + b"\r\n"
    own = canonical_field(own, 0, len(own), relaxed)[:-2]
    made = key.sign(sha256(found[1] + own).digest())
    assert base64.b64encode(made) == b"".join(signature.split()).rstrip(b";")


def test_the_example_of_rfc_6376_comes_out_to_the_byte() -> None:
    names = [b"received", b"from", b"to", b"subject", b"date", b"message-id"]
    check_example(RFC_6376, 0, load_key(RFC_6376_KEY), names, relaxed=False)


@pytest.mark.parametrize(("index", "kind"), list(enumerate(RFC_8463_KEYS)))
def test_the_examples_of_rfc_8463_come_out_to_the_byte(index: int, kind: str) -> None:
    pem, record = RFC_8463_KEYS[kind]
    key = load_key(pem)
    assert key.record == record
    names = [b"from", b"to", b"subject", b"date", b"message-id"]
    check_example(RFC_8463, index, key, names, relaxed=True)


# The field


def test_the_field_as_it_stands() -> None:
    field = signed(MESSAGE, signer("ed25519", expire_after=86400)).removesuffix(MESSAGE)
    before, _, b = field.partition(b"\tb=")
    bh = base64.b64encode(sha256(b"Hello, world\r\n\r\nBye\r\n").digest()).decode()
    assert before.decode() == (
        "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n"
        "\td=example.test; s=ed25519; t=1000000000; x=1000086400;\r\n"
        "\th=From:From:Reply-To:Subject:Subject:Date:To:To:Cc:Message-ID:In-Reply-To:\r\n"
        "\tReferences:MIME-Version:Content-Type:Content-Transfer-Encoding;\r\n"
        f"\tbh={bh};\r\n"
    )
    assert len(base64.b64decode(b"".join(b.split()))) == 64


def test_each_key_of_a_domain_makes_a_field() -> None:
    message = signed(MESSAGE, signer("rsa"), signer("ed25519"))
    assert message.count(b"DKIM-Signature:") == 2
    assert is_good(message, 0)
    assert is_good(message, 1)


@pytest.mark.parametrize("name", ["From", "Subject", "Reply-To", "Date", "Content-Type", "To"])
def test_no_field_can_be_added(name: str) -> None:
    message = signed(MESSAGE, signer())
    assert is_good(message)
    assert not is_good(f"{name}: Eve <eve@evil.test>\r\n".encode() + message)
    assert not is_good(message.replace(b"\r\n\r\n", f"\r\n{name}: x\r\n\r\n".encode(), 1))


def test_what_a_list_adds_does_not_break_it() -> None:
    message = signed(b"Resent-From: r@x.test\r\n" + MESSAGE, signer())
    assert is_good(b"List-Id: <a.b>\r\nResent-From: x@y.test\r\nReceived: x\r\n" + message)
    assert not is_good(message.replace(b"r@x.test", b"s@x.test"))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.replace(b"Hello", b"Hullo"),
        lambda m: m.replace(b"Hi  there", b"Hi there!"),
        lambda m: m.replace(b"b@example.test", b"c@example.test"),
        lambda m: m + b"more\r\n",
    ],
)
def test_what_was_changed_is_noticed(change: Callable[[bytes], bytes]) -> None:
    assert not is_good(change(signed(MESSAGE, signer())))


# Who signs


def domains_for(head: bytes, signers: Signers) -> list[str]:
    return [one.domain for one in signers.of_header(head + b"\r\n", len(head))]


@pytest.mark.parametrize(
    ("head", "domains"),
    [
        (b"From: a@example.test\r\n", ["example.test"]),
        (b'from : "x@other.test" <a@EXAMPLE.Test>\r\n', ["example.test"]),
        (b"From: a@sub.example.test\r\n", []),
        (b"From: a@deep.sub.below.test\r\n", ["below.test"]),
        (b"From: a@below.test\r\n", ["below.test"]),
        (b"From: a@own.below.test\r\n", ["own.below.test"]),
        (b"From: a@notbelow.test\r\n", []),
        ("From: a@b\u00fccher.test\r\n".encode(), ["xn--bcher-kva.test"]),
        (b"From: a@other.test\r\n", []),
        (b"From: a@other.test, b@example.test, c@below.test, d@example.test\r\n",
         ["example.test", "below.test"]),
        (b"From: friends: a@example.test, b@below.test;\r\n", ["example.test", "below.test"]),
        (b"From: a@1.test, a@2.test, a@3.test, a@4.test, a@example.test\r\n", []),
        (b"From: a@example.test\r\nFrom: b@example.test\r\n", []),
        (b"Sender: a@example.test\r\n", []),
        (b"From:\r\n", []),
        (b"From: <a@[192.0.2.1]>\r\n", []),
        (b"From: @@@\r\n", []),
        (b"", []),
    ],
)  # fmt: skip
def test_the_domain_of_the_author_signs(head: bytes, domains: list[str]) -> None:
    below = signer(domain="below.test")
    others = [signer(domain=d) for d in ("example.test", "xn--bcher-kva.test", "own.below.test")]
    assert domains_for(head, Signers([*others, below], [below])) == domains


@pytest.mark.parametrize(
    "message",
    [b"From: a@example.test\r\nno field\r\n\r\nx\r\n", b"X: y\r\n" * 1001 + MESSAGE],
)
def test_a_broken_header_section_is_not_signed(message: bytes) -> None:
    arrival = Arrival(1, "", [], [message], len(message), 0.0)
    assert prepare(Signers([signer()]), arrival) is None
    assert prepare(Signers([signer(domain="other.test")]), arrival) == []


# Others find them good


def made(number: int) -> bytes:
    """A message with what canonical forms are about: folds, white space, empty lines, octets."""
    pick = random.Random(number)
    words = [b"word", b"\xc3\xa9t\xc3\xa9", b".", b"..", b"=3D", b"a" * 70, b"b=;", b"From", b"-"]
    spaces = [b" ", b"  ", b"\t", b" \t ", b""]

    def text(most: int, gaps: list[bytes]) -> bytes:
        return b"".join(pick.choice(words) + pick.choice(gaps) for _ in range(pick.randrange(most)))

    folds = [*spaces, b"\r\n ", b" \r\n\t"]
    head = [b"From: A <a@example.test>\r\n"]
    for name in (b"To", b"subject", b"List-Id", b"X-Own", b"To", b"Date", b"CC"):
        if pick.random() < 0.6:
            value = b"v" + text(6, folds) + b"w" + pick.choice(spaces)
            head.append(name + b":" + pick.choice(spaces) + value + b"\r\n")
    pick.shuffle(head)
    lines = [text(8, spaces) if pick.random() < 0.7 else b"" for _ in range(pick.randrange(12))]
    end = pick.choice([b"", b"\r\n", b" \r\n", b"\r\n\r\n\r\n"])
    return b"".join(head) + b"\r\n" + b"\r\n".join(lines) + end


@pytest.mark.parametrize("kind", KEYS)
def test_dkimpy_finds_the_signatures_of_a_thousand_messages_good(kind: str) -> None:
    signers = [signer(kind, relaxed=forms) for forms in FORMS]
    for number in range(1000):
        message = signed(made(number), signers[number % 4])
        assert message.startswith(b"DKIM-Signature"), number
        assert is_good(as_it_arrives(message)), number


def as_it_arrives(message: bytes) -> bytes:
    """The data of SMTP always ends a last line (RFC 5321 section 4.1.1.4)."""
    return message if message.endswith(b"\r\n") else message + b"\r\n"


def fixtures() -> list[Path]:
    return sorted(MESSAGES.glob("*/*.eml"))


def as_sent(path: Path) -> bytes:
    """With CRLF, an author of ours, and no second one: as a client would send it."""
    content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    head, gap, body = content.partition(b"\n\n")
    fields = head.split(b"\n")
    kept = [line for line in fields if not line.lower().startswith((b"from:", b"from "))]
    # What does not begin like a field or a fold would end the header section at the next hop.
    kept = [line for line in kept if line[:1] in b" \t" or b":" in line.split(b" ")[0]]
    while kept and kept[0][:1] in (b" ", b"\t"):
        kept.pop(0)
    return b"\r\n".join([b"From: a@example.test", *kept]) + (gap + body).replace(b"\n", b"\r\n")


@pytest.mark.skipif(not fixtures(), reason=f"no messages in {MESSAGES}")
@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("forms", FORMS)
def test_dkimpy_finds_the_signatures_of_all_fixtures_good(
    kind: str, forms: tuple[bool, bool]
) -> None:
    for path in fixtures():
        message = signed(as_sent(path), signer(kind, relaxed=forms))
        assert message.startswith(b"DKIM-Signature"), path
        assert is_good(message), path


_AFTER_NAME = re.compile(rb"(?m)^([A-Za-z-]+):[ \t]*")


def for_opendkim(message: bytes) -> bytes:
    """Its test mode writes one space behind each name, which only the relaxed form bears."""
    head, gap, body = message.partition(b"\r\n\r\n")
    return _AFTER_NAME.sub(rb"\1: ", head) + gap + body


def opendkim_fails(folder: Path, messages: list[bytes]) -> list[str]:
    """What opendkim says of those that it does not find good."""
    keys = "".join(f"{name}._domainkey.{DOMAIN} {key.record}\n" for name, key in KEYS.items())
    (folder / "keys").write_text(keys)
    (folder / "conf").write_text(f"Mode v\nSyslog no\nTestPublicKeys {folder}/keys\n")
    for number, message in enumerate(messages):
        (folder / str(number)).write_bytes(message)
    files = ",".join(str(number) for number in range(len(messages)))
    command = [program("opendkim"), "-x", "conf", "-t", files]
    said = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    verdicts = [line for line in said.splitlines() if "verification" in line]
    assert len(verdicts) == len(messages), said[-2000:]
    return [line for line in verdicts if not line.endswith(" succeeded")]


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("forms", FORMS)
def test_opendkim_finds_the_same_good(kind: str, forms: tuple[bool, bool], tmp_path: Path) -> None:
    sent = [made(number) for number in range(250)] + [as_sent(path) for path in fixtures()]
    sent = sent if forms[0] else list(map(for_opendkim, sent))
    one = signer(kind, relaxed=forms)
    messages = [as_it_arrives(signed(message, one)) for message in sent]
    assert opendkim_fails(tmp_path, messages) == []
    changed = [messages[0].replace(b"From: A", b"From: B"), messages[1] + b"more\r\n"]
    assert len(opendkim_fails(tmp_path, changed)) == 2


# Keys


@pytest.mark.parametrize("kind", ["rsa2048", "ed25519"])
def test_a_key_that_is_made_can_be_read(kind: str) -> None:
    key = load_key(generate_key(kind), thorough=True)
    assert key.algorithm.startswith(kind[:3])
    assert zone_line("a.test", key.record).startswith('a.test. IN TXT ( "v=DKIM1; k=')


def test_a_long_record_is_several_strings() -> None:
    line = zone_line("s._domainkey.a.test", KEYS["rsa"].record)
    strings = line.split('"')[1::2]
    assert [len(each) for each in strings] == [255, len(KEYS["rsa"].record) - 255]
    assert "".join(strings) == KEYS["rsa"].record


def pem_of(key: object, password: bytes = b"") -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(  # type: ignore[attr-defined, no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        (b"", "no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key"),
        (pem_of(Ed25519PrivateKey.generate(), b"secret"), "has a password"),
        (pem_of(generate_ec(SECP256R1())), "RSA or Ed25519"),
    ],
)
def test_what_is_no_key_is_refused(pem: bytes, why: str) -> None:
    with pytest.raises(BadKey, match=why):
        load_key(pem)


def test_a_key_that_is_too_short_is_refused() -> None:
    """RFC 8301 section 3.2; OpenSSL here makes none so short, but reads them."""
    command = [program("openssl"), "genrsa", "-traditional", "768"]
    made = subprocess.run(command, check=True, capture_output=True).stdout
    with pytest.raises(BadKey, match="has 768 bits"):
        load_key(made)


def test_names_of_authors_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of encoded words would keep the loop for 0.1 s."""
    read: list[str] = []
    monkeypatch.setattr("fastmta.mail.encoded_words.decode", read.append)
    head = b"From: =?utf-8?q?A?= <a@example.test>\r\n"
    assert len(Signers([signer()]).of_header(head, len(head))) == 1
    assert read == []
