"""The options by which commands choose envelopes, and the selector that they make."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from fastmta.config_reader import Duration
from fastmta.mail.envelope import Priority
from fastmta.queue.selector import Selector, checked

F = TypeVar("F", bound=Callable[..., Any])


class Span(click.ParamType):  # type: ignore[type-arg]
    """A length of time; its value is seconds."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return float(Duration.parse(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _patterns(name: str, metavar: str, help: str) -> Callable[[F], F]:
    return click.option(f"--{name}", name, metavar=metavar, multiple=True, help=help)


_OPTIONS = [
    _patterns("domain", "PATTERN", "Destination: example.test, *.example.test."),
    _patterns("site", "PATTERN", "Site, as `queue top` names it."),
    _patterns("sender", "PATTERN", "Sender: an address, a domain, *@*.example.test, or <>."),
    _patterns("tenant", "PATTERN", "Whose mail it is."),
    _patterns("campaign", "PATTERN", "What the sender calls the mailing."),
    _patterns("pool", "PATTERN", "The pool of sources that was chosen for it."),
    click.option(
        "--priority",
        type=click.Choice([each.name.lower() for each in Priority]),
        multiple=True,
        help="Its priority.",
    ),
    click.option("--older-than", type=Span(), metavar="TIME", help="Came longer ago: 30m, 2h, 1d."),
    click.option("--newer-than", type=Span(), metavar="TIME", help="Came more lately."),
    _patterns("id", "ID", "A message, or one of its envelopes, as `queue list` shows it."),
    click.option("--reply", metavar="REGEX", help="Found in the last reply: '^421', 'blocked'."),
    click.option("--held", is_flag=True, help="Held by an operator."),
]


def selectors(command: F) -> F:
    """Give a command these options; it gets `selector`."""

    def with_selector(**given: Any) -> Any:
        return command(selector=_selector(given), **given)

    with_selector.__name__, with_selector.__doc__ = command.__name__, command.__doc__
    with_selector.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        with_selector = option(with_selector)
    return with_selector  # type: ignore[return-value]


def _selector(given: dict[str, Any]) -> Selector:
    """Made of options, which are taken out of `given`."""
    now = time.time()
    older, newer = given.pop("older_than"), given.pop("newer_than")
    priorities = tuple(Priority[name.upper()] for name in given.pop("priority"))
    patterns = {
        name: given.pop(name)
        for name in ("domain", "site", "sender", "tenant", "campaign", "pool", "id")
    }
    try:
        return checked(
            Selector(
                **patterns,
                priority=priorities,
                reply=given.pop("reply") or "",
                held=given.pop("held"),
                before=now - older if older is not None else 0.0,
                after=now - newer if newer is not None else 0.0,
            )
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
