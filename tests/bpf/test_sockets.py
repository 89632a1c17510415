"""A tuple that a kernel socket holds counts as taken, whether or not its program has heard of softunicast.

The shared address is on `lo`, as the agent has it. The slice has 16 ports, 16-31.
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.bpf.frames import FROM_WIRE, REMOTE, echo, end, tcp, udp
from tests.bpf.programs import on_loopback
from tests.bpf.test_search import Opener, check_full
from tests.bpf.world import ADDRESS, World, state

HELD = 20
ETH_HLEN = 14
IP_TRANSPARENT = 19
LOCAL = (str(ADDRESS), HELD)
ELSEWHERE = "203.0.113.2:443"
ALL = set(range(16, 32))


@pytest.fixture
def small(world: World) -> Iterator[World]:
    world.reset(state(ports=16))
    with on_loopback(str(ADDRESS)):
        yield world


def bound(kind: int, local: tuple[str, int] = LOCAL) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(local)
    return made


def listening() -> list[socket.socket]:
    made = bound(socket.SOCK_STREAM)
    made.listen()
    return [made]


def listening_everywhere() -> list[socket.socket]:
    made = bound(socket.SOCK_STREAM, ("0.0.0.0", HELD))
    made.listen()
    return [made]


def connecting() -> list[socket.socket]:
    made = bound(socket.SOCK_STREAM)
    made.setblocking(False)
    made.connect_ex(end(REMOTE))  # nobody answers: SYN_SENT
    return [made]


def connected() -> list[socket.socket]:
    with on_loopback(end(REMOTE)[0]), socket.create_server(end(REMOTE)) as server:
        made = bound(socket.SOCK_STREAM)
        made.connect(end(REMOTE))
        pair = [made, server.accept()[0]]
    for part in pair:  # closed later without a word, since nobody listens any more
        part.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return pair


def time_wait() -> list[socket.socket]:
    made, peer = connected()
    for part in (made, peer):
        part.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    with on_loopback(end(REMOTE)[0]):
        made.close()
        assert peer.recv(1) == b""
        peer.close()
    return []


def udp_bound() -> list[socket.socket]:
    return [bound(socket.SOCK_DGRAM)]


def udp_bound_everywhere() -> list[socket.socket]:
    return [bound(socket.SOCK_DGRAM, ("0.0.0.0", HELD))]


def udp_connected() -> list[socket.socket]:
    made = bound(socket.SOCK_DGRAM)
    made.connect(end(REMOTE))
    return [made]


Make = Callable[[], list[socket.socket]]


def ports(ends: set[tuple[str, int]]) -> set[int]:
    return {port for _, port in ends}


@pytest.mark.parametrize(
    ("make", "protocol", "towards_all"),
    [
        (listening, "tcp", True),
        (listening_everywhere, "tcp", True),
        (connecting, "tcp", False),
        (connected, "tcp", False),
        (udp_bound, "udp", True),
        (udp_bound_everywhere, "udp", True),
        (udp_connected, "udp", False),
        (time_wait, "tcp", False),  # keeps REMOTE's tuple for a minute: after all others that use it
    ],
)
def test_the_search_goes_past_it(small: World, make: Make, protocol: str, towards_all: bool) -> None:
    held = make()
    try:
        assert ports(Opener(small, protocol).fill(15)) == ALL - {HELD}
        check_full(small, protocol, 15)
        there = Opener(small, protocol, ELSEWHERE)
        if towards_all:
            assert ports(there.fill(15)) == ALL - {HELD}
            check_full(small, protocol, 15, ELSEWHERE)
        else:
            assert ports(there.fill(16)) == ALL
        other = {"tcp": "udp", "udp": "tcp"}[protocol]
        assert ports(Opener(small, other).fill(16)) == ALL
        assert len([key for key in small.claims() if key.protocol == 1]) == 0
    finally:
        for part in held:
            part.close()


@contextmanager
def transparent_proxy(port: int) -> Iterator[None]:
    """Takes what somebody sends to that port of any address, at one of its own."""
    with bound(socket.SOCK_STREAM, ("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        listener.listen()
        rules = (
            "add table ip proxy",
            "add chain ip proxy first { type filter hook prerouting priority mangle; }",
            f"add rule ip proxy first tcp dport {port} tproxy to 127.0.0.1:{listener.getsockname()[1]}",
        )
        subprocess.run(["nft", "; ".join(rules)], check=True)
        try:
            yield
        finally:
            subprocess.run(["nft", "delete table ip proxy"], check=True)


def test_a_connection_that_a_transparent_proxy_is_asked_for(small: World) -> None:
    """Nobody has that port: the kernel knows of it by both ends alone."""
    asks = tcp(REMOTE, f"{ADDRESS}:{HELD}", "S")[ETH_HLEN:]
    with transparent_proxy(HELD), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(asks, (str(ADDRESS), 0))
        assert ports(Opener(small, "tcp").fill(15)) == ALL - {HELD}
        check_full(small, "tcp", 15)


def test_the_port_is_free_again_afterwards(small: World) -> None:
    """A closed socket's port, for which no claim was in the way, may take the search a second to notice."""
    (held,) = udp_bound()
    opener = Opener(small, "udp")
    opener.fill(15)
    assert opener.open(15) is None
    held.close()
    small.forget_exhausted()
    assert opener.open(15) == (str(ADDRESS), HELD)


