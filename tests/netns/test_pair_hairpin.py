"""Clients that talk to each other by their outside ends, on one server and on two, with and without being let in
by strangers. The second client of server1 is a second address of client1.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from tests.netns.pair_lab import TIMEOUT_S, PairLab, eventually
from tests.netns.tools import delivered

from softunicast.core.pools import PROTOCOLS, Behaviour
from softunicast.kernel import namespaces
from softunicast.lab.pair import CLIENT, ECHO_PORT, HTTP_PORT, INTERNET, POOL, SERVER_OF, SHARED

EVERY = frozenset(PROTOCOLS)
SECOND = "10.0.0.3"
Where = tuple[str, str]  # node, address
A: Where = ("client1", CLIENT)
PLACES: dict[str, Where] = {"the same server": ("client1", SECOND), "another server": ("client2", CLIENT)}


@dataclass
class End:
    """A client's socket, and where it is seen from outside."""

    socket: socket.socket
    outside: tuple[str, int]


class Clients:
    """Sockets of clients, closed with the test."""

    def __init__(self, lab: PairLab, stack: ExitStack) -> None:
        self.lab = lab
        self.stack = stack

    def make(self, where: Where, kind: int, port: int = 0) -> socket.socket:
        def inside() -> socket.socket:
            made = socket.socket(socket.AF_INET, kind)
            made.settimeout(TIMEOUT_S)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind((where[1], port))
            return made

        node, _ = where
        return self.stack.enter_context(namespaces.run_in(self.lab.lab.namespace(node), inside))

    def outside(self, where: Where, made: socket.socket) -> tuple[str, int]:
        """Where the socket, which has just sent something to internet, is seen."""
        protocol = {socket.SOCK_DGRAM: "udp", socket.SOCK_STREAM: "tcp"}[made.type]
        address, port = made.getsockname()
        server = SERVER_OF[where[0]]

        def seen() -> str | None:
            flows = self.lab.flows(server)
            return next(
                (local for p, client, local, _ in flows if (p, client) == (protocol, f"{address}:{port}")),
                None,
            )

        address, _, number = str(eventually(seen, f"{where} is seen")).rpartition(":")
        assert address == str(SHARED)
        return address, int(number)

    def udp(self, where: Where) -> End:
        made = self.make(where, socket.SOCK_DGRAM)
        delivered(made, made, b"hello", (INTERNET, ECHO_PORT))
        return End(made, self.outside(where, made))


@pytest.fixture(scope="module", params=["strangers are let in", "only peers are let in"])
def let_in(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "strangers are let in")


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab], let_in: bool) -> PairLab:
    behaviour = Behaviour(EVERY, EVERY if let_in else frozenset())
    made = make_pair(pool=replace(POOL, behaviour=behaviour))
    made.good("client1", "ip", "address", "add", f"{SECOND}/24", "dev", "eth0")
    return made


@pytest.fixture
def clients(lab: PairLab) -> Iterator[Clients]:
    with ExitStack() as stack:
        yield Clients(lab, stack)


@pytest.mark.parametrize("place", tuple(PLACES))
def test_datagrams(clients: Clients, let_in: bool, place: str) -> None:
    a, b = clients.udp(A), clients.udp(PLACES[place])
    if not let_in:
        b.socket.sendto(b"I listen to you", a.outside)  # not heard yet, but from now on a is
    large = bytes(range(256)) * 32  # in fragments
    for data in (b"question", large):
        assert delivered(a.socket, b.socket, data, b.outside) == a.outside
        assert delivered(b.socket, a.socket, data, a.outside) == b.outside


@pytest.mark.parametrize("place", tuple(PLACES))
def test_connections(clients: Clients, let_in: bool, place: str) -> None:
    """b listens on the port from which it has connected elsewhere, as peer-to-peer programs do."""
    where = PLACES[place]
    first = clients.make(where, socket.SOCK_STREAM)
    first.connect((INTERNET, HTTP_PORT))
    outside = clients.outside(where, first)
    listener = clients.make(where, socket.SOCK_STREAM, first.getsockname()[1])
    listener.listen()
    a = clients.make(A, socket.SOCK_STREAM)
    if not let_in:
        a.settimeout(0.5)
        with pytest.raises(TimeoutError):
            a.connect(outside)
        return
    a.connect(outside)
    b, (peer, _) = listener.accept()
    with b:
        assert peer == str(SHARED)
        b.settimeout(TIMEOUT_S)
        for sender, receiver, data in ((a, b, b"q" * 100_000), (b, a, b"a" * 100_000)):
            sender.sendall(data)
            got = b""
            while len(got) < len(data):
                got += receiver.recv(1 << 17)
            assert got == data


@pytest.mark.parametrize("place", tuple(PLACES))
def test_a_refusal_comes_back(clients: Clients, let_in: bool, place: str) -> None:
    """Nobody listens any more: the other client's ICMP error finds its way, from shared address to shared address."""
    a, b = clients.udp(A), clients.udp(PLACES[place])
    b.socket.sendto(b"I listen to you", a.outside)
    delivered(a.socket, b.socket, b"question", b.outside)
    b.socket.close()
    a.socket.connect(b.outside)
    with pytest.raises(ConnectionRefusedError):
        delivered(a.socket, a.socket, b"still there?")
