"""Endpoint-independent mapping, by protocol (RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 5508 REQ-1): one outside port for all
destinations, used by nobody else. Who may send to it: test_filtering.py.

In the tables a mapping is a claim, and a flow, without a remote end.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import replace

import pytest
from tests.bpf import families, frames
from tests.bpf.frames import CLIENT, FROM_WIRE, REMOTE, TO_CLIENT, echo, end, local_end, tcp, udp
from tests.bpf.programs import on_loopback
from tests.bpf.talk import Conversation
from tests.bpf.test_search import Opener, slice_ends
from tests.bpf.world import ADDRESS, DEPENDENT, ONRAMP, ONRAMP2, UPLINK, Ran, World, slot_changed, state

from softunicast.core.desired import KernelState, PoolSlices
from softunicast.core.pools import BEHAVIOUR_DEFAULT, PROTOCOLS, Behaviour, Timers
from softunicast.kernel import abi

FAMILIES = (4, 6)

NS = 1_000_000_000
TIMERS = Timers(tcp_opening_s=100, tcp_established_s=1000, tcp_closing_s=50, udp_s=30, icmp_s=20)
MAPPING = Behaviour(frozenset(PROTOCOLS), frozenset())
OPEN = Behaviour(frozenset(PROTOCOLS), frozenset(PROTOCOLS))
REMOTES = (REMOTE, "203.0.113.1:444", "203.0.113.2:443", "9.9.9.9:9")
STRANGER = "203.0.113.77:7777"
OTHER_CLIENT = "10.0.0.3:40000"


def behaving(behaviour: Behaviour, ports: int = 2048, mine: tuple[int, ...] = (1,)) -> KernelState:
    wanted = state(ports=ports, mine=mine, timers=TIMERS)
    slices = wanted.pools["gb"].slices
    return replace(wanted, pools={"gb": PoolSlices(TIMERS, slices, behaviour)})


@pytest.fixture
def mapping(world: World) -> World:
    world.reset(behaving(MAPPING))
    return world


def first(
    protocol: str, client: str = CLIENT, remote: str = REMOTE, macs: frames.Macs = frames.FROM_CLIENT
) -> bytes:
    if protocol == "icmp":
        return echo(client, remote, end(client)[1], macs=macs)
    return (tcp if protocol == "tcp" else udp)(client, remote, macs=macs)


def incoming(protocol: str, remote: str, local: str, ttl: int = 64, macs: frames.Macs = FROM_WIRE) -> bytes:
    """What a remote end sends first, or back."""
    if protocol == "icmp":
        return echo(remote, local, end(local)[1], True, ttl=ttl, macs=macs)
    return (tcp if protocol == "tcp" else udp)(remote, local, ttl=ttl, macs=macs)


def local_of(ran: Ran) -> str:
    assert ran.outcome == "out", ran
    return local_end(ran.frame)


def mappings(world: World) -> dict[abi.ClaimKey, abi.Claim]:
    return {key: claim for key, claim in world.claims().items() if not key.remote}


def sessions(world: World) -> dict[abi.ClaimKey, abi.Claim]:
    return {key: claim for key, claim in world.claims().items() if key.remote}


def age(world: World, seconds: int) -> None:
    """Time goes by for every claim and flow."""
    past = seconds * NS
    for key, claim in world.claims().items():
        older = claim._replace(
            expires_ns=max(1, claim.expires_ns - past),
            refresh_in_ticks=max(0, claim.refresh_in_ticks - past // abi.AbiLimit.TICK_NS),
        )
        world.datapath.map("claims").set(key.pack(), older.pack())
    for key, flow in world.flows().items():
        world.datapath.map("flows").set(
            key.pack(), flow._replace(refresh_ns=max(0, flow.refresh_ns - past)).pack()
        )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_port_for_all_destinations(mapping: World, protocol: str) -> None:
    locals_ = {local_of(mapping.out(first(protocol, CLIENT, remote))) for remote in REMOTES}
    assert len(locals_) == 1
    assert len(mappings(mapping)) == 1
    others = [OTHER_CLIENT, "10.0.0.2:40001", "10.0.0.2:1"]
    for client in others:
        found = {local_of(mapping.out(first(protocol, client, remote))) for remote in REMOTES}
        assert len(found) == 1
        assert not found & locals_
        locals_ |= found
    assert len(mappings(mapping)) == len(locals_) == 1 + len(others)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_replies_of_each_destination(mapping: World, protocol: str) -> None:
    for remote in REMOTES:
        local = local_of(mapping.out(first(protocol, CLIENT, remote)))
        ran = mapping.back(incoming(protocol, remote, local))
        assert ran.frame == incoming(protocol, remote, CLIENT, 63, TO_CLIENT)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_as_many_mappings_as_ports_and_not_one_more(world: World, protocol: str) -> None:
    """RFC 4787 REQ-3: no port serves two clients, whatever the destinations; and all ports serve."""
    world.reset(behaving(MAPPING, 16, (1, 4)))
    name = {"icmp": "echo"}.get(protocol, protocol)
    assert Opener(world, name).fill(32) == slice_ends(1, 4, ports=16)
    for remote in REMOTES:
        ran = world.out(first(protocol, OTHER_CLIENT, remote))
        assert (ran.reason, ran.verdict) == ("slice_full", "redirect")
    # Those who have a port reach every destination.
    elsewhere = Opener(world, name, "203.0.113.9:99")
    assert elsewhere.fill(32) == slice_ends(1, 4, ports=16)
    assert len(mappings(world)) == 32
    for other in set(PROTOCOLS) - {protocol}:
        assert world.out(first(other, OTHER_CLIENT)).outcome == "out"  # ports of their own


def test_the_default(world: World) -> None:
    """UDP and ICMP map independently, TCP uses a port for many destinations; nobody is let in."""
    world.reset(behaving(BEHAVIOUR_DEFAULT, 16))
    assert Opener(world, "tcp").fill(16) == slice_ends(1, ports=16)
    assert Opener(world, "tcp", "203.0.113.9:99").fill(16, 500) == slice_ends(1, ports=16)
    assert Opener(world, "udp").fill(16) == slice_ends(1, ports=16)
    assert Opener(world, "udp", "203.0.113.9:99").open(500) is None
    assert Opener(world, "echo").fill(16) == slice_ends(1, ports=16)
    assert Opener(world, "echo", "203.0.113.9:99").open(500) is None
    for protocol in PROTOCOLS:
        for port in range(16, 32):
            frame = incoming(protocol, STRANGER, f"{ADDRESS}:{port}")
            verdict = world.run("egress_in", frame, UPLINK).verdict
            assert verdict == "drop", "unsolicited, or filtered"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_onramps_with_the_same_client(mapping: World, protocol: str) -> None:
    one = local_of(mapping.out(first(protocol), ONRAMP))
    other = local_of(mapping.out(first(protocol, macs=(frames.CLIENT_MAC, frames.ONRAMP2_MAC)), ONRAMP2))
    assert one != other


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_listed_as_what_it_is(mapping: World, protocol: str) -> None:
    local = local_of(mapping.out(first(protocol)))
    total, found = mapping.datapath.flows(10)
    assert total == 2
    states = {flow.remote: (flow.state, flow.client, flow.local) for flow in found}
    assert states["any"] == ("mapping", CLIENT, local)


# -- lifetime


def lives(world: World) -> tuple[int, int]:
    """Seconds left to the mapping and to the longest of its conversations."""
    ((_, found),) = mappings(world).items()
    now = time.monotonic_ns()
    longest = max(claim.expires_ns for claim in sessions(world).values())
    return round((found.expires_ns - now) / NS), round((longest - now) / NS)


@pytest.mark.parametrize(("protocol", "lifetime_s"), [("tcp", 100), ("udp", 30), ("icmp", 20)])
def test_mapping_and_conversations_end_together(mapping: World, protocol: str, lifetime_s: int) -> None:
    local = local_of(mapping.out(first(protocol)))
    assert lives(mapping) == (lifetime_s, lifetime_s)
    age(mapping, 10)
    mapping.out(first(protocol, remote=REMOTES[2]))
    age(mapping, 5)
    assert lives(mapping) == (lifetime_s - 5, lifetime_s - 5)
    mapping.out(first(protocol))  # the first conversation goes on
    assert lives(mapping) == (lifetime_s, lifetime_s)
    age(mapping, lifetime_s)
    assert mapping.back(incoming(protocol, REMOTE, local)).outcome is None
    assert mapping.datapath.sweep() == (3, 0)
    assert not mapping.claims()
    assert not mapping.flows()


def test_a_tcp_mapping_follows_its_conversation(mapping: World) -> None:
    talk = Conversation(mapping)
    assert lives(mapping) == (100, 100)
    age(mapping, 99)
    talk.back("SA")  # the peer prolongs it, too
    assert lives(mapping) == (100, 100)
    talk.out("A")
    assert lives(mapping) == (1000, 1000)
    talk.out("FA")
    talk.back("FA")
    assert lives(mapping) == (50, 50)
    talk.out("S")
    assert lives(mapping) == (100, 100)


def test_a_tcp_mapping_lives_as_long_as_the_longest_conversation(mapping: World) -> None:
    """When one of several ends, the others keep it."""
    kept = Conversation(mapping).established()
    ended = Conversation(mapping, remote=REMOTES[1]).established()
    assert kept.local == ended.local
    age(mapping, 10)
    ended.back("R")
    assert lives(mapping) == (990, 990)
    kept.out("FA")
    kept.back("FA")
    assert lives(mapping)[0] >= 50


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_expired_mapping_changes_hands(world: World, protocol: str) -> None:
    world.reset(behaving(MAPPING, 16))
    name = {"icmp": "echo"}.get(protocol, protocol)
    Opener(world, name).fill(16)
    before = local_of(world.out(first(protocol, "10.0.0.2:1030")))
    key = next(
        key for key, claim in mappings(world).items() if struct.unpack_from(">H", claim.flow, 8)[0] == 1030
    )
    for old in [key, *(other for other in sessions(world) if other.local_port == key.local_port)]:
        world.expire(old)
    ran = world.out(first(protocol, OTHER_CLIENT))
    assert local_of(ran) == before
    assert len(mappings(world)) == 16
    # Who had it gets no other (none is free), and has lost this one.
    assert world.out(first(protocol, "10.0.0.2:1030", REMOTES[2])).reason == "slice_full"
    answer = world.back(incoming(protocol, REMOTE, before))
    assert answer.frame == incoming(protocol, REMOTE, OTHER_CLIENT, 63, TO_CLIENT)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("swept", [False, True])
def test_a_port_open_to_all_rests(world: World, protocol: str, swept: bool) -> None:
    """Strangers may still send to who had it: nobody else gets it before `rest_s` (RFC 6888 REQ-8)."""
    world.reset(behaving(OPEN, 16))
    Opener(world, {"icmp": "echo"}.get(protocol, protocol)).fill(16)
    rested_ns = TIMERS.rest_s * NS
    now = time.monotonic_ns()
    for expires_ns, wanted in ((now - rested_ns + 5 * NS, "slice_full"), (now - rested_ns - NS, None)):
        world.change_claims(expires_ns=expires_ns)
        if swept:
            world.datapath.sweep()
            assert len(mappings(world)) == (16 if wanted else 0)
        assert world.back(incoming(protocol, STRANGER, f"{ADDRESS}:20")).outcome is None  # no longer let in
        assert world.out(first(protocol, OTHER_CLIENT)).reason == wanted


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("behaviour", [MAPPING, DEPENDENT])
def test_a_slice_that_was_lost(world: World, protocol: str, behaviour: Behaviour) -> None:
    """What the client sends next leaves from a slice that this server holds, once its flow asks."""
    world.reset(behaving(behaviour, mine=(1, 4)))
    before = local_of(world.out(first(protocol)))
    lost = end(before)[1] // 2048
    changed = slot_changed(world.datapath.state, lost, None)
    kept = tuple(slice_ for slice_ in changed.pools["gb"].slices if slice_.port_first // 2048 != lost)
    world.datapath.apply(replace(changed, pools={"gb": PoolSlices(TIMERS, kept, behaviour)}))
    world.change_flows(refresh_ns=0)
    after = [local_of(world.out(first(protocol, remote=remote))) for remote in (*REMOTES, REMOTE)]
    assert {end(local)[1] // 2048 for local in after} == {5 - lost}
    assert after[0] == after[-1]
    assert behaviour is DEPENDENT or len(set(after)) == 1


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("behaviour", [MAPPING, OPEN])
def test_what_a_socket_has_with_one_destination(world: World, kind: int, behaviour: Behaviour) -> None:
    """The client's port cannot change for one destination: that one is refused, the others are not. And what comes
    from there is the socket's."""
    world.reset(behaving(behaviour, 16))
    protocol = "udp" if kind == socket.SOCK_DGRAM else "tcp"
    with on_loopback(str(ADDRESS)), socket.socket(families.socket_family(), kind) as held:
        local = local_of(world.out(first(protocol)))
        held.bind(families.socket_end(local))
        held.setblocking(False)
        held.connect_ex(families.socket_end(REMOTES[2]))
        assert local_of(world.out(first(protocol, remote=REMOTES[1]))) == local
        before = world.claims()
        assert world.out(first(protocol, remote=REMOTES[2])).reason == "slice_full"
        assert world.claims().keys() == before.keys()
        flags = {"flags": "SA"} if protocol == "tcp" else {}
        answer = {"tcp": tcp, "udp": udp}[protocol](REMOTES[2], local, macs=FROM_WIRE, **flags)
        assert (world.back(answer).verdict, world.back(answer).counted) == ("next", {})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_packets_at_once_open_one_conversation(mapping: World, protocol: str) -> None:
    """Another CPU has claimed the port for this very conversation, and not written its flow yet."""
    local = local_of(mapping.out(first(protocol)))
    for key in mapping.flows():
        if key.remote:
            mapping.datapath.map("flows").delete(key.pack())
    before = mapping.claims().keys()
    ran = mapping.out(first(protocol))
    assert dict(ran.counted) == {"out": 1}
    assert local_end(ran.frame) == local
    assert mapping.claims().keys() == before
    assert all(not key.remote for key in mapping.flows())  # that is the other CPU's to do


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_address_passes_for_any(mapping: World, protocol: str) -> None:
    """A mapping is kept under remote 0.0.0.0: a packet that says to be from there is not let in by it."""
    local = local_of(mapping.out(first(protocol)))
    for port in (0, 443):
        frame = incoming(protocol, f"0.0.0.0:{port}", local)
        assert mapping.director(frame).reason == "malformed"
        ran = mapping.back(frame)
        assert (ran.verdict, ran.counted) == ("next", {})
        assert mapping.out(first(protocol, remote=f"0.0.0.0:{port}")).reason == "malformed"
