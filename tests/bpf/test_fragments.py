"""Fragments both ways: put together again at the far end they are the datagram that a whole packet would have
become, in whatever order they come; and all of it is one conversation's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from tests.bpf import families, frames
from tests.bpf.frames import (
    CLIENT,
    FROM_WIRE,
    REMOTE,
    TO_CLIENT,
    TO_WIRE,
    echo,
    end,
    local_end,
    tcp,
    udp,
    with_ip,
)
from tests.bpf.pieces import Wires, cut, id_of, joined, offset_of, port_of_id, wires
from tests.bpf.world import World, state

FAMILIES = (4, 6)
PAYLOAD = bytes(range(256)) * 11  # three fragments of 1,000 bytes
PROTOCOLS = ("udp", "tcp", "icmp")
ORDERS = list(itertools.permutations(range(3)))
MINE = range(2048, 4096)


@pytest.fixture
def sides(world: World) -> Iterator[Wires]:
    with wires() as made:
        yield made


def whole(
    protocol: str,
    source: str,
    destination: str,
    macs: frames.Macs,
    ttl: int = 64,
    identifier: int | None = None,
) -> bytes:
    if protocol == "icmp":
        number = identifier if identifier is not None else end(source)[1]
        made = echo(source, destination, number, macs in (FROM_WIRE, TO_CLIENT), PAYLOAD, ttl, macs)
    elif protocol == "udp":
        made = udp(source, destination, PAYLOAD, ttl, macs)
    else:
        made = tcp(
            source, destination, "S" if macs in (frames.FROM_CLIENT, TO_WIRE) else "SA", PAYLOAD, ttl, macs
        )
    assert len(made) > 2 * 1014
    return made


def opened(world: World, protocol: str) -> str:
    """The shared end of a conversation that has begun."""
    small = {"udp": udp, "tcp": tcp, "icmp": echo}[protocol]
    return local_end(world.out(small()).frame)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", ORDERS)
def test_out_in_any_order(world: World, sides: Wires, protocol: str, order: tuple[int, ...]) -> None:
    pieces = cut(whole(protocol, CLIENT, REMOTE, frames.FROM_CLIENT))
    left = sides.out([pieces[at] for at in order], 3)
    made = joined(left)
    [port] = world.local_ports()
    expected = whole(protocol, f"198.51.100.10:{port}", REMOTE, TO_WIRE, 63)
    assert made == with_ip(expected, id=id_of(made))
    assert frames.checksums_right(made) == (True, True)
    assert port_of_id(made) in MINE
    assert offsets_begin_with_the_first(left)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", ORDERS)
def test_in_in_any_order(world: World, sides: Wires, protocol: str, order: tuple[int, ...]) -> None:
    local = opened(world, protocol)
    pieces = cut(whole(protocol, REMOTE, local, FROM_WIRE, identifier=end(local)[1]))
    got = sides.back([with_ip(pieces[at], id=id_that_meets_here(world)) for at in order], 3)
    made = joined(got)
    expected = whole(protocol, REMOTE, CLIENT, TO_CLIENT, 63, identifier=end(CLIENT)[1])
    assert made == with_ip(expected, id=id_of(made))
    assert frames.checksums_right(made) == (True, True)


def offsets_begin_with_the_first(fragments: list[bytes]) -> bool:
    return not offset_of(fragments[0])


def id_that_meets_here(world: World, here: bool = True) -> int:
    """An identification whose fragments, from REMOTE to the shared address by UDP, TCP or ICMP, meet at this server."""
    for number in range(1, 1000):
        made = [
            frames.packet(
                REMOTE, "198.51.100.10:1", frames.Raw(b"x" * 8), FROM_WIRE, frag=125, proto=protocol
            )
            for protocol in (1, 6, 17)
        ]
        if all((world.director(with_ip(one, id=number)).verdict == "pass") == here for one in made):
            return number
    raise AssertionError("no such identification")


def test_every_fragment_counts_once(world: World) -> None:
    pieces = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    assert [dict(world.out(piece).counted) for piece in pieces] == [
        {"out": 1, "new_flow": 1},
        {"out": 1},
        {"out": 1},
    ]
    other = [with_ip(piece, id=8) for piece in pieces]
    assert [dict(world.out(other[at]).counted) for at in (1, 2)] == [{"held": 1}] * 2
    assert dict(world.out(other[0]).counted) == {"released": 2, "out": 3}
    assert len(world.flows()) == len(world.claims()) == 1


def test_the_first_alone_tells_whose_it_is(world: World) -> None:
    """Two clients of two on-ramps, with the same addresses and the same identification, towards one remote end."""
    pieces = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    others = [frames.changed(piece, 0, bytes.fromhex("020000000d01")) for piece in pieces]
    left = [
        world.out(one, onramp)
        for pair in zip(pieces, others, strict=True)
        for one, onramp in zip(pair, ("cl", "cm"), strict=True)
    ]
    first, second = (joined([ran.frame for ran in left[at::2]]) for at in (0, 1))
    assert id_of(first) != id_of(second)
    assert local_end(first) != local_end(second)
    assert frames.checksums_right(first) == frames.checksums_right(second) == (True, True)


def test_identifications_are_used_one_after_the_other(world: World) -> None:
    """All of the slice before one comes again, and none of another server's."""
    world.reset(state(ports=64))
    piece = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))[0]
    seen = [id_of(world.out(with_ip(piece, id=number)).frame) for number in range(1, 65)]
    if families.chosen == 4:
        assert sorted(seen) == list(range(64, 128))
    else:  # 64 times 65,536 of them
        assert {number >> 16 in range(64, 128) for number in seen} == {True}
        assert {(after - before) % (64 << 16) for before, after in itertools.pairwise(seen)} == {1}


