"""A worker's policy: the module that is in force, and where its hooks meet the way of a message."""

import asyncio
import logging
from collections import deque

from fastmta import log
from fastmta.config import Config
from fastmta.mail import envelope as mail
from fastmta.mail.reply import Reply
from fastmta.policy import Bounced, Defer, Deferred, Delivered, Envelope, Reject, Route
from fastmta.policy_file import PolicyError, load
from fastmta.policy_runner import HookFailed, Runner
from fastmta.server.policy_judge import FAILED, PolicyJudge

MOST_EVENTS = 10_000  # that wait for `on_disposition`; those beyond are not told

logger = logging.getLogger(__name__)


class PolicyDesk:
    """Without a policy it has no judges, chooses nothing and hears nothing."""

    def __init__(self, config: Config) -> None:
        """PolicyError."""
        self._config = config
        self._policy = load(config.policy) if config.policy else None
        self._runner = Runner(config.policy_timeout)
        self._events: deque[log.Event] = deque()
        self._missed = 0
        self._telling: asyncio.Task[None] | None = None

    async def reload(self, config: Config) -> list[str]:
        """Go on with the module as it is now; what cannot be loaded leaves the old in force."""
        policy, problems = None, []
        try:
            # In a thread: what it imports may take its time.
            policy = await asyncio.to_thread(load, config.policy) if config.policy else None
        except PolicyError as error:
            problems = [f"policy: {line}" for line in str(error).splitlines()]
            problems += ["the policy from before stays in force"]
            policy = self._policy
        self._config, self._policy = config, policy
        self._runner.limit = config.policy_timeout
        return problems

    def judges(self) -> list[PolicyJudge]:
        if self._policy is None:
            return []
        pools = [pool.name for pool in self._config.pool]
        return [PolicyJudge(self._policy, self._runner, pools)]

    # Routes.

    @property
    def chooses(self) -> bool:
        return self._has("choose_route")

    async def choose(self, envelope: mail.Envelope) -> str | Reply:
        """Where to send it, "" where that is left to [[route]] and MX, or why not."""
        if self._policy is None or not self.chooses:
            return ""
        hook = self._policy.hooks["choose_route"]
        try:
            answer = await self._runner.call("choose_route", hook, _view(envelope))
        except HookFailed:
            return FAILED
        if isinstance(answer, Reject | Defer):
            return answer.reply
        if answer is None:
            return ""
        if isinstance(answer, Route) and isinstance(answer.next_hop, str):
            return answer.next_hop
        wrong = TypeError(f"give None, Route, Reject or Defer, not {type(answer).__name__}")
        self._runner.fail("choose_route", wrong)
        return FAILED

    # Dispositions.

    @property
    def listens(self) -> bool:
        return self._has("on_disposition")

    def hear(self, event: log.Event) -> None:
        """Tell the hook of a line of the disposition log, some time."""
        if not isinstance(event, Delivered | Deferred | Bounced):
            return
        if len(self._events) >= MOST_EVENTS:
            if not self._missed:
                logger.error("on_disposition is too slow: it is not told of everything")
            self._missed += 1
            return
        self._events.append(event)
        if self._telling is None:
            self._telling = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        while self._events and self._policy is not None and self.listens:
            event = self._events.popleft()
            try:
                hook = self._policy.hooks["on_disposition"]
                await self._runner.call("on_disposition", hook, event)
            except HookFailed:
                continue
        self._events.clear()
        self._telling = None
        if self._missed:
            logger.error("on_disposition was not told of %d dispositions", self._missed)
            self._missed = 0

    def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()

    def _has(self, hook: str) -> bool:
        return self._policy is not None and hook in self._policy.hooks


def _view(envelope: mail.Envelope) -> Envelope:
    return Envelope(
        id=envelope.id,
        sender=envelope.sender,
        domain=envelope.domain,
        recipients=tuple(each.address for each in envelope.recipients),
        size=envelope.size,
        received=envelope.received,
        attempts=envelope.attempts,
        priority=envelope.priority.name.lower(),
        tenant=envelope.tenant,
        campaign=envelope.campaign,
        pool=envelope.pool,
    )
