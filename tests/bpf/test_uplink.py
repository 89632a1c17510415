"""This host's own packets, at the uplink: those of sockets in an agreement are translated like a client's, and none
goes out as it is; all others are left alone. BPF_PROG_TEST_RUN: the packets belong to a socket of this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bpf import families, frames
from tests.bpf.agreements import agreed, in_agreement
from tests.bpf.frames import (
    FROM_WIRE,
    REMOTE,
    TO_WIRE,
    arp,
    checksums_right,
    echo,
    error,
    gre,
    local_end,
    quoted,
    refusal,
    tagged,
    tcp,
    udp,
    with_ip,
)
from tests.bpf.pieces import cut, id_of, joined, port_of_id
from tests.bpf.programs import cgroup
from tests.bpf.test_mapping import OPEN, behaving
from tests.bpf.world import ADDRESS, ATTACH, LIMITS, ME, ONRAMP, UPLINK, World, state

from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.pools import ClientLimits
from softunicast.kernel.datapath import Datapath

FAMILIES = (4, 6)
HOST = "192.0.2.1:5000"
PROTOCOLS = ("tcp", "udp", "echo")
PAYLOAD = bytes(range(256)) * 11
TTL = 7  # of no packet that the data path makes itself


@pytest.fixture
def world(sockets_world: World, family: int) -> World:
    sockets_world.reset()
    return sockets_world


@pytest.fixture
def agreement(world: World) -> Iterator[World]:
    """This process is in one."""
    with in_agreement(world):
        yield world


def out(protocol: str, source: str = HOST, remote: str = REMOTE, flags: str = "S", ttl: int = TTL) -> bytes:
    if protocol == "tcp":
        return tcp(source, remote, flags, ttl=ttl, macs=TO_WIRE)
    if protocol == "udp":
        return udp(source, remote, ttl=ttl, macs=TO_WIRE)
    return echo(source, remote, frames.end(source)[1], ttl=ttl, macs=TO_WIRE)


def back(protocol: str, to: str, remote: str = REMOTE, ttl: int = TTL) -> bytes:
    if protocol == "tcp":
        return tcp(remote, to, "SA", ttl=ttl, macs=FROM_WIRE, acknowledgement=6)
    if protocol == "udp":
        return udp(remote, to, ttl=ttl, macs=FROM_WIRE)
    return echo(remote, to, frames.end(to)[1], True, ttl=ttl, macs=FROM_WIRE)


def untouched(world: World, frame: bytes, came_by: str | None = None) -> bool:
    ran = world.own(frame, came_by=came_by)
    return (ran.verdict, ran.frame, dict(ran.counted)) == ("next", frame, {})


def left(world: World, frame: bytes) -> str:
    """The shared end that it leaves from."""
    ran = world.own(frame)
    assert (ran.verdict, ran.outcome) == ("next", "out"), ran
    assert checksums_right(ran.frame) == (True, True)
    assert world.guard(ran.frame).verdict == "next"
    return local_end(ran.frame)


# -- there and back


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_packet_leaves_from_the_pool(agreement: World, protocol: str) -> None:
    """Nothing but the source changes; and what follows has the same."""
    local = left(agreement, out(protocol))
    assert local.startswith(f"{ADDRESS}:")
    assert int(local.rpartition(":")[2]) in range(2048, 4096)
    for ttl in (TTL, 1):  # traceroute begins with 1
        ran = agreement.own(out(protocol, ttl=ttl))
        assert ran.frame == out(protocol, local, ttl=ttl)
        assert dict(ran.counted) == {"out": 1}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_its_reply_goes_up(agreement: World, protocol: str) -> None:
    local = left(agreement, out(protocol))
    for ttl in (TTL, 1):
        ran = agreement.back(back(protocol, local, ttl=ttl))
        assert (ran.verdict, dict(ran.counted)) == ("next", {"in": 1})
        assert ran.frame == back(protocol, HOST, ttl=ttl)


def test_a_tcp_connection_is_followed(agreement: World) -> None:
    local = left(agreement, out("tcp"))
    agreement.back(back("tcp", local))
    agreement.own(tcp(HOST, REMOTE, "A", macs=TO_WIRE, sequence=6, acknowledgement=6))
    [flow] = agreement.datapath.flows(9)[1]
    assert (flow.onramp, flow.client, flow.local, flow.state) == ("host", HOST, local, "established")


def test_an_unknown_remote_is_not_ours(agreement: World) -> None:
    local = left(agreement, out("udp"))
    frame = back("udp", local, "203.0.113.9:443")
    assert agreement.back(frame).frame == frame


def test_the_host_and_clients_share_the_slice(world: World) -> None:
    """Sixteen ports: eight each, and then neither has one."""
    world.reset(state(ports=16))
    with in_agreement(world):
        hosts = {left(world, out("udp", f"192.0.2.1:{port}")) for port in range(5000, 5008)}
        clients = {local_end(world.out(udp(f"10.0.0.2:{port}")).frame) for port in range(5000, 5008)}
        assert len(hosts | clients) == 16
        assert world.own(out("udp", "192.0.2.1:6000")).reason == "slice_full"
        assert world.out(udp("10.0.0.2:6000")).reason == "slice_full"


def test_segments_that_are_cut_later(agreement: World) -> None:
    local = left(agreement, out("tcp"))
    frame = tcp(HOST, REMOTE, "A", b"x" * 1300, macs=TO_WIRE)
    ran = agreement.own(frame, segment_bytes=500)
    assert local_end(ran.frame) == local


# -- hands off


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_an_agreement(world: World, protocol: str) -> None:
    assert untouched(world, out(protocol))
    with cgroup() as other, agreed(world, other):
        assert untouched(world, out(protocol))
    with in_agreement(world, None):
        assert untouched(world, out(protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_none_of_ours(agreement: World, protocol: str) -> None:
    """Only passes through; has a shared source already (the guard's matter); stays on the link."""
    assert untouched(agreement, out(protocol, "10.0.0.2:5000"), came_by=ONRAMP)
    assert untouched(agreement, out(protocol, f"{ADDRESS}:2049"))
    if families.chosen == 4:
        assert untouched(agreement, out(protocol, remote="224.0.0.251:5353"))
        everybody = frames.changed(out(protocol, remote="192.0.2.255:68"), 0, b"\xff" * 6)
        assert untouched(agreement, everybody)
        assert untouched(agreement, arp())


def test_the_kernels_own_answers(world: World) -> None:
    """In nobody's name: an error about what came to a port without a socket."""
    assert untouched(world, error(HOST, REMOTE, quoted(back("udp", HOST)), macs=TO_WIRE))


# -- refused


def refused(world: World, frame: bytes, reason: str, code: tuple[int, int] = (3, 13)) -> None:
    """The sender hears it, as if from whom it wanted to talk to."""
    ran = world.own(frame)
    assert (ran.verdict, dict(ran.counted)) == ("redirect", {reason: 1, "icmp_sent": 1})
    assert ran.frame == refusal(frame, *code, REMOTE.rpartition(":")[0], FROM_WIRE)
    assert world.back(ran.frame).verdict == "next"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_full(world: World, protocol: str) -> None:
    world.reset(state(ports=16))
    code = (3, 1) if protocol == "tcp" else (3, 13)
    with in_agreement(world):
        for port in range(16):
            left(world, out(protocol, f"192.0.2.1:{5000 + port}"))
        refused(world, out(protocol, "192.0.2.1:5016"), "slice_full", code)
        left(world, out(protocol))  # who has a flow keeps it
    [drop] = [drop for drop in world.datapath.drops() if drop.last and drop.reason.name == "SLICE_FULL"]
    assert drop.last is not None
    assert (drop.last.hook, drop.last.interface) == ("uplink", "upl")


def test_no_lease(world: World) -> None:
    world.reset(state(pool=(3,)))
    with in_agreement(world):
        refused(world, out("udp"), "no_slice")


def test_the_pool_has_no_such_address(agreement: World) -> None:
    table = agreement.datapath.map("pools")
    [(key, value)] = list(table.items())
    table.delete(key)
    refused(agreement, out("udp"), "family")
    table.set(key, value)


def test_limits_of_a_client(world: World) -> None:
    """The host is a client like any other."""
    before = state()
    limited = replace(before.pools["gb"], client_limits=ClientLimits(flows_max=1))
    world.reset(replace(before, pools={"gb": limited}))
    with in_agreement(world):
        left(world, out("udp"))
        refused(world, out("udp", "192.0.2.1:5001"), "client_flows")


def test_what_cannot_be_translated(agreement: World) -> None:
    for frame, reason in (
        (gre(HOST, REMOTE, TO_WIRE), "protocol"),
        (tagged(out("udp")), "protocol"),
        (out("tcp", flags="A"), "no_flow"),
        (out("tcp", flags="SA"), "no_flow"),
        (error(HOST, REMOTE, quoted(back("udp", HOST)), macs=TO_WIRE), "icmp_error"),
    ):
        if families.chosen == 6 and reason == "protocol":
            continue  # frames of IPv4
        ran = agreement.own(frame)
        assert (ran.verdict, dict(ran.counted)) == ("drop", {reason: 1})


# -- fragments


def large(protocol: str, source: str, remote: str, macs: frames.Macs, reply: bool = False) -> bytes:
    if protocol == "udp":
        return udp(source, remote, PAYLOAD, TTL, macs)
    number = frames.end(remote if reply else source)[1]
    return echo(source, remote, number, reply, PAYLOAD, TTL, macs)


@pytest.mark.parametrize("protocol", ["udp", "echo"])
def test_fragments_of_the_stack(agreement: World, protocol: str) -> None:
    """In the order in which it makes them; with an identification out of the slice."""
    made = []
    for piece in cut(large(protocol, HOST, REMOTE, TO_WIRE)):
        ran = agreement.own(piece)
        assert (ran.verdict, ran.outcome) == ("next", "out")
        assert agreement.guard(ran.frame).frame == ran.frame
        made.append(ran.frame)
    whole = joined(made)
    [port] = agreement.local_ports()
    assert whole == with_ip(large(protocol, f"{ADDRESS}:{port}", REMOTE, TO_WIRE), id=id_of(whole))
    assert port_of_id(made[0]) in range(2048, 4096)


def test_a_later_fragment_alone(agreement: World) -> None:
    """A raw socket may send anything."""
    ran = agreement.own(cut(large("udp", HOST, REMOTE, TO_WIRE))[1])
    assert (ran.verdict, dict(ran.counted)) == ("drop", {"fragment_lost": 1})


@pytest.mark.parametrize("protocol", ["udp", "echo"])
def test_fragments_come_back(agreement: World, protocol: str) -> None:
    local = left(agreement, out(protocol))
    given = []
    for piece in cut(large(protocol, REMOTE, local, FROM_WIRE, reply=True)):
        ran = agreement.back(piece)
        assert (ran.verdict, ran.outcome) == ("next", "in")
        given.append(ran.frame)
    whole = joined(given)
    assert whole == with_ip(large(protocol, REMOTE, HOST, FROM_WIRE, reply=True), id=id_of(whole))


# -- ICMP errors


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_error_goes_up(agreement: World, protocol: str) -> None:
    """From any router, also one that is the last hop's (TTL 1)."""
    local = left(agreement, out(protocol))
    address = local.rpartition(":")[0]
    for ttl in (TTL, 1):
        router, about = "192.0.2.99:0", quoted(out(protocol, local))
        ran = agreement.back(error(router, f"{address}:0", about, (11, 0), ttl=ttl))
        assert (ran.verdict, dict(ran.counted)) == ("next", {"in": 1})
        assert ran.frame == error(router, HOST, quoted(out(protocol)), (11, 0), ttl=ttl)


def test_an_error_about_what_came_back_leaves_from_the_pool(agreement: World) -> None:
    """Port unreachable, as the kernel says it."""
    local = left(agreement, out("udp"))
    ran = agreement.own(error(HOST, REMOTE, quoted(back("udp", HOST)), macs=TO_WIRE))
    assert (ran.verdict, dict(ran.counted)) == ("next", {"out": 1})
    assert ran.frame == error(local, REMOTE, quoted(back("udp", local)), macs=TO_WIRE)


# -- endpoint-independent pools


def test_a_stranger_may_send_to_a_udp_socket(world: World) -> None:
    world.reset(behaving(OPEN))
    with in_agreement(world):
        local = left(world, out("udp"))
        ran = world.back(back("udp", local, "203.0.113.9:99"))
        assert (ran.verdict, dict(ran.counted)) == ("next", {"in": 1})
        assert ran.frame == back("udp", HOST, "203.0.113.9:99")
        about = quoted(back("udp", HOST, "203.0.113.9:99"))
        ran = world.own(error(HOST, "203.0.113.9:0", about, macs=TO_WIRE))
        assert ran.frame == error(
            local, "203.0.113.9:0", quoted(back("udp", local, "203.0.113.9:99")), macs=TO_WIRE
        )


@pytest.mark.parametrize("protocol", ["tcp", "echo"])
def test_but_not_to_where_the_kernel_would_answer(world: World, protocol: str) -> None:
    world.reset(behaving(OPEN))
    with in_agreement(world):
        local = left(world, out(protocol))
        frame = tcp("203.0.113.9:99", local, macs=FROM_WIRE)
        if protocol == "echo":
            frame = echo("203.0.113.9:99", local, frames.end(local)[1], macs=FROM_WIRE)
        assert world.back(frame).reason == "filtered"


# -- attached


def at_uplink(mount: Path) -> set[str]:
    return {pin.name for pin in (mount / "links").iterdir() if pin.name.startswith("uplink")}


def test_it_comes_and_goes_with_the_configuration(mount: Path) -> None:
    """Also when another agent takes over; the flows stay."""
    there = {f"uplink@{UPLINK}"}
    for enabled in (True, True, False, True):
        sockets = SocketsConfig(enabled=enabled)
        datapath = Datapath.open(mount, UPLINK, ME, LIMITS, ATTACH, sockets=sockets)
        datapath.apply(state())
        assert at_uplink(mount) == (there if enabled else set())
        if enabled:
            world = World(datapath)
            with in_agreement(world):
                [local] = {left(world, out("udp")) for _ in range(2)}
            assert datapath.flows(9)[0] == 1
        datapath.close()
    assert datapath.adopted
    last = Datapath.open(mount, UPLINK, ME, LIMITS, ATTACH)
    assert last.flows(9)[1][0].local == local
    assert at_uplink(mount) == set()
    last.remove()
