"""The messages of stalwartlabs/mail-parser: our reading beside their author's.

The JSON tree beside each message encodes one author's choices on broken input. Where ours
differs, the table below gives the sentence of an RFC that it follows.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from fastmta.mail.content import parse_content_disposition, parse_content_type
from fastmta.mail.date_time import parse_date
from fastmta.mail.email_address import EmailAddress
from fastmta.mail.headers import Headers
from fastmta.mail.message import Part, parse

FOLDER = Path(__file__).parents[2].parent / "shared" / "fixtures" / "messages"
FILES = sorted(FOLDER.glob("*/*.eml"))

pytestmark = pytest.mark.skipif(not FILES, reason=f"no messages to compare with in {FOLDER}")

OUTER = (
    "RFC 2046 section 5.1.2: MIME implementations are therefore required to recognize outer "
    "level boundary markers at ANY level of inner nesting."
)
BARE_PART = (
    "RFC 2046 section 5.1.1: NO header fields are actually required in body parts; and "
    "body-part := MIME-part-headers [CRLF *OCTET], so a part may end with its header."
)
JUNK_BASE64 = (
    "RFC 2045 section 6.8: Any characters outside of the base64 alphabet are to be ignored in "
    "base64-encoded data."
)
COMMENT = (
    "RFC 5322 section 3.2.3: comments and white space around words are not part of them; a "
    "comment is no part of a display-name that is there (RFC 8621 section 4.1.2.3)."
)

# What differs: file -> place in the tree -> why ours is right.
DIFFERENCES = {
    "malformed/000": {"": BARE_PART},
    "malformed/001": {"": OUTER},
    "malformed/007": {
        "": "RFC 2046 section 5.1.1: the boundary delimiter MUST occur at the beginning of a "
        "line and MUST NOT appear inside any of the encapsulated parts: a part whose own "
        "delimiter follows its fields without an empty line has begun its body.",
    },
    "malformed/008": {"": OUTER},
    "malformed/009": {"": OUTER},
    "malformed/011": {"": OUTER},
    "malformed/012": {"": OUTER},
    "malformed/016": {"": OUTER},
    "malformed/017": {
        "/0 content_disposition": "RFC 2183 section 2.8: Unrecognized disposition types should "
        "be treated as attachment; the file name is still told.",
    },
    "malformed/022": {
        "/1": "RFC 2046 section 5.2.1: A media type of message/rfc822 indicates that the body "
        "contains an encapsulated message: one without fields is all body.",
    },
    "rfc/000": {"/2/0 body": JUNK_BASE64, "/2/1 body": JUNK_BASE64},
    "rfc/002": {
        "/1/0 received": "RFC 5322 section 3.3: hour = 2DIGIT; `l8` begins with a letter, so "
        "this is no time.",
        "/1/0 to": COMMENT,
    },
}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def plain(content: bytes | str) -> bytes:
    """Line ends as LF: the trees were made from copies with other line ends."""
    octets = content.encode() if isinstance(content, str) else content
    return octets.replace(b"\r\n", b"\n")


# Their tree.


def expected_value(value: Any) -> Any:
    if value == "Empty":
        return None
    ((kind, content),) = value.items()
    if kind == "Text":
        return content
    if kind == "Address":
        return [(entry["name"] or "", entry["address"] or "") for entry in content["List"]]
    if kind == "ContentType":
        media = "/".join(filter(None, (content["c_type"], content["c_subtype"]))).lower()
        return media, {entry["name"]: entry["value"] for entry in content["attributes"] or []}
    if kind == "DateTime":
        return expected_date(content)
    assert kind == "Received"
    names = ("from", "by")
    hosts = [content[name]["Name"] for name in names]
    rest = [content["from_ip"], content["for_"], content["with"], content["id"].strip()]
    return [*hosts, *rest, expected_date(content["date"])]


def expected_date(date: dict[str, Any]) -> tuple[int, ...]:
    offset = (60 * date["tz_hour"] + date["tz_minute"]) * (-1 if date["tz_before_gmt"] else 1)
    return (*(date[key] for key in ("year", "month", "day", "hour", "minute", "second")), offset)


def expected_tree(message: dict[str, Any], index: int = 0) -> dict[str, Any]:
    part = message["parts"][index]
    ((kind, body),) = part["body"].items()
    node: dict[str, Any] = {
        "fields": [
            (
                field["name"] if isinstance(field["name"], str) else field["name"]["other"],
                expected_value(field["value"]),
            )
            for field in part["headers"]
        ],
        "parts": [],
        "body": b"",
    }
    if kind == "Multipart":
        node["parts"] = [expected_tree(message, child) for child in body]
    elif kind == "Message":
        node["parts"] = [expected_tree(body)]
    else:
        node["body"] = plain(body if isinstance(body, str) else bytes(body))
    return node


# Ours.


def our_date(value: bytes) -> tuple[int, ...] | None:
    found = parse_date(value)
    if found is None:
        return None
    offset = found.utcoffset()
    assert offset is not None
    return (*found.timetuple()[:6], int(offset.total_seconds()) // 60)


def our_value(name: str, raw: bytes) -> Any:
    line = b"x:" + raw
    field = Headers(line, 0, len(line))
    if name in ("from", "to"):
        return [
            (entry.name, entry.address)
            for entry in field.addresses("x")
            if isinstance(entry, EmailAddress)
        ]
    if name == "date":
        return our_date(raw)
    if name == "content_type":
        found = parse_content_type(field.get("x"))
        return found and (str(found), found.parameters)
    if name == "content_disposition":
        disposition = parse_content_disposition(field.get("x"))
        return disposition.type, disposition.parameters
    if name == "received":
        (hop,) = Headers(b"received:" + raw, 0, len(raw) + 9).received()
        date = our_date(raw.rpartition(b";")[2])
        return [hop.from_, hop.by, hop.from_ip, hop.for_, hop.with_, hop.id, date]
    if name in ("message_id", "content_id", "return_path"):
        return field.message_ids("x")[0]
    return field.text("x") or None


def our_fields(part: Part) -> list[tuple[str, Any]]:
    """Each field by itself, so that the ones that occur twice are all compared."""
    fields = []
    for name, value in part.headers:
        key = name.lower().replace("-", "_") if name != "Fro" else name
        if name:
            fields.append((key, our_value(key, value)))
    return fields


def our_tree(part: Part) -> dict[str, Any]:
    inside = list(part.parts) or [message for message in [part.message()] if message]
    is_text = part.content_type.type in ("text", "multipart")
    body = b"" if inside else plain(part.text() if is_text else part.decode())
    return {
        "fields": our_fields(part),
        "parts": [our_tree(child) for child in inside],
        "body": body,
    }


def differences(ours: dict[str, Any], theirs: dict[str, Any], place: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    if len(ours["parts"]) != len(theirs["parts"]):
        return {place: (ours, theirs)}
    for index, (mine, other) in enumerate(zip(ours["parts"], theirs["parts"], strict=True)):
        found |= differences(mine, other, f"{place}/{index}")
    if len(ours["fields"]) != len(theirs["fields"]):
        found[f"{place} fields"] = (ours["fields"], theirs["fields"])
    for mine, other in zip(ours["fields"], theirs["fields"], strict=False):
        if mine != other:
            found[f"{place} {other[0]}"] = (mine, other)
    if ours["body"] != theirs["body"]:
        found[f"{place} body"] = (ours["body"], theirs["body"])
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_reading_differs_only_where_an_rfc_says_so(path: Path) -> None:
    theirs = expected_tree(json.loads(path.with_suffix(".json").read_text()))
    found = differences(our_tree(parse(path.read_bytes())), theirs)
    assert found.keys() == DIFFERENCES.get(name_of(path), {}).keys(), found


def test_there_are_33_messages() -> None:
    assert len(FILES) == 33
    assert set(DIFFERENCES) <= {name_of(path) for path in FILES}
