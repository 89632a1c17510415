"""That a slice is exhausted is remembered for a moment, and never for longer than it is true.

The smallest timer of a pool is a second, so is the memory at most: no claim that was in the way can be free
earlier unless its own end came earlier, and then the memory ends with it.
"""

from __future__ import annotations

import struct
import time
from dataclasses import replace

import pytest
from tests.bpf.frames import tcp, udp
from tests.bpf.talk import Conversation
from tests.bpf.test_search import PROTOCOLS, Opener, check_full, slice_ends
from tests.bpf.world import ADDRESS, FAR_NS, World, state

from softunicast.core.desired import PoolSlices
from softunicast.core.pools import Behaviour, Timers

SECOND_NS = 1_000_000_000
TICK_NS = 20_000_000  # the programs' clock is coarse


def remembered(world: World) -> list[tuple[int, int]]:
    """Until when, for each slice and destination: for anybody, and for taking over an ended conversation."""
    return [struct.unpack("<QQ", value) for _, value in world.datapath.map("exhausted").items()]


def free_one(world: World) -> int:
    """Deletes the claim of one port behind the programs' back."""
    key = next(iter(world.claims()))
    world.datapath.map("claims").delete(key.pack())
    return int.from_bytes(key.local_port.to_bytes(2, "little"), "big")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_for_a_second_at_most(world: World, protocol: str) -> None:
    world.reset(state(ports=64))
    Opener(world, protocol).fill(64)
    assert remembered(world) == []
    before = time.monotonic_ns()
    check_full(world, protocol, 64)
    ((until, early),) = remembered(world)
    assert before + SECOND_NS - TICK_NS <= until <= time.monotonic_ns() + SECOND_NS
    assert early == until
    check_full(world, protocol, 65)
    assert remembered(world) == [(until, early)]  # nothing was looked at again, nothing is prolonged


def test_what_is_remembered_is_believed_and_ends(world: World) -> None:
    """2,048 ports: that the one port which is tried even so is the free one does not happen."""
    world.reset(state(ports=2048))
    opener = Opener(world, "udp")
    opener.fill(2048)
    assert opener.open(3000) is None
    [(key, _)] = world.datapath.map("exhausted").items()
    # However slow the machine is:
    world.datapath.map("exhausted").set(key, struct.pack("<QQ", FAR_NS, FAR_NS))
    port = free_one(world)
    assert opener.open(3001) is None
    world.datapath.map("exhausted").set(key, struct.pack("<QQ", 1, 1))
    assert opener.open(3001) == (str(ADDRESS), port)


def test_one_port_is_tried_even_so(world: World) -> None:
    world.reset(state(ports=16))
    opener = Opener(world, "udp")
    opener.fill(16)
    assert opener.open(100) is None
    port = free_one(world)
    found = next(end for number in range(1000) if (end := opener.open(100 + number)))
    assert found == (str(ADDRESS), port)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_claim_about_to_expire_ends_it_earlier(world: World, protocol: str) -> None:
    world.reset(state(ports=64))
    opener = Opener(world, protocol)
    opener.fill(64)
    soon = time.monotonic_ns() + 300_000_000
    key, claim = next(iter(world.claims().items()))
    world.datapath.map("claims").set(key.pack(), claim._replace(expires_ns=soon).pack())
    assert opener.open(100) is None
    assert [until for until, _ in remembered(world)] == [soon]
    while time.monotonic_ns() < soon + TICK_NS:
        time.sleep(0.01)
    assert opener.open(101) == (str(ADDRESS), int.from_bytes(key.local_port.to_bytes(2, "little"), "big"))


def test_a_busy_claim_is_no_reason_to_remember(world: World) -> None:
    world.reset(state(ports=16))
    opener = Opener(world, "udp")
    opener.fill(16)
    key, claim = next(iter(world.claims().items()))
    world.datapath.map("claims").set(key.pack(), claim._replace(expires_ns=2**64 - 1).pack())
    assert opener.open(100) is None
    assert [until for until, _ in remembered(world)] == [0]


def test_destinations_protocols_and_slices_apart(world: World) -> None:
    world.reset(state(ports=16, mine=(1, 4)))
    assert Opener(world, "udp").fill(32) == slice_ends(1, 4, ports=16)
    check_full(world, "udp", 40)
    assert len(remembered(world)) == 2
    for remote in ("203.0.113.2:443", "203.0.113.1:444"):
        Opener(world, "udp", remote).fill(32)
    Opener(world, "tcp").fill(32)
    port = free_one(world)  # of whichever slice, protocol and destination
    world.forget_exhausted()
    ends = [Opener(world, kind, to).open(50) for kind in ("tcp", "udp") for to in destinations(kind)]
    assert [end for end in ends if end] == [(str(ADDRESS), port)]


