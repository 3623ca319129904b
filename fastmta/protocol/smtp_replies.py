"""The replies of the SMTP server, as they go over the wire.

Codes are those of RFC 5321 section 4.2.3, enhanced codes those of RFC 3463 and of IANA's registry.
"""

from fastmta._core.data import BARE_NEWLINE, HEADER_TOO_BIG, NO_ROOM, TOO_BIG
from fastmta.mail.reply import Reply


def _reply(code: int, enhanced: str, text: str) -> bytes:
    return bytes(Reply(code, enhanced, text))


OK = _reply(250, "2.0.0", "Ok")
SENDER_OK = _reply(250, "2.1.0", "Ok")
RECIPIENT_OK = _reply(250, "2.1.5", "Ok")
CHUNK_OK = _reply(250, "2.0.0", "Chunk received")
GO_AHEAD = _reply(354, "", "End data with CRLF.CRLF")
READY_FOR_TLS = _reply(220, "2.0.0", "Ready to start TLS")
GOODBYE = _reply(221, "2.0.0", "Bye")
HELP = _reply(
    214, "2.0.0", "EHLO HELO AUTH MAIL RCPT DATA BDAT RSET NOOP HELP VRFY STARTTLS QUIT (RFC 5321)"
)
# RFC 5321 section 3.5.3: says nothing about whether the address exists.
CANNOT_VERIFY = _reply(252, "2.1.5", "Cannot verify, but will take mail and try to deliver it")

UNKNOWN_COMMAND = _reply(500, "5.5.1", "Command not recognised")
MALFORMED = _reply(500, "5.5.2", "Control characters in a command")
LINE_TOO_LONG = _reply(500, "5.5.2", "Line too long")
BARE_LINE_FEED = _reply(500, "5.5.2", "A command ends in CRLF; this one ended in LF alone")
NOT_IMPLEMENTED = _reply(502, "5.5.1", "Command not implemented")
NO_ARGUMENT = _reply(501, "5.5.4", "The command takes no argument")
NEEDS_HOST = _reply(501, "5.5.4", "EHLO and HELO take a host name or address literal")
NEEDS_ARGUMENT = _reply(501, "5.5.4", "The command needs an argument")
BAD_CHUNK = _reply(501, "5.5.4", "BDAT takes a size and maybe LAST")
BAD_SENDER = _reply(501, "5.1.7", "Write MAIL FROM:<local-part@domain>, or <> for none")
BAD_RECIPIENT = _reply(501, "5.1.3", "Write RCPT TO:<local-part@domain>")
BAD_PARAMETER = _reply(501, "5.5.4", "A parameter is not as it should be")
UNKNOWN_PARAMETER = _reply(555, "5.5.4", "A parameter is not recognised")
NOT_ASCII = _reply(553, "5.6.7", "Non-ASCII needs the SMTPUTF8 parameter")

EHLO_FIRST = _reply(503, "5.5.1", "Say EHLO first")
MAIL_FIRST = _reply(503, "5.5.1", "Say MAIL first")
RCPT_FIRST = _reply(503, "5.5.1", "No recipient yet")
TRANSACTION_OPEN = _reply(503, "5.5.1", "A transaction is open; RSET ends it")
CHUNKS_ONLY = _reply(503, "5.5.1", "Only BDAT goes on with a transaction that BDAT began")
NO_TLS = _reply(502, "5.5.1", "STARTTLS is not offered here")

AUTHENTICATED = _reply(235, "2.7.0", "Authentication successful")
NO_AUTH = _reply(502, "5.5.1", "AUTH is not offered here")
# RFC 4954 section 6 has these codes.
NEEDS_TLS = _reply(538, "5.7.11", "Say STARTTLS first")
NEEDS_AUTH = _reply(530, "5.7.0", "Log in first")
TLS_FIRST = _reply(530, "5.7.0", "Say STARTTLS first")  # RFC 3207 section 4
AUTHENTICATED_ALREADY = _reply(503, "5.5.1", "You are logged in already")
UNKNOWN_MECHANISM = _reply(504, "5.5.4", "The mechanism is not offered")
BAD_BASE64 = _reply(501, "5.5.2", "No base64")
RESPONSE_TOO_LONG = _reply(500, "5.5.6", "The response is too long")
CANCELLED = _reply(501, "5.7.0", "Authentication cancelled")

NO_XCLIENT = _reply(550, "5.7.0", "You may not speak for others")
BAD_XCLIENT = _reply(501, "5.5.4", "XCLIENT takes NAME=value and the like, in xtext")

NOT_YOURS = _reply(550, "5.7.1", "The sender is not your address, nor an alias of it")
RELAY_DENIED = _reply(550, "5.7.1", "Relaying denied")
TOO_MANY_RECIPIENTS = _reply(452, "4.5.3", "Too many recipients; send the rest in another one")
MESSAGE_TOO_BIG = _reply(552, "5.3.4", "Message too big")
OUT_OF_MEMORY = _reply(452, "4.3.1", "No room for the message now")
TOO_MANY_HOPS = _reply(554, "5.4.6", "Too many Received fields: a mail loop")

TALKED_TOO_SOON = _reply(554, "5.5.0", "Sent before it was your turn")
TOO_MANY_ERRORS = _reply(421, "4.7.0", "Too many errors")
TOO_MUCH_JUNK = _reply(421, "4.7.0", "Too many commands without mail")
TIMED_OUT = _reply(421, "4.4.2", "Waited too long")
SHUTTING_DOWN = _reply(421, "4.3.2", "Shutting down")
TOO_MANY_SESSIONS = _reply(421, "4.3.2", "Too many sessions")
TOO_MANY_OF_CLIENT = _reply(421, "4.7.0", "Too many sessions from your address")

# What is said behind the end of data, by the scanner's fault.
AFTER_DATA = {
    BARE_NEWLINE: _reply(554, "5.6.0", "A CR or LF stands alone; lines end in CRLF"),
    TOO_BIG: MESSAGE_TOO_BIG,
    HEADER_TOO_BIG: _reply(552, "5.3.4", "Header block too big"),
    NO_ROOM: OUT_OF_MEMORY,
}
