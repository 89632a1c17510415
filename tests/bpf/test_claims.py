"""Claims: who has which tuple. Expired ones change hands or are swept; their old flows can send no more. A tuple
that a kernel socket holds is not given out. A full table refuses and evicts nothing.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from tests.bpf import frames
from tests.bpf.frames import CLIENT, FROM_WIRE, REMOTE, echo, local_end, refusal, tcp, udp
from tests.bpf.test_search import Opener, check_full
from tests.bpf.world import World, make_world, state

from softunicast.core.config import Limits
from softunicast.core.pools import Timers
from softunicast.kernel import abi

SMALL = state(ports=16)
OTHER_CLIENT = "10.0.0.3:50000"
OTHER_MACS = ("02:00:00:00:0c:33", frames.ONRAMP_MAC)
BUSY = (1 << 64) - 1
KERNELS_PART_BYTES, CACHE_LINE_BYTES = 48, 64  # of an entry of a hash table (struct htab_elem)


def only_claim(world: World) -> tuple[abi.ClaimKey, abi.Claim]:
    ((key, claim),) = world.claims().items()
    return key, claim


def fill_but(world: World, protocol: str) -> None:
    """Fills the slice of 16 but for the one port that is taken already."""
    Opener(world, protocol).fill(15, 100)


def packet(protocol: str, client: str, flags: str = "S", macs: frames.Macs = frames.FROM_CLIENT) -> bytes:
    if protocol == "echo":
        return echo(client, REMOTE, frames.end(client)[1], macs=macs)
    return tcp(client, flags=flags, macs=macs) if protocol == "tcp" else udp(client, macs=macs)


def wait_and_fill(opener: Opener, count: int) -> list[tuple[str, int]]:
    """Opens `count` more, each as soon as a port is free."""
    taken, number, deadline = list[tuple[str, int]](), 1000, time.monotonic() + 10
    while len(taken) < count:
        found = opener.open(number := number + 1)
        if found:
            taken.append(found)
        else:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return taken


@pytest.mark.parametrize("refresh_ns", [0, BUSY])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "echo"])
def test_an_expired_claim_changes_hands(world: World, protocol: str, refresh_ns: int) -> None:
    """Also when the old flow would not have asked yet: its entry goes with the claim."""
    world.reset(SMALL)
    local = local_end(world.out(packet(protocol, CLIENT)).frame)
    fill_but(world, protocol)
    check_full(world, protocol, 999)
    key = next(
        key for key, claim in world.claims().items() if struct.unpack_from(">H", claim.flow, 8)[0] == 40000
    )
    world.expire(key)
    world.change_flows(refresh_ns=refresh_ns)

    taken = world.out(packet(protocol, OTHER_CLIENT, macs=OTHER_MACS))
    assert dict(taken.counted) == {"out": 1, "new_flow": 1, "reused": 1}
    assert local_end(taken.frame) == local
    assert len(world.claims()) == len(world.flows()) == 16
    assert world.claims()[key].client_mac == bytes.fromhex(OTHER_MACS[0].replace(":", ""))

    # The client that had it cannot send from it any more, nor does it hear the replies.
    late = world.out(packet(protocol, CLIENT, "A"))
    assert late.reason == ("no_flow" if protocol == "tcp" else "slice_full")
    answer = {
        "tcp": tcp(REMOTE, local, "SA", macs=FROM_WIRE),
        "udp": udp(REMOTE, local, macs=FROM_WIRE),
        "echo": echo(REMOTE, local, frames.end(local)[1], True, macs=FROM_WIRE),
    }[protocol]
    reply = world.back(answer)
    assert reply.outcome == "in"
    assert reply.frame[:6].hex(":") == OTHER_MACS[0]
    assert bytes(reply.frame[30:34]) == bytes([10, 0, 0, 3])


def test_the_old_client_comes_back_before_anybody_took_its_port(world: World) -> None:
    local = local_end(world.out(tcp()).frame)
    world.expire()
    assert world.out(tcp(flags="A")).reason == "no_flow"
    assert not world.flows()
    again = world.out(tcp())
    assert "new_flow" in again.counted
    assert dict(world.out(tcp(flags="A")).counted) == {"out": 1}
    assert world.back(tcp(REMOTE, local_end(again.frame), "SA", macs=FROM_WIRE)).outcome == "in"
    if local_end(again.frame) != local:
        assert world.back(tcp(REMOTE, local, "SA", macs=FROM_WIRE)).verdict == "next"


@pytest.mark.parametrize("flags", ["S", "A", "FA", "R"])
@pytest.mark.parametrize("refresh_ns", [0, BUSY])
@pytest.mark.parametrize("other", [{"client": 1}, {"client_port": 1}, {"onramp": 1}])
def test_a_claim_of_somebody_else(world: World, flags: str, refresh_ns: int, other: dict[str, int]) -> None:
    """A flow entry whose claim names another flow is void as soon as it asks."""
    local_end(world.out(tcp()).frame)
    key, claim = only_claim(world)
    theirs = abi.FlowKey.unpack(claim.flow)._replace(**other)
    world.datapath.map("claims").set(key.pack(), claim._replace(flow=theirs.pack()).pack())
    world.change_flows(refresh_ns=refresh_ns)
    ran = world.out(tcp(flags=flags))
    asks = refresh_ns == 0 or flags != "A"
    if flags == "S":
        assert "new_flow" in ran.counted
        assert len(world.claims()) == 2
    else:
        assert ran.reason == ("no_flow" if asks else None)
    assert world.claims()[key].flow == theirs.pack()


def test_a_claim_that_is_gone(world: World) -> None:
    world.out(tcp())
    key, _ = only_claim(world)
    world.datapath.map("claims").delete(key.pack())
    assert world.out(tcp(flags="A")).reason == "no_flow"
    assert not world.flows()


def test_a_busy_claim_is_left_alone(world: World) -> None:
    """Whoever marked it is still writing it: not refreshed, not taken, not swept."""
    world.reset(SMALL)
    world.out(tcp())
    fill_but(world, "tcp")
    world.change_claims(expires_ns=BUSY)
    before = world.claims()
    check_full(world, "tcp", 999)
    assert world.out(tcp(flags="A")).reason == "no_flow"
    assert world.datapath.sweep() == (0, 16)
    assert world.claims() == before


def test_sweep_frees_exactly_the_expired(world: World) -> None:
    Opener(world, "udp").fill(100)
    Opener(world, "tcp").fill(100)
    expired = list(world.claims())[::3]
    for key in expired:
        claim = world.claims()[key]
        world.datapath.map("claims").set(key.pack(), claim._replace(expires_ns=1).pack())
    live = {key: claim for key, claim in world.claims().items() if key not in expired}
    assert world.datapath.sweep() == (len(expired), len(live))
    assert world.claims() == live
    assert {key.pack() for key in world.flows()} == {claim.flow for claim in live.values()}
    assert world.datapath.sweep() == (0, len(live))
    assert world.datapath.flows(5)[0] == len(live)


@pytest.mark.parametrize("by", ["sweep", "takeover"])
def test_a_flow_that_has_moved_on_outlives_its_old_claim(world: World, by: str) -> None:
    """The client opened again on another port; freeing the old one must not cut it off."""
    world.reset(SMALL)
    first = local_end(world.out(udp()).frame)
    old, _ = only_claim(world)
    for _ in range(30):  # until the random search has found another port
        world.expire(old)
        second = local_end(world.out(udp()).frame)
        if second != first:
            break
    assert second != first
    if by == "sweep":
        assert world.datapath.sweep() == (1, 1)
    else:
        fill_but(world, "udp")
        assert dict(world.out(udp(flags="DF")).counted) == {"out": 1}
    assert local_end(world.out(udp()).frame) == second
    assert dict(world.out(udp()).counted) == {"out": 1}


def test_claims_expire_by_the_clock(world: World) -> None:
    """Nothing written by hand here: a timer of one second, waited for."""
    world.reset(state(ports=16, timers=Timers(udp_s=1)))
    opener, begun = Opener(world, "udp"), time.monotonic()
    opener.fill(16)
    assert opener.open(16) is None
    taken = wait_and_fill(opener, 16)
    assert time.monotonic() > begun + 0.9
    assert len(set(taken)) == 16
    assert len(world.claims()) == 16


def test_reused_counts_what_was_taken_over(world: World) -> None:
    world.reset(SMALL)
    Opener(world, "udp").fill(16)
    world.expire()
    before = world.datapath.traffic()
    Opener(world, "udp").fill(10, 100)
    after = world.datapath.traffic()
    assert (after["new_flow"] - before["new_flow"], after["reused"] - before["reused"]) == (10, 10)


def test_a_full_table_refuses_and_evicts_nothing(tmp_path: Path) -> None:
    with make_world(tmp_path, Limits(flows_max=8, addresses_max=4, slots_max=64)) as world:
        opener = Opener(world, "tcp")
        ends = opener.fill(8)
        for frame, code in ((tcp(), 1), (tcp(destination="203.0.113.9:1"), 1), (udp(), 13), (echo(), 13)):
            ran = world.out(frame)
            assert dict(ran.counted) == {"table_full": 1, "icmp_sent": 1}
            assert ran.frame == refusal(frame, 3, code)
        assert opener.fill(8) == ends
        assert len(world.claims()) == len(world.flows()) == 8
        world.expire(next(iter(world.claims())))
        assert world.datapath.sweep() == (1, 7)
        assert dict(world.out(tcp()).counted) == {"out": 1, "new_flow": 1}


def test_a_full_table_of_flows_keeps_no_claim(tmp_path: Path) -> None:
    with make_world(tmp_path, Limits(flows_max=8, addresses_max=4, slots_max=64)) as world:
        Opener(world, "tcp").fill(8)
        for key in world.claims():
            world.datapath.map("claims").delete(key.pack())
        assert world.out(udp()).reason == "table_full"
        assert not world.claims()


def test_entries_are_two_cache_lines(world: World) -> None:
    """No field of a flow or a claim is in a third one."""
    for name in ("flows", "claims"):
        table = world.datapath.map(name)
        assert KERNELS_PART_BYTES + -(-table.key_bytes // 8) * 8 + table.value_bytes == 2 * CACHE_LINE_BYTES
