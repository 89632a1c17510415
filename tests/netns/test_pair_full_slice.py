"""A slice is used to its last port towards each destination, and the one too many is told at once.

The lab has slices of 64 ports. Tests talk to destinations of their own, because what others
held is taken for some minutes still.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable
from itertools import count

import pytest
from tests.netns.pair_lab import PairLab

from softunicast.kernel import namespaces
from softunicast.lab.pair import CLIENT, ECHO_PORT, HTTP_PORT, INTERNET, SERVER_OF

PORTS = 64
AT_ONCE_MS = 1000.0
ECHO_REQUEST, ECHO_REPLY, UNREACHABLE = 8, 0, 3


@pytest.fixture(scope="module")
def small(make_pair: Callable[..., PairLab]) -> PairLab:
    return make_pair(slice_ports=PORTS)


@pytest.fixture(scope="module")
def new_remote(small: PairLab) -> Callable[[], str]:
    """Gives internet another address, to which nobody has talked. Not for UDP: its echo answers from the first."""
    numbers = count(100)

    def make() -> str:
        address = f"203.0.113.{next(numbers)}"
        small.good("internet", "ip", "address", "add", f"{address}/24", "dev", "eth0")
        return address

    return make


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("client", ["client1", "client2"])
def test_every_port_once_and_then_refused_at_once(small: PairLab, client: str, protocol: str) -> None:
    server = SERVER_OF[client]
    before = small.drops(server)["slice_full"]
    with small.held(client, PORTS, protocol) as held:
        assert held["outcomes"] == {"ok": PORTS}
        found = small.ask(server, f"/v1/flows?protocol={protocol}&remote={INTERNET}")["flows"]
        slice_ = small.slice_of(server)
        ports = {int(flow["local"].rpartition(":")[2]) for flow in found}
        assert ports == set(range(slice_.port_first, slice_.port_last + 1))

        with small.held(client, 1, protocol) as refused:
            assert refused["outcomes"] == {"EHOSTUNREACH": 1}
            assert refused["connections"][0]["ms"] < AT_ONCE_MS
        assert small.drops(server)["slice_full"] == before + 1
        question = ("--from", "clients", protocol, f"{CLIENT}:9", f"{INTERNET}:{ECHO_PORT}")
        syn = ("--syn",) if protocol == "tcp" else ()
        answer = small.softunicast(server, "explain", *question, *syn)
        assert (answer["verdict"], answer["reason"]) == ("refused with ICMP", "slice_full")
        assert small.drops(server)["slice_full"] == before + 1, "a question is no packet"
        last = small.last_drop(server, "slice_full")
        assert (last["destination"], last["protocol"]) == (f"{INTERNET}:{ECHO_PORT}", protocol)
        assert "slice_full" in small.good(server, "softunicast", "drops")


def test_all_at_once_fill_it_exactly(small: PairLab, new_remote: Callable[[], str]) -> None:
    with small.held("client1", PORTS + 16, "tcp", new_remote()) as held:
        assert held["outcomes"] == {"ok": PORTS, "EHOSTUNREACH": 16}
        refused = [row["ms"] for row in held["connections"] if row["outcome"] != "ok"]
        assert max(refused) < AT_ONCE_MS


def test_other_destinations_have_all_ports_still(small: PairLab, new_remote: Callable[[], str]) -> None:
    remote, other = new_remote(), new_remote()
    with small.held("client1", PORTS, "tcp", remote) as held:
        assert held["outcomes"] == {"ok": PORTS}
        assert json.loads(small.good("client1", "curl", "-s", "-m", "20", f"http://{remote}:{HTTP_PORT}/"))
        with (
            small.held("client1", PORTS, "tcp", other) as elsewhere,
            small.held("client2", PORTS, "tcp", remote) as by_other_client,
        ):
            assert [found["outcomes"] for found in (elsewhere, by_other_client)] == [{"ok": PORTS}] * 2


def test_pings(small: PairLab, new_remote: Callable[[], str]) -> None:
    """Identifiers of echo requests are ports too."""
    remote = new_remote()
    before = small.drops("server1")["slice_full"]
    with namespaces.run_in(
        small.lab.namespace("client1"), socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP
    ) as raw:
        raw.settimeout(20.0)
        raw.connect((remote, 0))
        identifiers = set(range(5000, 5000 + PORTS))
        for identifier in identifiers:
            raw.send(echo_request(identifier))
        assert {echo_reply(raw.recv(2048)) for _ in identifiers} == identifiers
    assert small.drops("server1")["slice_full"] == before

    start = time.monotonic()
    done = small.run("client1", "ping", "-c", "1", "-W", "10", "-e", "7000", remote)
    assert time.monotonic() - start < AT_ONCE_MS / 1000
    assert done.code == 1
    assert "Packet filtered" in done.output
    assert small.drops("server1")["slice_full"] == before + 1
    assert small.last_drop("server1", "slice_full")["protocol"] == "icmp"
    assert "1 received" in small.good("client2", "ping", "-c", "1", "-W", "20", remote)


def echo_request(identifier: int) -> bytes:
    head = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, 1)
    payload = os.urandom(8)
    total = sum(struct.unpack("!8H", head + payload))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head[:2] + struct.pack("!H", ~total & 0xFFFF) + head[4:] + payload


def echo_reply(packet: bytes) -> int:
    """The identifier in a reply, as a raw socket hands it out."""
    message = packet[(packet[0] & 15) * 4 :]
    assert message[0] == ECHO_REPLY, f"ICMP type {message[0]} code {message[1]}"
    return int.from_bytes(message[4:6])
