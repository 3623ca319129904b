"""What MAIL and RCPT carry: a path, and the parameters of extensions."""

import re
from collections.abc import Callable
from typing import TypeVar

from fastmta._core.smtp import PathError, parse_mail, parse_rcpt
from fastmta.mail.address import domain_of
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Recipient, TlsDemand
from fastmta.mail.xtext import MAX_ORCPT
from fastmta.protocol import smtp_replies as reply

_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})"  # RFC 3461 section 4
_ENVID = re.compile(rf"{_XTEXT}{{1,100}}")
_IDENTITY = re.compile(rf"<>|{_XTEXT}{{1,500}}")
# RFC 6533 section 3 adds UTF-8, as it is and as \x{HEXPOINT}, to the type "utf-8".
_ORCPT = re.compile(rf"[A-Za-z0-9-]+;{_XTEXT}+|[Uu][Tt][Ff]-8;(?:{_XTEXT}|[^\x00-\xa0])+")
_NOTIFY = re.compile(r"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY)){0,2}")

_Value = str | None
T = TypeVar("T")


class Refused(Exception):
    """The argument is not to be had; holds the reply, which says why."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(answer)
        self.answer = answer


def read_mail(argument: bytes, max_size: int, *, tls: bool) -> Arrival:
    """The transaction that MAIL opens; its `size` is the declared one. Raises Refused.

    `tls`: what is offered under TLS alone may be asked for.
    """
    try:
        sender, ascii_only, parameters = parse_mail(argument)
    except ValueError as error:
        raise _refused(error, reply.BAD_SENDER) from None
    arrival = Arrival(0, sender, [], [], 0, 0.0)
    if parameters is not None:
        for keyword, value in parameters.items():
            _apply(OF_MAIL.get(keyword), arrival, value)
        if arrival.size > max_size:  # RFC 1870 section 6.1
            raise Refused(reply.MESSAGE_TOO_BIG)
        if arrival.demand and not tls:  # RFC 8689 section 2: it was not offered
            raise Refused(reply.UNKNOWN_PARAMETER)
    if not ascii_only:
        _check_utf8(sender, arrival, reply.BAD_SENDER)
    return arrival


def read_rcpt(argument: bytes, arrival: Arrival, hostname: str) -> Recipient:
    """A recipient; a bare "postmaster" is the one of `hostname`. Raises Refused."""
    try:
        address, ascii_only, parameters = parse_rcpt(argument)
    except ValueError as error:
        raise _refused(error, reply.BAD_RECIPIENT) from None
    recipient = Recipient(address if "@" in address else f"{address}@{hostname}")
    if parameters is not None:
        for keyword, value in parameters.items():
            _apply(OF_RCPT.get(keyword), recipient, value)
    if not ascii_only:
        _check_utf8(recipient.address, arrival, reply.BAD_RECIPIENT)
    return recipient


def _refused(error: ValueError, bad_path: bytes) -> Refused:
    return Refused(bad_path if isinstance(error, PathError) else reply.BAD_PARAMETER)


def _apply(meaning: Callable[[T, _Value], bool] | None, target: T, value: _Value) -> None:
    """Each parameter writes what it means into the arrival or the recipient."""
    if meaning is None:
        raise Refused(reply.UNKNOWN_PARAMETER)
    if not meaning(target, value):
        raise Refused(reply.BAD_PARAMETER)


def _check_utf8(address: str, arrival: Arrival, bad_path: bytes) -> None:
    """What is not all ASCII was announced, and its domain exists as A-labels (RFC 6531)."""
    if not arrival.utf8:
        raise Refused(reply.NOT_ASCII)
    try:
        domain_of(address)
    except ValueError:
        raise Refused(bad_path) from None


def _size(arrival: Arrival, value: _Value) -> bool:
    """RFC 1870 section 4: 1*20DIGIT."""
    if value is None or not (value.isascii() and value.isdigit() and len(value) <= 20):
        return False
    arrival.size = int(value)
    return True


def _body(arrival: Arrival, value: _Value) -> bool:
    """RFC 6152 section 2."""
    body = (value or "").upper()
    arrival.eight_bit = body == "8BITMIME"
    return body in ("7BIT", "8BITMIME")


def _smtputf8(arrival: Arrival, value: _Value) -> bool:
    """RFC 6531 section 3.4."""
    arrival.utf8 = True
    return value is None


def _ret(arrival: Arrival, value: _Value) -> bool:
    """RFC 3461 section 4.3."""
    arrival.ret = (value or "").upper()
    return arrival.ret in ("FULL", "HDRS")


def _envid(arrival: Arrival, value: _Value) -> bool:
    """RFC 3461 section 4.4."""
    arrival.envid = value or ""
    return _ENVID.fullmatch(arrival.envid) is not None


def _auth(arrival: Arrival, value: _Value) -> bool:
    """RFC 4954 section 5. Who sent it before is not kept: nobody that we trust says it."""
    return value is not None and _IDENTITY.fullmatch(value) is not None


def _requiretls(arrival: Arrival, value: _Value) -> bool:
    """RFC 8689 section 2."""
    arrival.demand = TlsDemand.REQUIRED
    return value is None


def _notify(recipient: Recipient, value: _Value) -> bool:
    """RFC 3461 section 4.1: each at most once, NEVER alone."""
    recipient.notify = (value or "").upper()
    words = recipient.notify.split(",")
    return _NOTIFY.fullmatch(recipient.notify) is not None and len(set(words)) == len(words)


def _orcpt(recipient: Recipient, value: _Value) -> bool:
    """RFC 3461 section 4.2."""
    recipient.orcpt = value or ""
    return len(recipient.orcpt) <= MAX_ORCPT and _ORCPT.fullmatch(recipient.orcpt) is not None


OF_MAIL: dict[str, Callable[[Arrival, _Value], bool]] = {
    "SIZE": _size,
    "BODY": _body,
    "SMTPUTF8": _smtputf8,
    "RET": _ret,
    "ENVID": _envid,
    "AUTH": _auth,
    "REQUIRETLS": _requiretls,
}
OF_RCPT: dict[str, Callable[[Recipient, _Value], bool]] = {"NOTIFY": _notify, "ORCPT": _orcpt}
