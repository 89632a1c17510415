"""`terminate`: end every client's TCP connection on the server, and relay it to a socket of the server's own.

What the published system runs. It needs something that makes a socket out of a client's packets (the upgrader),
which is not part of softunicast yet: listed, so that nobody looks for it in vain, and not offered.
"""

from __future__ import annotations

import socket

from softunicast.core.errors import HostError
from softunicast.strategies.strategy import CONNECT_TIMEOUT_S, Endpoint, Strategy

WHY = "it waits for the upgrader, which makes sockets out of clients' packets"


class Terminate(Strategy):
    name = "terminate"
    about = "clients' connections end on the server and are relayed to its own sockets"
    offered = False
    restart = "no: the sockets close with the process"

    @classmethod
    def attempt(cls) -> None:
        raise _not_yet()

    def _set_up(self) -> None:
        raise _not_yet()

    def connect(self, remote: Endpoint, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
        raise _not_yet()


def _not_yet() -> HostError:
    return HostError(WHY, "use another strategy")
