"""Each strategy at work: a client's flow and a socket of the server leave from the slice, both are answered, and
afterwards the server is as it was before."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from softunicast.lab.stage import (
    INTERNET_ADDRESS,
    REMOTE,
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
    return [there.run(SERVER, command) for command in (*commands, f"cat {settings}", "bpftool net show")]


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
        if strategy.sockets:
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
