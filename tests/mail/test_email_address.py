import pytest

from fastmta.mail.email_address import (
    EmailAddress,
    EmailAddressGroup,
    mailboxes,
    parse_addresses,
    quoted_string,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Bob <bob@example.test>", [("Bob", "bob@example.test")]),
        (b"Whomever", [("Whomever", "")]),
        (b"(a comment)", [("a comment", "")]),
        (b"bob@example.test (Bob)", [("Bob", "bob@example.test")]),
        (b"A1 (The Enforcer) Gore <a@b.c>", [("A1 Gore", "a@b.c")]),
        (b'"Joe, \\"x\\"" <j@d>,, al@d', [('Joe, "x"', "j@d"), ("", "al@d")]),
        (b"John Q. Public <q@d>", [("John Q. Public", "q@d")]),
        (b"Mary <@a,@b:mary@c.d>", [("Mary", "mary@c.d")]),
        (b"a . b @ c . d", [("", "a.b@c.d")]),
        (b'"john doe"@x.y', [("", '"john doe"@x.y')]),
        (b"a@b <a@b>", [("a@b", "a@b")]),
        (b"<>", [("", "")]),
        (b"a@[192. 0.2.1]", [("", "a@[192.0.2.1]")]),
        (b"=?utf-8?q?Doe,_J=C3=B6rg?= <j@d>", [("Doe, Jörg", "j@d")]),
        ("Jörg <jörg@exämple.test>".encode(), [("Jörg", "jörg@exämple.test")]),
        (b"\xe9 <a@b>", [("é", "a@b")]),
        (b"one@b; two@b", [("", "one@b"), ("", "two@b")]),
        (b"@", []),
        (b"", []),
    ],
)  # fmt: skip
def test_parses(value: bytes, expected: list[tuple[str, str]]) -> None:
    found = parse_addresses(value)
    assert [(entry.name, entry.address) for entry in mailboxes(found)] == expected


def test_groups() -> None:
    found = parse_addresses(b"A Group:Ed <e@f>,\r\n g@h;, Undisclosed recipients:;, i@j")
    ed, g = EmailAddress("Ed", "e", "f"), EmailAddress("", "g", "h")
    alone = EmailAddress("", "i", "j")
    empty = EmailAddressGroup("Undisclosed recipients", [])
    assert found == [EmailAddressGroup("A Group", [ed, g]), empty, alone]
    assert mailboxes(found) == [ed, g, alone]
    assert str(found[0]) == "A Group: Ed <e@f>, g@h;"


@pytest.mark.parametrize("name", ["", "Bob", "Bob B.", 'a "b" \\ c', "a, b", "Jörg <x>"])
@pytest.mark.parametrize("local", ["a", "a.b", "a b", 'a"b\\', ".a", "a@b", "jörg"])
@pytest.mark.parametrize("domain", ["example.test", "[192.0.2.1]", "exämple.test"])
def test_what_is_written_reads_the_same(name: str, local: str, domain: str) -> None:
    entry = EmailAddress(name, local, domain)
    assert parse_addresses(str(entry).encode()) == [entry]


def test_controls_do_not_get_into_a_quoted_string() -> None:
    assert quoted_string("a\r\n\0b") == '"a b"'


@pytest.mark.parametrize(
    ("entry", "normal"),
    [
        (EmailAddress("x", "Bob", "Example.TEST"), "Bob@example.test"),
        (EmailAddress("", "a b", "EXÄMPLE.test"), '"a b"@xn--exmple-cua.test'),
        (EmailAddress("", "a", "[IPV6:2001:DB8:0::1]"), "a@[IPv6:2001:db8::1]"),
    ],
)
def test_normal_form(entry: EmailAddress, normal: str) -> None:
    assert entry.normal == normal


def test_a_domain_without_a_normal_form() -> None:
    with pytest.raises(ValueError, match=r"."):
        _ = EmailAddress("", "a", "exä mple").normal
