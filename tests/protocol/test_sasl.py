"""SASL exchanges: what the RFCs show, to the byte, and what comes from outside."""

import hashlib
import hmac
from base64 import b64decode, b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scramp import ScramClient, ScramException

from fastmta.protocol.sasl import (
    MAX_RESPONSE,
    MECHANISMS,
    Challenge,
    Context,
    Exchange,
    Failed,
    Kind,
    Outcome,
    Password,
    Proven,
    Token,
)
from fastmta.protocol.sasl_text import prepare_name, prepare_password
from fastmta.protocol.scram import derive

BOUND = {"tls-server-end-point": b"hash of a certificate"}
KEYS = derive("pencil", b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
FEW = derive("pencil", b"salt" * 4, 4096)
CONTEXT = Context(lambda _: FEW)
ANSWER = Kind.MALFORMED, Kind.CREDENTIALS, Kind.TOO_LONG


def run(mechanism: str, *responses: bytes, context: Context = CONTEXT) -> Outcome:
    """The outcome of an initial response and of those that follow it."""
    exchange = Exchange(mechanism, context)
    outcome = exchange.begin(responses[0])
    for response in responses[1:]:
        assert isinstance(outcome, Challenge)
        outcome = exchange.step(response)
    return outcome


# PLAIN and LOGIN.


@pytest.mark.parametrize(
    ("octets", "outcome"),
    [
        (b"\0tim@example.test\0tanstaaftanstaaf", ("", "tim@example.test", "tanstaaftanstaaf")),
        (b"Ursel@Example.test\0Kurt@a.test\0xipj3plmq", ("ursel@example.test", "kurt@a.test", 0)),
        (b"\0J\xc3\xbcrgen@B\xc3\xbccher.test\0p", ("", "jürgen@xn--bcher-kva.test", "p")),
        (b"\0tim\0p", ("", "tim", "p")),
        (b"\0tim@-\xc3\xbc.test\0p", ("", "tim@-ü.test", "p")),  # no domain: no such account
    ],
)
def test_plain(octets: bytes, outcome: tuple[str, str, str]) -> None:
    authzid, name, password = outcome
    assert run("PLAIN", octets) == Password(authzid, name, password or "xipj3plmq")


def test_plain_without_an_initial_response() -> None:
    exchange = Exchange("PLAIN", CONTEXT)
    assert exchange.begin(None) == Challenge(b"")
    assert exchange.step(b"\0a\0b") == Password("", "a", "b")
    assert exchange.step(b"\0a\0b") == Failed(Kind.MALFORMED)  # it is over


def test_threat_11_a_name_does_not_change_the_order_of_letters() -> None:
    assert run("PLAIN", "\0a\u2066b\0c".encode()) == Failed(Kind.MALFORMED)


def test_login_says_what_outlook_waits_for() -> None:
    exchange = Exchange("LOGIN", CONTEXT)
    assert exchange.begin(None) == Challenge(b"Username:")
    assert exchange.step(b"Tim@Example.test") == Challenge(b"Password:")
    assert exchange.step(b"secret") == Password("", "tim@example.test", "secret")


def test_login_with_an_initial_response() -> None:
    assert run("LOGIN", b"tim@example.test", b"secret") == Password(
        "", "tim@example.test", "secret"
    )


@pytest.mark.parametrize("octets", [b"", b"a", b"\0a", b"\0a\0b\0c", b"\0\xff\0b", b"\0a\0\xff"])
def test_plain_that_is_none(octets: bytes) -> None:
    assert run("PLAIN", octets) == Failed(Kind.MALFORMED)


@pytest.mark.parametrize("octets", [b"\0\0b", b"\0a\0", b"\0\0"])
def test_an_empty_name_or_password_is_wrong(octets: bytes) -> None:
    assert run("PLAIN", octets) == Failed(Kind.CREDENTIALS)


@pytest.mark.parametrize("control", ["\r", "\n", "\r\n", "\x01", "\x7f", "\x80", "\u2028"])
@pytest.mark.parametrize("form", ["{}\0a\0b", "\0a{}\0b", "\0a\0b{}c"])
def test_threat_11_controls_in_credentials_are_refused(control: str, form: str) -> None:
    assert run("PLAIN", form.format(control).encode()) == Failed(Kind.MALFORMED)


@pytest.mark.parametrize("control", [b"\r", b"\n", b"\0", b"\x1b"])
def test_threat_11_controls_in_login_are_refused(control: bytes) -> None:
    assert run("LOGIN", b"a" + control, b"b") == Failed(Kind.MALFORMED)
    assert run("LOGIN", b"a", b"b" + control) == Failed(Kind.MALFORMED)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_threat_11_a_response_is_bounded(mechanism: str) -> None:
    assert run(mechanism, b"a" * (MAX_RESPONSE + 1)) == Failed(Kind.TOO_LONG)
    assert run("PLAIN", b"\0" + b"a" * 321 + b"\0b") == Failed(Kind.MALFORMED)
    assert run("PLAIN", b"\0a\0" + b"b" * 1025) == Failed(Kind.MALFORMED)


# SCRAM.


def test_the_example_of_rfc_7677() -> None:
    context = Context(lambda _: KEYS, nonce=lambda: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    exchange = Exchange("SCRAM-SHA-256", context)
    assert exchange.begin(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO") == Challenge(
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    assert exchange.step(
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    ) == Proven("", "user", b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", KEYS)


def scram(client: ScramClient, mechanism: str, context: Context = CONTEXT) -> Outcome:
    """A whole exchange; the client checks the server's signature where there is one."""
    exchange = Exchange(mechanism, context)
    outcome = exchange.begin(client.get_client_first().encode())
    if isinstance(outcome, Challenge):
        client.set_server_first(outcome.text.decode())
        outcome = exchange.step(client.get_client_final().encode())
    if isinstance(outcome, Proven):
        client.set_server_final(outcome.last.decode())
    return outcome


@pytest.mark.parametrize("name", ["tim@example.test", "a=b,c@example.test", "Jürgen@Bücher.test"])
def test_a_client_of_another_hand_proves_its_password(name: str) -> None:
    outcome = scram(ScramClient(["SCRAM-SHA-256"], name, "pencil"), "SCRAM-SHA-256")
    assert isinstance(outcome, Proven)
    assert outcome.name == prepare_name(name.encode())


def test_a_name_without_a_domain_is_not_taken_for_one() -> None:
    """The default domain comes behind it."""
    assert prepare_name("Jürgen".encode()) == "jürgen"


def test_a_wrong_password_proves_nothing() -> None:
    outcome = scram(ScramClient(["SCRAM-SHA-256"], "tim@a.test", "pencils"), "SCRAM-SHA-256")
    assert outcome == Failed(Kind.CREDENTIALS, "tim@a.test")


def proof_of(password: str, signed: bytes) -> bytes:
    """RFC 5802 section 3, with FEW's salt and iterations."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), FEW.salt, FEW.iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(hashlib.sha256(client).digest(), signed, "sha256")
    return b64encode(bytes(a ^ b for a, b in zip(client, signature, strict=True)))


@pytest.mark.parametrize(("nonce", "proves"), [(b"CS", True), (b"C", False), (b"CX", False)])
def test_the_nonce_of_the_server_has_to_come_back(nonce: bytes, proves: bool) -> None:
    exchange = Exchange("SCRAM-SHA-256", Context(lambda _: FEW, nonce=lambda: "S"))
    challenge = exchange.begin(b"n,,n=tim,r=C")
    assert isinstance(challenge, Challenge)
    final = b"c=biws,r=" + nonce
    proof = proof_of("pencil", b",".join((b"n=tim,r=C", challenge.text, final)))
    outcome = exchange.step(final + b",p=" + proof)
    assert isinstance(outcome, Proven) is proves


def bound_client(data: bytes = BOUND["tls-server-end-point"]) -> ScramClient:
    binding = ("tls-server-end-point", data)
    return ScramClient(["SCRAM-SHA-256-PLUS"], "tim@a.test", "pencil", channel_binding=binding)


def test_a_channel_is_bound() -> None:
    context = Context(lambda _: FEW, BOUND)
    assert isinstance(scram(bound_client(), "SCRAM-SHA-256-PLUS", context), Proven)


def test_another_channel_is_not_this_one() -> None:
    context = Context(lambda _: FEW, BOUND)
    outcome = scram(
        bound_client(b"the hash of the man in the middle"), "SCRAM-SHA-256-PLUS", context
    )
    assert outcome == Failed(Kind.CREDENTIALS, "tim@a.test")


def test_an_offer_that_somebody_cut_out_is_missed() -> None:
    """RFC 5802 section 6: "y" is a client that can bind, and thinks that the server cannot."""
    first = b"y,,n=tim@a.test,r=abc"
    assert isinstance(run("SCRAM-SHA-256", first), Challenge)
    cut = Context(lambda _: FEW, BOUND)
    assert run("SCRAM-SHA-256", first, context=cut) == Failed(Kind.CREDENTIALS)


@pytest.mark.parametrize(
    ("mechanism", "header"),
    [
        ("SCRAM-SHA-256-PLUS", b"n,,"),
        ("SCRAM-SHA-256-PLUS", b"y,,"),
        ("SCRAM-SHA-256-PLUS", b"p=tls-unique,,"),
        ("SCRAM-SHA-256", b"p=tls-server-end-point,,"),
        ("SCRAM-SHA-256", b"x,,"),
        ("SCRAM-SHA-256", b"n,b=tim,"),
        ("SCRAM-SHA-256", b"n,a=,"),
        ("SCRAM-SHA-256", b"n,a=a=2D,"),
        ("SCRAM-SHA-256", b"n,,m=x,"),
    ],
)
def test_headers_that_do_not_belong(mechanism: str, header: bytes) -> None:
    context = Context(lambda _: FEW, BOUND)
    assert run(mechanism, header + b"n=tim,r=abc", context=context) == Failed(Kind.MALFORMED)


def test_who_a_client_wants_to_act_as() -> None:
    exchange = Exchange("SCRAM-SHA-256", Context(lambda _: FEW, nonce=lambda: "S"))
    exchange.begin(b"n,a=Eve=2C=3D@A.test,n=tim,r=C")
    assert exchange.step(b"c=bixhPUV2ZT0yQz0zREBBLnRlc3Qs,r=CX,p=AAAA") == Failed(
        Kind.CREDENTIALS, "tim"
    )


def test_keys_that_cannot_be_looked_up() -> None:
    context = Context(lambda _: None)
    assert run("SCRAM-SHA-256", b"n,,n=tim,r=C", context=context) == Failed(Kind.UNAVAILABLE, "tim")


# Bearer tokens.


def test_xoauth2() -> None:
    outcome = run("XOAUTH2", b"user=Tim@Example.test\x01auth=Bearer ya29.vF9dft4~-_/+==\x01\x01")
    assert isinstance(outcome, Token)
    assert (outcome.authzid, outcome.token) == ("tim@example.test", "ya29.vF9dft4~-_/+==")


def test_the_example_of_rfc_7628() -> None:
    outcome = run(
        "OAUTHBEARER",
        b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01"
        b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01",
    )
    assert outcome == Token(
        "user@example.com",
        "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==",
        b'{"status":"invalid_token"}',
    )


@pytest.mark.parametrize(
    ("mechanism", "octets"),
    [
        ("XOAUTH2", b""),
        ("XOAUTH2", b"user=a\x01auth=Bearer b\x01"),
        ("XOAUTH2", b"user=a\x01auth=Basic b\x01\x01"),
        ("XOAUTH2", b"user=a\x01auth=Bearer b\nc\x01\x01"),
        ("XOAUTH2", b"user=a\r\n\x01auth=Bearer b\x01\x01"),
        ("OAUTHBEARER", b"n,,\x01\x01"),
        ("OAUTHBEARER", b"n,,\x01auth=Bearer \x01\x01"),
        ("OAUTHBEARER", b"n,,\x01host=a\x01\x01"),
        ("OAUTHBEARER", b"p=tls-unique,,\x01auth=Bearer b\x01\x01"),
        ("OAUTHBEARER", b"n,a=a\0,\x01auth=Bearer b\x01\x01"),
    ],
)
def test_tokens_that_are_none(mechanism: str, octets: bytes) -> None:
    assert run(mechanism, octets) == Failed(Kind.MALFORMED)


# Whatever comes.


@given(
    st.sampled_from(sorted(MECHANISMS)),
    st.lists(
        st.binary(max_size=200)
        | st.from_regex(rb"n,,n=[^,\0]{1,9},r=[a-z]{1,9}", fullmatch=True)
        | st.from_regex(rb"c=[A-Za-z0-9+/=]{4},r=[!-~]{1,20},p=[A-Za-z0-9+/=]{4,44}")
        | st.from_regex(rb"[^\0]*\0[^\0]+\0[^\0]+", fullmatch=True),
        min_size=1,
        max_size=4,
    ),
)
@example("SCRAM-SHA-256", [b"n,,n=a,r=b", b"c=biws,r=b,p=\xff"])
def test_threat_11_any_octets_come_to_an_end(mechanism: str, responses: list[bytes]) -> None:
    exchange = Exchange(mechanism, Context(lambda _: FEW, BOUND, nonce=lambda: "S"))
    outcome = exchange.begin(responses[0])
    for response in responses[1:]:
        if isinstance(outcome, Challenge):
            assert len(outcome.text) < 1000
            outcome = exchange.step(response)
    match outcome:
        case Password(authzid, name, password):
            assert all(map(str.isprintable, (authzid, name)))
            assert not set(password) & set("\0\r\n")
        case Token(authzid, token):
            assert authzid.isprintable()
            assert token.isascii()
        case Failed(kind):
            assert kind in ANSWER
        case _:
            assert isinstance(outcome, Challenge)  # nothing is proven by chance


@given(st.text(max_size=40))
def test_names_and_passwords_are_prepared_as_another_hand_does(text: str) -> None:
    try:
        theirs = ScramClient(["SCRAM-SHA-256"], "a", text).password
    except ScramException:
        return  # it knows no code point that is younger than Unicode 3.2
    assert prepare_password(text.encode()) == str(theirs.password)


@pytest.mark.parametrize(
    ("given", "prepared"),
    [("I\u00adX", "IX"), ("user", "user"), ("\u00aa", "a"), ("\u2168", "IX"), ("a\u00a0b", "a b")],
)
def test_the_examples_of_rfc_4013(given: str, prepared: str) -> None:
    assert prepare_password(given.encode()) == prepared


@pytest.mark.parametrize("given", ["\u0007", "\u0627\u0031", "\ud800"])
def test_what_rfc_4013_prohibits(given: str) -> None:
    with pytest.raises(ValueError):
        prepare_password(given.encode("utf-8", "surrogatepass"))


def test_a_name_without_a_domain_is_of_the_usual_one() -> None:
    context = Context(lambda _: FEW, domain="a.test")
    for written, name in (("bob", "bob@a.test"), ("Bob@b.test", "bob@b.test"), ("", "")):
        outcome = Exchange("PLAIN", context).begin(f"\0{written}\0x".encode())
        assert getattr(outcome, "name", "") == name
    asked: list[str] = []
    exchange = Exchange("SCRAM-SHA-256", Context(lambda name: asked.append(name), domain="a.test"))
    exchange.begin(b"n,,n=bob,r=abc")
    assert asked == ["bob@a.test"]
