"""What a message says for the relay alone: read, taken out, and refused where it is nonsense."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.config import Headers
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Priority
from fastmta.server.labels import BadLabel, Labels

NAMES = Headers(tenant="X-Tenant", campaign="X-Campaign", priority="X-Priority", pool="X-Pool")
LABELS = Labels(NAMES, {"bulk"}, {"news": Priority.BULK})
MESSAGE = (
    b"Subject: a\r\nx-tenant: news\r\nX-Campaign: spring-26\r\nX-POOL:\r\n bulk\r\n"
    b"To: b@example.test\r\n\r\nX-Tenant: body\r\n"
)
LEFT = b"Subject: a\r\nX-Campaign: spring-26\r\nTo: b@example.test\r\n\r\nX-Tenant: body\r\n"


def arrival(*parts: bytes) -> Arrival:
    return Arrival(1, "a@example.test", [], list(parts), sum(map(len, parts)), 0.0)


def read(*parts: bytes) -> Arrival:
    LABELS.read(arrived := arrival(*parts))
    assert arrived.size == sum(map(len, arrived.parts))
    return arrived


def test_labels_are_noted_and_taken_out() -> None:
    found = read(MESSAGE)
    assert (found.tenant, found.campaign, found.pool) == ("news", "spring-26", "bulk")
    assert found.priority is Priority.BULK
    assert b"".join(found.parts) == LEFT


@pytest.mark.parametrize("at", range(1, len(MESSAGE)))
def test_a_header_section_may_be_in_several_parts(at: int) -> None:
    found = read(MESSAGE[:at], MESSAGE[at:])
    assert (found.tenant, b"".join(found.parts)) == ("news", LEFT)


def test_the_priority_of_the_message_is_above_that_of_its_tenant() -> None:
    assert read(b"X-Tenant: news\r\nX-Priority: Urgent\r\n\r\n").priority is Priority.URGENT


@pytest.mark.parametrize(
    "message", [b"", b"\r\nX-Tenant: a\r\n", b"\r\n", b"Subject: a\r\n\r\nX-Tenant: a\r\n\r\n"]
)
def test_a_message_without_labels_stays_as_it_is(message: bytes) -> None:
    found = read(message)
    assert b"".join(found.parts) == message
    assert (found.tenant, found.priority) == ("", Priority.NORMAL)


def test_fields_at_the_end_without_an_empty_line_are_read() -> None:
    found = read(b"Subject: a\r\nX-Tenant: b\r\n")
    assert (found.tenant, b"".join(found.parts)) == ("b", b"Subject: a\r\n")


@pytest.mark.parametrize(
    "field",
    [
        *(b"X-Priority: high", b"X-Pool: unknown", b"X-Tenant: two words", b"X-Tenant: \xc3\xa4"),
        *(b"X-Tenant: " + b"a" * 101, b"X-Campaign: a\x00b"),
    ],
)
def test_nonsense_is_refused_by_name_and_changes_nothing(field: bytes) -> None:
    arrived = arrival(message := field + b"\r\n\r\nbody\r\n")
    with pytest.raises(BadLabel) as caught:
        LABELS.read(arrived)
    assert caught.value.reply.text.startswith(field.split(b":")[0].decode())
    assert caught.value.reply.code == 554
    assert (arrived.parts, arrived.tenant) == ([message], "")


def without_tenant(message: bytes) -> bytes:
    """The same in lines."""
    kept, in_header, is_ours = [], True, False
    for line in message.splitlines(keepends=True):
        in_header = in_header and line != b"\r\n"
        if not line.startswith(b" "):
            is_ours = in_header and line.startswith(b"X-Tenant:")
        if not (in_header and is_ours):
            kept.append(line)
    return b"".join(kept)


@given(st.lists(st.sampled_from([b"X-Tenant: a\r\n", b"To: b\r\n", b" \r\n", b"\r\n", b"x"])))
def test_only_whole_fields_of_ours_are_taken_out(pieces: list[bytes]) -> None:
    message = b"".join(pieces)
    assert b"".join(read(message).parts) == without_tenant(message)
