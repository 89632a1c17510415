"""What programs in agreements send by another interface than the uplink: refused at once, whatever kind of socket."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from tests.bpf import families, frames
from tests.bpf.agreements import agreed
from tests.bpf.far_end import Wire, agreed_place, far_end, made_in, prepare, to, udp_in, writable
from tests.bpf.frames import FROM_WIRE, echo, source_of, tcp, udp
from tests.bpf.programs import cgroup, inside, on_loopback
from tests.bpf.second_card import (
    FROM_THERE,
    OTHER,
    OTHER_END,
    OWN,
    THERE,
    THERE_MAC,
    counted,
    refused,
    second_card,
)
from tests.bpf.world import ADDRESS, ONRAMP, UPLINK, World, add_pair, namespace

from softunicast.kernel import abi, cgroups, strays

FAMILIES = (4, 6)


@pytest.fixture(scope="module")
def other(sockets_world: World) -> Iterator[World]:
    with second_card():
        yield sockets_world


@pytest.fixture
def world(other: World, family: int) -> World:
    return prepare(other)


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    with far_end(OTHER_END) as made:
        yield made


@pytest.fixture
def place(world: World) -> Iterator[Path]:
    with agreed_place(world) as made, looked_at(world, made):
        yield made


@contextmanager
def looked_at(world: World, cgroup: Path) -> Iterator[None]:
    """As by `run` and `attach`."""
    folder = world.of_both.folder
    strays.attach(folder, cgroup)
    try:
        yield
    finally:
        strays.detach(folder, cgroups.number(cgroup))


def bound(place: Path | None, kind: int = socket.SOCK_DGRAM, port: int = 0) -> socket.socket:
    made = made_in(place, kind)
    made.bind((families.current(OWN), port))
    return made


# -- refused


def test_a_datagram(world: World, place: Path, wire: Wire) -> None:
    with udp_in(place) as asks, refused(world, wire):
        asks.sendto(b"question", to(THERE))
    [drop] = [drop for drop in world.datapath.drops() if drop.reason is abi.Reason.NOT_UPLINK]
    assert (drop.last.hook, drop.last.interface) == ("socket", OTHER)
    assert drop.last.source.startswith(f"{OWN}:")
    assert drop.last.destination == THERE


def test_a_datagram_of_a_bound_socket(world: World, place: Path, wire: Wire) -> None:
    with bound(place) as asks:
        with refused(world, wire):
            asks.sendto(b"question", to(THERE))
        asks.connect(to(THERE))
        with refused(world, wire):
            asks.send(b"question")


@pytest.mark.parametrize("size", [4000, 60000])
def test_a_large_datagram(world: World, place: Path, wire: Wire, size: int) -> None:
    with bound(place) as asks, refused(world, wire):
        asks.sendto(b"x" * size, to(THERE))


def test_a_datagram_from_a_shared_address(world: World, place: Path, wire: Wire) -> None:
    """There is no guard at that interface."""
    with on_loopback(str(ADDRESS)), inside(place), made_in(None, socket.SOCK_DGRAM) as asks:
        asks.connect(to(THERE))
        assert asks.getsockname()[0] == families.current(str(ADDRESS))
        with refused(world, wire):
            asks.send(b"question")


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_RAW], ids=["ping", "raw"])
def test_echo(world: World, place: Path, wire: Wire, kind: int) -> None:
    protocol = socket.IPPROTO_ICMP if families.chosen == 4 else socket.IPPROTO_ICMPV6
    sent = echo(f"{OWN}:77", THERE, 77)[frames.transport_at() :]
    with made_in(place, kind, protocol) as pings:
        if families.chosen == 6 and kind == socket.SOCK_DGRAM:  # the kernel does not tell such a socket
            with counted(world, not_uplink=1):
                pings.sendto(sent, (to(THERE)[0], 0))
            wire.check_silent()
        else:
            with refused(world, wire):
                pings.sendto(sent, (to(THERE)[0], 0))


@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, 132, 47])
def test_a_packet_that_a_program_makes(world: World, place: Path, wire: Wire, protocol: int) -> None:
    """Of a raw socket: also in the middle of a connection, and what has no ports."""
    sent = tcp(f"{OWN}:77", THERE, "A")[frames.transport_at() :]
    with made_in(place, socket.SOCK_RAW, protocol) as raw, refused(world, wire):
        raw.sendto(sent, (to(THERE)[0], 0))


@pytest.mark.parametrize("source", [OWN, str(ADDRESS), "192.0.2.77"])
def test_a_header_that_a_program_makes(world: World, place: Path, wire: Wire, source: str) -> None:
    with made_in(place, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw, refused(world, wire):
        raw.sendto(udp(f"{source}:77", THERE)[14:], (to(THERE)[0], 0))


def test_a_connection(world: World, place: Path, wire: Wire) -> None:
    """From the host's own address, and from the pool's."""
    with counted(world, not_uplink=1), bound(place, socket.SOCK_STREAM) as made:
        made.setblocking(False)
        assert made.connect_ex(to(THERE)) == errno.EINPROGRESS
    with (
        on_loopback(str(ADDRESS)),
        inside(place),
        counted(world, not_uplink=1, sockets=1),
        made_in(None, socket.SOCK_STREAM) as made,
    ):
        made.setblocking(False)
        assert made.connect_ex(to(THERE)) == errno.EINPROGRESS
    wire.check_silent()


def test_another_network_namespace(world: World, place: Path, wire: Wire) -> None:
    """It has an interface of the uplink's number, too."""
    with namespace(), inside(place):
        numbers = [add_pair(f"v{i}", f"w{i}", f"02:00:00:00:01:{i:02x}", f"10.{i}.0.1/24") for i in range(4)]
        assert world.index[UPLINK] in numbers
        at = numbers.index(world.index[UPLINK])
        with IPRoute() as netlink:
            there = families.current(f"10.{at}.0.2")
            number = families.socket_family()
            ifindex = numbers[at]
            netlink.neigh(
                "add", family=number, dst=there, lladdr=THERE_MAC, ifindex=ifindex, state="permanent"
            )
        protocol = socket.IPPROTO_ICMP if families.chosen == 4 else socket.IPPROTO_ICMPV6
        sent = echo(f"{OWN}:77", THERE, 77)[frames.transport_at() :]
        with made_in(None, socket.SOCK_RAW, protocol) as pings, refused(world, wire, "namespace"):
            pings.sendto(sent, (there, 0))


