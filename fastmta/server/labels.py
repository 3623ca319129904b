"""What a sender says of a message for the relay alone: whose it is, how urgent, by which pool.

The fields that say so are taken from the message; the campaign's stays, for those who read the
reports of mailbox hosts.
"""

import re
from collections.abc import Collection, Mapping

from fastmta.config import Headers
from fastmta.mail.arrival import Arrival
from fastmta.mail.edit import Range, find_fields, header_of, value_at, whole_fields, without
from fastmta.mail.envelope import Priority
from fastmta.mail.reply import Reply

_LABEL = re.compile(rb"[!-~]{1,100}")
_PRIORITIES = {priority.name.lower().encode(): priority for priority in Priority}


class Unfit(Exception):
    """A message that is not taken as it is; has the reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


class BadLabel(Unfit):
    """A field that the configuration names does not hold what it should."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(Reply(554, "5.6.0", f"{field}: {text}"))


class Labels:
    """Reads the fields that the configuration names; false where there is nothing to do."""

    def __init__(self, names: Headers, pools: Collection[str], usual: Mapping[str, Priority]):
        """`pools` are those that can be asked for, `usual` is the priority of some tenants."""
        self._names, self._pools, self._usual = names, pools, usual

    def __bool__(self) -> bool:
        names = self._names
        return bool(names.tenant or names.campaign or names.priority or names.pool or self._usual)

    def read(self, arrival: Arrival, known: str = "") -> None:
        """Note in the arrival what its header section says, and take out what is for us.

        `known`: whose it is, whatever the message says, or "". BadLabel where it makes no sense;
        the arrival is as it was, then.
        """
        head, rest = header_of(arrival.parts)
        names = self._names
        ours: list[Range] = []
        said = self._label(head, names.tenant, ours)
        tenant = known or said
        priority = self._priority(head, ours)
        if priority is None:
            priority = self._usual.get(tenant, Priority.NORMAL)
        pool = self._pool(head, ours)
        arrival.campaign = self._label(head, names.campaign, [])
        arrival.tenant, arrival.priority, arrival.pool = tenant, priority, pool
        if ours:
            arrival.parts = [*without(head, ours), *rest]
            arrival.size = sum(map(len, arrival.parts))

    def _priority(self, head: bytes, ours: list[Range]) -> Priority | None:
        value = _value(head, self._names.priority, ours).lower()
        if value and value not in _PRIORITIES:
            raise BadLabel(self._names.priority, "write urgent, normal or bulk")
        return _PRIORITIES.get(value)

    def _pool(self, head: bytes, ours: list[Range]) -> str:
        pool = self._label(head, self._names.pool, ours)
        if pool and pool not in self._pools:
            raise BadLabel(self._names.pool, f"there is no pool {pool}")
        return pool

    def _label(self, head: bytes, name: str, ours: list[Range]) -> str:
        value = _value(head, name, ours)
        if value and not _LABEL.fullmatch(value):
            raise BadLabel(name, "write 1 to 100 printable ASCII characters without spaces")
        return value.decode("ascii")


def _value(head: bytes, name: str, ours: list[Range]) -> bytes:
    """The value of a field, the last one where there are several; `ours` gets their places."""
    found = find_fields(head, name) if name else []
    ours += whole_fields(head, found)
    return value_at(head, found[-1]) if found else b""
