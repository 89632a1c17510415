"""Fragments from the wire, at the wrong server or the right one: all of a datagram meet at one server, which a hash
of it names, and go on from there to the owner of its port. Every server says the same, and remembers nothing of
what it only sends on. And the guard, which asks no memory of egress's.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.bpf import frames
from tests.bpf.frames import (
    FROM_WIRE,
    NEIGHBOUR_MAC,
    REMOTE,
    TO_WIRE,
    UPLINK_MAC,
    udp,
    with_ip,
)
from tests.bpf.pieces import Wires, cut, id_in, id_of, joined, offset_of, port_of_id, wires
from tests.bpf.test_fragments import MINE, PAYLOAD, whole
from tests.bpf.world import ME, NEIGHBOUR, ONRAMP, UPLINK, SlotOwner, World, slot_changed, state

FAMILIES = (4, 6)
HERE, THERE, NOBODY = "198.51.100.10:2049", "198.51.100.10:4097", "198.51.100.10:9000"
FROM_NEIGHBOUR = (NEIGHBOUR_MAC, UPLINK_MAC)


@pytest.fixture(params=["director", "director_tc"])
def world(
    module_world: World, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, family: int
) -> World:
    """Both attachments give one answer."""
    module_world.reset()
    monkeypatch.setattr(module_world, "director", getattr(module_world, request.param))
    return module_world


@pytest.fixture
def sides(world: World) -> Iterator[Wires]:
    with wires() as made:
        yield made


def arriving(to: str, number: int, macs: frames.Macs = FROM_WIRE) -> list[bytes]:
    return [with_ip(piece, id=number) for piece in cut(whole("udp", REMOTE, to, macs))]


def meets(world: World, to: str, number: int) -> str:
    """The server that the fragments of this datagram meet at; all of them say the same."""
    found = set()
    for piece in arriving(to, number):
        ran = world.director(piece)
        if ran.outcome == "steered":
            assert ran.verdict == "tx"
            assert ran.frame == with_ip(frames.changed(piece, 0, ran.frame[:12]), ttl=63)
            assert ran.frame[:12] == bytes.fromhex((NEIGHBOUR_MAC + UPLINK_MAC).replace(":", ""))
            found.add(NEIGHBOUR)
        else:
            assert (ran.verdict, ran.outcome, ran.frame) == ("pass", "here", piece)
            found.add(ME)
    [server] = found
    return server


def test_every_datagram_meets_somewhere_whatever_its_port(world: World) -> None:
    places = {number: meets(world, HERE, number) for number in range(1, 101)}
    assert 30 <= list(places.values()).count(ME) <= 70  # they share the work
    assert places == {number: meets(world, THERE, number) for number in places}


def test_both_servers_name_the_same_place(world: World) -> None:
    """Seen from the neighbour, with the same slice table, each datagram meets at the other end."""
    mine = {number: meets(world, HERE, number) for number in range(1, 30)}
    world.reset(state(mine=(2,), theirs=(1,)))
    swapped = {ME: NEIGHBOUR, NEIGHBOUR: ME}
    assert {number: swapped[meets(world, HERE, number)] for number in mine} == mine


def test_what_has_met_elsewhere_is_not_sent_back(world: World) -> None:
    """It comes from the server that it meets at, or this one has made it: here is where it belongs."""
    number = next(number for number in range(1, 100) if meets(world, HERE, number) == NEIGHBOUR)
    for macs in (FROM_NEIGHBOUR, (UPLINK_MAC, UPLINK_MAC)):
        for piece in arriving(HERE, number, macs):
            assert (world.director(piece).verdict, world.director(piece).outcome) == ("pass", "here")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0)])
def test_from_the_meeting_to_the_owner(world: World, sides: Wires, order: tuple[int, ...]) -> None:
    """In any order; what leaves for the owner begins with the first, and is changed by no byte but the hop limit."""
    number = next(number for number in range(1, 100) if meets(world, THERE, number) == ME)
    pieces = arriving(THERE, number)
    sent = through_uplink(world, sides, [pieces[at] for at in order], 3)
    expected = whole("udp", REMOTE, THERE, (UPLINK_MAC, NEIGHBOUR_MAC), 63)
    assert joined(sent) == with_ip(expected, id=number)
    assert not offset_of(sent[0])


def through_uplink(world: World, sides: Wires, arriving: list[bytes], expected: int) -> list[bytes]:
    """In by the uplink, and out by it again."""
    return sides._through(sides._wire, sides._wire, arriving, expected)


@pytest.mark.parametrize("at", [0, 1])
def test_hop_limit_between_servers(world: World, at: int) -> None:
    """Two servers whose tables disagree do not send a fragment to and fro for ever."""
    first, later, _ = arriving(THERE, 5)
    world.back(first)
    assert world.back(with_ip((first, later)[at], ttl=1)).reason == "steer_loop"
    number = next(number for number in range(1, 100) if meets(world, HERE, number) == NEIGHBOUR)
    assert world.director(with_ip(arriving(HERE, number)[at], ttl=1)).reason == "steer_loop"


def test_a_slice_that_nobody_holds(world: World) -> None:
    first, later, _ = arriving(NOBODY, 5)
    assert world.back(first).reason == "no_owner"
    assert world.back(later).reason == "no_owner"
    expired = arriving("198.51.100.10:6145", 6)[0]
    assert world.back(expired).reason == "lease_expired"


def test_an_address_without_slices(world: World) -> None:
    for piece in arriving("198.51.100.77:2049", 5):
        assert world.director(piece).reason == "no_owner"


def test_few_small_slices(world: World) -> None:
    """None of those that are tried has an owner: where it arrives is as good as anywhere."""
    world.reset(state(ports=16, mine=(4095,), theirs=(), expired=()))
    passed = [world.director(arriving("198.51.100.10:65530", number)[0]).verdict for number in range(1, 5)]
    assert passed == ["pass"] * 4


def test_the_slice_moves_between_two_fragments(world: World) -> None:
    """Later ones follow the table, not the first one."""
    first, later, last = arriving(HERE, 5)
    assert world.back(first).verdict == "next"
    world.datapath.apply(slot_changed(state(), 1, SlotOwner(NEIGHBOUR, 1, 0)))
    assert world.back(later).outcome == "steered"
    assert world.back(last).outcome == "steered"


class TestGuard:
    def leaving(self, source: str, number: int, frame_size: int = 1000) -> list[bytes]:
        made = udp(source, REMOTE, PAYLOAD, macs=TO_WIRE)
        return [with_ip(piece, id=id_in(number)) for piece in cut(made, frame_size)]

    def test_a_socket_s_fragments_get_an_identification_of_ours(self, world: World) -> None:
        pieces = self.leaving(HERE, 40000)
        ran = [world.guard(piece) for piece in pieces]
        assert [(one.verdict, one.counted) for one in ran] == [("next", {})] * 3
        made = joined([one.frame for one in ran])
        assert port_of_id(made) in MINE
        assert made == with_ip(udp(HERE, REMOTE, PAYLOAD, macs=TO_WIRE), id=id_of(made))

    def test_what_has_one_is_not_touched(self, world: World) -> None:
        for piece in self.leaving(HERE, 2100):
            ran = world.guard(piece)
            assert (ran.verdict, ran.frame, ran.counted) == ("next", piece, {})

    @pytest.mark.parametrize("number", [1, 4096, 40000, 65535])
    def test_a_later_one_alone(self, world: World, number: int) -> None:
        """Whose first one did not leave from here: it could mix with another server's."""
        for piece in self.leaving(HERE, number)[1:]:
            assert world.guard(piece).reason == "guard_fragment"

    def test_a_first_one_from_a_slice_of_another_server(self, world: World) -> None:
        for source, reason in ((THERE, "guard_foreign"), (NOBODY, "guard_nobody")):
            for number in (2100, 40000):
                first, later, _ = self.leaving(source, number)
                assert world.guard(first).reason == reason
                if number == 40000:
                    assert world.guard(later).reason == "guard_fragment"
        assert world.guard(self.leaving("198.51.100.10:6145", 9)[0]).reason == "guard_expired"

    def test_the_slice_is_lost_between_two_fragments(self, world: World) -> None:
        first, later, _ = self.leaving(HERE, 40000)
        assert world.guard(first).verdict == "next"
        world.datapath.apply(slot_changed(state(), 1, SlotOwner(NEIGHBOUR, 1, 0)))
        assert world.guard(later).reason == "guard_fragment"

    def test_a_tagged_one(self, world: World) -> None:
        """An identification cannot be written there; one that is right needs none."""
        assert world.guard(frames.tagged(self.leaving(HERE, 40000)[0])).reason == "guard_fragment"
        assert world.guard(frames.tagged(self.leaving(HERE, 2100)[1])).verdict == "next"

    def test_other_sources_are_hands_off(self, world: World) -> None:
        for piece in self.leaving("192.0.2.1:2049", 40000):
            ran = world.guard(piece)
            assert (ran.verdict, ran.frame, ran.counted) == ("next", piece, {})

    def test_what_egress_sends(self, world: World) -> None:
        for piece in cut(whole("udp", frames.CLIENT, REMOTE, frames.FROM_CLIENT)):
            ran = world.out(piece)
            assert (world.guard(ran.frame).verdict, world.guard(ran.frame).frame) == ("next", ran.frame)

    @pytest.mark.parametrize("to", [HERE, THERE])
    def test_what_is_only_handed_over(self, world: World, to: str) -> None:
        """A neighbour's client sends fragments to another server's: they came in by the uplink, and leave by it as
        they came. From anywhere else they would be forged."""
        for piece in cut(with_ip(udp(THERE, to, PAYLOAD, macs=TO_WIRE), id=id_in(4200)), 1000):
            ran = world.guard(piece, came_by=UPLINK)
            assert (ran.verdict, ran.frame, ran.counted) == ("next", piece, {})
            assert world.guard(piece, came_by=ONRAMP).verdict == "drop"
            assert world.guard(piece).verdict == "drop"
        for piece in self.leaving(THERE, 4200):
            assert world.guard(piece, came_by=UPLINK).verdict == "drop"
