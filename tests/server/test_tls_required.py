"""The header field TLS-Required (RFC 8689 section 3)."""

import pytest

from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import TlsDemand
from fastmta.server.tls_required import read_tls_required

MESSAGE = b"Subject: a\r\nTLS-Required: No\r\nTo: b@example.test\r\n\r\nbody\r\n"


def demand(*parts: bytes, tls: TlsDemand = TlsDemand.NONE) -> TlsDemand:
    arrival = Arrival(1, "a@example.test", [], list(parts), 0, 0.0, demand=tls)
    read_tls_required(arrival)
    assert arrival.parts == list(parts)  # it is for those who come after us, too
    return arrival.demand


@pytest.mark.parametrize("at", range(1, len(MESSAGE)))
def test_it_is_found_wherever_the_message_was_cut(at: int) -> None:
    assert demand(MESSAGE[:at], MESSAGE[at:]) is TlsDemand.OPTIONAL


@pytest.mark.parametrize("field", [b"tls-required:no\r\n", b"TLS-REQUIRED: \r\n NO \r\n"])
def test_how_it_may_be_written(field: bytes) -> None:
    assert demand(field + b"\r\n") is TlsDemand.OPTIONAL
    assert demand(field) is TlsDemand.OPTIONAL


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\r\nTLS-Required: No\r\n",
        b"Subject: a\r\n\r\nTLS-Required: No\r\n",
        b"TLS-Required: Yes\r\n\r\n",
        b"TLS-Required:\r\n\r\n",
        b"TLS-Required: No thanks\r\n\r\n",
        b"X-TLS-Required: No\r\n\r\n",
        b"TLS-Required: No\r\nTLS-Required: No\r\n\r\n",
    ],
)
def test_what_says_nothing(message: bytes) -> None:
    assert demand(message) is TlsDemand.NONE


def test_requiretls_weighs_more() -> None:
    assert demand(MESSAGE, tls=TlsDemand.REQUIRED) is TlsDemand.REQUIRED
