"""Memory while no agent sweeps: a table full of what is over refuses nobody, one full of live flows refuses and evicts
nothing, and no flood makes the kernel look for room all the time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bpf.client_counts import check, limited, said
from tests.bpf.frames import tcp, udp
from tests.bpf.test_mapping import behaving
from tests.bpf.test_search import Opener
from tests.bpf.world import ONRAMP, World, make_world, state

from softunicast.core.config import Limits
from softunicast.core.pools import Behaviour
from softunicast.kernel import abi
from softunicast.kernel.words import index_key

FLOWS = 1024
SMALL = Limits(flows_max=FLOWS, clients_max=32, addresses_max=16, slots_max=4096)
MAPPING = Behaviour(frozenset({"udp"}), frozenset())


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with make_world(tmp_path_factory.mktemp("small"), SMALL) as made:
        yield made


@pytest.fixture
def world(small_world: World) -> World:
    small_world.reset()
    return small_world


def sweeping(world: World) -> abi.Sweeping:
    value = world.datapath.map("sweeps").get(index_key(0))
    assert value
    return abi.Sweeping.unpack(value)


def agent_swept(world: World, ago_s: float) -> None:
    """And a packet may look again."""
    at_ns = time.monotonic_ns() - int(ago_s * 1e9)
    world.datapath.map("sweeps").set(
        index_key(0), sweeping(world)._replace(swept_ns=at_ns, again_ns=0).pack()
    )


def fill(world: World) -> int:
    """With flows to two destinations, until there is no room; the kernel's count is a little coarse."""
    for remote in ("203.0.113.1:443", "203.0.113.2:443"):
        opener = Opener(world, "tcp", remote)
        for number in range(1000):
            if opener.open(number) is None:
                break
    found = len(world.claims())
    assert FLOWS - 64 <= found <= FLOWS
    return found


@pytest.mark.parametrize("agent", [True, False])
def test_a_table_of_expired_claims_refuses_nobody(world: World, agent: bool) -> None:
    fill(world)
    agent_swept(world, 1 if agent else 60)
    world.expire()
    assert world.out(udp("10.0.0.9:9000")).outcome == "out"
    assert len(world.claims()) == len(world.flows()) == 1
    check(world)


def test_only_what_is_over_is_freed(world: World) -> None:
    found = fill(world)
    agent_swept(world, 60)
    over = dict(list(world.claims().items())[::7])
    for key, claim in over.items():
        world.datapath.map("claims").set(key.pack(), claim._replace(expires_ns=1).pack())
    assert world.out(udp("10.0.0.9:9000")).outcome == "out"
    left = set(world.claims())
    assert len(left) == len(world.flows()) == found - len(over) + 1
    assert not left & over.keys()


def test_live_flows_are_never_evicted_for_new_ones(world: World) -> None:
    """And everything is looked at once, not again for each packet that is refused."""
    found = fill(world)
    before = set(world.claims())
    agent_swept(world, 60)
    assert world.out(udp("10.0.0.9:9000")).reason == "table_full"
    first = sweeping(world)
    assert first.again_ns - first.swept_ns >= 10**9
    for number in range(20):
        assert world.out(udp(f"10.0.0.9:{9001 + number}")).reason == "table_full"
    assert sweeping(world) == first
    assert set(world.claims()) == before
    assert len(before) == found
    world.expire()  # not noticed before it is time to look again
    assert world.out(udp("10.0.0.9:9000")).reason == "table_full"
    agent_swept(world, 60)
    assert world.out(udp("10.0.0.9:9000")).outcome == "out"


def test_many_packets_free_many_claims(world: World) -> None:
    """As one cannot free everything there is, the next goes on at once."""
    fill(world)
    agent_swept(world, 60)
    world.expire()
    for number in range(50):
        assert world.out(udp(f"10.0.0.9:{9000 + number}")).outcome == "out"
    assert len(world.claims()) == 50


def test_a_client_at_its_limit_is_not_kept_there_by_expired_flows(world: World) -> None:
    """While there is an agent it frees them; otherwise the client's own next packet does."""
    world.reset(limited(flows_max=3))
    for number in range(3):
        assert world.out(tcp(f"10.0.0.2:{3000 + number}")).outcome == "out"
    world.expire()
    agent_swept(world, 1)
    assert world.out(tcp("10.0.0.2:3003")).reason == "client_flows"
    agent_swept(world, 60)
    assert world.out(tcp("10.0.0.2:3003")).outcome == "out"
    assert [found.tcp for found in said(world).values()] == [1]
    check(world)


def test_no_room_for_clients(world: World) -> None:
    """Those that have nothing any more make room, those that have something stay."""
    world.reset(limited(flows_max=3))
    for number in range(SMALL.clients_max - 2):
        assert world.out(tcp(f"10.0.0.{2 + number}:3000")).outcome == "out"
    clients = world.datapath.map("clients")
    clients.set_many((abi.ClientKey(999, number).pack(), bytes(abi.CLIENT_BYTES)) for number in range(2))
    agent_swept(world, 1)
    assert world.out(tcp("10.0.1.2:3000")).reason == "client_table"
    agent_swept(world, 60)
    assert world.out(tcp("10.0.1.2:3000")).outcome == "out"
    assert len(list(clients.items())) == SMALL.clients_max - 1
    check(world)


