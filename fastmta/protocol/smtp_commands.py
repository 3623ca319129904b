"""MAIL and RCPT as a client sends them to a host, and what a host cannot be sent at all."""

import re

from fastmta.mail.envelope import Envelope, Recipient, TlsDemand
from fastmta.mail.reply import Reply
from fastmta.mail.xtext import original_recipient
from fastmta.protocol.smtp_reply import Capabilities

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


def objection(envelope: Envelope, offered: Capabilities) -> Reply | None:
    """Why a host that offers this cannot be given this message at all; None: it can."""
    if offered.size and envelope.size > offered.size:  # RFC 1870 section 6.1
        text = f"message of {envelope.size} octets exceeds the host's limit of {offered.size}"
        return Reply(552, "5.3.4", text)
    addresses = _addresses(envelope)
    if not addresses.isprintable() and _CONTROLS.search(addresses):
        # Refused where mail comes in; here it would become a command of its own.
        return Reply(553, "5.1.3", "address with a control character")
    if not offered.utf8 and (envelope.utf8 or not addresses.isascii()):
        return Reply(553, "5.6.7", "message needs SMTPUTF8 and the host does not offer it")
    return None


def mail(envelope: Envelope, offered: Capabilities) -> str:
    command = f"MAIL FROM:<{envelope.sender}>"
    if offered.size is not None:
        command += f" SIZE={envelope.size}"
    if envelope.eight_bit:
        command += " BODY=8BITMIME"
    if offered.utf8 and (envelope.utf8 or not _addresses(envelope).isascii()):
        command += " SMTPUTF8"
    if offered.dsn:  # RFC 3461 section 5.2.1: passed on as they came
        command += f" RET={envelope.ret}" if envelope.ret else ""
        command += f" ENVID={envelope.envid}" if envelope.envid else ""
    if envelope.tls is TlsDemand.REQUIRED and offered.requiretls:  # not to a socket of this machine
        command += " REQUIRETLS"  # RFC 8689 section 4.2.1
    return command + "\r\n"


def rcpt(recipient: Recipient, offered: Capabilities) -> str:
    command = f"RCPT TO:<{recipient.address}>"
    if offered.dsn:  # RFC 3461 section 5.2.1
        command += f" NOTIFY={recipient.notify}" if recipient.notify else ""
        orcpt = recipient.orcpt or original_recipient(recipient.address)
        command += f" ORCPT={orcpt}" if orcpt else ""
    return command + "\r\n"


def _addresses(envelope: Envelope) -> str:
    """All of them run together, to look at their characters."""
    addresses = envelope.sender
    for recipient in envelope.recipients:
        addresses += recipient.address
    return addresses
