"""Each strategy at work: a client's flow and a socket of the server leave from the slice, both are answered, and
afterwards the server is as it was before."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from tests.netns.tools import delivered

from softunicast.core.errors import KernelError, SoftunicastError
from softunicast.lab.stage import (
    CLIENT_ADDRESS,
    INTERNET_ADDRESS,
    REMOTE,
    REMOTE_TEXT,
    SERVER,
    SHARED,
    Stage,
    accepted,
    endpoint,
    stage,
)  # fmt: skip
from softunicast.strategies.catalogue import STRATEGIES
from softunicast.strategies.strategy import Strategy

PORTS = 8
OFFERED = {name: kind for name, kind in STRATEGIES.items() if name != "terminate"}
TOLD = {"net/ipv4/" + name for name in ("tcp_fastopen", "tcp_early_demux", "ip_local_port_range")}


@pytest.fixture
def there() -> Iterator[Stage]:
    with stage() as made:
        yield made


def condition(there: Stage) -> list[str]:
    """What a strategy may change on a host."""
    commands = ("nft list ruleset", "ip rule", "ip -4 route show table all", "ip address show lo")
    settings = " ".join(f"/proc/sys/{name}" for name in sorted(TOLD))
    found = [there.run(SERVER, command) for command in (*commands, f"cat {settings}", "bpftool net show")]
    return [
        text.replace(" linkdown", "") for text in found
    ]  # the kernel may tell of a new cable a second later


def talks(one: socket.socket, other: socket.socket) -> None:
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"here I am")
        assert receiver.recv(100) == b"here I am"


@pytest.mark.parametrize("name", OFFERED)
def test_flows_and_sockets_leave_from_the_slice(there: Stage, name: str) -> None:
    before = condition(there)
    with there.strategy(OFFERED[name], PORTS) as strategy:
        assert condition(there) != before
        listener = there.listener()
        forwarded(there, strategy, listener)
        with there.inside(SERVER, strategy.connect, REMOTE) as made:
            peer, seen = accepted(listener)
            assert seen in [(SHARED, port) for port in strategy.place.ports]
            assert endpoint(made) == seen or name == "snat"
            talks(made, peer)
            peer.close()
        listener.close()
    assert condition(there) == before


def forwarded(there: Stage, strategy: Strategy, listener: socket.socket) -> None:
    client = there.client()
    source = endpoint(client)
    port = there.inside(SERVER, strategy.forward, source, REMOTE)
    client.connect((str(INTERNET_ADDRESS), REMOTE[1]))
    peer, seen = accepted(listener)
    assert seen in [(SHARED, port) for port in strategy.place.ports]
    assert port in (seen[1], None)
    talks(client, peer)
    client.close()
    peer.close()
    there.inside(SERVER, strategy.release, source, REMOTE)


@pytest.mark.parametrize("name", [name for name in OFFERED if name not in ("claims", "snat")])
def test_a_full_slice_is_an_error_until_a_flow_is_released(there: Stage, name: str) -> None:
    flows = [((CLIENT_ADDRESS, 40_000 + number), REMOTE) for number in range(PORTS + 1)]
    with there.strategy(OFFERED[name], PORTS) as strategy:
        ports = [there.inside(SERVER, strategy.forward, *flow) for flow in flows[:PORTS]]
        assert sorted(ports) == list(strategy.place.ports)
        with pytest.raises(KernelError, match=r"no port of .* is free towards 203.0.113.1:443") as full:
            there.inside(SERVER, strategy.forward, *flows[PORTS])
        assert full.value.errno == errno.EADDRNOTAVAIL
        with pytest.raises(OSError, match="Cannot assign") as refused:
            there.inside(SERVER, strategy.connect, REMOTE, 0)
        assert refused.value.errno == errno.EADDRNOTAVAIL
        assert (
            there.inside(SERVER, strategy.forward, flows[0][0], (INTERNET_ADDRESS, 80))
            in strategy.place.ports
        )
        there.inside(SERVER, strategy.release, *flows[3])
        assert there.inside(SERVER, strategy.forward, *flows[PORTS]) == ports[3]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("claims", {"uplink": "nowhere"}),
        ("snat", {"onramp": "nowhere"}),
        ("placeholder-late", {"uplink": "nowhere"}),
        ("placeholder-rules", {"gateway": IPv4Address("10.0.0.1")}),  # the server's own: no way to anywhere
    ],
)
def test_a_set_up_that_fails_leaves_nothing(there: Stage, name: str, wrong: dict[str, Any]) -> None:
    before = condition(there)
    made = OFFERED[name](replace(there.place(PORTS), **wrong))
    with pytest.raises(SoftunicastError):
        there.inside(SERVER, made.set_up)
    assert condition(there) == before


@pytest.mark.parametrize("name", ["claims", "snat"])
def test_udp_and_icmp(there: Stage, name: str) -> None:
    internet = there.listener(REMOTE[1], socket.SOCK_DGRAM)
    with there.strategy(OFFERED[name], PORTS) as strategy:
        client = there.client(0, socket.SOCK_DGRAM)
        address, port = delivered(client, internet, b"x", REMOTE_TEXT)
        assert (address, port) in [(str(SHARED), port) for port in strategy.place.ports]
        delivered(internet, client, b"y", (address, port))
        assert " 0% packet loss" in there.run("client", f"ping -c 1 -W 20 {INTERNET_ADDRESS}")
