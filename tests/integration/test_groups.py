"""Sites of one provider that share its limits, over workers."""

from pathlib import Path

from tests.dns_server import DnsServer
from tests.integration.servers import destination, relay, rude_host
from tests.integration.test_orders import queue, send

NAMES = ("one", "two", "slow")
BIG = """
[[shaping.provider]]
name = "big"
mx = ["big.test"]
shared = true
connections = 2
"""


def hop(name: str, port: int) -> str:
    return f'[[route]]\ndomain = "{name}.test"\nnext_hop = ["{name}.big.test:{port}"]\n'


def test_sites_of_one_provider_share_its_connections_and_a_slow_down(tmp_path: Path) -> None:
    with (
        DnsServer({f"{name}.big.test": {"A": ["127.0.0.1"]} for name in NAMES}) as server,
        destination(delay=0.05) as one,
        destination(delay=0.05) as two,
        rude_host(b"421 4.7.0 Error: too many connections\r\n") as slow,
        relay(
            tmp_path,
            *(hop(*each) for each in zip(NAMES, (one.port, two.port, slow), strict=True)),
            BIG,
            f'[dns]\nnameservers = ["{server.endpoint}"]\n',
            workers=2,
        ) as running,
    ):
        most = 0

        def watch(count: int) -> bool:
            nonlocal most
            most = max(most, one.connections + two.connections)
            return len(one.mail) + len(two.mail) >= count

        send(running, "x", *(f"{number}@{name}.test" for number in range(10) for name in NAMES[:2]))
        running.wait(lambda events: watch(20))
        assert most == 2
        assert len(one.mail) == len(two.mail) == 10
        send(running, "x", "a@slow.test")
        running.wait_for(1, event="deferred")
        send(running, "x", "b@two.test")
        running.wait(lambda events: len(two.mail) == 11)
        why = queue(running, "why", "two.test").text
        assert "slowed down with all paths of provider big: for now 1 of 2 connections" in why
        assert "asked for by 421 4.7.0 Error: too many connections" in why
