"""Datagrams larger than any link, between real programs: out, back, arriving at either server in any order, past
links that are narrower still, to and from the servers themselves.
"""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from tests.bpf.pieces import cut
from tests.netns.pair_lab import TIMEOUT_S, PairLab, excused
from tests.netns.test_pair_paths import NARROW, all_drops, check_nothing_dropped, narrow, steered
from tests.netns.tools import delivered

from softunicast.kernel import links, namespaces
from softunicast.lab.pair import CLIENT, ECHO_PORT, INTERNET, SERVER_OF, SHARED

CLIENTS = tuple(SERVER_OF)
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0
REMOTE_PORT = 5400


@contextmanager
def bound(lab: PairLab, node: str, address: str, port: int = 0) -> Iterator[socket.socket]:
    """A UDP socket whose packets may be cut on their way."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(TIMEOUT_S)
        made.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        made.bind((address, port))
        return made

    with closing(namespaces.run_in(lab.lab.namespace(node), make)) as made:
        yield made


def lost(lab: PairLab) -> dict[str, int]:
    """Fragments that were given up, by server; with the sweep's share when it is over."""
    return {server: lab.drops(server)["fragment_lost"] for server in lab.lab.agents}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("size", [1473, 4000, 65507])
def test_ping_of_large_sizes(pair_lab: PairLab, client: str, size: int) -> None:
    before = all_drops(pair_lab)
    said = pair_lab.good(client, "ping", "-n", "-c10", "-i0.01", "-W20", "-s", str(size), INTERNET)
    assert "10 received" in said
    assert "wrong data" not in said
    check_nothing_dropped(pair_lab, before)


@pytest.mark.parametrize("client", CLIENTS)
def test_datagrams_of_every_size(pair_lab: PairLab, client: str) -> None:
    """There and back, many at once: each comes back to its own socket as it was. So many fragments may be more than a
    link of a busy machine keeps: what does not come is sent again."""
    made = random.Random(4787)
    before = all_drops(pair_lab)
    with ExitStack() as stack:
        ends = [stack.enter_context(bound(pair_lab, client, CLIENT)) for _ in range(12)]
        for size in (1473, 2952, 8192, 20000, 65507):
            sent = [made.randbytes(size) for _ in ends]
            for end, data in zip(ends, sent, strict=True):
                end.sendto(data, (INTERNET, ECHO_PORT))
            for end, data in zip(ends, sent, strict=True):
                delivered(end, end, data, (INTERNET, ECHO_PORT), sent=True)
    check_nothing_dropped(pair_lab, before)


@pytest.mark.parametrize("client", CLIENTS)
def test_replies_at_either_server_in_any_order(pair_lab: PairLab, client: str) -> None:
    """Each fragment at a server of its own choice, as if routers spread them so, in every order; whichever server
    they meet at."""
    router = pair_lab.lab.namespace("router")
    macs = {
        f"s{number}": namespaces.run_in(
            pair_lab.lab.namespace(f"server{number}"), links.interface, "uplink"
        ).mac
        for number in (1, 2)
    }
    own = namespaces.run_in(router, links.interface, "lan").mac
    before, took_the_detour = lost(pair_lab), steered(pair_lab)
    with ExitStack() as stack:
        remote = stack.enter_context(bound(pair_lab, "internet", INTERNET, REMOTE_PORT))
        end = stack.enter_context(bound(pair_lab, client, CLIENT))
        wires = {port: stack.enter_context(closing(pair_lab.packet_socket("router", port))) for port in macs}
        address, port = delivered(end, remote, b"where?", (INTERNET, REMOTE_PORT))
        assert address == str(SHARED)
        numbers = itertools.count(1)
        for order in itertools.permutations(range(3)):
            for ways in itertools.product(macs, repeat=3):
                number = next(numbers)
                data = f"{number:05} ".encode() * 370
                whole = (
                    IP(src=INTERNET, dst=address, ttl=60, id=number)
                    / UDP(sport=REMOTE_PORT, dport=port)
                    / data
                )
                pieces = cut(bytes(Ether(src=own, dst=own) / whole), 800)
                assert len(pieces) == 3
                for at in order:
                    target = bytes.fromhex(str(macs[ways[at]]).replace(":", ""))
                    wires[ways[at]].send(target + pieces[at][6:])
                assert end.recv(1 << 16) == data, (order, ways)
    assert lost(pair_lab) == before
    assert steered(pair_lab) > took_the_detour


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("size", [NARROW - 27, 1472, 8192])
def test_a_narrow_way_out(pair_lab: PairLab, client: str, size: int) -> None:
    """The server cuts what its uplink does not carry, buffers whose checksum was still to be made included."""
    before = all_drops(pair_lab)
    with (
        narrow(pair_lab, (SERVER_OF[client], "uplink")),
        bound(pair_lab, "internet", INTERNET, REMOTE_PORT) as remote,
        bound(pair_lab, client, CLIENT) as end,
    ):
        for number in range(5):
            data = random.Random(number).randbytes(size)
            delivered(end, remote, data, (INTERNET, REMOTE_PORT))
    check_nothing_dropped(pair_lab, before)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("size", [NARROW - 27, 1472, 8192])
def test_a_narrow_client(pair_lab: PairLab, client: str, size: int) -> None:
    before = all_drops(pair_lab)
    with (
        narrow(pair_lab, (SERVER_OF[client], "clients"), (client, "eth0")),
        bound(pair_lab, "internet", INTERNET, REMOTE_PORT) as remote,
        bound(pair_lab, client, CLIENT) as end,
    ):
        outside = delivered(end, remote, b"where?", (INTERNET, REMOTE_PORT))
        for number in range(5):
            delivered(remote, end, random.Random(number).randbytes(size), outside)
    check_nothing_dropped(pair_lab, before)


def test_between_a_client_and_its_server(pair_lab: PairLab) -> None:
    """The server's own, which its kernel puts together."""
    said = pair_lab.good("client1", "ping", "-n", "-c5", "-i0.01", "-W20", "-s", "9000", "10.0.0.1")
    assert "5 received" in said


@pytest.mark.parametrize("server", ["server1", "server2"])
def test_a_socket_on_a_shared_address(pair_lab: PairLab, server: str) -> None:
    """The kernel cuts its datagrams, and the guard gives them an identification of the slice; replies meet, and come
    to the socket."""
    port = pair_lab.slice_of(server).port_last
    before = all_drops(pair_lab)
    with excused(pair_lab.lab, server), bound(pair_lab, server, str(SHARED), port) as end:
        for number in range(10):
            delivered(end, end, random.Random(number).randbytes(8192), (INTERNET, ECHO_PORT))
    check_nothing_dropped(pair_lab, before)
