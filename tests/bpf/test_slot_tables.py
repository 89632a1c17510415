"""The table of addresses, written by user space and read by the programs: what is put in is found, whatever else hashes
to the same place, came before it or has gone since.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.bpf.frames import FROM_WIRE, REMOTE, tcp
from tests.bpf.world import FAR_NS, ME, NEIGHBOUR, SERVERS, UPLINK, World, make_world

from softunicast.core.config import Limits
from softunicast.core.desired import AddressTable, KernelState, SlotOwner
from softunicast.core.errors import KernelError
from softunicast.core.slices import Slice
from softunicast.kernel import abi
from softunicast.kernel.address_places import (
    LINE_WORDS,
    MARK,
    TOGETHER,
    Places,
    address_in,
    group_lines,
    group_of,
    hash_group,
)
from softunicast.kernel.room import place_regions
from softunicast.kernel.tables import EMPTY

BLOCK = Slice.parse("10.0.0.0/8")
ADDRESSES_MAX = 64
LINES = group_lines(ADDRESSES_MAX)
TRIES = int(abi.AbiLimit.GROUP_TRIES)


@pytest.fixture(scope="module")
def module_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    limits = Limits(1024, addresses_max=ADDRESSES_MAX, slots_max=4096)
    with make_world(tmp_path_factory.mktemp("slots"), limits) as made:
        yield made


@pytest.fixture
def world(module_world: World) -> World:
    module_world.datapath.apply(holding([]))
    return module_world


def in_line(line: int, count: int) -> list[IPv4Address]:
    """One address in each of so many groups whose hash names the same line."""
    numbers = range(group_of(IPv4Address("10.0.0.16")), group_of(IPv4Address("10.255.0.0")))
    found = (number for number in numbers if hash_group(number) & LINES - 1 == line)
    return [address_in(number, 5) for number in itertools.islice(found, count)]


def holding(addresses: list[IPv4Address]) -> KernelState:
    """Of each the second half is the neighbour's."""
    table = AddressTable(32768, {0: SlotOwner(ME, 1, FAR_NS), 1: SlotOwner(NEIGHBOUR, 1, 0)})
    return replace(
        EMPTY,
        blocks=frozenset({BLOCK}),
        servers=SERVERS,
        addresses=dict.fromkeys(addresses, table),
    )


def found(world: World, address: IPv4Address) -> bool:
    """Both halves are, or neither."""
    verdicts = [
        world.run("director", tcp(REMOTE, f"{address}:{port}", macs=FROM_WIRE), UPLINK).verdict
        for port in (1, 32767, 32768, 65535)
    ]
    assert verdicts in (["pass", "pass", "tx", "tx"], ["drop"] * 4)
    return verdicts[0] == "pass"


def test_a_line_that_overflows(world: World) -> None:
    """All find their place further on, also past the last line; and keep it when those before them go."""
    for line in (3, LINES - 1):
        same = in_line(line, 3 * MARK)
        world.datapath.apply(holding([]))
        for count in (1, MARK, MARK + 1, 3 * MARK):
            world.datapath.apply(holding(same[:count]))
            assert [found(world, one) for one in same] == [at < count for at in range(len(same))]
        for gone in (1, MARK, 2 * MARK + 1):
            world.datapath.apply(holding(same[gone:]))
            assert [found(world, one) for one in same] == [at >= gone for at in range(len(same))]
        world.datapath.apply(holding(same))
        assert all(found(world, one) for one in same)
        assert world.datapath.read() == holding(same)


@pytest.mark.parametrize("apart", [1, 3, 16, 77])
def test_as_many_addresses_as_may_be(world: World, apart: int) -> None:
    """Neighbours, which share lines, or each alone in its group."""
    addresses = [IPv4Address(0x0A000000 + apart * number) for number in range(1, ADDRESSES_MAX + 1)]
    world.datapath.apply(holding(addresses))
    assert all(found(world, one) for one in addresses)
    assert not any(found(world, one + 1) for one in addresses if one + 1 not in addresses)
    assert world.datapath.read() == holding(addresses)


