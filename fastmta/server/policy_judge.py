"""Asks an operator's policy before a session goes on."""

from collections.abc import Collection
from typing import Any

from fastmta.mail.reply import Reply
from fastmta.policy import Defer, Message, Reject, Session
from fastmta.policy_file import Policy
from fastmta.policy_runner import HookFailed, Runner
from fastmta.protocol.smtp_question import Question, Step
from fastmta.server.judges import Facts, Verdict

HOOK_OF = {
    Step.CONNECT: "on_connect",
    Step.EHLO: "on_ehlo",
    Step.MAIL: "on_mail",
    Step.RCPT: "on_rcpt",
    Step.MESSAGE: "on_message",
}
FAILED = Reply(451, "4.3.0", "The policy of this server gives no answer; try again later")


class PolicyJudge:
    """Asked at those steps alone for which the policy has a function."""

    def __init__(self, policy: Policy, runner: Runner, pools: Collection[str]) -> None:
        """`pools` are those that a message may leave from."""
        self._hooks, self._runner, self._pools = policy.hooks, runner, frozenset(pools)
        self.steps = frozenset(step for step, name in HOOK_OF.items() if name in policy.hooks)

    async def judge(self, question: Question, facts: Facts) -> Verdict:
        name, subject = HOOK_OF[question.step], _subject(question)
        try:
            answer = await self._runner.call(
                name, self._hooks[name], _session(question, facts), *subject
            )
        except HookFailed:
            return FAILED
        try:
            return self._verdict(question, answer, subject)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._runner.fail(name, error)
            return FAILED

    def _verdict(self, question: Question, answer: Any, subject: tuple[Any, ...]) -> Verdict:
        if isinstance(answer, Reject | Defer):
            return answer.reply
        if answer is not None:
            raise TypeError(f"a hook returns None, Reject or Defer, not {type(answer).__name__}")
        if question.step is Step.MESSAGE and question.arrival is not None:
            [message] = subject
            message.apply(question.arrival, self._pools)
        return None


def _session(question: Question, facts: Facts) -> Session:
    return Session(
        client=facts.client,
        service=facts.service,
        helo=question.helo or facts.helo,
        tls=facts.tls,
        account=facts.account,
        may_relay=facts.may_relay,
    )


def _subject(question: Question) -> tuple[Any, ...]:
    """What the question is about, beside the session."""
    if (arrival := question.arrival) is None:
        return ()
    if question.step is Step.MESSAGE:
        return (Message(arrival),)
    if (recipient := question.recipient) is not None:
        return (recipient.address,)
    return (arrival.sender,)
