"""Limits of a worker that shares them with nobody: how many connections, and no rates."""

from collections import Counter

from fastmta.mail.reply import Reply
from fastmta.queue.limits import Holder, Limits, Shape

_DEFAULTS = Limits()


def default_shape(source: str, site: str) -> Shape:
    return Shape(f"{source}>{site}" if source else site, _DEFAULTS, {})


class Unshared:
    """Permits as `limits.Permits` describes them."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def connect(self, shape: Shape, holder: Holder) -> bool:
        if self._open[shape.path] >= shape.limits.connections:
            return False
        self._open[shape.path] += 1
        return True

    def disconnect(self, shape: Shape, holder: Holder) -> None:
        self._open[shape.path] -= 1

    def send(self, shape: Shape, holder: Holder) -> bool:
        return True

    def heard(self, shape: Shape, reply: Reply) -> None:
        pass

    def forget(self, shape: Shape, holder: Holder) -> None:
        del self._open[shape.path]