def test_the_members_of_a_group_come_and_go(world: World) -> None:
    group = [IPv4Address("10.1.2.32") + at for at in range(TOGETHER)]
    for members in (group[:1], group, group[5:7], group[6:9], group[:3], [], group[15:]):
        world.datapath.apply(holding(members))
        assert [one for one in group if found(world, one)] == members
        assert world.datapath.read() == holding(members)
    lines = [abi.GroupLine.unpack(line).groups for _, line in world.datapath.map("groups").items()]
    assert sum(any(line) for line in lines) == 1


def test_what_a_writer_who_was_killed_left_is_not_found_later(world: World) -> None:
    """The word of an address whose group it did not come to write: another group may get the line."""
    with world.datapath.map("addresses").words("I") as words:
        words[7] = 1 << 5 | 15
    world.datapath.read()
    world.datapath.apply(holding([IPv4Address("10.9.9.0")]))
    assert not found(world, IPv4Address("10.9.9.7"))


def test_no_room_is_said_before_anything_changes(world: World) -> None:
    """Only addresses that were chosen for it can do that."""
    before = holding(in_line(0, 3))
    world.datapath.apply(before)
    with pytest.raises(KernelError, match=r"no room for 10\..* in the table of addresses"):
        world.datapath.apply(holding(in_line(5, MARK * TRIES + 1)))
    assert world.datapath.read() == before


@given(
    st.lists(st.lists(st.integers(1, 2**32 - 1), max_size=30, unique=True), max_size=6),
    st.sampled_from([1, 4, 16]),
)
def test_places_never_meet(steps: list[list[int]], lines: int) -> None:
    """Whatever comes and goes: read as the programs do, each address leads to its own word."""
    places, groups = Places(lines, 32), [0] * (lines * LINE_WORDS)
    held = set[IPv4Address]()
    for numbers in steps:
        wanted = {IPv4Address(number) for number in numbers}
        for gone in held - wanted:
            group = places.leave(gone)
            if group:
                groups[group.word] = 0
        held &= wanted
        try:
            places = places.with_more(wanted - held)
        except KernelError:
            assert lines < group_lines(len(wanted)) or lines == 1
            continue
        for mark in places.marks:
            assert mark % LINE_WORDS == MARK
            groups[mark] = 1
        for number, group in places.groups.items():
            assert groups[group.word] in (0, group.entry(number))
            groups[group.word] = group.entry(number)
        held = wanted
        assert len({looked_up(groups, lines, one) for one in held}) == len(held)
        assert all(looked_up(groups, lines, one) == places.word(one) for one in held)


def looked_up(groups: list[int], lines: int, address: IPv4Address) -> int | None:
    """where_of of bpf/slots.h, up to the word that it reads."""
    line = hash_group(group_of(address))
    for number in range(TRIES):
        start = (line + number & lines - 1) * LINE_WORDS
        for entry in groups[start : start + MARK]:
            if entry & 0xFFFFFFFF == group_of(address):
                return (entry >> 32) * TOGETHER + int(address) % TOGETHER
        if not groups[start + MARK]:
            break
    return None


@pytest.mark.parametrize(
    ("addresses", "lines"), [(1, 1), (4, 1), (5, 2), (16, 4), (1024, 256), (1048576, 262144)]
)
def test_lines_for_addresses(addresses: int, lines: int) -> None:
    assert group_lines(addresses) == lines


def test_many_addresses_take_no_time() -> None:
    """A million slices: looked through anew for each address, this would take minutes."""
    taken = [(at * 64, 32) for at in range(16_384)]
    placed = place_regions(taken, dict.fromkeys(range(31_250), 32), 1 << 21)
    assert len(set(placed.values())) == 31_250
    assert list(placed.values())[:2] == [32, 96]
    addresses = [IPv4Address(0x0A000000 + 16 * at) for at in range(31_250)]
    places = Places(group_lines(1 << 16), 1 << 16).with_more(addresses)
    assert len({places.word(one) for one in addresses}) == 31_250