def destinations(protocol: str) -> list[str]:
    return ["203.0.113.1:443"] + ["203.0.113.2:443", "203.0.113.1:444"] * (protocol == "udp")


def test_ended_conversations_are_found_when_their_time_comes(world: World) -> None:
    """Two seconds after the end a port may be used again; not earlier, and at once then."""
    world.reset(state(ports=16))
    talks = [Conversation(world, f"10.0.0.2:{2000 + number}").established() for number in range(16)]
    frame = tcp("10.0.0.3:999", talks[0].remote)
    assert world.out(frame).reason == "slice_full"
    ((until, early),) = remembered(world)
    assert early == until
    talks[5].out("FA")
    talks[5].back("FA")
    assert world.out(frame).reason == "slice_full"
    world.forget_exhausted()
    assert world.out(frame).reason == "slice_full"  # too early; and its time is within the memory
    ((until, early),) = remembered(world)
    (ended,) = (one.expires_ns for one in world.claims().values() if one.state & 12 == 12)
    assert early == min(until, ended - 240 * SECOND_NS + 2 * SECOND_NS)
    for key, claim in world.claims().items():  # the end was two seconds ago
        if claim.state & 12 == 12:
            claim = claim._replace(expires_ns=claim.expires_ns - 2 * SECOND_NS)
            world.datapath.map("claims").set(key.pack(), claim.pack())
    world.forget_exhausted()
    assert world.out(frame).counted["reused"] == 1


def test_what_is_reusable_early_is_not_passed_over(world: World) -> None:
    """The memory of the first search says that a second one, for ended conversations, is worth its while."""
    world.reset(state(ports=16))
    talks = [Conversation(world, f"10.0.0.2:{2000 + number}").established() for number in range(16)]
    for talk in talks[:4]:
        talk.out("FA")
        talk.back("FA")
    for key, claim in world.claims().items():
        if claim.state & 12 == 12:
            claim = claim._replace(expires_ns=claim.expires_ns - 2 * SECOND_NS)
            world.datapath.map("claims").set(key.pack(), claim.pack())
    for number in range(4):
        assert world.out(tcp(f"10.0.0.3:{900 + number}", talks[0].remote)).counted["reused"] == 1
    assert world.out(tcp("10.0.0.3:999", talks[0].remote)).reason == "slice_full"


def test_mappings_are_exhausted_alike(world: World) -> None:
    """A mapping's search has no destination."""
    wanted = state(ports=16)
    (slices,) = (pool.slices for pool in wanted.pools.values())
    pool = PoolSlices(Timers(), slices, Behaviour(frozenset({"udp"}), frozenset()))
    world.reset(replace(wanted, pools={"gb": pool}))
    for number in range(16):
        assert world.out(udp(f"10.0.0.2:{3000 + number}", f"203.0.113.{number}:5")).outcome == "out"
    assert world.out(udp("10.0.0.2:4000", "203.0.113.99:6")).reason == "slice_full"
    assert len(remembered(world)) == 1
    assert world.out(udp("10.0.0.2:4001", "203.0.113.98:7")).reason == "slice_full"
    assert len(remembered(world)) == 1


def test_a_port_at_rest_is_waited_for(world: World) -> None:
    """An expired mapping that anybody could send to keeps its port for a while (RFC 6888 REQ-8)."""
    wanted = state(ports=16)
    (slices,) = (pool.slices for pool in wanted.pools.values())
    udp_open = frozenset({"udp"})
    pool = PoolSlices(Timers(rest_s=100), slices, Behaviour(udp_open, udp_open))
    world.reset(replace(wanted, pools={"gb": pool}))
    for number in range(16):
        assert world.out(udp(f"10.0.0.2:{3000 + number}", f"203.0.113.{number}:5")).outcome == "out"
    now = time.monotonic_ns()
    world.change_claims(expires_ns=now - SECOND_NS)
    assert world.out(udp("10.0.0.2:4000", "203.0.113.99:6")).reason == "slice_full"
    ((until, _),) = remembered(world)
    assert until >= now + SECOND_NS - TICK_NS
    key, claim = next((key, claim) for key, claim in world.claims().items() if not key.remote)
    rested = now + SECOND_NS // 2
    claim = claim._replace(expires_ns=rested - 100 * SECOND_NS)
    world.datapath.map("claims").set(key.pack(), claim.pack())
    world.forget_exhausted()
    assert world.out(udp("10.0.0.2:4001", "203.0.113.98:7")).reason == "slice_full"
    ((until, _),) = remembered(world)
    assert until == rested
