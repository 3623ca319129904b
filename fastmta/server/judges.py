"""Who is asked before a session goes on: rate limits, block lists, the operator's own policy.

Where nobody wants to be asked, nothing of this is ever called.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from inspect import isawaitable
from typing import Protocol

from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_question import Question, Step

log = logging.getLogger(__name__)

_FAILED = Reply(451, "4.3.0", "Something is wrong here; try again later")

Verdict = Reply | None  # why not, or nothing against it


class Facts(Protocol):
    """What is known of a session; what a question is about stands in the question."""

    @property
    def client(self) -> str:
        """The IP address of the client."""

    @property
    def service(self) -> str:
        """Of the listener: "smtp" or "submission"."""

    @property
    def helo(self) -> str:
        """What EHLO or HELO gave, "" before."""

    @property
    def tls(self) -> str:
        """The version, "TLSv1.3", or ""."""

    @property
    def account(self) -> str:
        """Whom AUTH has proven, or ""."""

    @property
    def tenant(self) -> str:
        """Whose mail it is where no message says otherwise, or ""."""

    @property
    def may_relay(self) -> bool:
        """Whether mail for any domain is taken."""


class Judge(Protocol):
    """Somebody to ask. How long it thinks is its own affair: give it a bound."""

    @property
    def steps(self) -> frozenset[Step]:
        """When to ask it."""

    def judge(self, question: Question, facts: Facts) -> Verdict | Awaitable[Verdict]:
        """None, or the refusal, at once or later: a plain function or an `async` one.

        421 ends the session, at CONNECT every refusal does. At MESSAGE the arrival may be changed.
        """


# Hears of "errors" and "auth_failures" of clients, one by one.
Note = Callable[[str, Facts], None]


class Judges:
    """Several, asked one after the other; the first refusal counts."""

    def __init__(self, judges: Iterable[Judge] = (), note: Note | None = None) -> None:
        judges = tuple(judges)
        self._by_step = {step: [one for one in judges if step in one.steps] for step in Step}
        self.note = note
        self.asks = frozenset(step for step, asked in self._by_step.items() if asked)

    def ask(self, question: Question, facts: Facts) -> Verdict | Coroutine[None, None, Verdict]:
        """The verdict, or where somebody has to think, how to wait for it."""
        asked = self._by_step[question.step]
        for i, judge in enumerate(asked):
            try:
                verdict = judge.judge(question, facts)
            except Exception:
                return _failed(judge, facts)
            if isawaitable(verdict):
                return self._hear(judge, verdict, asked[i + 1 :], question, facts)
            if verdict is not None:
                return verdict
        return None

    async def _hear(
        self,
        judge: Judge,
        awaited: Awaitable[Verdict],
        others: Sequence[Judge],
        question: Question,
        facts: Facts,
    ) -> Verdict:
        """The first's verdict, then that of the others."""
        try:
            verdict = await awaited
            for other in others:
                if verdict is not None:
                    break
                judge = other
                found = other.judge(question, facts)
                verdict = await found if isawaitable(found) else found
        except Exception:
            return _failed(judge, facts)
        return verdict


def _failed(judge: Judge, facts: Facts) -> Reply:
    """A judge that breaks must not let anything pass."""
    log.exception("%s failed, for %s", type(judge).__name__, facts.client)
    return _FAILED
