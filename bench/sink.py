"""A sink that takes everything and counts it, as `fastmta sink` does by default, at C's speed.

Counts are printed as JSON at the end (SIGINT, SIGTERM) and on SIGUSR1.

    python -m bench.sink --listen 127.0.0.1:2700
"""

import signal
import socket
import sys
from typing import Any

import click
import msgspec

from bench._core.sink import Server
from fastmta.sink import Counts
from fastmta.sink.tally import percentile, ranges

BACKLOG = 4096  # connections that wait to be accepted


def told(numbers: list[int], delays: list[float], **counts: Any) -> Counts:
    """What `Server.counts` has, as the other sink tells it."""
    return Counts(
        **counts,
        distinct=len(numbers),
        numbers=ranges(numbers),
        delay_p50=percentile(delays, 0.5),
        delay_p99=percentile(delays, 0.99),
        delay_p999=percentile(delays, 0.999),
    )


def serve(listener: socket.socket) -> None:
    """Until it is told to end."""
    listener.setblocking(False)
    woken, wakeup = socket.socketpair()
    with woken, wakeup:
        for end in (woken, wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        for number in signals:
            signal.signal(number, lambda *_: None)  # the octet that wakes is all
        server, ended = Server(listener.fileno(), woken.fileno()), False
        while not ended:
            server.run()
            ended = bool({signal.SIGINT, signal.SIGTERM} & set(woken.recv(100)))
            print(msgspec.json.encode(told(**server.counts())).decode(), flush=True)


@click.command(help=__doc__)
@click.option("--listen", default="127.0.0.1:2700", show_default=True, metavar="ADDRESS:PORT")
def main(listen: str) -> None:
    host, _, port = listen.rpartition(":")
    with socket.create_server((host, int(port)), backlog=BACKLOG) as listener:
        host, port = listener.getsockname()
        print(f"sink: listening on {host}:{port}", file=sys.stderr, flush=True)
        serve(listener)


if __name__ == "__main__":
    main()
