"""What the SMTP server asks before it carries a command out, where somebody wants to be asked."""

from enum import Enum

from msgspec import Struct

from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Recipient
from fastmta.protocol.sasl import Failed, Password, Proven, Token
from fastmta.protocol.smtp_xclient import Claims

Attempt = Password | Token | Proven | Failed


class Step(Enum):
    CONNECT = "the client waits for the greeting"
    XCLIENT = "XCLIENT, from a host that may say it; no judge is asked"
    EHLO = "EHLO or HELO"
    AUTH = "AUTH; the client has said who it is, or has failed to prove it"
    MAIL = "MAIL; the reverse-path is one"
    RCPT = "RCPT; the recipient would be taken"
    MESSAGE = "the message is whole, our trace field in front"


class Question(Struct):
    """What the client wants; nothing of it has been carried out yet.

    `arrival` may be changed where there is one: its recipients, its parts, whose it is.
    """

    step: Step
    helo: str = ""  # of EHLO
    extended: bool = False  # of EHLO: not HELO
    attempt: Attempt | None = None  # of AUTH
    claims: Claims | None = None  # of XCLIENT
    arrival: Arrival | None = None  # of MAIL, RCPT and MESSAGE
    recipient: Recipient | None = None  # of RCPT: not yet in the arrival
