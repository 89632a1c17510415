"""`claims`, softunicast's own: one table in the kernel that forwarded packets claim from, atomically, and that
sockets ask.

The data path that an agent runs, without an agent: one slice, one on-ramp, a lease that outlives any trial. Sockets are
not served through it yet: `connect` says so.
"""

from __future__ import annotations

import socket
import time
from typing import Final

from softunicast.core.config import Limits
from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.errors import HostError
from softunicast.core.pools import Behaviour, Timers
from softunicast.core.slices import Slice
from softunicast.kernel import links, namespaces, probe
from softunicast.kernel.datapath import Datapath
from softunicast.strategies.strategy import CONNECT_TIMEOUT_S, Endpoint, Place, Strategy

SERVER: Final = "here"
POOL: Final = "here"
FLOWS_MAX: Final = 65_536
LEASE_S: Final = 86_400
# As the others do it: one port serves many destinations, also for UDP.
_DEPENDENT: Final = Behaviour(frozenset(), frozenset())


class Claims(Strategy):
    name = "claims"
    about = "one table of five-tuples in the kernel, claimed by packets and asked for sockets"
    protocols = ("tcp", "udp", "icmp")
    restart = "yes: programs and tables are pinned, packets flow on while nothing runs"
    sockets = False

    @classmethod
    def attempt(cls) -> None:
        probe.require()

    def _set_up(self) -> None:
        place = self.place
        self.datapath = Datapath.open(place.folder, place.uplink, SERVER, Limits(flows_max=FLOWS_MAX))
        self._undo.callback(self._remove)
        self.datapath.apply(state(place))

    def connect(self, remote: Endpoint, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
        raise HostError("sockets do not leave from a slice under claims yet", "use another strategy")

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
