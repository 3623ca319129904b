"""The holds that stand, in a file of the supervisor's: they outlive every process."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fastmta.queue.orders import MAX_HOLDS, Action, Order, expired, parse_reply, released
from fastmta.queue.selector import checked
from fastmta.store.env import flush_names

FILE = "orders.json"  # in the data directory


class CannotStand(Exception):
    """The text says why not."""


class _Content(Struct):
    version: int = 1
    last: int = 0  # number that was given to an order
    holds: list[Order] = []


class Standing:
    """What stands, as it is on disk; a change is there before it returns."""

    def __init__(self, data_dir: Path) -> None:
        """CannotStand where the file is there and cannot be read: then nothing may leave."""
        self._path = data_dir / FILE
        self._content = _read(self._path)

    @property
    def holds(self) -> list[Order]:
        return list(self._content.holds)

    def given(self, order: Order) -> Order:
        """A command as it is carried out: with its number, a hold among those that stand, a
        release with the holds that it is to end. CannotStand where it makes no sense."""
        number = self._content.last + 1
        order = replace(_usable(order), number=number, time=time.time())
        holds = self.holds
        if order.action is Action.HOLD:
            if len(holds) >= MAX_HOLDS:
                raise CannotStand(f"{MAX_HOLDS} holds stand already; release some")
            holds.append(order)
        if order.action is Action.RELEASE:
            ended = released(order, holds)
            if order.hold and not ended:
                raise CannotStand(
                    f"there is no hold {order.hold}; `fastmta queue holds` lists them"
                )
            order = replace(order, ends=tuple(hold.number for hold in ended))
        self._write(_Content(last=number, holds=holds))
        return order

    def end(self, numbers: Iterable[int]) -> None:
        """These holds stand no longer."""
        ended = set(numbers)
        if ended:
            holds = [hold for hold in self.holds if hold.number not in ended]
            self._write(_Content(last=self._content.last, holds=holds))

    def expired(self) -> list[Order]:
        """Those whose time is over."""
        return expired(self._content.holds, time.time())

    def next_end(self) -> float | None:
        """When the next one's time is over, seconds since the epoch."""
        return min((hold.until for hold in self._content.holds if hold.until), default=None)

    def _write(self, content: _Content) -> None:
        """Whole or not at all, whatever happens meanwhile; OSError where it fails."""
        beside = self._path.with_suffix(".new")
        encoded = msgspec.json.format(msgspec.json.encode(content), indent=2)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encoded + b"\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        flush_names(self._path.parent)
        self._content = content


def _usable(order: Order) -> Order:
    """With its selector as `checked` leaves it; CannotStand for what the command would not have
    sent: in force, it would stop all mail."""
    try:
        if order.action is Action.BOUNCE:
            parse_reply(order.argument)
        return replace(order, selector=checked(order.selector))
    except ValueError as error:
        raise CannotStand(str(error)) from None


def _read(path: Path) -> _Content:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Content)
    except FileNotFoundError:
        return _Content()
    except (OSError, ValueError) as error:
        raise CannotStand(f"{path}, which says what is held, cannot be read: {error}") from None
    if content.version != 1:
        raise CannotStand(f"{path} is of version {content.version}, which is not known here")
    for order in content.holds:
        _check_hold(path, order)
    return content


def _check_hold(path: Path, order: Order) -> None:
    """Somebody may have edited the file; what stands there is done to all mail that matches."""
    if order.action is not Action.HOLD:
        raise CannotStand(f"{path}: order {order.number} is to {order.action}; only a hold stands")
    try:
        _usable(order)
    except CannotStand as error:
        raise CannotStand(f"{path}: hold {order.number}: {error}") from None
