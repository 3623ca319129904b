"""What the suppression list says of a domain and an address, for those who ask why."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import lmdb
from msgspec import Struct

from fastmta.cli.common import refuse
from fastmta.cli.words import is_are, many, moment
from fastmta.config import Config
from fastmta.store.suppression import Entry, SuppressionFile

MOST_COUNTED = 10_000  # addresses of one domain


class Suppressed(Struct, frozen=True):
    """What gets no new mail; what is in the queue already is sent."""

    drops: bool  # False: it is refused
    entry: Entry | None  # of the address, or of the whole domain
    others: int  # addresses of the domain with an entry


def look_up(config: Config, domain: str, address: str) -> Suppressed | None:
    """None where nothing is suppressed; ValueError for what is no address."""
    folder = config.data_dir / "suppression"
    if config.suppression is None or not folder.is_dir():
        return None
    try:
        with closing(SuppressionFile(folder, readonly=True)) as entries:
            entry = entries.find(address or f"@{domain}")
            found = islice(entries.entries(domain), MOST_COUNTED)
            others = sum(one.address[:1] != "@" for one in found if one != entry)
    except lmdb.Error as error:
        refuse(f"{folder}: {error}")
    drops = config.suppression.on_match == "drop"
    return Suppressed(drops, entry, others) if entry or others else None


def about_suppressed(domain: str, found: Suppressed | None) -> Iterator[str]:
    if found is None:
        return
    fate = "left out in silence" if found.drops else "refused"
    if found.entry:
        yield f"new mail for {_whom(found.entry)} is {fate}: suppressed, {_reason(found.entry)}"
    if found.others:
        least = "at least " if found.others >= MOST_COUNTED - 1 else ""
        more = "more " if found.entry else ""
        yield (
            f"{least}{many(found.others, f'{more}recipient')} of the domain "
            f"{is_are(found.others)} suppressed: see fastmta suppression list --domain {domain}"
        )


def _whom(entry: Entry) -> str:
    return entry.address if entry.address[:1] != "@" else f"the whole domain {entry.address[1:]}"


def _reason(entry: Entry) -> str:
    category = f" ({entry.category})" if entry.category else ""
    until = f" until {moment(entry.expires)}" if entry.expires else ""
    reply = f": {entry.reply}" if entry.reply else ""
    return f"{entry.reason}{category} since {moment(entry.added)}{until}{reply}"
