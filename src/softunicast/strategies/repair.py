"""`repair`: a socket in TCP_REPAIR mode holds the five-tuple of a forwarded flow: connected at once, without a packet.

A lock towards other connect()s. But bind() in repair mode ignores every conflict: it takes a port that a listener
has for itself alone (lab failure repair_bind), so what others have bound has to be respected by other means.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from softunicast.kernel import namespaces
from softunicast.strategies.placeholder import Holder
from softunicast.strategies.strategy import TRIAL_REMOTE, Endpoint, Place, trial_place

TCP_REPAIR: Final = 19
_ON: Final = 1


class Repair(Holder):
    name = "repair"
    about = "a socket in TCP_REPAIR mode holds the port"

    @classmethod
    def attempt(cls) -> None:
        namespaces.run_in_new(_attempt)

    def hold(self, remote: Endpoint) -> socket.socket:
        return repairing(self.place, remote)


def repairing(place: Place, remote: Endpoint) -> socket.socket:
    """A socket in repair mode on the first port, from a random one on, whose tuple nobody has."""
    for port in place.ports_in_turn():
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, _ON)
            made.bind((str(place.address), port))
            made.connect((str(remote[0]), remote[1]))
        except OSError as error:
            made.close()
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                raise
        else:
            return made
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _attempt() -> None:
    place = trial_place()
    with Repair(place) as strategy, strategy.hold(TRIAL_REMOTE):
        pass
