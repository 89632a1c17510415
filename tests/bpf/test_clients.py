"""Limits for each client of a pool: they hold, they harm nobody else, and the count of a client's flows is always
that of its live claims.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.bpf.frames import FROM_WIRE, local_end, refusal, tcp, udp
from tests.bpf.talk import Conversation
from tests.bpf.world import ONRAMP, ONRAMP2, World, state

from softunicast.core.desired import KernelState
from softunicast.core.pools import Behaviour, ClientLimits, Timers
from softunicast.kernel import abi

MAPPING = Behaviour(frozenset({"udp"}), frozenset())


def limited(flows_max: int = 0, new_per_s: int = 0, **more: object) -> KernelState:
    wanted = state(**more)  # type: ignore[arg-type]
    pool = replace(wanted.pools["gb"], client_limits=ClientLimits(flows_max=flows_max, new_per_s=new_per_s))
    return replace(wanted, pools={"gb": pool})


def reset(world: World, wanted: KernelState) -> None:
    clients = world.datapath.map("clients")
    for key, _ in list(clients.items()):
        clients.delete(key)
    world.reset(wanted)


def counts(world: World) -> list[int]:
    """Flows of each client that has an entry, whatever the protocol."""
    items = world.datapath.map("clients").items()
    return sorted(sum(abi.Client.unpack(value)[2:5]) for _, value in items)


def first(number: int, client: str = "10.0.0.2") -> bytes:
    return tcp(f"{client}:{2000 + number}")


def test_no_more_flows_than_allowed(world: World) -> None:
    reset(world, limited(flows_max=3))
    assert [world.out(first(number)).outcome for number in range(3)] == ["out"] * 3
    refused = world.out(first(3))
    assert refused.reason == "client_flows"
    assert refused.frame == refusal(first(3), 3, 1)
    assert len(world.claims()) == 3
    assert world.out(first(0)).outcome == "out"  # what lives goes on
    assert counts(world) == [3]


def test_others_are_not_concerned(world: World) -> None:
    """Another address, and the same address on another on-ramp, are other clients."""
    reset(world, limited(flows_max=1))
    assert world.out(first(0)).outcome == "out"
    assert world.out(first(1)).reason == "client_flows"
    assert world.out(first(1, client="10.0.0.3")).outcome == "out"
    assert world.out(first(1), onramp=ONRAMP2).outcome == "out"
    assert counts(world) == [1, 1, 1]


def test_no_faster_than_allowed(world: World) -> None:
    """A second's worth at once, then one each 1/50 s."""
    reset(world, limited(new_per_s=50))
    ran = [world.out(first(number)) for number in range(300)]
    outcomes = [found.outcome for found in ran]
    assert outcomes[:50] == ["out"] * 50
    assert {found.reason for found in ran if not found.outcome} == {"client_rate"}
    assert outcomes.count("out") < 300
    assert len(world.claims()) == outcomes.count("out")


def test_a_rate_recovers(world: World) -> None:
    reset(world, limited(new_per_s=2))
    assert [world.out(first(number)).outcome for number in range(3)] == ["out", "out", None]
    clients = world.datapath.map("clients")
    for key, value in list(clients.items()):  # half a second goes by
        client = abi.Client.unpack(value)
        clients.set(key, client._replace(next_ns=client.next_ns - 500_000_000).pack())
    assert [world.out(first(number)).outcome for number in range(3, 5)] == ["out", None]


def test_a_conversation_that_is_over_does_not_count(world: World) -> None:
    reset(world, limited(flows_max=1))
    talk = Conversation(world).established()
    assert world.out(first(1)).reason == "client_flows"
    talk.out("FA")
    talk.back("FA")
    talk.out("A")
    assert counts(world) == [0]
    assert world.out(first(1)).outcome == "out"
    assert counts(world) == [1]


def test_one_that_begins_again_counts_again(world: World) -> None:
    reset(world, limited(flows_max=2))
    talk = Conversation(world).established()
    talk.back("R")
    assert counts(world) == [0]
    talk.out("S")
    talk.back("SA")
    talk.out("A")
    assert counts(world) == [1]


@pytest.mark.parametrize("freed_by", ["sweep", "takeover"])
def test_expired_flows_do_not_count(world: World, freed_by: str) -> None:
    """One port: the next client can only take over the claim of the one before, or find it swept."""
    reset(world, limited(flows_max=1, ports=16))
    for number in range(16):
        assert world.out(first(0, client=f"10.0.0.{2 + number}")).outcome == "out"
    world.expire()
    if freed_by == "sweep":
        assert world.datapath.sweep() == (16, 0)
    for number in range(16):
        assert world.out(first(0, client=f"10.0.1.{2 + number}")).outcome == "out"
    assert counts(world) == [1] * 16 if freed_by == "sweep" else [0] * 16 + [1] * 16
    world.datapath.sweep()
    assert len(counts(world)) == 16


def test_what_finds_no_port_does_not_count(world: World) -> None:
    reset(world, limited(flows_max=100, ports=16))
    outcomes = [world.out(first(number)).outcome for number in range(20)]
    assert outcomes.count("out") == 16
    assert counts(world) == [16]


def test_mappings_count_too(world: World) -> None:
    wanted = limited(flows_max=3)
    pool = replace(wanted.pools["gb"], behaviour=MAPPING, timers=Timers())
    reset(world, replace(wanted, pools={"gb": pool}))
    sent = world.out(udp("10.0.0.2:2000", "203.0.113.1:53"))
    assert counts(world) == [2]  # the mapping and the conversation
    assert world.out(udp("10.0.0.2:2000", "203.0.113.2:53")).outcome == "out"
    assert counts(world) == [3]
    assert world.out(udp("10.0.0.2:2000", "203.0.113.3:53")).reason == "client_flows"
    back = udp("203.0.113.1:53", local_end(sent.frame), macs=FROM_WIRE)
    assert world.back(back).outcome == "in"


def test_without_limits_nobody_is_counted(world: World) -> None:
    reset(world, limited())
    assert world.out(first(0), onramp=ONRAMP).outcome == "out"
    assert counts(world) == []
