"""First and later fragments on several CPUs at once: whoever comes first, each goes on exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.bpf import frames
from tests.bpf.frames import CLIENT, FROM_WIRE, REMOTE, with_ip
from tests.bpf.pieces import cut
from tests.bpf.test_fragments import opened, whole
from tests.bpf.test_races import together
from tests.bpf.world import LIMITS, ONRAMP, UPLINK, World, make_world

FAMILIES = (4, 6)
DATAGRAMS = 1200


def waiting(world: World) -> int:
    return sum(1 for _, value in world.datapath.map("held").items() if value[:4] != b"\0\0\0\0")


def sender(world: World, program: str, interface: str, piece: bytes) -> Callable[[], None]:
    made = [with_ip(piece, id=number) for number in range(1, DATAGRAMS + 1)]

    def send() -> None:
        for frame in made:
            world.run(program, frame, interface)

    return send


def test_each_goes_on_exactly_once(tmp_path: Path, family: int) -> None:
    """Places enough for all: none may be lost, and none may wait for ever."""
    with make_world(tmp_path, replace(LIMITS, fragments_max=1 << 16, held_max=1 << 12)) as world:
        world.reset()  # of the chosen family
        local = opened(world, "udp")
        out = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
        back = cut(whole("udp", REMOTE, local, FROM_WIRE))
        for program, interface, pieces, outcome in (
            ("egress_out", ONRAMP, out, "out"),
            ("egress_in", UPLINK, back, "in"),
        ):
            before = Counter(world.counters())
            together(*(sender(world, program, interface, piece) for piece in pieces))
            grown = Counter(world.counters())
            grown.subtract(before)
            # What was put back arrives once more: a director at tc sends on what meets elsewhere.
            assert grown[outcome] + grown["steered"] == 3 * DATAGRAMS
            assert grown["held"] == grown["released"]
            assert (grown["fragment_lost"], waiting(world)) == (0, 0)


def test_places_that_change_hands_all_the_time(tmp_path: Path) -> None:
    """Far too few of them: what does not go on is counted as lost, or waits still."""
    with make_world(tmp_path, replace(LIMITS, fragments_max=1 << 16, held_max=4)) as world:
        opened(world, "udp")
        pieces = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
        before = Counter(world.counters())
        together(*(sender(world, "egress_out", ONRAMP, pieces[at]) for at in (1, 2, 0)))
        grown = Counter(world.counters())
        grown.subtract(before)
        assert grown["out"] + grown["fragment_lost"] + waiting(world) == 3 * DATAGRAMS
        assert grown["out"] >= DATAGRAMS
