from typing import TypeVar

from fastmta._core.mime import Node

_N = TypeVar("_N", bound=Node)

def pack(data: bytes, before: int = 0) -> bytes: ...
def unpack(packed: bytes, data: bytes, cls: type[_N] = ..., before: int = 0) -> _N: ...
