"""The addresses of dominicsayers/isemail, each of the category that its author gives it."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from fastmta.mail.address import is_mailbox
from fastmta.mail.email_address import Syntax, syntax_of

SUITE = Path(__file__).parents[2].parent / "shared" / "fixtures" / "isemail" / "tests.xml"
pytestmark = pytest.mark.skipif(not SUITE.exists(), reason=f"no addresses to compare with: {SUITE}")

CATEGORIES = {
    "ISEMAIL_VALID_CATEGORY": Syntax.VALID,
    "ISEMAIL_RFC5321": Syntax.RFC5321,
    "ISEMAIL_CFWS": Syntax.CFWS,
    "ISEMAIL_DEPREC": Syntax.DEPRECATED,
    "ISEMAIL_RFC5322": Syntax.RFC5322,
    "ISEMAIL_ERR": Syntax.INVALID,
}

DIFFERENCES = {
    # It is fit for SMTP either way. The suite asks the DNS whether the top-level domain has mail
    # and gives test@org, where it has none, the class that we give both; RFC 5321 section 2.3.5:
    # Local aliases MUST NOT appear, only fully-qualified names.
    "test@io": Syntax.RFC5321,
}


def cases() -> list[tuple[str, Syntax]]:
    """All but those that need DNS; U+2400 and up stand for control characters."""
    found = []
    for test in ElementTree.parse(SUITE).getroot().iter("test"):
        category = CATEGORIES.get(test.findtext("category", ""))
        if category is not None:
            text = test.findtext("address", "")
            controls = {0x2400 + octet: octet for octet in range(32)}
            found.append((text.translate(controls), category))
    return found


@pytest.mark.parametrize(("address", "category"), cases() if SUITE.exists() else [])
def test_an_address_is_of_its_category(address: str, category: Syntax) -> None:
    assert syntax_of(address) == DIFFERENCES.get(address, category)


@pytest.mark.parametrize(("address", "category"), cases() if SUITE.exists() else [])
def test_the_envelope_takes_what_rfc_5321_takes(address: str, category: Syntax) -> None:
    """And more: what is too long, RFC 4291's "::" for one group, and the UTF-8 of RFC 6531."""
    is_long = category == Syntax.RFC5322 and len(address) > 64
    is_elided = category == Syntax.DEPRECATED and "::" in address
    if not (is_long or is_elided or not address.isascii()):
        assert is_mailbox(address) == (category <= Syntax.RFC5321)


def test_there_are_156_addresses() -> None:
    assert len(cases()) == 156


@pytest.mark.parametrize(
    ("address", "plain", "utf8"),
    [
        ("jörg@example.test", Syntax.INVALID, Syntax.VALID),
        ("a@exämple.test", Syntax.INVALID, Syntax.VALID),
        ('"jö rg"@example.test', Syntax.INVALID, Syntax.RFC5321),
        ("(ü)a@example.test", Syntax.INVALID, Syntax.CFWS),
    ],
)
def test_utf8_is_allowed_where_asked_for(address: str, plain: Syntax, utf8: Syntax) -> None:
    assert syntax_of(address) == plain
    assert syntax_of(address, utf8=True) == utf8
