"""Tables: what is applied is what is there, in whatever order; no packet is without an owner meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.bpf.frames import FROM_WIRE, REMOTE, tcp
from tests.bpf.states import kernel_states, with_epoch
from tests.bpf.world import (
    ADDRESS,
    ADDRESS2,
    BLOCK,
    FAR_NS,
    ME,
    NEIGHBOUR,
    SERVERS,
    World,
    make_world,
    state,
)

from softunicast.core.config import Limits
from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.errors import InputError, KernelError
from softunicast.core.pools import Timers
from softunicast.core.slices import Slice
from softunicast.kernel import abi
from softunicast.kernel.maps import Map
from softunicast.kernel.room import place_regions
from softunicast.kernel.tables import EMPTY

NOTHING = replace(EMPTY, servers=SERVERS)


@pytest.fixture(scope="module")
def module_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Small tables: they are read a hundred times."""
    with make_world(
        tmp_path_factory.mktemp("tables"), Limits(1024, addresses_max=16, slots_max=2304)
    ) as made:
        yield made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(kernel_states(), min_size=1, max_size=4))
def test_any_state_after_any_other(world: World, states: list[KernelState]) -> None:
    """Applied, it is what the kernel holds and what `state` says; applied again, nothing is left to do."""
    world.datapath.apply(NOTHING)
    for epoch, wanted in enumerate(states, start=1):
        wanted = with_epoch(wanted, epoch)
        world.datapath.apply(wanted)
        assert world.datapath.state == wanted
        assert world.datapath.read() == wanted
        assert world.datapath.apply(wanted) == 0


def test_nothing_of_an_emptied_table_is_left(world: World) -> None:
    world.datapath.apply(EMPTY)
    for name in ("blocks", "pools", "onramps"):
        assert list(world.datapath.map(name).every_key()) == []
    assert not any(any(value) for _, value in world.datapath.map("servers").items())
    assert not any(any(value) for _, value in world.datapath.map("addresses").items())
    for _, line in world.datapath.map("groups").items():
        assert not any(abi.GroupLine.unpack(line).groups)


def slot_of(world: World) -> SlotOwner:
    return world.datapath.read().addresses[ADDRESS].owners[1]


def owned(server: str, epoch: int, deadline_ns: int = FAR_NS) -> KernelState:
    table = AddressTable(2048, {1: SlotOwner(server, epoch, deadline_ns)})
    return replace(state(pool=()), addresses={ADDRESS: table})


def test_an_older_lease_is_refused(world: World) -> None:
    """Epochs only grow. What `state` says stays what the kernel holds, so that no later one is fooled either."""
    world.reset(NOTHING)
    world.datapath.apply(owned(ME, 5))
    world.datapath.apply(owned(NEIGHBOUR, 3))
    assert slot_of(world) == SlotOwner(ME, 5, FAR_NS)
    assert world.datapath.state == world.datapath.read()
    world.reset(NOTHING)
    world.datapath.apply(owned(ME, 5))
    world.datapath.apply(owned(NEIGHBOUR, 3))
    world.datapath.apply(owned(NEIGHBOUR, 4))
    assert world.datapath.state.addresses[ADDRESS].owners[1] == slot_of(world) == SlotOwner(ME, 5, FAR_NS)
    world.datapath.apply(owned(NEIGHBOUR, 6))
    assert slot_of(world) == SlotOwner(NEIGHBOUR, 6, FAR_NS)


def test_an_older_lease_in_a_table_of_another_size(world: World) -> None:
    """Other slices, other leases: epochs of different slices say nothing about each other."""
    world.reset(NOTHING)
    world.datapath.apply(owned(ME, 5))
    table = AddressTable(1024, {2: SlotOwner(NEIGHBOUR, 1, 0)})
    wanted = replace(owned(ME, 5), addresses={ADDRESS: table})
    world.datapath.apply(wanted)
    assert world.datapath.read() == wanted


def too_many_slices() -> KernelState:
    slices = tuple(Slice.of(ADDRESS2, slot * 64, 64) for slot in range(257))
    return replace(
        state(),
        blocks=frozenset({BLOCK, Slice.parse("192.168.0.0/16")}),
        addresses={ADDRESS2: AddressTable(64, {1: SlotOwner(ME, 1, FAR_NS)})},
        servers={**SERVERS, "server3": "02:00:00:00:00:03"},
        pools={"gb": PoolSlices(Timers(), slices)},
    )


