"""Look-ups in the DNS: asynchronous, coalesced and cached, negative answers included.

A look-up never raises: what came of it is the `status` of its Answer.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Generic, TypeVar

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.resolver
from dns.message import QueryMessage
from dns.name import Name
from dns.rdata import Rdata
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.MX import MX
from dns.rdtypes.ANY.PTR import PTR
from dns.rdtypes.ANY.TXT import TXT
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from msgspec import Struct, structs

from fastmta import config, metrics
from fastmta.delivery.nameserver import Nameserver

QUERIES = metrics.counter("fastmta_dns_queries_total", "DNS queries sent, repeats included")
HITS = metrics.counter("fastmta_dns_cache_hits_total", "DNS look-ups answered from the cache")
FAILURES = metrics.counter(
    "fastmta_dns_failures_total", "DNS look-ups without an answer: SERVFAIL, a loop, time out"
)

STALE = metrics.counter(
    "fastmta_dns_stale_total", "DNS look-ups that failed and were answered by what had expired"
)

CACHE_SIZE = 10_000  # answers
MAX_PENDING = 10_000  # look-ups under way or waiting; above it the answer is FAILURE
MAX_QUERIES = 200  # look-ups that may ask a nameserver at the same time
ROUNDS = 3  # how often the whole list of nameservers is gone through
PAYLOAD = 1232  # octets: what passes without fragments (RFC 9715 section 3)
TTL_LEAST = 5.0  # seconds: a TTL of 0 must not cost one query a message
TTL_MOST = 86_400.0
TTL_NEGATIVE_MOST = 10_800.0  # RFC 2308 section 5
TTL_FAILURE = 10.0  # RFC 9520 section 3.2: between 1 second and 5 minutes
# RFC 8767 section 5: for how long an answer that has expired is better than none (there one to
# three days), and for how long it is given before the nameservers are asked again.
STALE_MOST = 86_400.0
TTL_STALE = 30.0
MAX_RECORDS = 100  # of one answer, the most preferred
MAX_CHAIN = 8  # CNAMEs in a row that lead out of an answer; dnspython limits those within one

R = TypeVar("R")
Key = tuple[str, RdataType]


class Status(StrEnum):
    FOUND = "found"
    NO_DATA = "no data"  # the name exists, but not with records of that type
    NO_NAME = "no such name"
    FAILURE = "failure"  # no nameserver gave an answer that says either: try again later


class Answer(Struct, Generic[R], frozen=True):
    """What a look-up came to."""

    status: Status
    expires: float  # by the resolver's clock
    records: tuple[R, ...] = ()
    detail: str = ""  # why it is a FAILURE
    expired: float = 0.0  # when, of an answer that is given in spite of it


class Exchange(Struct, frozen=True):
    """One MX record; `host` is lower case without a final dot; "." is the root (RFC 7505)."""

    preference: int
    host: str


class _Failure(Exception):
    """No usable answer; the text says why."""


class Resolver:
    """Asks the nameservers of the configuration, or the system's; use it from one event loop."""

    def __init__(self, settings: config.Dns, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock  # seconds
        endpoints = settings.nameservers or _of_the_system()
        self._nameservers = [Nameserver(*endpoint) for endpoint in endpoints]
        self._patience = settings.timeout / (ROUNDS * len(self._nameservers))
        self._cache: OrderedDict[Key, Answer[Any]] = OrderedDict()
        self._pending: dict[Key, asyncio.Task[Answer[Any]]] = {}
        self._slots = asyncio.Semaphore(MAX_QUERIES)

    async def exchanges(self, domain: str) -> Answer[Exchange]:
        """The MX records of a domain, in no particular order."""
        return await self._look_up(domain, RdataType.MX)

    async def addresses(self, host: str) -> Answer[str]:
        """The IPv4 and then the IPv6 addresses of a host."""
        if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
            return Answer(Status.FOUND, self.clock() + TTL_MOST, ("127.0.0.1", "::1"))
        four, six = await asyncio.gather(
            self._look_up(host, RdataType.A), self._look_up(host, RdataType.AAAA)
        )
        return _joined(four, six)

    async def records(self, name: str, kind: str) -> tuple[str, ...] | None:
        """Of type A, AAAA, PTR or TXT, as text; None where nobody says what they are now."""
        answer = await self._look_up(name, RdataType[kind])
        return None if answer.status is Status.FAILURE or answer.expired else answer.records

    def close(self) -> None:
        for task in list(self._pending.values()):
            task.cancel()
        for nameserver in self._nameservers:
            nameserver.close()

    async def _look_up(self, name: str, kind: RdataType) -> Answer[Any]:
        key = name, kind
        if answer := self._cached(key):
            HITS.value += 1
            return answer
        task = self._pending.get(key)
        if task is None:
            if len(self._pending) >= MAX_PENDING:
                return Answer(Status.FAILURE, self.clock(), detail="too many DNS look-ups")
            task = self._pending[key] = asyncio.create_task(self._resolve(name, kind))
            task.add_done_callback(lambda _: self._pending.pop(key))
        # Whoever waits may be cancelled; the others who wait for the same answer are not.
        return await asyncio.shield(task)

    def _cached(self, key: Key) -> Answer[Any] | None:
        answer = self._cache.get(key)
        if answer is None or answer.expires <= self.clock():
            return None
        self._cache.move_to_end(key)
        return answer

    async def _resolve(self, name: str, kind: RdataType) -> Answer[Any]:
        try:
            async with self._slots:
                answer = await self._follow(dns.name.from_text(name.encode("ascii")), kind)
        except _Failure as failure:
            FAILURES.value += 1
            answer = self._stale((name, kind)) or Answer(
                Status.FAILURE, self.clock() + TTL_FAILURE, detail=str(failure)
            )
        except (dns.exception.DNSException, UnicodeError) as error:
            # Too long a label, an empty one: no zone can hold such a name.
            return Answer(Status.NO_NAME, self.clock() + TTL_MOST, detail=str(error))
        self._cache[name, kind] = answer
        self._cache.move_to_end((name, kind))
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return answer

    def _stale(self, key: Key) -> Answer[Any] | None:
        """What was last found, where it expired lately (RFC 8767); that nothing is there bounces
        mail, so only what is found is good beyond its time."""
        known = self._cache.get(key)
        if known is None or known.status is not Status.FOUND:
            return None
        expired = known.expired or known.expires
        if self.clock() - expired > STALE_MOST:
            return None
        STALE.value += 1
        return structs.replace(known, expires=self.clock() + TTL_STALE, expired=expired)

    async def _follow(self, name: Name, kind: RdataType) -> Answer[Any]:
        """Look up a name, and what its CNAMEs lead to (RFC 1034 section 3.6.2)."""
        ttl = TTL_MOST
        for _ in range(MAX_CHAIN):
            message = await self._ask(name, kind)
            chain = _chain(message)
            ttl = min(ttl, max(chain.minimum_ttl, TTL_LEAST))
            if chain.answer is not None:
                return Answer(Status.FOUND, self.clock() + ttl, _records(chain.answer))
            if message.rcode() == dns.rcode.NXDOMAIN or chain.canonical_name == name:
                break
            if any(rrset.rdtype == RdataType.SOA for rrset in message.authority):
                break
            name = chain.canonical_name
        else:
            # Most resolvers answer a loop with SERVFAIL: what becomes of the mail must not
            # depend on which one is asked, so that it is a passing failure here as well.
            raise _Failure(f"the CNAMEs of {name} lead on and on")
        status = Status.NO_NAME if message.rcode() == dns.rcode.NXDOMAIN else Status.NO_DATA
        return Answer(status, self.clock() + min(ttl, TTL_NEGATIVE_MOST))

    async def _ask(self, name: Name, kind: RdataType) -> QueryMessage:
        """The answer, NOERROR or NXDOMAIN, of the first nameserver that gives one."""
        faults: dict[Nameserver, str] = {}
        left = list(self._nameservers)
        for _ in range(ROUNDS):
            for nameserver in tuple(left):
                try:
                    message = await self._query(nameserver, name, kind)
                except OSError as error:  # TimeoutError is one
                    faults[nameserver] = str(error) or "no answer in time"
                    continue
                if message.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                    self._prefer(nameserver)
                    return message
                faults[nameserver] = dns.rcode.to_text(message.rcode())
                left.remove(nameserver)
        raise _Failure("; ".join(f"{server}: {fault}" for server, fault in faults.items()))

    async def _query(self, nameserver: Nameserver, name: Name, kind: RdataType) -> QueryMessage:
        QUERIES.value += 1
        query = dns.message.make_query(name, kind, use_edns=0, payload=PAYLOAD)
        async with asyncio.timeout(self._patience):
            return await nameserver.ask(query)

    def _prefer(self, nameserver: Nameserver) -> None:
        """Ask first who answered last, so that a dead nameserver costs its delay once."""
        if self._nameservers[0] is not nameserver:
            self._nameservers.remove(nameserver)
            self._nameservers.insert(0, nameserver)


def _of_the_system() -> list[tuple[str, int]]:
    try:
        system = dns.resolver.Resolver()
    except dns.resolver.NoResolverConfiguration:
        return [("127.0.0.1", 53)]  # as resolv.conf(5) has it
    return [(str(host), system.port) for host in system.nameservers]


def _chain(message: QueryMessage) -> dns.message.ChainingResult:
    try:
        return message.resolve_chaining()
    except dns.exception.DNSException as error:  # too long a chain, or one that makes no sense
        raise _Failure(str(error)) from None


def _records(rdatas: Iterable[Rdata]) -> tuple[Any, ...]:
    """Exchanges, or what the others say, the most preferred `MAX_RECORDS`.

    What is equally preferred comes in an order that differs between processes, which spreads
    the load, but not between look-ups, so that the same records are the same site again.
    """
    if exchanges := [_exchange(each) for each in rdatas if isinstance(each, MX)]:
        exchanges.sort(key=lambda each: (each.preference, hash(each.host)))
        return tuple(exchanges[:MAX_RECORDS])
    found = {_text(each) for each in rdatas if isinstance(each, A | AAAA | PTR | TXT)}
    return tuple(sorted(found, key=hash)[:MAX_RECORDS])


def _text(record: A | AAAA | PTR | TXT) -> str:
    if isinstance(record, PTR):
        return record.target.to_text(omit_final_dot=True).lower()
    if isinstance(record, TXT):
        return b"".join(record.strings).decode("ascii", "replace")
    return str(record.address)


def _exchange(record: MX) -> Exchange:
    return Exchange(record.preference, record.exchange.to_text(omit_final_dot=True).lower())


def _joined(four: Answer[str], six: Answer[str]) -> Answer[str]:
    """What is known of a host from the answers for both families."""
    expires = min(four.expires, six.expires)
    if records := four.records + six.records:
        return Answer(Status.FOUND, expires, records)
    order = (Status.FAILURE, Status.NO_NAME, Status.NO_DATA)
    status = next(each for each in order if each in (four.status, six.status))
    return Answer(status, expires, detail=four.detail or six.detail)
