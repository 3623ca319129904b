"""What the DNS says of a client: block and allow lists (RFC 5782), and its name; and a wait.

They are asked at MAIL, so that who logs in is not asked about. What the DNS does not say in time
is held against nobody: it is counted, and mail comes in.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, ip_address

from msgspec import Struct

from fastmta import config, metrics
from fastmta.config_abuse import DnsList
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_question import Question, Step
from fastmta.server.judges import Facts

log = logging.getLogger(__name__)

KEEP = 300.0  # seconds for which a verdict counts; the resolver keeps answers by their TTL
KEEP_FAILED = 30.0  # the same where some answer was missing
MOST = 10_000  # clients with a verdict
_MOST_NAMES = 10  # of one address that are looked up
_REASON_SECONDS = 1.0
_LONGEST = 200  # characters of a reason that are passed on

RESULTS = metrics.counters(
    "fastmta_checks_total",
    "Clients looked up in the DNS, by what came of it; failed: an answer was missing",
    "result",
    ("passed", "allowed", "listed", "no_name", "failed"),
)

# A name and A, AAAA, PTR or TXT; its records as text, None where nobody says.
LookUp = Callable[[str, str], Awaitable[tuple[str, ...] | None]]


class _Verdict(Struct, frozen=True):
    result: str
    refusal: Reply | None = None


class _Known(Struct, frozen=True):
    refusal: Reply | None
    until: float


class Checks:
    """A judge. Only listeners with `service = "smtp"` ask about clients, and not about all."""

    def __init__(
        self,
        settings: config.Checks,
        look_up: LookUp,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._look_up, self._clock = settings, look_up, clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        steps = {Step.MAIL: settings.asks_dns, Step.CONNECT: settings.greeting_delay > 0}
        self.steps = frozenset(step for step, asked in steps.items() if asked)

    def judge(self, question: Question, facts: Facts) -> Awaitable[Reply | None] | Reply | None:
        if facts.service != "smtp" or facts.may_relay or self._is_exempt(facts.client):
            return None
        if question.step is Step.CONNECT:
            return self._pause()
        known = self._known.get(facts.client)
        if known is not None and known.until > self._clock():
            return known.refusal
        return self._check(facts.client)

    def _is_exempt(self, client: str) -> bool:
        return not client or any(ip_address(client) in one for one in self._settings.exempt)

    async def _pause(self) -> Reply | None:
        """RFC 5321 section 4.3.1: the client has to wait; the machine sees if it does not."""
        await asyncio.sleep(self._settings.greeting_delay)
        return None

    async def _check(self, client: str) -> Reply | None:
        verdict = await self._verdict(client)
        RESULTS.count(verdict.result)
        keep = KEEP_FAILED if verdict.result == "failed" else KEEP
        self._known[client] = _Known(verdict.refusal, self._clock() + keep)
        self._known.move_to_end(client)
        if len(self._known) > MOST:
            self._known.popitem(last=False)
        return verdict.refusal

    async def _verdict(self, client: str) -> _Verdict:
        """Everything is asked at once, each within the time that all have."""
        allow, block = self._settings.allow_list, self._settings.block_list
        *found, named = await asyncio.gather(
            *(self._within(self._listed(one, client), one.zone) for one in (*allow, *block)),
            self._within(self._is_named(client), "the reverse name"),
        )
        if any(found[: len(allow)]):
            return _Verdict("allowed")
        for one, listed in zip(block, found[len(allow) :], strict=True):
            if listed:
                text = f"{client} is listed by {one.zone}: {await self._reason(one, client)}"
                return _Verdict("listed", Reply(554, "5.7.1", text))
        if named == "":
            return _Verdict("no_name", self._without_name(client))
        return _Verdict("failed" if None in (*found, named) else "passed")

    async def _within(self, work: Awaitable[str | None], what: str) -> str | None:
        """What it gives, None where that does not come in time."""
        try:
            async with asyncio.timeout(self._settings.timeout):
                found = await work
        except TimeoutError:
            found = None
        if found is None:
            log.info("no answer from the DNS in time: %s", what)
        return found

    async def _listed(self, one: DnsList, client: str) -> str | None:
        """The zone where it lists the client, "" where not, None where nobody says."""
        test = "127.0.0.1" if "." in client else "::ffff:127.0.0.1"
        found, lists_all = await asyncio.gather(
            *(self._look_up(f"{_reversed(each)}.{one.zone}", "A") for each in (client, test))
        )
        if found is None or lists_all is None:
            return None
        if lists_all:  # RFC 5782 section 5: a list that is alive does not list that
            log.warning("%s lists everybody and is not believed", one.zone)
            return None
        return one.zone if any(_counts(reply, one) for reply in found) else ""

    async def _reason(self, one: DnsList, client: str) -> str:
        """What the list tells the client, where it does so soon (RFC 5782 section 2.1)."""
        try:
            async with asyncio.timeout(_REASON_SECONDS):
                texts = await self._look_up(f"{_reversed(client)}.{one.zone}", "TXT")
        except TimeoutError:
            texts = None
        return _clean(texts[0]) if texts else "no reason is given"

    async def _is_named(self, client: str) -> str | None:
        """Its name, where one is wanted; "" where it has none that will do."""
        wanted = self._settings.reverse_name
        if wanted == "ignore":
            return "not asked"
        names = await self._look_up(ip_address(client).reverse_pointer, "PTR")
        if not names or wanted == "exists":
            return None if names is None else "".join(names[:1])
        return await self._confirmed(client, names[:_MOST_NAMES])

    async def _confirmed(self, client: str, names: tuple[str, ...]) -> str | None:
        kind = "A" if "." in client else "AAAA"
        answers = await asyncio.gather(*(self._look_up(name, kind) for name in names))
        for name, answer in zip(names, answers, strict=True):
            if answer and client in answer:
                return name
        return None if None in answers else ""

    def _without_name(self, client: str) -> Reply:
        """RFC 7372 section 3.3."""
        confirmed = self._settings.reverse_name == "confirmed"
        text = f"{client} has no name" + (" that leads back to it" if confirmed else "")
        if self._settings.without_reverse_name == "defer":
            return Reply(450, "4.7.25", text)
        return Reply(550, "5.7.25", text)


def _reversed(client: str) -> str:
    """RFC 5782 sections 2.1 and 2.4: octets or nibbles, the last first."""
    pointer = ip_address(client).reverse_pointer
    return pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")


def _counts(reply: str, one: DnsList) -> bool:
    address = ip_address(reply)
    return isinstance(address, IPv4Address) and any(address in each for each in one.replies)


def _clean(text: str) -> str:
    """As it may stand in a reply: strangers write it."""
    printable = "".join(each if " " <= each <= "~" else "?" for each in text)
    return printable[:_LONGEST] or "no reason is given"
