"""`placeholder`: a socket takes the five-tuple of a forwarded flow in the kernel's own table, and does nothing else.

A TCP Fast Open socket without cookie: connect() hashes it (SYN_SENT) and returns, and the SYN would only go out with
the first data, which never comes. Early-bound: bind() to a port, then connect(), the next port when that one is
taken. Late-bound: bind() to port 0 without choosing, and connect() searches and locks in one step, inside the slice.

It needs net.ipv4.tcp_fastopen with bit 1, or connect() sends a real SYN (lab failure fastopen_off). Late binding needs
the slice inside ip_local_port_range: a range outside it is ignored in silence (lab failure range_ignored).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from abc import abstractmethod
from typing import ClassVar, Final

from softunicast.core.errors import HostError, KernelError
from softunicast.kernel import namespaces, sysctl
from softunicast.strategies.flow_maps import FlowMaps, Way
from softunicast.strategies.strategy import (
    CONNECT_TIMEOUT_S,
    TRIAL_REMOTE,
    Endpoint,
    Place,
    Strategy,
    begun,
    trial_place,
)

IP_BIND_ADDRESS_NO_PORT: Final = 24
IP_LOCAL_PORT_RANGE: Final = 51  # since 6.3
TCP_FASTOPEN_CONNECT: Final = 30
TCP_FASTOPEN_NO_COOKIE: Final = 34

FASTOPEN: Final = "net/ipv4/tcp_fastopen"
BLACKHOLE: Final = "net/ipv4/tcp_fastopen_blackhole_timeout_sec"
PORT_RANGE: Final = "net/ipv4/ip_local_port_range"
_CLIENT_SIDE: Final = 1  # the bit of tcp_fastopen
_SYN_SENT: Final = 2
_TAKEN: Final = (errno.EADDRNOTAVAIL, errno.EADDRINUSE)


class Holder(Strategy):
    """What strategies that hold a socket for each forwarded flow have in common."""

    way: ClassVar[Way] = "ingress"
    restart = "no: the sockets close with the process, and others may take the ports of flows that live on"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._maps = FlowMaps(place, self.way)
        self._held: dict[tuple[Endpoint, Endpoint], socket.socket] = {}

    def _set_up(self) -> None:
        self._maps.set_up(self._undo)
        self._undo.callback(self.let_go)

    @abstractmethod
    def hold(self, remote: Endpoint) -> socket.socket:
        """A socket that has the five-tuple and sends nothing. OSError with EADDRNOTAVAIL when none is free."""

    def forward(self, client: Endpoint, remote: Endpoint) -> int:
        try:
            held = self.hold(remote)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise KernelError(f"cannot hold a port: {error.strerror}", error.errno or 0) from error
            what = f"no port of {self.place.slice} is free towards {remote[0]}:{remote[1]}"
            raise KernelError(what, errno.EADDRNOTAVAIL) from error
        port: int = held.getsockname()[1]
        try:
            self._maps.add(client, remote, port)
        except BaseException:
            held.close()
            raise
        self._held[client, remote] = held
        return port

    def release(self, client: Endpoint, remote: Endpoint) -> None:
        held = self._held.pop((client, remote), None)
        if held is not None:
            self._maps.remove(client, remote, held.getsockname()[1])
            held.close()

    def connect(self, remote: Endpoint, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
        """The kernel's own table says which tuples are taken, by sockets and by placeholders alike."""
        return early_bound(self.place, remote, timeout_s)

    def let_go(self) -> None:
        """Closes every placeholder, as the end of the process does. The rules stay."""
        for held in self._held.values():
            held.close()
        self._held.clear()


class PlaceholderEarly(Holder):
    name = "placeholder-early"
    about = "a Fast Open socket that never sends holds the port; bound first"

    @classmethod
    def attempt(cls) -> None:
        namespaces.run_in_new(_attempt, cls)

    def _set_up(self) -> None:
        super()._set_up()
        self._setting(FASTOPEN, (sysctl.read(FASTOPEN) or 0) | _CLIENT_SIDE)
        self._setting(BLACKHOLE, 0)

    def hold(self, remote: Endpoint) -> socket.socket:
        return early_bound(self.place, remote, 0, placeholder=True)


class PlaceholderLate(PlaceholderEarly):
    name = "placeholder-late"
    about = "the same; connect() itself searches the slice and locks what it finds"

    def _set_up(self) -> None:
        super()._set_up()
        low, high = sysctl.read_range(PORT_RANGE)
        ports = self.place.ports
        if ports[0] < low or ports[-1] > high:
            sysctl.write(PORT_RANGE, f"{min(low, ports[0])} {max(high, ports[-1])}")
            self._undo.callback(sysctl.write, PORT_RANGE, f"{low} {high}")

    def hold(self, remote: Endpoint) -> socket.socket:
        return late_bound(self.place, remote, 0, placeholder=True)

    def connect(self, remote: Endpoint, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
        return late_bound(self.place, remote, timeout_s)


class PlaceholderRules(PlaceholderLate):
    name = "placeholder-rules"
    about = "the same, with the replies routed by mark and early demux off, as it was published"
    way: ClassVar[Way] = "rules"


def early_bound(
    place: Place, remote: Endpoint, timeout_s: float, *, placeholder: bool = False
) -> socket.socket:
    """Tries the ports of the slice, from a random one on, by bind() and connect()."""
    for port in place.ports_in_turn():
        made = _socket(placeholder)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one port, many destinations
        try:
            made.bind((str(place.address), port))
            return begun(made, remote, timeout_s)
        except OSError as error:
            made.close()
            if error.errno not in _TAKEN:
                raise
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def late_bound(
    place: Place, remote: Endpoint, timeout_s: float, *, placeholder: bool = False
) -> socket.socket:
    """Lets connect() find a port of the slice. OSError with EADDRNOTAVAIL when it finds none."""
    made, span = _socket(placeholder), struct.pack("I", place.ports[-1] << 16 | place.ports[0])
    try:
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, span)
        made.bind((str(place.address), 0))
    except BaseException:
        made.close()
        raise
    return begun(made, remote, timeout_s)


def is_silent(made: socket.socket) -> bool:
    """Whether the socket has its tuple and has sent nothing: what a placeholder is."""
    info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    state, unacked = info[0], struct.unpack_from("I", info, 24)[0]
    return bool(state == _SYN_SENT and unacked == 0)


def _socket(placeholder: bool) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if placeholder:
        try:
            made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
        except BaseException:
            made.close()
            raise
    return made


def _attempt(kind: type[PlaceholderEarly]) -> None:
    """The whole of it on loopback: address, rules, settings, one placeholder."""
    place = trial_place()
    with kind(place) as strategy, strategy.hold(TRIAL_REMOTE) as held:
        if not is_silent(held):
            raise HostError("a Fast Open socket without cookie sends at once", "boot Linux 4.11 or newer")