def test_a_first_one_that_comes_twice_is_of_the_same_datagram(world: World) -> None:
    pieces = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    left = [world.out(pieces[at]).frame for at in (0, 1, 0, 2)]
    assert left[0] == left[2]
    joined([left[0], left[1], left[3]])


def test_the_newest_first_one_counts(world: World) -> None:
    """Its sender uses the identification again, for another conversation."""
    pieces = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    others = cut(whole("udp", "10.0.0.2:40001", REMOTE, frames.FROM_CLIENT))
    left = [world.out(piece).frame for piece in pieces[:2]]
    again = [world.out(piece).frame for piece in others]
    assert id_of(left[0]) == id_of(left[1]) != id_of(again[0])
    assert frames.checksums_right(joined(again)) == (True, True)


def test_a_later_one_opens_nothing(world: World) -> None:
    """Its conversation is over, or was refused: known whose it is, but to nobody's use."""
    pieces = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    assert world.out(pieces[0]).outcome == "out"
    for key in world.flows():
        world.datapath.map("flows").delete(key.pack())
    assert world.out(pieces[1]).reason == "no_flow"
    assert len(world.claims()) == 1


def test_tcp_numbers_are_not_read_from_later_ones(world: World) -> None:
    """Which have none; from numbers just below the end of all numbers, 0 would be a plausible next one."""
    segment = tcp(CLIENT, REMOTE, "S", PAYLOAD, sequence=(1 << 32) - 100_000)
    pieces = cut(segment)
    assert world.out(pieces[0]).outcome == "out"
    [before] = world.flows().values()
    world.change_flows(refresh_ns=1 << 62)
    assert world.out(pieces[1]).outcome == "out"
    [after] = world.flows().values()
    assert (after.sent, after.acknowledged) == (before.sent, before.acknowledged)


def test_tcp_state_is_not_read_from_later_ones(world: World) -> None:
    """Nor does one keep the conversation alive: that takes numbers."""
    local = opened(world, "tcp")
    first, later, _ = cut(tcp(REMOTE, local, "SA", PAYLOAD, macs=FROM_WIRE))
    assert world.back(first).outcome == "in"
    world.change_claims(state=0, refresh_in_ticks=0)
    before = world.claims()
    assert world.back(later).outcome == "in"
    assert world.claims() == before


def test_no_error_is_sent_about_a_later_one(world: World) -> None:
    """RFC 1122 section 3.2.2: only about the first."""
    pieces = [with_ip(piece, ttl=1) for piece in cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))]
    assert world.out(udp()).outcome == "out"
    assert dict(world.out(pieces[0]).counted) == {"hop_limit": 1, "icmp_sent": 1}
    world.out(with_ip(pieces[0], ttl=2))
    ran = world.out(pieces[1])
    assert (ran.verdict, dict(ran.counted)) == ("drop", {"hop_limit": 1})


def test_for_this_server_itself(world: World) -> None:
    """A client's fragments to its gateway are the kernel's to put together, whichever comes first."""
    for number, order in enumerate(ORDERS):
        pieces = cut(whole("icmp", CLIENT, "10.0.0.1:0", frames.FROM_CLIENT))
        for at in order:
            ran = world.out(with_ip(pieces[at], id=number + 1))
            assert (ran.verdict, ran.outcome) == ("next", "to_host")


def test_for_a_socket(world: World) -> None:
    """No flow has the tuple: the kernel stack gets them, and puts them together."""
    pieces = cut(whole("udp", REMOTE, "198.51.100.10:2049", FROM_WIRE))
    assert [world.back(piece).verdict for piece in pieces] == ["next"] * 3
    others = cut(whole("udp", REMOTE, "192.0.2.1:2049", FROM_WIRE))
    for piece in reversed(others):
        assert (world.back(piece).verdict, world.back(piece).counted) == ("next", {})
        assert (world.director(piece).verdict, world.director(piece).counted) == ("pass", {})


def test_from_an_interface_without_a_pool(world: World) -> None:
    for name in ("onramps", "onramps6"):
        table = world.datapath._maps[name]
        for key, _ in list(table.items()):
            table.delete(key)
    for piece in cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT)):
        assert world.out(piece).reason == "no_pool"
    world.datapath.read()


def test_a_datagram_that_has_gone_on_is_forgotten(world: World) -> None:
    """Its sender uses the identification again at once, for another conversation, and this time they come in another
    order: none goes where those of the first went."""
    one, other = opened(world, "udp"), local_end(world.out(udp("10.0.0.2:40001")).frame)
    for piece in cut(whole("udp", REMOTE, one, FROM_WIRE)):
        assert world.back(piece).outcome == "in"
    first, second, third = cut(whole("udp", REMOTE, other, FROM_WIRE))
    assert dict(world.back(third).counted) == dict(world.back(second).counted) == {"held": 1}
    counted = dict(world.back(first).counted)
    counted.pop("here", None)  # they arrive once more; at tc the director sees it
    assert counted == {"released": 2, "in": 3}


def test_each_datagram_leaves_as_its_own(world: World) -> None:
    """Of a client that gives all of them the same identification, one right after the other."""
    pieces = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    left = [joined([world.out(piece).frame for piece in pieces]) for _ in range(20)]
    assert len({id_of(made) for made in left}) == 20