def too_many_addresses() -> KernelState:
    tables = {ADDRESS + n: AddressTable(2048, {1: SlotOwner(ME, 1, FAR_NS)}) for n in range(17)}
    return replace(state(), addresses=tables, blocks=frozenset({BLOCK, Slice.parse("192.168.0.0/16")}))


def too_many_slots() -> KernelState:
    tables = {ADDRESS + n: AddressTable(16, {1: SlotOwner(ME, 1, FAR_NS)}) for n in range(5)}
    return replace(state(pool=()), addresses=tables, blocks=frozenset({Slice.parse("192.168.0.0/16")}))


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        (too_many_slices(), InputError, "257 slices"),
        (too_many_addresses(), KernelError, "addresses"),
        (too_many_slots(), KernelError, "slots_max"),
        (replace(state(), onramps={"nothere": "gb"}), Exception, "nothere"),
    ],
)
def test_what_cannot_be_applied(
    world: World, wanted: KernelState, error: type[Exception], words: str
) -> None:
    """One clear error; whatever comes next is applied as if it had never been tried."""
    with pytest.raises(error, match=words):
        world.datapath.apply(wanted)
    assert world.datapath.state == world.datapath.read()
    assert world.director(tcp(REMOTE, "198.51.100.10:2049", macs=FROM_WIRE)).outcome == "here"
    world.datapath.apply(state())
    assert world.datapath.read() == state()
    assert world.datapath.apply(state()) == 0


def test_a_server_name_that_is_too_long(world: World) -> None:
    with pytest.raises(InputError, match="longer than 47 bytes"):
        world.datapath.apply(replace(state(), servers={**SERVERS, "x" * 48: "02:00:00:00:00:09"}))
    assert world.datapath.read() == state()


class Refusing:
    """A map that lets `allowed` writes of all such maps pass and fails from then on."""

    def __init__(self, real: Map, allowed: list[int]) -> None:
        self.real = real
        self.allowed = allowed

    def __getattr__(self, name: str) -> Any:
        if name in ("set", "set_many", "delete"):
            self.allowed[0] -= 1
            if self.allowed[0] < 0:
                raise KernelError("no more writes", errno.ENOMEM)
        return getattr(self.real, name)


@contextmanager
def failing_after(world: World, writes: int) -> Iterator[None]:
    tables, allowed = world.datapath._tables, [writes]
    real = tables.maps
    tables.maps = {name: Refusing(table, allowed) for name, table in real.items()}  # type: ignore[misc]
    try:
        yield
    finally:
        tables.maps = real


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kernel_states(), kernel_states(), kernel_states(), st.integers(0, 20))
def test_a_change_that_breaks_off(
    world: World, first: KernelState, second: KernelState, third: KernelState, writes: int
) -> None:
    """After a failure at any write, `state` is the truth, and any other state can be applied."""
    world.datapath.apply(NOTHING)
    world.datapath.apply(with_epoch(first, 1))
    with failing_after(world, writes), suppress(KernelError):
        world.datapath.apply(with_epoch(second, 2))
    assert world.datapath.state == world.datapath.read()
    world.datapath.apply(with_epoch(third, 3))
    assert world.datapath.read() == world.datapath.state == with_epoch(third, 3)


sizes = st.sampled_from([2, 4, 8, 32, 128])


@given(st.lists(sizes, max_size=12), st.sets(st.integers(0, 11)), st.lists(sizes, max_size=6), sizes)
def test_regions_never_overlap(first: list[int], gone: set[int], then: list[int], limit: int) -> None:
    """Also in the gaps that others have left; refused only when there is no gap."""
    limit *= 8
    with suppress(KernelError):
        placed = place_regions([], dict(enumerate(first)), limit)
        taken = [(placed[key], size) for key, size in enumerate(first) if key not in gone]
        used = [set(range(at, at + size)) for at, size in taken]
        for size in then:
            free = [
                at
                for at in range(0, limit - size + 1, size)
                if not any(part & {*range(at, at + size)} for part in used)
            ]
            if not free:
                with pytest.raises(KernelError, match="slots_max"):
                    place_regions(taken, {0: size}, limit)
                continue
            at = place_regions(taken, {0: size}, limit)[0]
            assert at == free[0]
            taken.append((at, size))
            used.append(set(range(at, at + size)))
