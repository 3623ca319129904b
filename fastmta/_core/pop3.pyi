from array import array
from typing import Final

UNKNOWN: Final = 0
MALFORMED: Final = 1
USER: Final = 2
PASS: Final = 3
APOP: Final = 4
AUTH: Final = 5
STAT: Final = 6
LIST: Final = 7
RETR: Final = 8
DELE: Final = 9
NOOP: Final = 10
RSET: Final = 11
TOP: Final = 12
UIDL: Final = 13
CAPA: Final = 14
STLS: Final = 15
UTF8: Final = 16
LANG: Final = 17
QUIT: Final = 18

LARGEST: Final[int]

def parse_command(line: bytes) -> tuple[int, bytes]: ...
def parse_numbers(argument: bytes) -> list[int]: ...
def list_sizes(sizes: array[int], deleted: bytearray, first: int, count: int) -> bytes: ...
def list_ids(
    validity: int, uids: array[int], deleted: bytearray, first: int, count: int
) -> bytes: ...

class Top:
    is_full: bool
    def __init__(self, lines: int) -> None: ...
    def feed(self, data: bytes) -> bytes: ...
