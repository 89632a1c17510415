"""Sockets that are bound to a device (SO_BINDTODEVICE): the kernel shows them to lookups of that very device alone,
and not to programs. A search goes past them like past any other.

The slice has 16 ports, 16-31.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tests.bpf import families
from tests.bpf.frames import REMOTE, end
from tests.bpf.programs import Program, agreed, excused, on_loopback, refusal_of
from tests.bpf.test_search import Opener, check_full
from tests.bpf.world import ADDRESS, ONRAMP2, UPLINK, World, namespace, state

from softunicast.core.pools import Behaviour

FAMILIES = (4, 6)
HELD = 2068
FIRST, PORTS = 2064, 16
SMALL = state(ports=PORTS, mine=(FIRST // PORTS,), theirs=(), expired=())
ALL = set(range(FIRST, FIRST + PORTS))
ELSEWHERE = "203.0.113.2:443"
UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM


@pytest.fixture
def small(sockets_world: World, family: int) -> Iterator[World]:
    sockets_world.reset(SMALL)
    with on_loopback(str(ADDRESS)):
        yield sockets_world


def to(text: str) -> tuple[str, int]:
    return families.socket_end(text)


def on_device(held: socket.socket, device: str = UPLINK) -> socket.socket:
    held.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    return held


def made(kind: int) -> socket.socket:
    fresh = socket.socket(families.socket_family(), kind)
    fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    fresh.setblocking(False)
    return fresh


def bound(kind: int, local: str = f"{ADDRESS}:{HELD}", device: str = UPLINK) -> socket.socket:
    held = on_device(made(kind), device)
    held.bind(to(local))
    return held


def on_another_device() -> socket.socket:
    return bound(UDP, device=ONRAMP2)


def on_it_afterwards() -> socket.socket:
    held = made(UDP)
    held.bind(to(f"{ADDRESS}:{HELD}"))
    return on_device(held)


def everywhere() -> socket.socket:
    return bound(UDP, f"0.0.0.0:{HELD}")


def by_ipv6() -> socket.socket:
    held = on_device(socket.socket(socket.AF_INET6, UDP))
    held.bind(("::", HELD))
    return held


def connected() -> socket.socket:
    held = bound(UDP)
    held.connect(to(REMOTE))
    return held


def listening() -> socket.socket:
    held = bound(TCP)
    held.listen()
    return held


def listening_everywhere() -> socket.socket:
    held = bound(TCP, f"0.0.0.0:{HELD}")
    held.listen()
    return held


def connecting() -> socket.socket:
    held = bound(TCP)
    assert held.connect_ex(to(REMOTE)) == errno.EINPROGRESS
    return held


def ports(ends: set[tuple[str, int]]) -> set[int]:
    return {port for _, port in ends}


@pytest.mark.parametrize(
    ("make", "protocol", "towards_all"),
    [
        (lambda: bound(UDP), "udp", True),
        (on_another_device, "udp", True),
        (on_it_afterwards, "udp", True),
        (everywhere, "udp", True),
        (by_ipv6, "udp", True),
        (connected, "udp", False),
        (listening, "tcp", True),
        (listening_everywhere, "tcp", True),
        (connecting, "tcp", False),
    ],
)
def test_the_search_goes_past_it(
    small: World, make: Callable[[], socket.socket], protocol: str, towards_all: bool
) -> None:
    with excused(small), make():
        assert ports(Opener(small, protocol).fill(15)) == ALL - {HELD}
        check_full(small, protocol, 15)
        if towards_all:
            assert ports(Opener(small, protocol, ELSEWHERE).fill(15)) == ALL - {HELD}
        else:
            assert ports(Opener(small, protocol, ELSEWHERE).fill(16)) == ALL
        assert ports(Opener(small, {"tcp": "udp", "udp": "tcp"}[protocol]).fill(16)) == ALL


def test_a_connection_that_has_just_ended(small: World) -> None:
    remote = f"203.0.113.{families.chosen}:80"  # TIME_WAIT lasts for a minute
    with excused(small), on_loopback(end(remote)[0]), socket.socket(families.socket_family(), TCP) as server:
        server.bind(to(remote))
        server.listen()
        held = bound(TCP, device="lo")
        held.setblocking(True)
        held.connect(to(remote))
        peer, _ = server.accept()
        held.close()
        assert peer.recv(1) == b""
        peer.close()
    assert ports(Opener(small, "tcp", remote).fill(15)) == ALL - {HELD}


def test_a_port_for_all_destinations(small: World) -> None:
    """The whole port of a mapping; and each of its conversations, which a socket can have begun meanwhile."""
    pool = replace(SMALL.pools["gb"], behaviour=Behaviour(frozenset({"udp"}), frozenset()))
    small.reset(replace(SMALL, pools={"gb": pool}))
    with excused(small), bound(UDP):
        opened = Opener(small, "udp")
        assert ports(opened.fill(15)) == ALL - {HELD}
        there = Opener(small, "udp", ELSEWHERE)
        [(_, port)] = there.fill(1)
        with bound(UDP, f"{ADDRESS}:{port}") as held:
            held.connect(to("203.0.113.3:443"))
            assert Opener(small, "udp", "203.0.113.3:443").open(0) is None
            assert Opener(small, "udp", "203.0.113.4:443").open(0) == (str(ADDRESS), port)


@pytest.mark.parametrize(("kind", "protocol"), [(UDP, "udp"), (TCP, "tcp")])
def test_a_program_in_an_agreement(small: World, kind: int, protocol: str) -> None:
    with Program("ipv4" if families.chosen == 4 else "ipv6") as program:
        with excused(small):
            held = bound(kind)
            if kind == TCP:
                held.listen()
        with held, agreed(small):
            assert program.fill(protocol, 15) == ALL - {HELD}
            with refusal_of(errno.EADDRNOTAVAIL):
                program.connect(protocol)


def test_many_at_one_port(small: World) -> None:
    """All of them are looked at."""
    held = list[socket.socket]()
    try:
        with excused(small):
            for number in range(300):
                held.append(bound(UDP))
                held[-1].connect(to(f"203.0.113.{number % 200 + 10}:{1000 + number}"))
        assert ports(Opener(small, "udp").fill(16)) == ALL
        for number in (0, 299):
            remote = f"203.0.113.{number % 200 + 10}:{1000 + number}"
            assert ports(Opener(small, "udp", remote).fill(15)) == ALL - {HELD}
    finally:
        for one in held:
            one.close()


def test_another_network_namespace(small: World) -> None:
    with namespace():
        held = on_device(made(UDP), "lo")
        held.bind(to(f"0.0.0.0:{HELD}") if families.chosen == 4 else ("::", HELD))
    with held:
        assert ports(Opener(small, "udp").fill(16)) == ALL
