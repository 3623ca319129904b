"""How fast mail comes in while none can leave: the next hop takes connections and says nothing.

What a server acknowledges here it has in its queue and nowhere else. The null relay throws away
what it gets: it is what a server in Python could take here if it had nothing to do.
"""

import socket
from pathlib import Path

from bench import processes, relay
from bench.peers import Peer
from bench.relay import Options, Run

BACKLOG = 4096  # connections that the kernel makes and nobody takes


def measure(peer: Peer, options: Options, folder: Path) -> Run:
    """Until the last 250; CPU until the server is at rest."""
    port = processes.free_port()
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as silent:
        next_hop = 0 if peer.__name__.endswith(".null") else silent.getsockname()[1]
        with peer.running(folder, port, next_hop, options.workers, options.features) as root:
            before = relay.warmed_up(root, port, options.clients)
            sent = relay.send(port, options)
            spent = processes.settled(root).since(before)
    run = relay.run_of("numbered", options, sent.seconds, spent)
    relay.note_accepted(run, sent)
    return run
