"""The operator's hand on the queue of a running server, with selectors, while mail flows."""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from smtplib import SMTP
from typing import Any

import pytest

from tests.integration.servers import (
    LIMIT,
    PROGRAM,
    Destination,
    Event,
    Relay,
    destination,
    relay,
    route,
    rude_host,
    wait_until,
)

FIELDS = '[headers]\ncampaign = "X-Campaign"\ntenant = "X-Tenant"\n'
SLOW_RETRY = '[retry]\nfirst = "1h"\n'


class Answer:
    """What a command of `fastmta queue` said."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.code, self.text, self.errors = done.returncode, done.stdout, done.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def queue(running: Relay, *words: str) -> Answer:
    command, *options = words
    configuration = str(running.folder / "fastmta.toml")
    return Answer(
        subprocess.run(
            [str(PROGRAM), "queue", command, "-c", configuration, *options],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    )


def order(running: Relay, *words: str, code: int = 0) -> Any:
    """The result of a command, which must end like this."""
    answer = queue(running, *words, "--json")
    assert answer.code == code, (answer.text, answer.errors)
    return answer.json


def message(campaign: str, recipient: str, sender: str = "news@sender.test") -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = sender, recipient, "offer"
    mail["X-Campaign"], mail["X-Tenant"] = campaign, f"tenant-of-{campaign}"
    mail.set_content("hello")
    return mail


def send(running: Relay, campaign: str, *recipients: str) -> None:
    with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
        for recipient in recipients:
            client.send_message(message(campaign, recipient))


@contextmanager
def flow(running: Relay, *campaigns: str) -> Iterator[None]:
    """Mail of several campaigns, as fast as it is taken."""
    ending = threading.Event()

    def run(name: str) -> None:
        with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
            number = 0
            while not ending.is_set():
                number += 1
                for campaign in campaigns:
                    client.send_message(message(campaign, f"{campaign}-{name}{number}@a.test"))

    threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join(LIMIT)


def recipients(events: list[Event], kind: str, campaign: str = "") -> list[str]:
    return [
        each.get("recipient") or each["recipients"][0]
        for each in events
        if each["event"] == kind
        and (each.get("recipient") or each["recipients"][0]).startswith(campaign)
    ]


def arrived(sink: Destination, campaign: str) -> list[str]:
    return [one for mail in sink.mail for one in mail.recipients if one.startswith(campaign)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_campaign_stops_while_others_flow_and_goes_on_when_released(
    tmp_path: Path, workers: int
) -> None:
    with (
        destination(delay=0.005) as sink,
        relay(tmp_path, route(sink.port), FIELDS, workers=workers) as running,
        flow(running, "stop", "go"),
    ):
        running.wait(lambda _: len(arrived(sink, "stop")) > 30)
        held = order(running, "hold", "--campaign", "STOP", "--reason", "wrong prices")
        left = len(arrived(sink, "stop"))
        assert len(held["workers"]) == workers
        before = len(arrived(sink, "go"))
        running.wait(lambda events: len(recipients(events, "held", "stop")) > 50)
        running.wait(lambda _: len(arrived(sink, "go")) > before + 50)
        assert len(arrived(sink, "stop")) == left
        assert not recipients(running.events(), "held", "go")

        (standing,) = map(json.loads, queue(running, "holds", "--json").text.splitlines())
        assert (standing["hold"], standing["reason"]) == (held["order"], "wrong prices")
        assert standing["envelopes"] > 50
        released = order(running, "release", "--campaign", "stop")
        assert released["released"] == [held["order"]]
        assert released["envelopes"] >= standing["envelopes"]
        assert queue(running, "holds").text == "nothing is held\n"
        running.wait(lambda _: len(arrived(sink, "stop")) > left + 100)
    # `flow` and `relay` have ended: all that was acknowledged is somewhere.
    events = running.events()
    sent = recipients(events, "received", "stop")
    gone = recipients(events, "delivered", "stop")
    assert len(gone) == len(set(gone))
    kept = set(sent) - set(gone)
    assert kept == set(list_recipients(running)) & set(sent)


def list_recipients(running: Relay) -> list[str]:
    lines = queue(running, "list", "--limit", "100000", "--json").text.splitlines()
    return [address for line in lines for address in json.loads(line)["recipients"]]


def test_what_is_in_the_queue_is_deleted(tmp_path: Path) -> None:
    with (
        rude_host(b"450 4.2.0 later\r\n") as port,
        relay(tmp_path, route(port), FIELDS, SLOW_RETRY) as running,
    ):
        send(running, "old", "a@a.test", "b@b.test")
        send(running, "new", "c@a.test")
        running.wait_for(3, event="deferred")
        assert queue(running, "delete").code == 2  # of everything, only with --all
        done = order(running, "delete", "--campaign", "old", "--reason", "by mistake")
        assert (done["envelopes"], done["recipients"]) == (2, 2)
        assert list_recipients(running) == ["c@a.test"]
        one, two = running.wait_for(2, event="deleted")
        assert {one["recipient"], two["recipient"]} == {"a@a.test", "b@b.test"}
        assert (one["reason"], one["order"]) == ("by mistake", done["order"])
        assert one["by"]
        assert order(running, "delete", "--campaign", "old", code=1)["envelopes"] == 0
        assert order(running, "delete", "--all")["envelopes"] == 1
        assert queue(running, "list").text == "the queue is empty\n"


def test_what_is_bounced_is_reported_to_its_sender(tmp_path: Path) -> None:
    with (
        destination() as sink,
        rude_host(b"450 4.2.0 later\r\n") as port,
        relay(
            tmp_path,
            route(sink.port, "sender.test"),
            route(port),
            FIELDS,
            SLOW_RETRY,
        ) as running,
    ):
        send(running, "loud", "a@a.test")
        send(running, "quiet", "b@a.test")
        running.wait_for(2, event="deferred")
        reply = "551 5.1.6 the domain has moved"
        order(running, "bounce", "--campaign", "quiet", "--no-report")
        order(running, "bounce", "--campaign", "loud", "--reason", reply)
        report = message_from_bytes(sink.mail_for("news@sender.test").content, policy=policy.SMTP)
        assert report.get_content_type() == "multipart/report"
        assert "a@a.test" in report.as_string() and "the domain has moved" in report.as_string()
        loud, quiet = (
            next(e for e in running.wait_for(2, event="bounced") if e["recipient"] == address)
            for address in ("a@a.test", "b@a.test")
        )
        assert (loud["code"], loud["enhanced"], bool(loud["dsn"])) == (551, "5.1.6", True)
        assert (quiet["code"], quiet["dsn"]) == (550, "")
        assert len(running.wait_for(2, event="returned")) == 2
        running.wait_for(1, event="delivered")
        assert [mail.recipients for mail in sink.mail] == [["news@sender.test"]]


def test_mail_is_rerouted_by_its_last_reply(tmp_path: Path) -> None:
    with (
        destination() as other,
        rude_host(b"450 4.7.1 greylisted\r\n") as grey,
        rude_host(b"452 4.2.2 full\r\n") as full,
        relay(tmp_path, route(grey, "grey.test"), route(full, "full.test"), SLOW_RETRY) as running,
    ):
        send(running, "x", "a@grey.test", "b@full.test")
        running.wait_for(2, event="deferred")
        there = f"127.0.0.1:{other.port}"
        assert queue(running, "reroute", "--all", "--to", "nowhere").code == 2
        done = order(running, "reroute", "--reply", "^450 .*GREYLIST", "--to", there)
        assert done["envelopes"] == 1
        assert other.mail_for("a@grey.test")
        (event,) = running.wait_for(1, event="delivered")
        assert event["site"] == there
        (event,) = running.wait_for(1, event="rerouted")
        assert (event["next_hop"], event["domain"]) == (there, "grey.test")
        assert list_recipients(running) == ["b@full.test"]


def test_a_held_envelope_goes_where_it_was_rerouted_to_once_it_is_released(tmp_path: Path) -> None:
    with (
        destination() as first,
        destination() as second,
        relay(tmp_path, route(first.port), FIELDS) as running,
    ):
        hold = order(running, "hold", "--campaign", "x")["order"]
        send(running, "x", "a@a.test")
        running.wait_for(1, event="held")
        order(running, "reroute", "--campaign", "x", "--to", f"127.0.0.1:{second.port}")
        assert not (first.mail or second.mail)
        order(running, "release", "--hold", str(hold))
        assert second.mail_for("a@a.test")
        assert not first.mail
        assert queue(running, "release", "--hold", str(hold)).code == 1


def test_retry_does_not_wait(tmp_path: Path) -> None:
    with relay(tmp_path, '[[route]]\ndomain = "*"\nnext_hop = ["127.0.0.1:9"]\n', SLOW_RETRY) as r:
        send(r, "x", "a@a.test")
        r.wait_for(1, event="deferred")
        order(r, "retry", "--domain", "*.test")
        first, second = r.wait_for(2, event="deferred")
        assert (first["attempts"], second["attempts"]) == (1, 2)
        assert second["received"] == first["received"]


@pytest.mark.parametrize("ending", ["clean", "kill"])
def test_a_hold_outlives_the_server(tmp_path: Path, ending: str) -> None:
    with destination() as sink:
        with relay(tmp_path, route(sink.port), FIELDS, workers=2) as running:
            hold = order(running, "hold", "--campaign", "x", "--reason", "why not")["order"]
            send(running, "x", "before@a.test")
            running.wait_for(1, event="held")
            if ending == "kill":
                for pid in children(running.process.pid):
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda: running.get("/healthz")[0] == 200)
                send(running, "x", "meanwhile@a.test")
                running.wait_for(2, event="held")
        with relay(tmp_path, route(sink.port), FIELDS, workers=2) as running:
            send(running, "x", "after@a.test")
            send(running, "y", "other@a.test")
            assert sink.mail_for("other@a.test")
            running.wait(lambda events: "after@a.test" in recipients(events, "held"))
            assert [mail.recipients for mail in sink.mail] == [["other@a.test"]]
            order(running, "release", "--hold", str(hold))
            assert sink.mail_for("before@a.test") and sink.mail_for("after@a.test")


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in path.read_text().split()]


def test_a_hold_ends_by_itself(tmp_path: Path) -> None:
    with destination() as sink, relay(tmp_path, route(sink.port)) as running:
        order(running, "hold", "--domain", "a.test", "--for", "2s")
        send(running, "x", "a@a.test")
        running.wait_for(1, event="held")
        assert sink.mail_for("a@a.test")
        (event,) = running.wait_for(1, event="released")
        assert (event["by"], event["reason"]) == ("fastmta", "its time is over")
        wait_until(lambda: queue(running, "holds").text == "nothing is held\n")


def test_one_worker_alone(tmp_path: Path) -> None:
    with (
        rude_host(b"450 4.2.0 later\r\n") as port,
        relay(tmp_path, route(port), SLOW_RETRY, workers=2) as running,
    ):
        for number in range(20):  # each connection falls to either
            send(running, "x", f"{number}@a.test")
        running.wait_for(20, event="deferred")
        mine = order(running, "hold", "--all", "--worker", "1")
        assert [each["worker"] for each in mine["workers"]] == [1]
        others = order(running, "delete", "--all", "--worker", "0")
        assert mine["envelopes"] + others["envelopes"] == 20
        assert order(running, "release", "--all")["envelopes"] == mine["envelopes"]
        assert queue(running, "retry", "--all", "--worker", "7").code == 1


def test_why_show_and_top(tmp_path: Path) -> None:
    with (
        rude_host(b"450 4.7.1 greylisted\r\n") as port,
        relay(tmp_path, route(port, "a.test"), route(9, "b.test"), SLOW_RETRY, FIELDS) as running,
    ):
        send(running, "x", "a@a.test", "b@b.test")
        running.wait_for(2, event="deferred")
        order(running, "hold", "--campaign", "y", "--reason", "not yet")
        odd = b"X-Odd: \x1b[2J\n" + message("y", "c@a.test").as_bytes()
        with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
            client.sendmail("news@sender.test", "c@a.test", odd.replace(b"\n", b"\r\n"))
        (held,) = running.wait_for(1, event="held")
        why = queue(running, "why", "A.test")
        assert why.code == 0
        assert "2 envelopes are in the queue for a.test" in why.text
        assert f"it goes to the site 127.0.0.1:{port}" in why.text
        assert "hold 1 (--campaign y, by " in why.text and ") keeps 1 of them: not yet" in why.text
        assert re.search(r"1 waits for the next attempt, the first in (59m|1h)", why.text)
        assert "450 4.7.1 greylisted" in why.text
        dead = queue(running, "why", "b.test").text
        assert "host 127.0.0.1 [127.0.0.1] is left alone for" in dead
        nothing = queue(running, "why", "c.test")
        assert (nothing.code, nothing.text.splitlines()[0]) == (
            1,
            "nothing in the queue is for c.test",
        )
        shown = queue(running, "show", held["id"])
        assert "held by hold 1 (not yet)" in shown.text and "campaign      y" in shown.text
        assert r"X-Odd: \x1b[2J" in shown.text  # nobody else steers the terminal
        assert queue(running, "show", held["id"], "--json").json["envelopes"][0]["state"] == "held"
        top = queue(running, "top", "--json").json
        assert (top["envelopes"], top["held"]) == (3, 1)
        assert queue(running, "top").text.startswith("3 envelopes in the queue, 1 held")


TOO_MANY = b"421 4.7.0 Error: too many connections\r\n"


def test_why_show_and_top_say_who_slowed_a_path_down(tmp_path: Path) -> None:
    """Of two workers, of which neither has the path any more."""
    with (
        rude_host(TOO_MANY) as port,
        relay(tmp_path, route(port, "a.test"), SLOW_RETRY, FIELDS, workers=2) as running,
    ):
        send(running, "x", "a@a.test")
        (event,) = running.wait_for(1, event="deferred")
        cause = "asked for by 421 4.7.0 Error: too many connections (rule /too many"
        why = queue(running, "why", "a.test").text
        assert "slowed down: for now 16 of 32 connections, 0 open" in why and cause in why
        shown = queue(running, "show", event["id"]).text
        assert "slowed down: for now 16 of 32 connections" in shown and cause in shown
        (path,) = queue(running, "why", "a.test", "--json").json["paths"]
        assert path["shared"]["slowed"]["reply"] == "421 4.7.0 Error: too many connections"
        (line,) = queue(running, "top", "--json").json["paths"]
        assert (line["limit"], line["slowed_by"]) == ("16/32", "421 4.7.0")


def test_why_names_the_limit_the_rule_and_when_next(tmp_path: Path) -> None:
    limits = '[[shaping.domain]]\ndomain = "a.test"\nmessage_rate = "1/h"\n'
    retry = '[[retry.domain]]\ndomain = "*.test"\nfirst = "30m"\n'
    tables = limits, retry, "[suppression]\n", FIELDS
    with destination() as sink, relay(tmp_path, route(sink.port), *tables, workers=2) as running:
        send(running, "x", *(f"{number}@a.test" for number in range(6)))
        running.wait_for(1, event="delivered")
        add = [str(PROGRAM), "suppression", "add", "-c", str(running.folder / "fastmta.toml")]
        subprocess.run([*add, "gone@a.test"], check=True, timeout=LIMIT)
        why = wait_until(lambda: _when_limited(running))
        assert f"it goes to the site 127.0.0.1:{sink.port} by [[route]] *" in why
        assert "message rate 1/h (domain a.test): the next one may begin in 59m" in why
        assert "(by [[retry.domain]] *.test)" in why
        assert "1 recipient of the domain is suppressed" in why
        about_one = queue(running, "why", "gone@a.test").text
        assert "new mail for gone@a.test is refused: suppressed, manual since" in about_one
        order(running, "reroute", "--domain", "a.test", "--to", "127.0.0.1:9")
        running.wait_for(5, event="deferred")
        assert "5 go to 127.0.0.1:9 instead: rerouted" in queue(running, "why", "a.test").text


def _when_limited(running: Relay) -> str:
    why = queue(running, "why", "a.test").text
    return why if "5 are on the way" in why and "message rate" in why else ""


def test_without_a_server(tmp_path: Path) -> None:
    with destination() as sink, relay(tmp_path, route(sink.port)) as running:
        pass
    for words in (["hold", "--all"], ["holds"], ["top"], ["why", "a.test"]):
        answer = queue(running, *words)
        assert answer.code == 1
        assert answer.errors.startswith("fastmta: no server is running with data_dir ")
    assert queue(running, "list").code == 0
    assert queue(running, "delete", "--reply", "(", "--all").code == 2