def test_an_expired_claim_under_a_socket_is_not_taken_over(small: World) -> None:
    """Nor does what was tried on the way count as taken over."""
    opener = Opener(small, "udp")
    opener.fill(16)
    claims = {int.from_bytes(key.local_port.to_bytes(2, "little"), "big"): key for key in small.claims()}
    small.expire(claims[HELD])
    (held,) = udp_bound()
    try:
        assert opener.open(100) is None
        assert claims[HELD] not in small.claims()  # freed, not kept from its next owner
        small.datapath.map("claims").delete(claims[HELD - 1].pack())
        small.forget_exhausted()
        before = small.datapath.traffic()["reused"]
        assert opener.open(101) == (str(ADDRESS), HELD - 1)
        assert small.datapath.traffic()["reused"] == before
    finally:
        held.close()


def test_reused_is_only_what_was_taken_over(small: World) -> None:
    """An expired claim under a socket is tried first or not, by chance: it must not count either way."""
    (held,) = udp_bound()
    opener = Opener(small, "udp")
    try:
        opener.fill(14)
        free = (
            ALL
            - {HELD}
            - {int.from_bytes(key.local_port.to_bytes(2, "little"), "big") for key in small.claims()}
        )
        key, claim = next(iter(small.claims().items()))
        for number in range(20):
            expired = key._replace(local_port=int.from_bytes(HELD.to_bytes(2, "big"), "little"))
            small.datapath.map("claims").set(expired.pack(), claim._replace(expires_ns=1).pack())
            before = small.datapath.traffic()["reused"]
            assert opener.open(100 + number) == (str(ADDRESS), next(iter(free)))
            assert small.datapath.traffic()["reused"] == before
            fresh = key._replace(local_port=int.from_bytes(next(iter(free)).to_bytes(2, "big"), "little"))
            small.datapath.map("claims").delete(fresh.pack())
            small.forget_exhausted()
    finally:
        held.close()


# -- a connection that nobody asked for (RFC 5382 REQ-4)

NOBODY = f"{ADDRESS}:{HELD + 1}"


def test_a_syn_for_no_socket_is_dropped_unsaid(small: World) -> None:
    """Of any kind but an answer; the kernel would reset it, at once."""
    for flags in ("S", "SF", "SEC"):
        ran = small.back(tcp(REMOTE, NOBODY, flags, macs=FROM_WIRE))
        assert (ran.verdict, dict(ran.counted)) == ("drop", {"unsolicited": 1})


@pytest.mark.parametrize("make", [listening, listening_everywhere], ids=["here", "everywhere"])
def test_a_syn_for_a_listener_is_the_kernels(small: World, make: Callable[[], list[socket.socket]]) -> None:
    waiting = make()
    try:
        ran = small.back(tcp(REMOTE, f"{ADDRESS}:{HELD}", "S", macs=FROM_WIRE))
        assert (ran.verdict, dict(ran.counted)) == ("next", {})
    finally:
        for part in waiting:
            part.close()


@pytest.mark.parametrize("flags", ["SA", "A", "R", "RA", "FA", ""])
def test_other_tcp_is_the_kernels(small: World, flags: str) -> None:
    ran = small.back(tcp(REMOTE, NOBODY, flags, macs=FROM_WIRE))
    assert (ran.verdict, dict(ran.counted)) == ("next", {})


def test_what_is_not_tcp_is_the_kernels(small: World) -> None:
    for frame in (udp(REMOTE, NOBODY, macs=FROM_WIRE), echo(REMOTE, NOBODY, HELD + 1, macs=FROM_WIRE)):
        assert (small.back(frame).verdict, dict(small.back(frame).counted)) == ("next", {})


def test_a_syn_for_an_address_that_is_not_shared(small: World) -> None:
    """Of the server itself, or of anybody: none of ours."""
    for to in ("192.0.2.1:22", "203.0.113.9:22"):
        ran = small.back(tcp(REMOTE, to, "S", macs=FROM_WIRE))
        assert (ran.verdict, dict(ran.counted)) == ("next", {})
