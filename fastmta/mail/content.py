"""Content-Type (RFC 2045 section 5) and Content-Disposition (RFC 2183), parsed."""

from msgspec import Struct

from fastmta._core.headers import parameters
from fastmta.mail.parameters import decode_parameters


class ContentType(Struct, frozen=True):
    type: str  # lower case, as is `subtype`
    subtype: str
    parameters: dict[str, str]  # names in lower case

    def __str__(self) -> str:
        return f"{self.type}/{self.subtype}"


class ContentDisposition(Struct, frozen=True):
    type: str  # lower case: "inline", "attachment"; "" where only parameters are given
    parameters: dict[str, str]

    @property
    def filename(self) -> str:
        return self.parameters.get("filename", "")


# RFC 2045 section 5.2, also for a field that cannot be understood.
DEFAULT = ContentType("text", "plain", {"charset": "us-ascii"})
# RFC 2046 section 5.1.5.
DEFAULT_IN_DIGEST = ContentType("message", "rfc822", {})


def parse_content_type(value: bytes) -> ContentType | None:
    """None for a value without a type and a subtype."""
    media, pairs = parameters(value)
    kind, slash, subtype = media.decode("ascii", "replace").lower().partition("/")
    if not (kind and slash and subtype):
        return None
    return ContentType(kind, subtype, decode_parameters(pairs))


def parse_content_disposition(value: bytes) -> ContentDisposition:
    kind, pairs = parameters(value)
    return ContentDisposition(kind.decode("ascii", "replace").lower(), decode_parameters(pairs))
