"""One worker: a uvloop loop with its shards, listeners and connections. The only wiring.

    python -m fastmta.worker DESCRIPTOR

The descriptor is this worker's end of the control socket (`control`); what it is to be comes from
there. `worker_main` has what this process does beside mail.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Raw, msgpack

from fastmta import control, log, worker_main
from fastmta.config import MAIL_SERVICES, Config, fingerprint
from fastmta.config_dkim import load_signers
from fastmta.delivery.dispatcher import Dispatcher
from fastmta.delivery.dns import Resolver
from fastmta.delivery.hosts import Hosts
from fastmta.delivery.router import Router
from fastmta.delivery.site import RoutingError, Site
from fastmta.delivery.source import Sources
from fastmta.delivery.tls import Tls
from fastmta.delivery.ways import Ways
from fastmta.mail.arrival import Arrival
from fastmta.mail.disposition import Disposition
from fastmta.mail.reply import Reply
from fastmta.policy_desk import PolicyDesk
from fastmta.queue.adapt import SlowDownRules
from fastmta.queue.clock import ClockWatch
from fastmta.queue.expiry import Expiry
from fastmta.queue.flow import Flow
from fastmta.queue.limits import Answer
from fastmta.queue.orders import Order, Orders
from fastmta.queue.permits import SharedPermits, local_permits
from fastmta.queue.ready import Job, ReadyQueue
from fastmta.queue.requests import ToWorker
from fastmta.queue.retry import Policy, policies, rule_of
from fastmta.queue.scheduler import Scheduler
from fastmta.queue.settlement import Settlement
from fastmta.queue.shaping import Shaper
from fastmta.queue.suppressor import FeedingLog, Suppressor
from fastmta.server.access import Access
from fastmta.server.backend import Backend
from fastmta.server.counts import Row
from fastmta.server.judges import Judges
from fastmta.server.pop3 import Pop3Service
from fastmta.server.reception import Reception
from fastmta.server.signing import Signing
from fastmta.server.smtp import SmtpService
from fastmta.server.tls import ServerTls
from fastmta.store.accounts import Accounts
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.spool import Spool
from fastmta.store.suppression import SuppressionList
from fastmta.worker_desk import Rules, WorkerDesk
from fastmta.worker_door import Door
from fastmta.worker_mail import Intake, LocalMail
from fastmta.worker_shard import Shard, shards_of, show

CLEAN_INTERVAL = 10.0  # seconds between two looks at some rows of the suppression list
JOURNAL_INTERVAL = 0.1  # seconds between writes of the disposition log

# What an operator may ask for.
_decode_request = msgpack.Decoder(control.Status | ToWorker).decode


_decode_answer = msgpack.Decoder(Answer).decode


class Worker:
    """Wires the parts together, and takes them apart in the order that loses nothing."""

    def __init__(
        self,
        config: Config,
        index: int,
        ask: Callable[[Raw], None] | None = None,
        share: Callable[[list[Row]], None] = lambda rows: None,
    ):
        """`ask` says something to the arbiter of shared limits; None: there are no others.

        `share` tells the other workers what clients did here, as far as limits count it.
        """
        self._config, self._index = config, index
        self._began = time.monotonic()
        self._permits = _permits(ask, SlowDownRules(config.shaping.slow_down_rules))
        self._door = Door(config, share)
        self._policies = policies(config.retry)
        self._list: SuppressionList | None = None
        self._suppressor: Suppressor | None = None
        if config.suppression:
            self._list = SuppressionList(config.data_dir / "suppression")
            self._suppressor = Suppressor(config.suppression, self._list)
        self._policy = PolicyDesk(config)
        self.journal = self._open_journal()
        self._reception: Reception | None = None
        self._accounts: Accounts | None = None  # where a listener offers logins, or mail stays
        self._access: Access | None = None
        self._mailboxes: Mailboxes | None = None  # where mail stays, or a listener shows it
        self._pop3: Pop3Service | None = None
        self._cleaned = 0.0
        self._router = Router(config, Resolver(config.dns))
        self._flow = Flow()
        self._dispatcher = Dispatcher(
            self._settle,
            self._read,
            sources=Sources(config, time.monotonic),
            shape=Shaper(config.shaping).shape,
            permits=self._permits,
            hosts=Hosts(time.monotonic, config.retry.first),
            room=self._room,
            queue=lambda limit: ReadyQueue(limit, self._weight_of),
            tls=Tls(config.delivery.ca_file),
            flow=self._flow,
        )
        self._ways = Ways(self._dispatcher)
        self._local: LocalMail | None = None  # once [domains] was set
        self._shards: dict[int, Shard] = {}
        self._orders = Orders()
        self._desk = WorkerDesk(
            index, self._orders, self._shards, self._ways, self._resolve, self._rules_for
        )
        self._journal_timer: asyncio.TimerHandle | None = None

    def stand(self, holds: list[Order]) -> None:
        """These holds stand, before anything leaves."""
        self._desk.stand(holds)

    async def start(self, sockets: dict[str, int] | None = None) -> None:
        """`sockets`: see control.Start."""
        folder = self._config.data_dir / "spool"
        for number in shards_of(folder, self._index, self._config.workers):
            self._shards[number] = self._open(folder / str(number), number)
        show(list(self._shards.values()))
        self._intake = Intake(self._shards[self._index].spool, self.journal)
        self._open_accounts()
        threads = max(2, len(os.sched_getaffinity(0)) // self._config.workers)
        self._signing = Signing(self._intake, load_signers(self._config.dkim), threads)
        self._smtp = self._open_smtp(self._signing)
        self._smtp.watch = self._signing.watch
        self._smtp.held = sockets or {}
        self._open_pop3()
        self._use_policy()
        self._use_local_mail()
        for shard in self._shards.values():
            await shard.start()
        await self._clear_receipts()
        for listener in self._config.listener:
            if listener.service in MAIL_SERVICES:
                await self._smtp.start(listener)
            elif self._pop3 is not None and listener.service == "pop3":
                await self._pop3.start(listener)
        self._write_journal()

    def _open_journal(self) -> log.DispositionLog:
        path = self._config.disposition_log
        return FeedingLog(path, self._suppressor) if self._suppressor else log.DispositionLog(path)

    def _open_smtp(self, intake: Backend) -> SmtpService:
        config, tls = self._config, _tls(self._config)
        if not (config.suppression or config.bounces):
            return SmtpService(config, intake, tls, access=self._access, flow=self._flow)
        drops = bool(config.suppression and config.suppression.on_match == "drop")
        self._reception = Reception(
            intake,
            self.journal,
            self._suppressor,
            drops=drops,
            bounces=config.bounces,
            feeds=config.reports_suppress,
        )
        vet = self._reception.vet
        return SmtpService(config, self._reception, tls, vet, access=self._access, flow=self._flow)

    def _open_accounts(self) -> None:
        config = self._config
        has_logins = config.has_logins
        if self._accounts is None and (has_logins or config.domains):
            self._accounts = Accounts(config.data_dir / "accounts")
        if self._access is None and has_logins and self._accounts is not None:
            self._access = Access(config.auth, self._accounts)

    def _use_local_mail(self) -> None:
        """Mailboxes where there are local domains; nothing is asked about them elsewhere."""
        config = self._config
        if self._local is not None:
            self._local.reload(config)
        elif config.domains and self._accounts is not None:
            self._local = LocalMail(
                config,
                self._accounts,
                self._open_mailboxes(),
                self._shards,
                self._settle,
                self._read,
                self._written,
                room=self._room,
                queue=lambda limit: ReadyQueue(limit, self._weight_of),
            )
            self._ways.local = self._local.delivery
        if self._local is not None and self._index == 0:
            self._local.tell_postmasters()
        residents = self._local.residents if self._local and config.domains else None
        self._intake.residents = residents
        if self._reception is not None:
            self._reception.residents = residents
        else:
            self._smtp.vet = residents.vet if residents else None
        for shard in self._shards.values():
            shard.scheduler.submit = self._ways.submit

    def _open_mailboxes(self) -> Mailboxes:
        """Once: LMDB forbids the same path twice in one process."""
        if self._mailboxes is None:
            folder = self._config.data_dir / "mail" / "0"
            self._mailboxes = Mailboxes(folder, self._quota_of)
        return self._mailboxes

    def _quota_of(self, account: str) -> int:
        return self._local.quota_of(account) if self._local else 0

    async def _clear_receipts(self) -> None:
        if self._local is not None:
            spools = {number: shard.spool for number, shard in self._shards.items()}
            await self._local.clear_receipts(spools)

    async def _written(self) -> None:
        for shard in self._shards.values():
            await shard.written()

    def _open_pop3(self) -> None:
        """Where a listener wants it; a service that is there stays, for sessions under way."""
        config, access = self._config, self._access
        wanted = any(listener.service == "pop3" for listener in config.listener)
        if self._pop3 is not None or access is None or not wanted:
            return
        self._pop3 = Pop3Service(config, self._open_mailboxes(), access, _tls(config))
        self._pop3.held = self._smtp.held

    def _use_policy(self) -> None:
        """Ask the policy where it has a function, and nowhere else."""
        policy = self._policy
        self._smtp.judges = Judges([*self._door.judges, *policy.judges()], self._door.note)
        if self._pop3 is not None:
            self._pop3.judges = self._smtp.judges
        self.journal.listener = policy.hear if policy.listens else None
        for shard in self._shards.values():
            shard.scheduler.choose = policy.choose if policy.chooses else None

    def _open(self, folder: Path, number: int) -> Shard:
        spool = Spool(folder, number, self._config.spool.min_free_space)
        settlement = Settlement(
            spool,
            self._policy_for,
            self._config.reports,
            self._config.hostname,
            self.journal,
            self._orders,
            self._finish_report,
        )
        withdraw = partial(self._withdraw, number)
        expiry = Expiry(spool, settlement, self._policy_for, self._shortest, withdraw)
        scheduler = Scheduler(
            spool,
            settlement,
            self._cached,
            self._resolve,
            self._ways.submit,
            expiry,
            self._orders,
        )
        return Shard(spool, settlement, expiry, ClockWatch(spool, self._longest), scheduler)

    async def _finish_report(self, report: Arrival) -> list[Arrival]:
        await self._signing.sign_report(report)
        return self._intake.expanded(report)

    def _shortest(self) -> float:
        return self._config.retry.shortest

    def _longest(self) -> float:
        return self._config.retry.longest

    def _weight_of(self, tenant: Hashable) -> int:
        known = self._config.tenants.get(str(tenant))
        return known.weight if known else 1

    def _room(self, path: str) -> None:
        for shard in self._shards.values():
            shard.spool.room(path)

    def _policy_for(self, domain: str) -> Policy:
        return self._policies(domain)

    def _rules_for(self, domain: str) -> Rules:
        rule = rule_of(self._config.retry, domain)
        return Rules(self._router.route(domain), rule, self._policy_for(domain))

    def _cached(self, domain: str) -> Site | None:
        return self._router.cached(domain)

    async def _resolve(self, domain: str) -> Site | Reply:
        try:
            return await self._router.site(domain)
        except RoutingError as error:
            return error.reply

    def _shard_of(self, message: int) -> Shard:
        return self._shards[message & 0xFF]  # see Spool.new_id

    def _settle(self, job: Job, site: str, source: str, ends: list[Disposition]) -> None:
        self._shard_of(job.envelope.message).settlement.settle(job, site, source, ends)

    def _admit(self, job: Job) -> None:
        self._shard_of(job.envelope.message).scheduler.admit(job.envelope, job.parts)

    def _withdraw(self, shard: int, meant: Callable[[Job], bool]) -> list[Job]:
        return self._ways.withdraw(
            lambda job, _: job.envelope.message & 0xFF == shard and meant(job)
        )

    async def _read(self, message: int, first: int) -> list[bytes]:
        return await self._shard_of(message).spool.read(message, first)

    def _write_journal(self) -> None:
        self.journal.flush()
        self._door.look()
        self._clean_suppression()
        loop = asyncio.get_running_loop()
        self._journal_timer = loop.call_later(JOURNAL_INTERVAL, self._write_journal)

    def _clean_suppression(self) -> None:
        now = time.monotonic()
        if self._suppressor and now - self._cleaned > CLEAN_INTERVAL:
            self._cleaned = now
            self._suppressor.clean()

    async def reload(self, config: Config) -> list[str]:
        """Hand each part another configuration; gives what of it could not be taken on.

        What is under way ends as it began.
        """
        tls, signers = _tls(config), load_signers(config.dkim)
        fixed = [
            f"{name} takes effect at the next start"
            for name in ("bounces", "suppression")
            if getattr(config, name) != getattr(self._config, name)
        ]
        self._config = config
        problem = self.journal.reopen(config.disposition_log)
        self._open_accounts()
        self._use_local_mail()  # before anything is routed there
        self._permits.rules = SlowDownRules(config.shaping.slow_down_rules)
        self._router.retire()
        self._router = Router(config, Resolver(config.dns))
        self._policies = policies(config.retry)
        self._dispatcher.shape = Shaper(config.shaping).shape
        self._dispatcher.sources = Sources(config, time.monotonic)
        self._dispatcher.tls.reload(config.delivery.ca_file)
        self._dispatcher.reshape(self._admit)
        for shard in self._shards.values():
            shard.reload(config)
        await self._clear_receipts()
        self._smtp.access = self._access
        if self._access is not None:
            await self._access.reload(config.auth)
        self._signing.signers = signers
        self._smtp.watch = self._signing.watch
        self._door.reload(config)
        self._open_pop3()
        unloaded = await self._policy.reload(config)
        self._use_policy()
        problems = await self._smtp.reload(config, tls)
        if self._pop3 is not None:
            problems += await self._pop3.reload(config, tls)
        return [*unloaded, *fixed, *([problem] if problem else []), *problems]

    def permit(self, payload: Raw) -> None:
        """Take what the arbiter of shared limits says."""
        self._permits.receive(_decode_answer(payload))

    def counted(self, rows: list[Row]) -> None:
        """Take what other workers count of clients."""
        self._door.limits.counts.add(rows)

    def lift(self, subjects: set[str]) -> None:
        """Forget what was counted against these."""
        self._door.limits.clear(subjects)

    async def command(self, request: Raw) -> AsyncIterator[Any]:
        """Do what an operator asks for: see worker_main.Worker."""
        match _decode_request(request):
            case control.Status():
                yield self._status()
            case asked:
                async for page in self._desk.answer(asked):
                    yield page

    def _status(self) -> control.WorkerStatus:
        return control.WorkerStatus(
            worker=self._index,
            pid=os.getpid(),
            uptime=time.monotonic() - self._began,
            shards=list(self._shards),
            sessions=len(self._smtp.sessions) + (len(self._pop3.sessions) if self._pop3 else 0),
            connections=len(self._dispatcher.connections),
            queued=sum(each.spool.statistics().envelopes for each in self._shards.values()),
            config=fingerprint(self._config),
        )

    async def drain(self, seconds: float) -> None:
        """Finish what is under way, keep what is not, and let go of everything.

        What comes in has so many seconds, then what goes out has as many.
        """
        services = (self._smtp, self._pop3)
        await asyncio.gather(*(each.drain(seconds) for each in services if each is not None))
        await self._signing.finish()  # also for clients that have gone
        self._door.close()
        for shard in self._shards.values():
            await shard.stop_scheduling()
        await self._ways.drain(seconds)
        closed = [await shard.close() for shard in self._shards.values()]
        if self._local is not None:
            await self._local.close(settled=all(closed))
        await self._signing.finish()  # reports
        if self._reception is not None:
            self._reception.close()
        if self._access is not None:
            await self._access.close()
        if self._accounts is not None:
            self._accounts.close()
        if self._mailboxes is not None:
            await self._mailboxes.close()
        if self._list is not None:
            await self._list.close()
        if self._journal_timer is not None:
            self._journal_timer.cancel()
        self._policy.close()
        self.journal.close()


def _permits(ask: Callable[[Raw], None] | None, rules: SlowDownRules) -> SharedPermits:
    """By the supervisor's arbiter, or by one of our own where there is no supervisor."""
    loop = asyncio.get_running_loop()
    if ask is None:
        return local_permits(loop, rules=rules)
    return SharedPermits(lambda request: ask(control.pack(request)), loop, rules=rules)


def _tls(config: Config) -> ServerTls | None:
    """For all services that shake hands, each of which reads its files now."""
    if config.tls is None:
        return None
    using = {each.service for each in config.listener if config.tls_mode(each) != "none"}
    return ServerTls(config.tls, using)


if __name__ == "__main__":
    worker_main.main(Worker)
