from typing import Final

class PathError(ValueError): ...
class ParameterError(ValueError): ...

UNKNOWN: Final = 0
MALFORMED: Final = 1
EHLO: Final = 2
HELO: Final = 3
MAIL: Final = 4
RCPT: Final = 5
DATA: Final = 6
BDAT: Final = 7
RSET: Final = 8
NOOP: Final = 9
HELP: Final = 10
VRFY: Final = 11
EXPN: Final = 12
QUIT: Final = 13
AUTH: Final = 14
STARTTLS: Final = 15
XCLIENT: Final = 16

def parse_command(line: bytes) -> tuple[int, bytes]: ...
def parse_mail(argument: bytes) -> tuple[str, bool, dict[str, str | None] | None]: ...
def parse_rcpt(argument: bytes) -> tuple[str, bool, dict[str, str | None] | None]: ...
def parse_reply_line(line: bytes) -> tuple[int, bool, str, str]: ...
