"""Telling systemd how far we are: sd_notify(3) is one datagram to the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import socket

SEND_TIMEOUT_S = 1.0


def notify(state: str) -> bool:
    """Sends `state` ("READY=1", "STOPPING=1"). False when nobody asked for it or nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    target = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.settimeout(SEND_TIMEOUT_S)
            out.sendto(state.encode(), target)
    except OSError:
        return False  # a service manager that went away is no reason to stop carrying packets
    return True
