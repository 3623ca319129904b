"""A policy in a server that runs: the examples of docs/policy.md, routes, dispositions, reloads."""

import re
import smtplib
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.integration.servers import Relay, destination, relay, route, wait_until

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "policy.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
BLOCKED, HTTP, CHANGED, ATTACHMENTS, ROUTED = EXAMPLES


@contextmanager
def governed(
    folder: Path, policy: str, *tables: str, settings: str = "", workers: int = 1
) -> Iterator[Relay]:
    """A relay with a policy."""
    (folder / "policy.py").write_text(textwrap.dedent(policy))
    with relay(
        folder, *tables, top=f'policy = "policy.py"\n{settings}', workers=workers
    ) as running:
        yield running


def send(running: Relay, sender: str, recipient: str, content: str = "Subject: x\r\n\r\nx") -> None:
    with smtplib.SMTP("127.0.0.1", running.smtp, timeout=30) as client:
        client.sendmail(sender, [recipient], content)


def refusal(running: Relay, sender: str, recipient: str, content: str = "S: x\r\n\r\nx") -> str:
    """The code and text with which a message is refused."""
    try:
        send(running, sender, recipient, content)
    except smtplib.SMTPSenderRefused as error:
        return f"{error.smtp_code} {bytes(error.smtp_error).decode()}"
    except smtplib.SMTPRecipientsRefused as error:
        [(code, text)] = error.recipients.values()
        return f"{code} {text.decode()}"
    except smtplib.SMTPDataError as error:
        return f"{error.smtp_code} {bytes(error.smtp_error).decode()}"
    return ""


# The examples.