def test_a_flow_that_is_tried_twice_is_one_flow(world: World) -> None:
    """A mapping and its conversation, after room was made: nothing of the first try is left over."""
    world.reset(behaving(MAPPING))
    opener = Opener(world, "tcp")
    while opener.open(len(world.flows())) is not None:
        pass
    agent_swept(world, 60)
    world.expire()
    assert world.out(udp("10.0.0.9:9000")).outcome == "out"
    claims = world.claims()
    assert sorted(bool(key.remote) for key in claims) == [False, True]
    assert all(claim.sent == 0 for claim in claims.values())
    assert len(world.flows()) == 2


# -- how full a pool is --------------------------------------------------------------------------------------


def test_the_busiest_destination_says_how_full_a_pool_is(world: World) -> None:
    """Not the number of flows, nor of ports in use: a port serves many destinations."""
    world.reset(state(ports=64))
    assert world.datapath.usage() == {}
    for remote in range(5):
        Opener(world, "tcp", f"203.0.113.{remote + 1}:443").fill(40 if remote == 3 else 10)
    Opener(world, "udp", "203.0.113.4:443").fill(20)
    world.datapath.sweep()
    (usage,) = world.datapath.usage().values()
    assert (usage.flows, usage.busiest, usage.destination) == (100, 40, "tcp 203.0.113.4:443")
    assert list(world.datapath.usage()) == ["gb"]
    world.expire()
    world.datapath.sweep()
    assert world.datapath.usage() == {}


def test_mappings_are_one_destination(world: World) -> None:
    world.reset(behaving(MAPPING, 64))
    for number in range(12):
        for remote in range(4):
            to = f"203.0.113.{1 + (remote + number) % 9}:53"
            assert world.out(udp(f"10.0.0.2:{2000 + number}", to)).outcome == "out"
    world.datapath.sweep()
    (usage,) = world.datapath.usage().values()
    assert (usage.flows, usage.busiest, usage.destination) == (60, 12, "udp any")


def test_many_destinations_are_told_apart(world: World) -> None:
    """1,000 destinations share the counters of a sweep without looking like a busy one."""
    template = next(iter(_one_flow(world).items()))
    key, claim = template
    many = ((key._replace(remote=key.remote ^ number << 12).pack(), claim.pack()) for number in range(900))
    world.datapath.map("claims").set_many(many)
    world.datapath.sweep()
    (usage,) = world.datapath.usage().values()
    assert usage.flows == 900
    assert usage.busiest <= 3


def _one_flow(world: World) -> dict[abi.ClaimKey, abi.Claim]:
    assert world.out(tcp(), ONRAMP).outcome == "out"
    return world.claims()


# -- memory --------------------------------------------------------------------------------------------------

FLOW_AND_CLAIM_BYTES = 288  # of IPv4, as the reference says; and
FLOW6_EMPTY_BYTES, FLOW6_BYTES = 32, 380


def test_flows_take_their_memory_at_the_start(tmp_path: Path) -> None:
    """What the kernel accounts to the maps (before 6.4 it accounts something else: no statement then)."""
    flows, some = 1 << 17, 1 << 13
    with make_world(tmp_path, Limits(flows_max=flows)) as world:
        empty = world.datapath.memory_bytes()
        assert empty["flows"] + empty["claims"] == pytest.approx(FLOW_AND_CLAIM_BYTES * flows, rel=0.01)
        assert sum(empty.values()) <= (FLOW_AND_CLAIM_BYTES + FLOW6_EMPTY_BYTES + 1) * flows + 21_200_000
        claim = bytearray(abi.CLAIM_BYTES)
        claim[0:8] = (1 << 62).to_bytes(8, "little")
        for name, keys, value in (
            ("claims", (abi.ClaimKey(1, at, 2, 3, 6).pack() for at in range(some)), bytes(claim)),
            ("flows", (abi.FlowKey(1, at, 3, 4, 5, 6).pack() for at in range(some)), bytes(abi.FLOW_BYTES)),
        ):
            world.datapath.map(name).set_many((key, value) for key in keys)
        after = world.datapath.memory_bytes()
        assert (after["flows"], after["claims"]) == (empty["flows"], empty["claims"])
        for name, key, value in (
            ("claims6", abi.CLAIM_KEY6_BYTES, abi.CLAIM6_BYTES),
            ("flows6", abi.FLOW_KEY6_BYTES, abi.FLOW6_BYTES),
        ):
            keys = (at.to_bytes(key, "little") for at in range(some))
            world.datapath.map(name).set_many((one, bytes(value)) for one in keys)
        grown = sum(world.datapath.memory_bytes().values()) - sum(after.values())
        assert 0 < grown / some <= FLOW6_BYTES
