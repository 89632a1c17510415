"""`claims`, softunicast's own: one table in the kernel that forwarded packets claim from, atomically, and that
sockets ask.

The data path that an agent runs, without an agent: one slice, one on-ramp, a lease that outlives any trial. A socket is
put into an agreement by its descriptor; of programs, cgroups are (`softunicast run`).
"""

from __future__ import annotations

import socket
import time
from typing import Final

from softunicast.core.config import Limits
from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.pools import Behaviour, Timers
from softunicast.core.slices import Slice
from softunicast.kernel import abi, links, namespaces, probe, socket_hooks
from softunicast.kernel.agreements import Agreements
from softunicast.kernel.datapath import Datapath
from softunicast.strategies.strategy import CONNECT_TIMEOUT_S, Endpoint, Place, Strategy, begun

SERVER: Final = "here"
POOL: Final = "here"
FLOWS_MAX: Final = 65_536
SOCKETS: Final = SocketsConfig(enabled=True)
LEASE_S: Final = 86_400
# As the others do it: one port serves many destinations, also for UDP.
_DEPENDENT: Final = Behaviour(frozenset(), frozenset())


class Claims(Strategy):
    name = "claims"
    about = "one table of five-tuples in the kernel, claimed by packets and asked for sockets"
    protocols = ("tcp", "udp", "icmp")
    restart = "yes: programs and tables are pinned, packets flow on while nothing runs"

    @classmethod
    def attempt(cls) -> None:
        probe.require()
        socket_hooks.root_of(SOCKETS)

    def _set_up(self) -> None:
        place = self.place
        limits = Limits(flows_max=FLOWS_MAX)
        self.datapath = Datapath.open(place.folder, place.uplink, SERVER, limits, sockets=SOCKETS)
        self._undo.callback(self._remove)
        self.datapath.apply(state(place))
        with Agreements.open(place.folder) as known:
            self._pool = known.pools()[POOL]

    def connect(self, remote: Endpoint, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
        """connect() of a socket in the agreement: the kernel claims, binds and connects in one step."""
        return begun(self.socket(), remote, timeout_s)

    def socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """One that is in the agreement, and leaves from the slice or not at all."""
        made = socket.socket(socket.AF_INET, kind)
        agreement = abi.Agreement(abi.AgreementKind.POOL, self._pool)
        self.datapath.map("agreed").set(made.fileno().to_bytes(4, "little"), agreement.pack())
        return made

    def _remove(self) -> None:
        self.datapath.remove()
        for target in namespaces.mounts_under(self.place.folder):
            namespaces.unmount(target)


def state(place: Place) -> KernelState:
    """What the kernel has to hold: this server has the slice."""
    size = len(place.ports)
    owner = SlotOwner(SERVER, 1, time.monotonic_ns() + LEASE_S * 1_000_000_000)
    return KernelState(
        blocks=frozenset({Slice.of(place.address)}),
        addresses={place.address: AddressTable(size, {place.ports[0] // size: owner})},
        servers={SERVER: links.interface(place.uplink).mac or ""},
        pools={POOL: PoolSlices(Timers(), (place.slice,), _DEPENDENT)},
        onramps={place.onramp: POOL},
    )
