"""From what was found about a domain to its site, or to the reply that says why there is none.

Nothing here does I/O. Whether a failure is permanent decides whether mail bounces at once or
waits, so each way to fail has its own reply.
"""

from collections.abc import Sequence
from hashlib import blake2s
from itertools import groupby
from math import inf

from msgspec import Struct

from fastmta.config import HopProtocol, NextHop, TlsPolicy
from fastmta.delivery.dns import Answer, Exchange, Status
from fastmta.delivery.site import Host, Site
from fastmta.mail.reply import Reply

MAX_ADDRESSES = 5  # of one host: the next host must have its turn among the attempts as well
MAX_NAME = 120  # characters of a site's name


class Target(Struct, frozen=True):
    """An address of a host."""

    address: str
    refused: str  # why no mail goes there, as in "loopback"; "" where it may be tried


class Candidate(Struct, frozen=True):
    """A host that mail for the domain may go to, and what became of that."""

    preference: int
    host: str
    port: int
    status: Status = Status.FOUND  # of its address records
    targets: tuple[Target, ...] = ()
    is_us: bool = False
    expires: float = inf
    detail: str = ""  # why it has no targets

    @property
    def usable(self) -> tuple[str, ...]:
        return tuple(each.address for each in self.targets if not each.refused)[:MAX_ADDRESSES]


class Survey(Struct, frozen=True):
    """All that was found on the way from a domain to its site, or to the reply that says no."""

    domain: str
    origin: str  # "route *", "route *, lmtp", "MX", "implicit MX", "address literal"
    candidates: tuple[Candidate, ...]
    expires: float  # by the resolver's clock
    outcome: Site | Reply


def judge_exchanges(domain: str, answer: Answer[Exchange]) -> Reply | None:
    """What the look-up of MX records alone decides."""
    if answer.status is Status.FAILURE:
        return Reply(451, "4.4.3", f"MX look-up of {domain} failed: {answer.detail}")
    if answer.status is Status.NO_NAME:
        return Reply(550, "5.1.2", f"the domain {domain} does not exist")
    if {each.host for each in answer.records} == {"."}:
        return Reply(556, "5.1.10", f"{domain} accepts no mail (null MX)")  # RFC 7505 section 4.2
    return None


def own_preference(candidates: Sequence[Candidate]) -> float:
    """Our own place among the exchanges: only better ones may be tried (RFC 5321 section 5.1)."""
    return min((each.preference for each in candidates if each.is_us), default=inf)


def judge(domain: str, candidates: Sequence[Candidate], *, implicit: bool) -> Site | Reply:
    """The site that the candidates make, or why there is none."""
    limit = own_preference(candidates)
    better = [each for each in candidates if each.preference < limit]
    if usable := [each for each in better if each.usable]:
        return _site(usable)
    for each in better:
        if each.status is Status.FAILURE:
            return Reply(451, "4.4.3", f"look-up of {each.host} failed: {each.detail}")
    if limit != inf:
        return Reply(554, "5.4.6", f"mail for {domain} loops back: its best MX is this host")
    return _dead_end(domain, better, implicit)


def _dead_end(domain: str, candidates: Sequence[Candidate], implicit: bool) -> Reply:
    """Why no host of a domain may be tried, although all look-ups came to an end."""
    for each in candidates:
        for target in each.targets:
            return Reply(
                550,
                "5.4.4",  # RFC 3463: unable to route
                f"{each.host} has the address {target.address}, which is refused"
                f" ({target.refused}); delivery.allow_local_addresses or a [[route]] allows it",
            )
    if implicit:  # RFC 3463: a bad destination system address
        return Reply(550, "5.1.2", f"{domain} has neither MX nor address records")
    return Reply(550, "5.4.4", f"no MX host of {domain} has an address")


def judge_hops(
    what: str,
    protocol: HopProtocol,
    candidates: Sequence[Candidate],
    tls: TlsPolicy | None = None,
) -> Site | Reply:
    """As `judge`, but mail waits whatever happens: a slip in a [[route]] must bounce nothing.

    `what` is whose next hops they are: "route *".
    """
    if usable := [each for each in candidates if each.usable]:
        names = ">".join(str(NextHop(each.host, each.port)) for each in usable)
        # What speaks LMTP is another site, were it at the same endpoint; so is what is not
        # spoken to without TLS.
        name = names if protocol == "smtp" else f"{protocol}:{names}"
        name += f"!{tls}" if tls else ""
        return Site(_short(name), tuple((_host(each, protocol),) for each in usable), tls)
    first = candidates[0]
    enhanced = "4.4.3" if first.status is Status.FAILURE else "4.4.4"
    return Reply(451, enhanced, f"next hop {first.host} of {what}: {first.detail}")


def _site(candidates: Sequence[Candidate]) -> Site:
    ordered = sorted(candidates, key=lambda each: (each.preference, each.host))
    groups = groupby(ordered, key=lambda each: each.preference)
    tiers = tuple(tuple(map(_host, group)) for _, group in groups)
    return Site(_short(site_name([[host.name for host in tier] for tier in tiers])), tiers)


def _host(candidate: Candidate, protocol: HopProtocol = "smtp") -> Host:
    return Host(candidate.host, candidate.usable, candidate.port, protocol)


def site_name(tiers: Sequence[Sequence[str]]) -> str:
    """A name for hosts: "(mx1|mx2).example.test" are equals, "(mx1>mx2).example.test" not.

    "(>alt1|alt2).mx.example.test" is mx.example.test itself with two that stand behind it.
    """
    names = [name.split(".") for tier in tiers for name in tier]
    shared = _shared_labels(names) if len(names) > 1 else 0
    if shared < 2:  # a top-level domain alone says nothing
        return ">".join("|".join(tier) for tier in tiers)
    heads = ">".join(
        "|".join(".".join(name.split(".")[:-shared]) for name in tier) for tier in tiers
    )
    return f"({heads}).{'.'.join(names[0][-shared:])}"


def _shared_labels(names: Sequence[Sequence[str]]) -> int:
    """How many labels all names end in; that may be the whole of one of them."""
    most = min(map(len, names))
    differ = (n for n in range(most) if len({name[-1 - n] for name in names}) > 1)
    return next(differ, most)


def _short(name: str) -> str:
    """A name of bounded length that still differs from that of any other site."""
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 17]}~{blake2s(name.encode(), digest_size=8).hexdigest()}"
