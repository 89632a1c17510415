"""`conntrack`: the tracked connection is made by netlink before the first packet, and whoever makes it has the port.

Insert-if-absent, so it locks. What it needs besides: a time-out that is longer than any silence before the first
packet; to delete the entry when connect() fails, which nobody else does (lab failure failed_connect); and luck: one
RST of any sequence number erases an entry that has seen no reply (lab failure stray_rst).
"""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import IPv4Address
from typing import Final

from softunicast.core.errors import KernelError
from softunicast.kernel import namespaces
from softunicast.kernel.conntrack import Conntrack
from softunicast.kernel.nft import Nft
from softunicast.strategies.strategy import CONNECT_TIMEOUT_S, Endpoint, Strategy, begun

TABLE: Final = "softunicast_conntrack"
RESERVED_S: Final = 120  # until the first packet; from then on the kernel's own time-outs count

# Translation needs the hooks of NAT chains, and connections are tracked where a rule asks for them.
CHAINS: Final = (
    "chain in { type nat hook prerouting priority dstnat; }; "
    "chain out { type nat hook postrouting priority srcnat;\nct state new accept\n};"
)


class Reservations(Strategy):
    name = "conntrack"
    about = "a tracked connection, made by netlink beforehand, holds the port"
    protocols = ("tcp", "udp", "icmp")
    restart = (
        "yes: the tracked connections are the kernel's; what was reserved and not used stays for its time-out"
    )

    @classmethod
    def attempt(cls) -> None:
        namespaces.run_in_new(_attempt)

    def _set_up(self) -> None:
        nft = Nft()
        self._undo.callback(nft.close)
        nft.run(f"table ip {TABLE} {{ {CHAINS} }}")
        self._undo.callback(nft.run, f"delete table ip {TABLE}")
        self._tracked = Conntrack()
        self._undo.callback(self._tracked.close)
        self._undo.callback(self._forget)
        self._flows: set[tuple[Endpoint, Endpoint]] = set()

    def forward(self, client: Endpoint, remote: Endpoint) -> int:
        for port in self.place.ports_in_turn():
            local = (self.place.address, port)
            if self._tracked.reserve(client, remote, RESERVED_S, translated=local):
                self._flows.add((client, remote))
                return port
        raise KernelError(
            f"no port of {self.place.slice} is free towards {remote[0]}:{remote[1]}", errno.EADDRNOTAVAIL
        )

    def release(self, client: Endpoint, remote: Endpoint) -> None:
        self._flows.discard((client, remote))
        self._tracked.delete(client, remote)

    def connect(self, remote: Endpoint, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
        """The entry first, then bind and connect; on any failure the entry goes."""
        for port in self.place.ports_in_turn():
            local = (self.place.address, port)
            if not self._tracked.reserve(local, remote, RESERVED_S):
                continue
            try:
                made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind((str(local[0]), port))
                begun(made, remote, timeout_s)
            except OSError as error:
                made.close()
                self._tracked.delete(local, remote)
                if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                    continue  # a socket has it, or had it a moment ago (TIME_WAIT)
                raise
            self._flows.add((local, remote))
            return made
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    def _forget(self) -> None:
        for source, remote in self._flows:
            self._tracked.delete(source, remote)
        self._flows.clear()


def _attempt() -> None:
    nft = Nft()
    try:
        nft.run(f"table ip {TABLE} {{ {CHAINS} }}")
    finally:
        nft.close()
    ends = (IPv4Address("192.0.2.1"), 2048), (IPv4Address("192.0.2.2"), 80)
    tracked = Conntrack()
    try:
        tracked.reserve(*ends, 1, translated=(IPv4Address("192.0.2.3"), 2049))
        tracked.delete(*ends)
    finally:
        tracked.close()
