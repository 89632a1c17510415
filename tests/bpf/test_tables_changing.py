"""While tables change, no packet to a slice that has an owner before and after is without one in between, and what
a client sends leaves: looked at after every single write to a map, and by another thread all the time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.bpf.frames import FROM_WIRE, REMOTE, tcp, udp
from tests.bpf.world import ADDRESS, ADDRESS2, BLOCK, FAR_NS, ME, NEIGHBOUR, ONRAMP, SERVERS, UPLINK, World

from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.pools import Timers
from softunicast.core.slices import Slice
from softunicast.kernel.maps import Map
from softunicast.kernel.tables import EMPTY
from softunicast.kernel.words import index_key


class Watcher(threading.Thread):
    """Runs the director on packets to slices that always have an owner; remembers any that was dropped."""

    def __init__(self, world: World, ports: tuple[int, ...]) -> None:
        super().__init__()
        self.world = world
        self.packets = [tcp(REMOTE, f"198.51.100.10:{port}", macs=FROM_WIRE) for port in ports]
        self.runs = 0
        self.dropped: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            for frame in self.packets:
                result = self.world.run("director", frame, UPLINK)
                self.runs += 1
                if result.verdict not in ("pass", "tx"):
                    self.dropped.append(result.verdict)


def changing(step: int) -> KernelState:
    """Every step changes owners beside ports 2048-4095 (always this server's) and 4096-6143 (always the
    neighbour's), the pool, the other address's table and the servers; every second one the size of the slices."""
    ports = (2048, 1024, 2048, 512)[step // 2 % 4]
    at = {port: port // ports for port in (2048, 4096, 6144, 8192)}
    owners = {slot: SlotOwner(ME, step, FAR_NS + step) for slot in range(at[2048], at[4096])}
    owners |= {slot: SlotOwner(NEIGHBOUR, step, 0) for slot in range(at[4096], at[6144])}
    if step % 7:
        moving = (ME, NEIGHBOUR, f"server{step % 7 + 3}")[step % 3]
        owners |= {slot: SlotOwner(moving, step, FAR_NS) for slot in range(at[6144], at[8192])}
    tables = {ADDRESS: AddressTable(ports, owners)}
    if step % 5:
        tables[ADDRESS2] = AddressTable((64, 256)[step % 2], {step % 200: SlotOwner(ME, 1, FAR_NS)})
    return KernelState(
        frozenset({BLOCK} if step % 2 else {BLOCK, Slice.parse("192.168.0.0/16")}),
        tables,
        {**SERVERS, f"server{step % 7 + 3}": "02:00:00:00:00:09"},
        {
            "gb": PoolSlices(
                Timers(), tuple(Slice.of(ADDRESS, slot * ports, ports) for slot in list(owners)[:2])
            )
        },
        {ONRAMP: "gb"},
    )


PORTS = (2048, 2500, 4095, 4096, 5000, 6143)


class Watched:
    """A map after each of whose writes somebody looks."""

    def __init__(self, real: Map, look: Callable[[], None]) -> None:
        self.real = real
        self.look = look

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if name not in ("set", "set_many", "set_words", "delete"):
            return found

        def write(*arguments: Any) -> Any:
            result = found(*arguments)
            self.look()
            return result

        return write


def forget_unused_slots(world: World) -> None:
    """What a table left behind must not stand in for what another one has not written yet."""
    tables = world.datapath._tables
    used = {slot for first, length in tables._slots.regions.values() for slot in range(first, first + length)}
    slots = world.datapath.map("slots")
    unused = [slot for slot in range(slots.max_entries) if slot not in used]
    slots.set_many((index_key(slot), bytes(16)) for slot in unused)
    world.datapath.map("owners").set_words("H", ((slot, 0) for slot in unused))


def test_every_single_write(world: World) -> None:
    world.reset(replace(EMPTY, servers=SERVERS))
    world.datapath.apply(changing(1))
    arriving = [tcp(REMOTE, f"198.51.100.10:{port}", macs=FROM_WIRE) for port in PORTS]
    moving, looks = tcp(REMOTE, "198.51.100.10:6144", macs=FROM_WIRE), [0]

    def look() -> None:
        looks[0] += 1
        for frame in arriving:
            assert world.run("director", frame, UPLINK).verdict in ("pass", "tx")
        assert world.director(moving).reason != "no_neighbour"
        sent = world.out(udp(f"10.0.0.2:{1024 + looks[0]}"))
        assert sent.outcome == "out"
        assert world.guard(sent.frame).verdict == "next"

    tables = world.datapath._tables
    real = tables.maps
    for step in range(2, 62):
        forget_unused_slots(world)
        tables.maps = {name: Watched(table, look) for name, table in real.items()}  # type: ignore[misc]
        try:
            world.datapath.apply(changing(step))
        finally:
            tables.maps = real
        assert world.datapath.read() == changing(step)
    assert looks[0] > 300


def test_from_another_thread(world: World) -> None:
    world.reset(replace(EMPTY, servers=SERVERS))
    world.datapath.apply(changing(1))
    before = world.counters()
    watcher = Watcher(world, PORTS)
    watcher.start()
    try:
        for step in range(2, 120):
            world.datapath.apply(changing(step))
    finally:
        watcher.stopped.set()
        watcher.join()
    assert watcher.runs > 1000
    assert watcher.dropped == []
    assert world.counters()["no_owner"] == before["no_owner"]
    assert world.datapath.read() == changing(119)