# -- not refused


def passed(wire: Wire) -> bytes:
    frame = wire.next()
    assert source_of(frame) == OWN
    return frame


def test_programs_in_no_agreement(world: World, place: Path, wire: Wire) -> None:
    with cgroup() as none, cgroup() as excused, agreed(world, excused, None), counted(world):
        for where in (none, excused):
            with udp_in(where) as asks:
                asks.sendto(b"question", to(THERE))
            passed(wire)


def test_loopback(world: World, place: Path, wire: Wire) -> None:
    """The host's own addresses, too."""
    with udp_in(place) as asks, counted(world):
        for address in ("127.0.0.1" if families.chosen == 4 else "::1", families.current(OWN)):
            with made_in(None, socket.SOCK_DGRAM) as answers:
                answers.bind((address, 0))
                asks.sendto(b"question", (address, answers.getsockname()[1]))
                assert answers.recv(100) == b"question"


def test_what_stays_on_its_link(world: World, place: Path) -> None:
    multicast = ("224.0.0.251", "10.9.0.255", "255.255.255.255") if families.chosen == 4 else ("ff02::fb",)
    with udp_in(place) as asks, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as seen:
        seen.bind(("otp", 0))
        asks.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asks.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, OTHER.encode())
        with counted(world):
            for number, address in enumerate(multicast):
                asks.sendto(b"stays %d" % number, (address, 5353))
                seen.settimeout(5)
                while b"stays %d" % number not in seen.recv(1 << 16):
                    pass


def test_clients_of_an_onramp(world: World, place: Path) -> None:
    """They are this server's own; whatever the program answers to them."""
    with IPRoute() as netlink:
        there, index = families.current("10.0.0.77"), world.index[ONRAMP]
        netlink.neigh(
            "replace",
            family=families.socket_family(),
            dst=there,
            lladdr=THERE_MAC,
            ifindex=index,
            state="permanent",
        )
    with far_end("clp") as client, udp_in(place) as answers, counted(world):
        answers.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, ONRAMP.encode())
        answers.sendto(b"answer", (there, 53))
        assert source_of(client.next()) == "10.0.0.1"


def test_a_service_answers(world: World, place: Path, wire: Wire) -> None:
    """Who has connected to it: a proxy in an agreement, to its users."""
    with bound(place, socket.SOCK_STREAM, 8080) as service, counted(world):
        service.listen()
        wire.send(tcp(THERE, f"{OWN}:8080", "S", macs=FROM_THERE, sequence=100))
        syn_ack = passed(wire)
        at = frames.transport_at()
        [sequence] = struct.unpack("!I", syn_ack[at + 4 : at + 8])
        wire.send(tcp(THERE, f"{OWN}:8080", "A", macs=FROM_THERE, sequence=101, acknowledgement=sequence + 1))
        with service.accept()[0] as user:
            user.send(b"welcome")
            assert b"welcome" in passed(wire)
            user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        passed(wire)


def test_a_connection_from_before_the_agreement(world: World, wire: Wire) -> None:
    with cgroup() as place, bound(place, socket.SOCK_STREAM) as made, counted(world):
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert made.connect_ex(to(THERE)) == errno.EINPROGRESS
        syn = passed(wire)
        at = frames.transport_at()
        [sequence] = struct.unpack("!I", syn[at + 4 : at + 8])
        local = frames.local_end(syn)
        with agreed(world, place), looked_at(world, place):
            wire.send(tcp(THERE, local, "SA", macs=FROM_THERE, sequence=100, acknowledgement=sequence + 1))
            passed(wire)


# -- a conversation whose way changes


def test_a_connection_that_began_at_the_uplink(world: World, place: Path, wire: Wire) -> None:
    """Its packets have lost their translation: it waits for the way back, under no other address."""
    far = "203.0.113.77:443"
    with far_end() as uplink, made_in(place, socket.SOCK_STREAM) as made:
        made.bind((families.current("192.0.2.1"), 0))
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert made.connect_ex(to(far)) == errno.EINPROGRESS
        syn = uplink.next()
        at = frames.transport_at()
        [sequence] = struct.unpack("!I", syn[at + 4 : at + 8])
        local = frames.local_end(syn)
        uplink.send(tcp(far, local, "SA", macs=FROM_WIRE, sequence=100, acknowledgement=sequence + 1))
        assert frames.local_end(uplink.next()) == local
        assert writable(made)
        with IPRoute() as netlink:
            address, gateway = families.current(far.partition(":")[0]), to(THERE)[0]
            prefix = 32 if families.chosen == 4 else 128
            way = {"dst": f"{address}/{prefix}", "gateway": gateway, "family": families.socket_family()}
            netlink.route("add", **way, oif=socket.if_nametoindex(OTHER))
            try:
                before = world.counters()["not_uplink"]
                made.send(b"more")
                assert world.counters()["not_uplink"] > before
                wire.check_silent()
            finally:
                netlink.route("del", **way, oif=socket.if_nametoindex(OTHER))