def test_example_a_file_of_senders(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("bad.test\n")
    with (
        destination() as sink,
        governed(tmp_path, BLOCKED.replace("/etc/fastmta/blocked-senders", str(blocked)),
                 route(sink.port)) as running,
    ):  # fmt: skip
        assert refusal(running, "a@BAD.test", "b@one.test").startswith("550 5.7.1 This sender")
        send(running, "a@good.test", "b@one.test")
        sink.mail_for("b@one.test")
        blocked.write_text("bad.test\na@good.test\n")
        assert refusal(running, "a@good.test", "b@one.test").startswith("550 5.7.1 ")
        blocked.unlink()
        assert refusal(running, "a@other.test", "b@one.test").startswith("451 4.3.0 ")
        assert "FileNotFoundError" in running.stderr()


class Directory(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        code = {"/users/b@one.test": 200, "/users/broken@one.test": 500}.get(self.path, 404)
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_example_a_service_over_http(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Directory) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        policy = HTTP.replace(":8080", f":{server.server_port}")
        with destination() as sink, governed(tmp_path, policy, route(sink.port)) as running:
            send(running, "a@a.test", "b@one.test")
            sink.mail_for("b@one.test")
            assert refusal(running, "a@a.test", "c@one.test").startswith("550 5.1.1 There is no")
            assert refusal(running, "a@a.test", "broken@one.test").startswith("451 4.3.0 ")
        server.shutdown()


def test_example_changes(tmp_path: Path) -> None:
    with destination() as sink, governed(tmp_path, CHANGED, route(sink.port)) as running:
        content = "X-External: no\r\nList-Id: <l.test>\r\nSubject: x\r\n\r\nx"
        send(running, "a@a.test", "board@example.test", content)
        for recipient in ("board@example.test", "archive@example.test"):
            mail = sink.mail_for(recipient)
            assert mail.content.count(b"X-External:") == 1
            assert b"X-External: yes\r\n" in mail.content
        [received] = running.wait_for(1, event="received")
        assert received["recipients"] == ["board@example.test", "archive@example.test"]


def test_example_attachments(tmp_path: Path) -> None:
    with destination() as sink, governed(tmp_path, ATTACHMENTS, route(sink.port)) as running:
        content = (
            "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\n"
            "Content-Disposition: attachment; filename={}\r\n\r\nMZ\r\n--b--\r\n"
        )
        said = refusal(running, "a@a.test", "b@one.test", content.format("Invoice.EXE"))
        assert said.startswith("552 5.7.0 Programs")
        send(running, "a@a.test", "b@one.test", content.format("invoice.txt"))
        sink.mail_for("b@one.test")


def test_example_another_relay_for_one_tenant_and_what_bounces(tmp_path: Path) -> None:
    tables = '[headers]\ntenant = "X-Tenant"\n[retry]\nfirst = "100ms"\nmax_interval = "100ms"\n'
    with destination() as usual, destination(tempfail=1.0) as other:
        policy = ROUTED.replace("192.0.2.25:25", f"127.0.0.1:{other.port}")
        policy = policy.replace("% 100", "% 1")
        with governed(tmp_path, policy, tables, route(usual.port)) as running:
            send(running, "a@a.test", "b@one.test", "X-Tenant: newsletter\r\n\r\nx")
            usual.mail_for("b@one.test")
            events = running.wait_for(1, event="delivered")
            assert events[0]["attempts"] == 2  # before this one
            usual.behave(permfail=1.0)
            send(running, "a@a.test", "c@two.test", "Subject: x\r\n\r\nx")
            running.wait_for(1, event="bounced")


# What no example shows.


def test_a_route_may_be_refused_and_a_hook_that_fails_defers(tmp_path: Path) -> None:
    policy = """
        from fastmta.policy import Defer, Reject, Route

        def choose_route(envelope):
            if envelope.domain == "rejected.test":
                return Reject(550, "5.7.1", "not there")
            if envelope.domain == "deferred.test":
                return Defer(450, "4.7.0", "not now")
            if envelope.domain == "moved.test":
                return Route("other.test")
            if envelope.domain == "nonsense.test":
                return Route("no host:x")
            1 / 0
    """
    with (
        destination() as sink,
        governed(tmp_path, policy, route(sink.port, "other.test")) as running,
    ):
        for name in ("rejected", "deferred", "moved", "nonsense", "failing"):
            send(running, "a@failing.test", f"b@{name}.test")
        sink.mail_for("b@moved.test")

        def event(kind: str, name: str) -> dict[str, object]:
            return running.wait_for(1, event=kind, domain=f"{name}.test")[0]

        assert event("bounced", "rejected")["reply"] == "not there"
        assert event("deferred", "deferred")["reply"] == "not now"
        assert event("deferred", "nonsense")["code"] == 451
        assert event("deferred", "failing")["code"] == 451
        assert "ZeroDivisionError" in running.stderr()


def test_dispositions_are_told_and_a_slow_hook_holds_nothing_up(tmp_path: Path) -> None:
    policy = f"""
        import threading

        def on_disposition(event):
            with open("{tmp_path}/told", "a") as file:
                print(type(event).__name__, event.recipient, event.code, file=file)
            if event.domain == "hang.test":
                threading.Event().wait()
    """
    with (
        destination() as sink,
        governed(tmp_path, policy, route(sink.port), settings='policy_timeout = "2s"') as running,
    ):
        told = tmp_path / "told"
        send(running, "a@a.test", "b@hang.test")
        wait_until(lambda: told.exists() and "b@hang.test" in told.read_text())
        for n in range(5):
            send(running, "a@a.test", f"b{n}@one.test")
            sink.mail_for(f"b{n}@one.test")
        running.wait_for(6, event="delivered")  # without waiting for the hook
        expected = {f"Delivered b{n}@one.test 250" for n in range(5)}
        wait_until(lambda: expected <= set(told.read_text().splitlines()))


def test_a_reload_takes_a_new_policy_and_keeps_the_old_where_that_cannot_be_loaded(
    tmp_path: Path,
) -> None:
    text = """
        from fastmta.policy import Reject

        def on_rcpt(session, recipient):
            return Reject(550, "5.7.1", "first")
    """
    with (
        destination() as sink,
        governed(tmp_path, text, route(sink.port), workers=2) as running,
    ):
        policy = tmp_path / "policy.py"
        assert refusal(running, "a@a.test", "b@one.test") == "550 5.7.1 first"
        with smtplib.SMTP("127.0.0.1", running.smtp, timeout=30) as waiting:
            waiting.ehlo()
            policy.write_text("def on_rctp(session, recipient):\n    return None\n")
            running.reload("", "")
            wrong = "policy.py, line 1: there is no hook on_rctp; did you mean on_rcpt?"
            assert running.stderr().count(wrong) == 2
            assert "the policy from before stays in force" in running.stderr()
            assert refusal(running, "a@a.test", "b@one.test") == "550 5.7.1 first"
            policy.write_text(textwrap.dedent(text).replace("first", "second"))
            running.reload("", "")
            assert refusal(running, "a@a.test", "b@one.test") == "550 5.7.1 second"
            waiting.docmd("MAIL", "FROM:<a@a.test>")
            assert waiting.docmd("RCPT", "TO:<b@one.test>") == (550, b"5.7.1 second")
        running.reload('policy = "policy.py"', "")
        send(running, "a@a.test", "b@one.test")
        sink.mail_for("b@one.test")


def test_a_server_does_not_start_with_a_policy_that_cannot_be_loaded(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="the process has ended"),
        governed(tmp_path, "def on_rcpt(session): pass"),
    ):
        pass
    assert (
        "policy.py, line 1: on_rcpt(session) cannot be called" in (tmp_path / "stderr").read_text()
    )
