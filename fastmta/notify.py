"""What systemd wants to hear of a service of Type=notify (sd_notify(3))."""

import os
import socket
from contextlib import suppress


def tell(*lines: str) -> None:
    """Say "READY=1" or the like; nothing where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract namespace of unix(7)
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto("\n".join(lines).encode(), address)
