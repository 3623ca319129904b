from array import array

from fastmta._core.lines import LineBuffer

def retrieve_run(
    number: int,
    lines: LineBuffer,
    at_hand: dict[int, bytes],
    sizes: array[int],
    deleted: bytearray,
    room: int,
) -> bytes: ...
def delete_run(lines: LineBuffer, sizes: array[int], deleted: bytearray) -> tuple[int, int]: ...
