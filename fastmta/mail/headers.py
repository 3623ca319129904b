"""The header section of a message or part: fields found on demand, typed when asked for."""

from datetime import datetime

from fastmta._core.headers import Section, bracketed, find, unfold
from fastmta.mail import charset, encoded_words
from fastmta.mail.date_time import parse_date
from fastmta.mail.email_address import EmailAddress, EmailAddressGroup, parse_addresses
from fastmta.mail.received import Received, parse_received


class Headers(Section):
    """The fields of data[start:end]. Names are asked for in any case.

    Iterating gives (name, value) of each as it stands, folded, without the last line end; a
    line that is no field is told too, with an empty name.

    Where a field that may stand once occurs more than once, the last one counts, as in RFC 8621
    section 4.1.2 and as DKIM signs (RFC 6376 section 5.4.2).
    """

    __slots__ = ()

    def __bytes__(self) -> bytes:
        return self.data[self.start : self.end]

    def __contains__(self, name: str) -> bool:
        return bool(self._find(name))

    def _find(self, name: str) -> list[tuple[int, int]]:
        return find(self.data, self.start, self.end, name.lower().encode("latin-1", "replace"))

    def get_all(self, name: str) -> list[bytes]:
        """The values of all fields of that name, unfolded and trimmed."""
        return [unfold(self.data, start, end) for start, end in self._find(name)]

    def get(self, name: str) -> bytes:
        """The value, unfolded and trimmed; empty where there is none."""
        found = self._find(name)
        return unfold(self.data, *found[-1]) if found else b""

    def text(self, name: str) -> str:
        """The value with its encoded words decoded (RFC 2047)."""
        text = charset.decode(self.get(name), "utf-8")
        return encoded_words.decode(text) if "=?" in text else text

    def addresses(self, name: str) -> list[EmailAddress | EmailAddressGroup]:
        """RFC 5322 section 4.5.3: the lists of several such fields count as one."""
        values = [self.data[start:end] for start, end in self._find(name)]
        return parse_addresses(b",".join(values))

    def date(self, name: str = "Date") -> datetime | None:
        return parse_date(self.get(name))

    def message_ids(self, name: str) -> list[str]:
        """What stands between angle brackets in Message-ID, References, Content-ID and such."""
        return [found.decode("utf-8", "replace") for found in bracketed(self.get(name))]

    def received(self) -> list[Received]:
        """The trace, last hop first."""
        return [parse_received(value) for value in self.get_all("Received")]
