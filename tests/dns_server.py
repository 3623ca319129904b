"""A DNS server on a loopback port that tells the truth of its zone, or misbehaves as told.

    with DnsServer({"example.test": {"MX": ["10 mx.example.test."]}}) as server:
        ... ask server.endpoint ...
        assert server.queries["example.test", "MX"] == 1

It answers as a recursive resolver does: CNAMEs are followed within the zone, and what is not
there is NXDOMAIN or an empty answer with the SOA that RFC 2308 asks for. It runs in threads,
so that tests with a loop and tests with real processes can both use it.
"""

import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from fastmta.config import Endpoint

FORGED = "203.0.113.66"  # what every forged answer to an A query says


class Fault(Enum):
    """What happens instead of an answer; a forged one is followed by the true one."""

    DROP = "no answer at all"
    SERVFAIL = "SERVFAIL"
    REFUSED = "REFUSED"
    TCP_CUT = "truncated over UDP, and closed without an answer over TCP"
    GARBAGE = "octets that are no message"
    WRONG_ID = "forged: with another id"
    WRONG_QUESTION = "forged: to another question"
    WRONG_PORT = "forged: from another port"


Records = Mapping[str, Sequence[str]]  # type -> rdata in zone file form
Zone = dict[str, Records | Fault]


class DnsServer:
    """Serves `zone` over UDP and TCP; the zone, TTLs and gate may be changed while it runs."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.ttl = 300
        self.negative_ttl = 60
        self.follows_cnames = True
        self.raw: bytes | None = None  # with the query's id in front, instead of any answer
        self.queries: Counter[tuple[str, str]] = Counter()
        self.over_tcp = 0
        self.gate = threading.Event()  # answers wait while it is not set
        self.gate.set()

    def __enter__(self) -> "DnsServer":
        self._udp, self._tcp = _bound_pair(self)
        self.endpoint = Endpoint(*self._udp.server_address[:2])
        for server in (self._udp, self._tcp):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        for server in (self._udp, self._tcp):
            server.shutdown()
            server.server_close()

    def answers(self, wire: bytes, *, udp: bool) -> Iterator[tuple[bytes, bool]]:
        """The datagrams to send, each with whether it comes from the right port."""
        query = cast(dns.message.QueryMessage, dns.message.from_wire(wire))
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        self.queries[name, dns.rdatatype.to_text(query.question[0].rdtype)] += 1
        self.over_tcp += not udp
        self.gate.wait(60)
        if self.raw is not None:
            yield wire[:2] + self.raw, True
            return
        found = self.zone.get(name)
        fault = found if isinstance(found, Fault) else None
        if fault:
            yield from _misbehave(fault, query, udp)
        if fault in _WITHOUT_ANSWER:
            return
        yield _fitting(self._truth(query), query, udp), True

    def _truth(self, query: dns.message.QueryMessage) -> dns.message.Message:
        response = dns.message.make_response(query)
        name, kind = query.question[0].name, dns.rdatatype.to_text(query.question[0].rdtype)
        seen = set()
        while name not in seen:
            seen.add(name)
            records = self._records(name)
            if texts := records.get(kind):
                response.answer.append(dns.rrset.from_text(name, self.ttl, "IN", kind, *texts))
                return response
            if not (target := records.get("CNAME")):
                return self._negative(response, name)
            response.answer.append(dns.rrset.from_text(name, self.ttl, "IN", "CNAME", *target))
            if not self.follows_cnames:
                return response
            name = dns.name.from_text(target[0])
        return response  # a loop: all of its CNAMEs, once

    def _records(self, name: dns.name.Name) -> Records:
        found = self.zone.get(name.to_text(omit_final_dot=True).lower(), {})
        return {"A": ["192.0.2.53"]} if isinstance(found, Fault) else found

    def _negative(self, response: dns.message.Message, name: dns.name.Name) -> dns.message.Message:
        names = [dns.name.from_text(each) for each in self.zone]
        if not any(each.is_subdomain(name) for each in names):
            response.set_rcode(dns.rcode.NXDOMAIN)
        soa = f"ns.test. root.test. 1 3600 600 86400 {self.negative_ttl}"
        response.authority.append(dns.rrset.from_text("test.", 3600, "IN", "SOA", soa))
        return response


_WITHOUT_ANSWER = {Fault.DROP, Fault.SERVFAIL, Fault.REFUSED, Fault.TCP_CUT}


def _misbehave(
    fault: Fault, query: dns.message.QueryMessage, udp: bool
) -> Iterator[tuple[bytes, bool]]:
    response = dns.message.make_response(query)
    if fault in (Fault.SERVFAIL, Fault.REFUSED):
        response.set_rcode(dns.rcode.from_text(fault.value))
        yield response.to_wire(), True
    elif fault is Fault.TCP_CUT and udp:
        response.flags |= dns.flags.TC
        yield response.to_wire(), True
    elif fault is Fault.GARBAGE:
        yield query.to_wire()[:2] + b"\xff" * 40, True
    elif fault not in _WITHOUT_ANSWER:
        yield _forged(fault, query), fault is not Fault.WRONG_PORT


def _forged(fault: Fault, query: dns.message.QueryMessage) -> bytes:
    name = query.question[0].name
    if fault is Fault.WRONG_QUESTION:
        other = dns.message.make_query("other.test", "A")
        other.id = query.id
        query, name = other, other.question[0].name
    response = dns.message.make_response(query)
    if fault is Fault.WRONG_ID:
        response.id = query.id ^ 1
    response.answer.append(dns.rrset.from_text(name, 300, "IN", "A", FORGED))
    return response.to_wire()


def _fitting(response: dns.message.Message, query: dns.message.QueryMessage, udp: bool) -> bytes:
    """The message as it goes out; over UDP an empty one with TC where it would not fit."""
    try:
        return response.to_wire(max_size=query.payload if udp else 65535)
    except dns.exception.TooBig:
        cut = dns.message.make_response(query)
        cut.flags |= dns.flags.TC
        return cut.to_wire()


def _bound_pair(owner: DnsServer) -> tuple[socketserver.UDPServer, socketserver.TCPServer]:
    """Both servers on one port number that was free for both."""

    class OverUdp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            wire, right = self.request
            for answer, is_right in owner.answers(wire, udp=True):
                if is_right:
                    right.sendto(answer, self.client_address)
                else:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
                        wrong.sendto(answer, self.client_address)

    class OverTcp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = int.from_bytes(self.rfile.read(2), "big")
            for answer, _ in owner.answers(self.rfile.read(length), udp=False):
                self.wfile.write(len(answer).to_bytes(2, "big") + answer)

    for _ in range(20):
        udp = _ThreadingUdp(("127.0.0.1", 0), OverUdp)
        try:
            return udp, _ThreadingTcp(udp.server_address[:2], OverTcp)
        except OSError:  # somebody else has the TCP port of that number
            udp.server_close()
    raise OSError("no port number is free for both UDP and TCP")


class _ThreadingUdp(socketserver.ThreadingUDPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        super().server_bind()


class _ThreadingTcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address: Any = True
