"""Strangers and broken clients, at a relay of two workers."""

import json
import os
import re
import signal
import smtplib
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.dns_server import DnsServer, Fault, Zone
from tests.integration.servers import LIMIT, PROGRAM, Relay, relay, route, wait_until

STRANGER, OTHER = "127.0.0.9", "127.0.1.10"
SESSIONS = 24  # at one time: that all are with one worker has a chance of one in 8 million
STRANGERS = '[smtp]\nrelay_networks = ["127.0.0.1/32"]\nmax_recipients = 100000\n'
OPEN = '[bounces]\naddresses = ["*@bounces.test"]\n'  # where strangers may send


_clients: "list[Client]" = []  # that are open


class Client:
    """SMTP by hand."""

    def __init__(self, running: Relay, address: str = STRANGER) -> None:
        where = ("127.0.0.1", running.smtp)
        self.socket = socket.create_connection(where, LIMIT, source_address=(address, 0))
        self._lines = self.socket.makefile("rb")
        _clients.append(self)

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def reply(self) -> str:
        """The next, its last line; "" at the end of the connection."""
        while (line := self._lines.readline())[3:4] == b"-":
            pass
        return line.decode().rstrip()

    def say(self, *commands: str) -> str:
        """The reply to the last of these, sent one by one."""
        answer = ""
        for command in commands:
            self.socket.sendall(command.encode() + b"\r\n")
            answer = self.reply()
        return answer

    def begin(self) -> "Client":
        """Up to RCPT."""
        assert self.reply()[:3] == "220"
        assert self.say("EHLO client.test", "MAIL FROM:<a@stranger.test>")[:3] == "250"
        return self

    def recipient(self) -> str:
        return self.say("RCPT TO:<any@bounces.test>")

    def recipients(self, count: int) -> list[str]:
        """The codes, all asked for at once."""
        self.socket.sendall(b"RCPT TO:<any@bounces.test>\r\n" * count)
        return [self.reply()[:3] for _ in range(count)]


@contextmanager
def serving(folder: Path, *tables: str) -> Iterator[Relay]:
    with relay(folder, STRANGERS, OPEN, route(25), *tables, workers=2) as running:
        try:
            yield running
        finally:  # it waits for transactions to end
            while _clients:
                _clients.pop().close()


def command(running: Relay, *words: str) -> tuple[int, list[Any]]:
    """Of `fastmta`: its exit code, and what it prints with --json."""
    configuration = running.folder / "fastmta.toml"
    done = subprocess.run(
        [PROGRAM, *words, "-c", configuration, "--json"], capture_output=True, timeout=LIMIT
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def over(running: Relay) -> list[tuple[str, str]]:
    return [(one["limit"], one["subject"]) for one in command(running, "limits", "list")[1]]


def counted(running: Relay, series: str) -> float:
    text = running.get("/metrics")[1]
    found = re.search(rf"(?m)^{re.escape(series)} (\S+)$", text)
    assert found, text
    return float(found[1])


def greeting(running: Relay, address: str = STRANGER) -> str:
    client = Client(running, address)
    answer = client.reply()
    client.close()
    return answer


def pids(running: Relay) -> set[int]:
    code, workers = command(running, "status")
    return {one["pid"] for one in workers} if code == 0 else set()


def test_a_limit_holds_in_all_workers_and_over_their_death(tmp_path: Path) -> None:
    limits = '[limits.client]\nrecipients = "2000/h"\n'
    with serving(tmp_path, limits) as running:
        clients = [Client(running).begin() for _ in range(SESSIONS)]
        codes = clients[0].recipients(2001)
        assert codes == ["250"] * 2000 + ["450"]
        assert_all_refused(clients)
        assert Client(running, OTHER).begin().recipient()[:3] == "250"
        assert over(running) == [("client.recipients", STRANGER)]
        before = pids(running)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(pids(running) - before) == 2)
        for _ in range(SESSIONS):
            answer = Client(running).begin().recipient()
            assert re.fullmatch(
                r"450 4\.7\.1 Too many recipients from your address; come again in \d\d minutes",
                answer,
            )
        assert (
            counted(running, 'fastmta_limits_refused_total{limit="client.recipients"}') >= SESSIONS
        )


def assert_all_refused(clients: list[Client]) -> None:
    """Soon, and long before the other worker has counted to the limit by itself."""
    passed, left = 0, clients
    while left:
        codes = {each: each.recipient()[:3] for each in left}
        left = [each for each, code in codes.items() if code == "250"]
        passed += len(left)
        assert passed < 1900
        time.sleep(0.1)


