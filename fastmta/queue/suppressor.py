"""What comes onto the suppression list of itself: failures, bounces and complaints that came in."""

import time
from collections.abc import Callable, Iterable

from fastmta import log, metrics
from fastmta.config import Suppression
from fastmta.mail.bounce import Bounce
from fastmta.mail.complaint import Complaint
from fastmta.store.suppression import Entry, Reason, SuppressionList, key_of

ADDED = metrics.counters(
    "fastmta_suppression_added_total",
    "Entries that came onto the suppression list, by reason",
    "reason",
    ("bounce", "complaint"),
)


class Suppressor:
    """The policy of [suppression] over the list."""

    def __init__(
        self,
        settings: Suppression,
        entries: SuppressionList,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._entries, self._clock = settings, entries, clock
        self._hard = frozenset(settings.categories)
        self.find = entries.find
        self.clean = entries.clean

    def failed(self, event: log.Bounced) -> None:
        """A delivery of our own ended for good. If the process dies now, the next one tells."""
        if self._settings.hard_bounces and event.category in self._hard:
            reply = f"{event.code} {event.enhanced} {event.reply}"
            entry = self._entry(event.recipient, "bounce", event.category, event.id, reply)
            self.learn([entry], bool)

    def of_bounces(self, bounces: Iterable[Bounce], source: str) -> list[Entry]:
        """The entries that a bounce makes which came in as the message `source`."""
        return [
            self._entry(one.address, "bounce", one.category, source, str(one.reply))
            for one in bounces
            if one.permanent and one.category in self._hard
        ]

    def of_complaint(self, complaint: Complaint, source: str) -> list[Entry]:
        if not complaint.counts:
            return []
        return [
            self._entry(address, "complaint", complaint.kind[:50], source, "")
            for address in complaint.recipients
        ]

    def learn(self, entries: list[Entry], done: Callable[[bool], object]) -> None:
        """`done` hears in the loop whether they are safe; what is no address is left out."""
        listable = [entry for entry in entries if _is_listable(entry.address)]
        if not listable:
            done(True)
            return
        for entry in listable:
            ADDED.count(entry.reason)
        self._entries.add(listable, done)

    def _entry(self, address: str, reason: Reason, category: str, source: str, reply: str) -> Entry:
        now = self._clock()
        expires = now + self._settings.expire_after
        return Entry(address, reason, now, expires, category, source, reply[:500])


def _is_listable(address: str) -> bool:
    try:
        return bool(key_of(address))
    except ValueError:
        return False


class FeedingLog(log.DispositionLog):
    """A disposition log whose failures go onto the list as well."""

    def __init__(self, path: str, suppressor: Suppressor) -> None:
        super().__init__(path)
        self._suppressor = suppressor

    def write(self, event: log.Event) -> None:
        super().write(event)
        if type(event) is log.Bounced:
            self._suppressor.failed(event)
