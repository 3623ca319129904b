"""The replies of the POP3 server, as they go over the wire.

Response codes in brackets are those of RFC 2449 section 8, RFC 3206 and RFC 6856 section 5.
"""

from fastmta.mail.reply import Reply

END = b".\r\n"  # of a reply of many lines (RFC 1939 section 3)


def _err(text: str) -> bytes:
    return f"-ERR {text}\r\n".encode()


OK = b"+OK\r\n"
NAME_TAKEN = b"+OK Now the password\r\n"  # RFC 1939 section 7: whether there is such a name or not
READY_FOR_TLS = b"+OK Begin TLS\r\n"
GOODBYE = b"+OK Bye\r\n"
DELETED = b"+OK Deleted at QUIT\r\n"
UTF8_ON = b"+OK UTF-8 it is\r\n"
LIST_FOLLOWS = b"+OK The list follows\r\n"
TOP_FOLLOWS = b"+OK Top of the message follows\r\n"
LANGUAGES = b"+OK Languages:\r\nen English\r\n" + END  # RFC 6856 section 3
ENGLISH = b"+OK en English it is\r\n"

UNKNOWN_COMMAND = _err("Unknown command")
MALFORMED = _err("Control characters in a command")
LINE_TOO_LONG = _err("Line too long")
BARE_LINE_FEED = _err("A command ends in CRLF; this one ended in LF alone")
NO_ARGUMENT = _err("The command takes no argument")
NEEDS_NUMBER = _err("The command takes the number of a message")
NEEDS_NUMBERS = _err("TOP takes the number of a message and a number of lines")
NO_SUCH_MESSAGE = _err("No such message")
NO_LONGER_THERE = _err("The message is no longer there; somebody else has deleted it")
NO_SUCH_LANGUAGE = _err("There is only English: en")
CANNOT_READ = _err("[SYS/TEMP] The message cannot be read now")

LOG_IN_FIRST = _err("Log in first")
LOGGED_IN = _err("You are logged in already")
NAME_FIRST = _err("Say USER first")
NEEDS_NAME = _err("USER takes a name")
NO_APOP = _err("APOP is not offered")
NO_LOGINS = _err("That way to log in is not offered; see CAPA")
NEEDS_TLS = _err("Nobody logs in here without TLS; say STLS first, or take the port for TLS")
NO_TLS = _err("STLS is not offered here")
NEEDS_MECHANISM = _err("AUTH takes a mechanism that CAPA lists")
BAD_BASE64 = _err("No base64")
CANCELLED = _err("Authentication cancelled")
TALKED_TOO_SOON = _err("Sent before it was your turn")

IN_USE = _err("[IN-USE] Another session has this maildrop open")
TOO_OFTEN = _err("[LOGIN-DELAY] You have looked a moment ago; see CAPA")
CANNOT_OPEN = _err("[SYS/TEMP] The maildrop cannot be opened now")
NOT_DELETED = _err("[SYS/TEMP] Nothing was deleted; try again later")

NOT_NOW = _err("[SYS/TEMP] Something is wrong here; try again later")
TOO_MANY_ERRORS = _err("Too many errors")
SHUTTING_DOWN = _err("[SYS/TEMP] Shutting down")
TOO_MANY_SESSIONS = _err("[SYS/TEMP] Too many sessions")
TOO_MANY_OF_CLIENT = _err("[SYS/TEMP] Too many sessions from your address")

_LONGEST = 450  # octets of text; RFC 2449 section 4 allows 512 with all that stands around it


def refusal(reply: Reply) -> bytes:
    """What would be said over SMTP, in one line as POP3 has it."""
    text = " ".join(reply.text.split()).encode("utf-8", "replace")[:_LONGEST]
    if reply.enhanced == "5.7.8":
        return b"-ERR [AUTH] " + text + b"\r\n"  # RFC 3206 section 4: of credentials alone
    return (b"-ERR " if reply.is_permanent else b"-ERR [SYS/TEMP] ") + text + b"\r\n"