def test_an_operator_lifts_a_limit_and_another_configuration_too(tmp_path: Path) -> None:
    limits = '[limits.network]\nrecipients = "10/h"\n[limits]\nipv4_prefix = 23\n'
    with serving(tmp_path, limits) as running:
        assert command(running, "limits", "clear", STRANGER) == (1, [])
        clients = [Client(running).begin() for _ in range(SESSIONS)]
        assert clients[0].recipients(11)[-1] == "450"
        assert Client(running, "127.0.2.1").begin().recipient()[:3] == "250"
        wait_until(lambda: {each.recipient()[:3] for each in clients} == {"450"})
        wait_until(lambda: over(running) == [("network.recipients", "127.0.0.0/23")])
        code, [freed] = command(running, "limits", "clear", OTHER)
        assert (code, freed["subject"], freed["rate"]) == (0, "127.0.0.0/23", "10/h")
        wait_until(lambda: all(each.recipient()[:3] == "250" for each in clients[:4]))
        wait_until(lambda: {each.recipient()[:3] for each in clients} == {"450"})
        running.reload('"10/h"', '"9000/h"')
        assert {each.recipient()[:3] for each in clients} == {"250"}


def test_sessions_of_a_client_are_limited(tmp_path: Path) -> None:
    with serving(tmp_path, '[limits.client]\nsessions = "50/h"\n') as running:
        answers = [greeting(running)[:3] for _ in range(50)]
        assert answers == ["220"] * 50
        wait_until(lambda: {greeting(running)[:3] for _ in range(SESSIONS)} == {"421"})
        assert greeting(running).startswith("421 4.7.0 Too many sessions from your address; come ")
        assert {greeting(running, "127.0.0.1")[:3] for _ in range(60)} == {"220"}  # may relay


def test_threat_10_who_guesses_addresses_is_soon_shut_out(tmp_path: Path) -> None:
    with serving(tmp_path, '[limits.client]\nerrors = "8/h"\n') as running:
        client = Client(running).begin()
        for number in range(8):
            assert client.say(f"RCPT TO:<guess{number}@example.test>")[:9] == "550 5.7.1"
        wait_until(lambda: {greeting(running)[:3] for _ in range(SESSIONS)} == {"421"})
        assert greeting(running).startswith("421 4.7.0 Too many errors from your address; come ")
        assert greeting(running, OTHER)[:3] == "220"
        assert counted(running, 'fastmta_limits_refused_total{limit="client.errors"}') >= SESSIONS


def test_block_lists_and_names(tmp_path: Path) -> None:
    zone: Zone = {
        "9.0.0.127.bl.test": {"A": ["127.0.0.2"], "TXT": ['"you send spam"']},
        "9.0.0.127.in-addr.arpa": {"PTR": ["mx.stranger.test."]},
        "10.1.0.127.in-addr.arpa": {"PTR": ["mx.other.test."]},
        "mx.other.test": {"A": [OTHER]},
        "11.0.0.127.in-addr.arpa": {"PTR": ["mx.other.test."]},
    }
    with DnsServer(zone) as server, ExitStack() as stack:
        checks = (
            f'[dns]\nnameservers = ["{server.endpoint}"]\n[checks]\nreverse_name = "confirmed"\n'
            'without_reverse_name = "defer"\n[[checks.block_list]]\nzone = "bl.test"\n'
        )
        running = stack.enter_context(serving(tmp_path, checks))

        def mail(address: str) -> str:
            client = Client(running, address)
            assert client.reply()[:3] == "220"
            return client.say("EHLO client.test", "MAIL FROM:<a@stranger.test>")

        text = "554 5.7.1 127.0.0.9 is listed by bl.test: you send spam"
        assert mail(STRANGER) == text
        assert mail(OTHER)[:3] == "250"
        assert mail("127.0.0.11") == "450 4.7.25 127.0.0.11 has no name that leads back to it"
        assert mail("127.0.0.1")[:3] == "250"
        for _ in range(SESSIONS):
            assert mail(STRANGER) == text
        assert server.queries["9.0.0.127.bl.test", "A"] <= 2  # once in each worker
        assert not [name for name, _ in server.queries if name.startswith("1.0.0.127.in-addr")]
        running.reload('reverse_name = "confirmed"\nwithout_reverse_name = "defer"\n', "")
        assert mail("127.0.0.11")[:3] == "250"


def test_a_list_that_does_not_answer_lets_mail_in(tmp_path: Path) -> None:
    with DnsServer({"9.0.0.127.dead.test": Fault.DROP}) as server, ExitStack() as stack:
        checks = (
            f'[dns]\nnameservers = ["{server.endpoint}"]\n[checks]\ntimeout = "200ms"\n'
            '[[checks.block_list]]\nzone = "dead.test"\n'
        )
        running = stack.enter_context(serving(tmp_path, checks))
        assert Client(running).begin().recipient()[:3] == "250"
        assert counted(running, 'fastmta_checks_total{result="failed"}') == 1


def test_threat_06_who_talks_before_the_greeting(tmp_path: Path) -> None:
    delay = '[checks]\ngreeting_delay = "50s"\n'
    with serving(tmp_path, delay) as running:
        early = Client(running)
        assert early.say("EHLO client.test")[:9] == "554 5.5.0"
        assert early.reply() == ""
        for _ in range(3):
            Client(running).close()  # who goes away meanwhile is no trouble
        running.reload("50s", "500ms")
        began = time.monotonic()
        assert Client(running).begin().recipient()[:3] == "250"
        assert time.monotonic() - began >= 0.5
        with smtplib.SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
            assert client.noop()[0] == 250
        running.reload("500ms", "0s")
        assert greeting(running)[:3] == "220"
