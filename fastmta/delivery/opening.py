"""Opening one connection: to the first host of a site that wants mail."""

import asyncio
import errno
import os
import random
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastmta import metrics
from fastmta.delivery.connection import Connection
from fastmta.delivery.hosts import Spot
from fastmta.delivery.site import Host, Site
from fastmta.mail.reply import Reply

if TYPE_CHECKING:
    from fastmta.delivery.dispatcher import Dispatcher
    from fastmta.delivery.path import Path

FAILED = metrics.counter(
    "fastmta_delivery_connections_failed_total",
    "Attempts at an SMTP connection out that no mail could be sent over",
)

# RFC 3463 section 3.8: what our policy, and not the host, has against the connection.
TLS_WANTED = ("4.7.4", "4.7.5", "4.7.30")
CUT_OFF = Reply(451, "4.3.2", "cut off by our shutdown")
_NO_ADDRESS = Reply(451, "4.4.4", "no address to send to")
_IP_BIND_ADDRESS_NO_PORT = 24  # ip(7); the socket module has it from Python 3.12 on


class SourceGone(Exception):
    """An address of the source cannot be bound."""


async def open_connection(path: "Path", dispatcher: "Dispatcher") -> bool:
    """False: no host takes mail now, and the path knows why."""
    failure: tuple[Reply, str] | None = None
    is_passed_on = path.shape.limits.tls == "requiretls"
    tried, probed, sourceless = 0, False, False
    for host, address in draw(path.site):
        spot = path.spot(address, host.port)
        if trouble := dispatcher.hosts.trouble(spot):
            failure = trouble.reply, trouble.host
            probed = probed or trouble.is_probed
            continue
        local = dispatcher.sources.local_address(path.source, address)
        if local is None:
            sourceless = True
            continue
        if tried == dispatcher.bounds.attempts:
            break
        tried += 1
        try:
            reply, label = await _attempt(path, dispatcher, host, spot, local)
        except SourceGone:
            sourceless = True
            continue
        if reply is None:
            return True
        FAILED.value += 1
        dispatcher.permits.heard(path.shape, reply)
        if reply.is_permanent:
            # We are the host. RFC 5321 section 5.1: hosts of our own preference or a later
            # one are not for us to try; where an earlier one failed, it may come back.
            failure = failure or (reply, label)
            break
        if not (failure and is_passed_on and _is_better(failure[0], reply)):
            failure = reply, label
    if failure is None and sourceless:
        path.sourceless()
    elif tried or not probed:  # otherwise the probe of somebody else will tell
        reply, label = failure or (_NO_ADDRESS, "")
        path.unreachable(_for_good(reply) if is_passed_on else reply, label)
    return False


def _is_better(one: Reply, other: Reply) -> bool:
    """Whether that host may yet do what this one does not."""
    return _is_about_tls(other) and not _is_about_tls(one)


def _is_about_tls(reply: Reply) -> bool:
    return reply.enhanced in TLS_WANTED


def _for_good(reply: Reply) -> Reply:
    """RFC 8689 section 4.2.1: a message that came with REQUIRETLS does not wait for TLS."""
    if not _is_about_tls(reply):
        return reply
    return Reply(550, "5.7.30" if reply.enhanced == "4.7.30" else "5.7.10", reply.text)


async def _attempt(
    path: "Path", dispatcher: "Dispatcher", host: Host, spot: Spot, local: str
) -> tuple[Reply | None, str]:
    """Why no mail can be sent there, None where it can; and the host."""
    hosts = dispatcher.hosts
    tls = path.shape.limits.tls
    connection = Connection(path, dispatcher.terms(path), host, spot.address, tls)
    probe = hosts.begin(spot)
    path.probe(+probe)
    try:
        reply, greeted = await _reach(path, dispatcher, connection, spot, local)
    except BaseException:  # cancelled, or the source is gone
        hosts.let_go(spot)
        raise
    finally:
        path.probe(-probe)
    label = connection.label
    if connection.falls_back:  # once: by now it is known that TLS fails with this host
        hosts.let_go(spot)
        return await _attempt(path, dispatcher, host, spot, local)
    if reply is not None and (reply.is_permanent or _is_about_tls(reply)):
        hosts.let_go(spot)  # there is nothing wrong with it, but we are it, or want more of it
    elif reply is not None:
        hosts.failed(spot, label, reply, path.site.name, greeted=greeted, probe=probe)
    return reply, label


async def _reach(
    path: "Path", dispatcher: "Dispatcher", connection: Connection, spot: Spot, local: str
) -> tuple[Reply | None, bool]:
    """Why no mail can be sent, and whether the host was connected to at all."""
    try:
        await _connect(path, dispatcher, connection, spot, local)
    except (OSError, ValueError) as error:
        return Reply(451, "4.4.1", _why(error, connection.target)), False
    try:
        return await connection.opened, True
    except asyncio.CancelledError:
        if path.is_open(connection):
            return None, True  # in the moment of success: the path has it
        connection.abort(CUT_OFF)
        raise


async def _connect(
    path: "Path", dispatcher: "Dispatcher", connection: Connection, spot: Spot, local: str
) -> None:
    loop = path.loop
    try:
        async with asyncio.timeout(path.shape.limits.timeouts.connect):
            if not local:
                return await connection.connect()
            bound = _bound(dispatcher, local)
            try:
                await loop.sock_connect(bound, (spot.address, spot.port))
                await loop.create_connection(lambda: connection.protocol, sock=bound)
            except BaseException:
                bound.close()
                raise
    except BaseException:
        # Where that comes in the moment in which it was made, the loop closes the transport
        # and tells nobody.
        path.ended(connection)
        raise


def _bound(dispatcher: "Dispatcher", local: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in local else socket.AF_INET)
    try:
        made.setblocking(False)
        # Its port is chosen when it connects: the same one serves for many hosts.
        made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind((local, 0))
    except OSError as error:
        made.close()
        dispatcher.sources.set_aside(local, error)
        raise SourceGone from None
    dispatcher.sources.bound(local)
    return made


def _why(error: Exception, where: str) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ECONNREFUSED:
        return f"connection refused by {where}"
    if isinstance(error, TimeoutError):
        return f"connection to {where} timed out"
    return f"cannot connect to {where}: {os.strerror(number) if number else error}"


def draw(site: Site) -> Iterator[tuple[Host, str]]:
    """The addresses to try, in order (RFC 5321 section 5.1).

    Hosts of one preference come in random order, so that mail spreads over them.
    """
    for tier in site.tiers:
        for host in random.sample(tier, len(tier)):
            for address in host.addresses:
                yield host, address
