"""Slices against naive models: a slice is the set of its (address, port) pairs, and a prefix is a range.

Sets of all pairs would be too large, so a model looks at a tiny space: one slice cut into 32 atoms, each
stood for by its first (address, port). The spaces are chosen so that the border between address and port
bits lies above, inside and below them.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from softunicast.core.errors import SliceSyntaxError
from softunicast.core.slices import Slice, aggregate, slice_of_port, slices_of

Pair = tuple[int, int]

DEPTH = 5
SPACES = tuple(
    Slice.parse(text)
    for text in (
        "0.0.0.0/0",
        "198.51.100.32/27",
        "198.51.100.8/30",
        "198.51.100.10/32",
        "198.51.100.10:64/43",
        "2001:db8::/32",
        "2001:db8::4/126",
        "[2001:db8::1]:65504/139",
    )
)


def pairs_of_space(space: Slice) -> frozenset[Pair]:
    step = 1 << (space.bits - space.length - DEPTH)
    values = (space.first + atom * step for atom in range(1 << DEPTH))
    return frozenset((value >> 16, value & 0xFFFF) for value in values)


def pairs(part: Slice, space: Slice) -> frozenset[Pair]:
    """The model: what a slice holds, from nothing but the numbers it shows."""
    address = int(part.address)
    return frozenset(
        (a, p)
        for a, p in pairs_of_space(space)
        if address <= a < address + part.addresses and part.port_first <= p <= part.port_last
    )


def parts(space: Slice) -> st.SearchStrategy[Slice]:
    def build(depth: int, index: int) -> Slice:
        length = space.length + depth
        index %= 1 << depth
        return Slice(space.version, space.first + (index << (space.bits - length)), length)

    return st.builds(build, st.integers(0, DEPTH), st.integers(0, (1 << DEPTH) - 1))


spaces = st.sampled_from(SPACES)
space_and_part = spaces.flatmap(lambda space: st.tuples(st.just(space), parts(space)))
space_and_two = spaces.flatmap(lambda space: st.tuples(st.just(space), parts(space), parts(space)))
space_and_many = spaces.flatmap(lambda space: st.tuples(st.just(space), st.lists(parts(space), max_size=40)))


def any_slice(version: int, value: int, length: int) -> Slice:
    bits = 48 if version == 4 else 144
    length %= bits + 1
    shift = bits - length
    return Slice(version, (value & ((1 << bits) - 1)) >> shift << shift, length)


slices = st.builds(any_slice, st.sampled_from((4, 6)), st.integers(0, (1 << 144) - 1), st.integers(0, 144))
port_slices = slices.map(lambda item: Slice.of(item.address, item.port_first, item.ports))
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(space_and_two)
def test_contains_and_overlaps_are_those_of_sets(drawn: tuple[Slice, Slice, Slice]) -> None:
    space, one, other = drawn
    assert one.contains(other) == (pairs(one, space) >= pairs(other, space))
    assert one.overlaps(other) == bool(pairs(one, space) & pairs(other, space))


@given(slices, slices)
def test_overlap_is_containment_one_way_or_the_other(one: Slice, other: Slice) -> None:
    assert one.overlaps(other) == (one.contains(other) or other.contains(one))
    assert one.overlaps(other) == other.overlaps(one)
    as_ranges = one.version == other.version and one.first <= other.last and other.first <= one.last
    assert one.overlaps(other) == as_ranges


@given(space_and_part, st.integers(0, DEPTH))
def test_split_is_a_partition(drawn: tuple[Slice, Slice], deeper: int) -> None:
    space, part = drawn
    length = min(part.length + deeper, space.length + DEPTH)
    pieces = list(part.split(length))
    assert {piece.length for piece in pieces} == {length}
    assert len(pieces) == 1 << (length - part.length)
    assert pieces == sorted(pieces)
    sets = [pairs(piece, space) for piece in pieces]
    assert all(sets), "a piece is empty"
    assert sum(map(len, sets)) == len(pairs(part, space))
    assert frozenset().union(*sets) == pairs(part, space)


@given(slices, st.data())
def test_split_undoes_parent(part: Slice, data: st.DataObject) -> None:
    up = data.draw(st.integers(0, min(part.length, 8)))
    parent = part.parent(part.length - up)
    assert parent.length == part.length - up
    assert parent.contains(part)
    assert part in parent.split(part.length)
    assert all(piece.parent(parent.length) == parent for piece in parent.split(part.length))


def fewest(wanted: frozenset[Pair], node: Slice, space: Slice) -> int:
    """How many prefixes a set needs: all of a node is one, none is none, anything else asks the halves."""
    here = pairs(node, space)
    if here <= wanted:
        return 1
    if not here & wanted:
        return 0
    return sum(fewest(wanted, half, space) for half in node.split(node.length + 1))


@given(space_and_many)
def test_aggregate_gives_the_same_set_in_the_fewest_slices(drawn: tuple[Slice, list[Slice]]) -> None:
    space, many = drawn
    wanted = frozenset().union(*(pairs(part, space) for part in many))
    merged = aggregate(many)
    assert frozenset().union(*(pairs(part, space) for part in merged)) == wanted
    assert len(merged) == fewest(wanted, space, space)
    assert list(merged) == sorted(merged)
    assert aggregate(merged) == merged


@given(st.lists(slices, max_size=20), st.randoms(use_true_random=False))
def test_aggregate_does_not_care_for_order(many: list[Slice], random: object) -> None:
    shuffled = list(many)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    merged = aggregate(shuffled + many)
    assert merged == aggregate(many)
    assert all(any(new.contains(part) for new in merged) for part in many)


@given(slices)
def test_every_text_form_comes_back(part: Slice) -> None:
    assert Slice.parse(part.prefix_text) == part
    assert Slice.parse(part.range_text) == part
    assert Slice.parse(str(part)) == part
    assert hash(Slice.parse(str(part))) == hash(part)
    if part.is_address:
        assert Slice.parse(str(part.address)) == part


@given(slices)
def test_the_parts_make_the_whole(part: Slice) -> None:
    assert part.addresses * part.ports == part.last - part.first + 1
    assert (int(part.address) << 16 | part.port_first) == part.first
    assert (int(part.address) + part.addresses - 1 << 16 | part.port_last) == part.last
    assert [part.is_block, part.is_address, part.is_port_slice].count(True) == 1
    if not part.is_block:
        assert Slice.of(part.address, part.port_first, part.ports) == part


@given(addresses, st.integers(0, 65535), st.integers(0, 16))
def test_a_port_falls_into_exactly_one_slice(
    address: IPv4Address | IPv6Address, port: int, exponent: int
) -> None:
    ports = 1 << max(exponent, 6)
    mine = slice_of_port(address, port, ports)
    assert [part for part in slices_of(address, ports) if part.port_first <= port <= part.port_last] == [mine]
    assert mine.contains(Slice.of(address, port, 1))
    assert aggregate(slices_of(address, ports)) == (Slice.of(address),)


@given(addresses, st.integers(0, 140))
def test_cidr_is_accepted_as_the_standard_library_does(
    address: IPv4Address | IPv6Address, length: int
) -> None:
    text = f"{address}/{length}"
    try:
        network = ip_network(text)
    except ValueError:
        with pytest.raises(SliceSyntaxError):
            Slice.parse(text)
    else:
        parsed = Slice.parse(text)
        assert (parsed.address, parsed.length) == (network.network_address, network.prefixlen)
        assert parsed.addresses == network.num_addresses


@given(addresses, st.integers(0, 70000), st.integers(0, 70000), st.integers(0, 16))
@example(IPv4Address("198.51.100.10"), 0, 65535, 0)
def test_a_range_is_accepted_when_it_is_one_slice(
    address: IPv4Address | IPv6Address, port_first: int, other: int, exponent: int
) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    for port_last in (other, port_first + (1 << exponent) - 1, (port_first | ((1 << exponent) - 1))):
        ports = port_last - port_first + 1
        is_slice = port_last < 65536 and ports in {1 << n for n in range(17)} and port_first % ports == 0
        text = f"{host}:{port_first}-{port_last}"
        if is_slice:
            parsed = Slice.parse(text)
            assert (parsed.address, parsed.port_first, parsed.port_last) == (address, port_first, port_last)
        else:
            with pytest.raises(SliceSyntaxError):
                Slice.parse(text)


def mangled(part: Slice, at: int, cut: int, put: str) -> str:
    text = part.range_text if at % 2 else part.prefix_text
    at %= len(text) + 1
    return text[:at] + put + text[at + cut :]


near_misses = st.builds(
    mangled,
    slices,
    st.integers(0, 80),
    st.integers(0, 3),
    st.text("0123456789abcf.:/[]-% \n\u0663", max_size=3),
)


def parsed_or_refused(text: str) -> Slice | SliceSyntaxError:
    try:
        return Slice.parse(text)
    except SliceSyntaxError as error:
        return error


@given(st.one_of(st.text(), st.text("0123456789abcf.:/[]-% \n"), near_misses))
@example("198.51.100.10:2048-4095\n")
@example("\ud800")
@example("9" * 5000)
@example("198.51.100.10/" + "9" * 5000)
@example("1:" * 5000)
def test_any_text_is_a_slice_or_the_one_error(text: str) -> None:
    result = parsed_or_refused(text)
    if isinstance(result, Slice):
        assert Slice.parse(str(result)) == result
    else:
        assert str(result).isprintable(), "an error is one line that a terminal can show"
        assert len(str(result)) < 500
        assert result.fix


@given(port_slices.filter(lambda part: part.ports < 32768), st.integers(1, 65535))
def test_the_fix_of_a_range_is_itself_a_slice(part: Slice, offset: int) -> None:
    host = part.prefix_text.rsplit(":", 1)[0]
    port_first = (part.port_first + offset) % (65536 - part.ports)
    text = f"{host}:{port_first}-{port_first + part.ports - 1}"
    result = parsed_or_refused(text)
    if isinstance(result, SliceSyntaxError):
        assert result.fix is not None
        written = Slice.parse(result.fix.removeprefix("write "))
        assert written.ports == part.ports
        assert written.port_first <= port_first <= written.port_last
