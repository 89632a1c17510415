"""Stand-ins for the kernel and for time, which write down what was done to them, in order."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from softunicast.agent.sockets import Member
from softunicast.core.desired import KernelState
from softunicast.core.errors import KernelError
from softunicast.core.onramps import Tun
from softunicast.core.pools import Pool
from softunicast.core.records import Address, Block, Inventory, Server
from softunicast.core.slices import Slice
from softunicast.kernel import tun
from softunicast.kernel.flows import Drop, Flow
from softunicast.kernel.usage import Usage

SHARED = IPv4Address("198.51.100.10")
OTHER = IPv4Address("198.51.100.11")
POOL = Pool("gb", {"country": "gb"})
ME = Server("server1", "lab", IPv4Address("192.0.2.1"), "02:00:00:00:00:01")
NEIGHBOUR = Server("server2", "lab", IPv4Address("192.0.2.2"), "02:00:00:00:00:02")
EMPTY = KernelState(frozenset(), {}, {}, {}, {})
INVENTORY = Inventory(
    blocks=(Block(Slice.parse("198.51.100.0/24")),),
    addresses=(
        Address(SHARED, "lab", {"country": "gb"}, 2048),
        Address(OTHER, "lab", {"country": "fr"}, 2048),
    ),
)


def part(number: int, address: IPv4Address = SHARED) -> Slice:
    """The slice of 2,048 ports with this number."""
    return Slice.of(address, number * 2048, 2048)


class Time:
    """One clock for the ledger and for the kernel; it moves when told. A softunicast.ledger.clock.Clock."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def now_ns(self) -> int:
        return int(self.now_s * 1e9)

    def boot_id(self) -> str:
        return "boot"

    def uptime_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return 1.7e9 + self.now_s


class Log:
    """Takes events; `names` are those so far."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fields: list[dict[str, object]] = []

    def info(self, event: str, **fields: object) -> None:
        self.names.append(event)
        self.fields.append(fields)

    debug = warning = error = exception = info


class Calls:
    """A softunicast.agent.host.HostCalls. `done` may be shared, to see the order across stand-ins."""

    def __init__(self, done: list[str] | None = None) -> None:
        self.settings: dict[str, int] = {}
        self.on_loopback: set[IPv4Address] = set()
        self.tuns: dict[str, tun.Found] = {}
        self.done: list[str] = [] if done is None else done

    def read(self, name: str) -> int | None:
        return self.settings.get(name)

    def write(self, name: str, value: int) -> None:
        self.done.append(f"{name.removeprefix('net/ipv4/conf/')}={value}")
        self.settings[name] = value

    def addresses(self) -> frozenset[IPv4Address]:
        return frozenset(self.on_loopback)

    def add(self, address: IPv4Address) -> bool:
        self.done.append(f"add {address}")
        fresh = address not in self.on_loopback
        self.on_loopback.add(address)
        return fresh

    def remove(self, address: IPv4Address) -> bool:
        self.done.append(f"remove {address}")
        there = address in self.on_loopback
        self.on_loopback.discard(address)
        return there

    def find_tun(self, name: str) -> tun.Found | None:
        return self.tuns.get(name)

    def make_tun(self, name: str, device: Tun) -> None:
        self.done.append(f"make {name}")
        self.tuns[name] = tun.Found(True, True, 0, device.offload, True, device.mtu, False, (device.address,))

    def open_tun(self, name: str, device: Tun) -> int:
        if self.tuns[name].open:
            raise KernelError(f"cannot open {name}", errno.EBUSY)
        return os.open(os.devnull, os.O_RDWR)

    def remove_tun(self, name: str) -> None:
        self.done.append(f"remove {name}")
        del self.tuns[name]


class DataPath:
    """A softunicast.agent.effects.DataPath. `fails` names the methods that refuse."""

    def __init__(self, done: list[str] | None = None) -> None:
        self.adopted = False
        self.state = EMPTY
        self.live: dict[Slice, int] = {}
        self.counters: list[Drop] = []
        self.conversations: list[Flow] = []
        self.used: dict[str, Usage] = {}
        self.fails: set[str] = set()
        self.done: list[str] = [] if done is None else done

    def _do(self, what: str) -> None:
        if what.split()[0] in self.fails:
            raise KernelError(f"{what} refused")
        self.done.append(what)

    def read(self) -> KernelState:
        return self.state

    def apply(self, wanted: KernelState) -> int:
        self._do(f"apply {','.join(sorted(wanted.onramps))}")
        changed = self.state != wanted
        self.state = wanted
        return int(changed)

    def attachment(self, onramp: str) -> str:
        return "tc" if onramp in self.state.onramps else ""

    def flows(self, limit: int, wanted: Callable[[Flow], bool] | None = None) -> tuple[int, list[Flow]]:
        found = [flow for flow in self.conversations if wanted is None or wanted(flow)]
        return len(found), found[:limit]

    def count_flows(self, slices: Iterable[Slice]) -> dict[Slice, int]:
        self._do("count")
        return {slice_: self.live.get(slice_, 0) for slice_ in slices}

    def drops(self) -> list[Drop]:
        return list(self.counters)

    def traffic(self) -> dict[str, int]:
        return {"here": 3}

    def sweep(self) -> tuple[int, int]:
        return 0, sum(self.live.values())

    def usage(self) -> dict[str, Usage]:
        return self.used

    def close(self) -> None:
        self._do("close")

    def remove(self) -> None:
        self._do("detach")


class Sockets:
    """A softunicast.agent.effects.SocketPools."""

    def __init__(self, done: list[str] | None = None) -> None:
        self.done: list[str] = [] if done is None else done
        self.found: list[Member] = []
        self.tidied = 0

    def publish(self) -> None:
        self.done.append("publish")

    def withdraw(self) -> tuple[str, ...]:
        self.done.append("withdraw")
        return tuple(str(one.entry.path) for one in self.found)

    def tidy(self) -> int:
        self.tidied += 1
        return len(self.found)

    def members(self) -> list[Member]:
        return self.found
