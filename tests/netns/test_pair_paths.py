"""What a client finds out about the path through a server: every hop, and how large a packet may be, from both
ends. The errors that tell it come back to either server.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from tests.netns.pair_lab import TIMEOUT_S, PairLab, eventually
from tests.netns.tools import delivered

from softunicast.kernel import namespaces
from softunicast.lab.pair import HTTP_PORT, INTERNET, SERVER_OF

HOPS = ["10.0.0.1", "192.0.2.254"]
NARROW = 1300
CLIENTS = tuple(SERVER_OF)
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14


@pytest.fixture(scope="module")
def lab(pair_lab: PairLab) -> PairLab:
    """Its routers answer every packet: Linux gives one address six errors, and then one a second."""
    for node in ("router", "internet"):
        pair_lab.good(node, "sh", "-c", "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit")
    return pair_lab


@pytest.fixture(scope="module")
def new_remote(lab: PairLab) -> Callable[..., str]:
    """Gives internet another address, about which no client has learned anything; the router's way to it may
    carry less than other ways."""
    numbers = count(50)

    def make(mtu: int | None = None) -> str:
        address = f"203.0.113.{next(numbers)}"
        lab.good("internet", "ip", "address", "add", f"{address}/24", "dev", "eth0")
        if mtu is not None:
            way = ("via", INTERNET, "mtu", "lock", str(mtu))
            lab.good("router", "ip", "route", "add", f"{address}/32", *way)
        return address

    return make


@contextmanager
def narrow(lab: PairLab, *ends: tuple[str, str], mtu: int = NARROW) -> Iterator[None]:
    """These interfaces carry less for the length of a with block."""
    for node, interface in ends:
        lab.good(node, "ip", "link", "set", interface, "mtu", str(mtu))
    try:
        yield
    finally:
        for node, interface in ends:
            lab.good(node, "ip", "link", "set", interface, "mtu", "1500")


def check_nothing_dropped(lab: PairLab, before: dict[str, dict[str, int]], *but: str) -> None:
    """No packet was dropped meanwhile, for other reasons than these."""
    for server, reasons in before.items():
        grown = {name for name, packets in lab.drops(server).items() if packets != reasons[name]}
        assert grown <= set(but), server


def all_drops(lab: PairLab) -> dict[str, dict[str, int]]:
    return {server: lab.drops(server) for server in lab.lab.agents}


def steered(lab: PairLab) -> int:
    return sum(int(lab.ask(server, "/v1/traffic")["steered"]) for server in lab.lab.agents)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("how", [(), ("-I",), ("-T", "-p", str(HTTP_PORT))], ids=["udp", "icmp", "tcp"])
def test_traceroute_shows_the_path(lab: PairLab, client: str, how: tuple[str, ...]) -> None:
    """This server, the router beyond it, the destination; each error is its client's."""
    before = all_drops(lab)
    said = lab.good(client, "traceroute", "-n", "-q2", "-w10", *how, INTERNET)
    hops = re.findall(r"^ *\d+  (\S+) .*ms  \S+ ms$", said, re.MULTILINE)
    assert hops == [*HOPS, INTERNET], said
    check_nothing_dropped(lab, before, "hop_limit")


def test_errors_arrive_at_either_server(lab: PairLab, new_remote: Callable[..., str]) -> None:
    """Many conversations: about half of the errors about them reach the server that did not send the packet."""
    remote, before = new_remote(), steered(lab)

    def unreachable() -> int:
        """How many of 20 sockets hear that nobody listens."""
        heard = 0
        for port in range(20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.connect((remote, 33000 + port))
                with pytest.raises(ConnectionRefusedError):
                    delivered(asking, asking, b"anybody?")
                heard += 1
        return heard

    for client in CLIENTS:
        assert namespaces.run_in(lab.lab.namespace(client), unreachable) == 20
    eventually(lambda: steered(lab) > before, "an error took the detour")


@pytest.mark.parametrize("client", CLIENTS)
def test_tracepath_finds_the_narrow_link(lab: PairLab, client: str, new_remote: Callable[..., str]) -> None:
    remote = new_remote(NARROW)
    said = lab.good(client, "tracepath", "-n", remote)
    assert f"pmtu {NARROW}" in said
    assert re.search(rf"^ *3: +{remote} .*reached$", said, re.MULTILINE), said
    assert f"Resume: pmtu {NARROW} hops 3" in said


@pytest.mark.parametrize("client", CLIENTS)
def test_a_connection_through_a_narrow_link(
    lab: PairLab, client: str, new_remote: Callable[..., str]
) -> None:
    """Its large segments are told to be smaller, and TCP goes on without the user noticing."""
    remote = new_remote(NARROW)
    said = lab.good(
        client,
        *("curl", "-sS", "-m20", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"),
        *("-H", f"X-Long: {'x' * 4000}", f"http://{remote}/bytes/3000000"),
    )
    assert said == "200 3000000"
    assert f"mtu {NARROW}" in lab.good(client, "ip", "route", "get", remote)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 55, 1399, 1471, 1472])
def test_ping_of_every_size(lab: PairLab, client: str, size: int) -> None:
    said = lab.good(client, "ping", "-n", "-c3", "-i0.01", "-W20", "-M", "do", "-s", str(size), INTERNET)
    assert "3 received" in said
    assert "wrong data" not in said


@pytest.mark.parametrize("client", CLIENTS)
def test_ping_too_large_for_the_path(lab: PairLab, client: str, new_remote: Callable[..., str]) -> None:
    """The first is told by the router, from then on the client knows."""
    remote = new_remote(NARROW)
    done = lab.run(client, "ping", "-n", "-c2", "-i0.2", "-W20", "-M", "do", "-s", "1400", remote)
    assert f"From {HOPS[1]} icmp_seq=1 Frag needed and DF set (mtu = {NARROW})" in done.output
    assert f"message too long, mtu={NARROW}" in done.output + done.complaint
    said = lab.good(client, "ping", "-n", "-c1", "-W20", "-M", "do", "-s", str(NARROW - 28), remote)
    assert "1 received" in said


def test_a_remote_end_hears_of_a_narrow_client(lab: PairLab) -> None:
    """The way in is narrower than the uplink, as behind a tunnel: its sender is told the size, and keeps to it."""
    near = ("server1", "clients"), ("client1", "eth0")

    def bound(address: str, port: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(TIMEOUT_S)
        made.bind((address, port))
        return made

    with (
        narrow(lab, *near),
        namespaces.run_in(lab.lab.namespace("internet"), bound, INTERNET, 5300) as remote,
        namespaces.run_in(lab.lab.namespace("client1"), bound, "10.0.0.2", 0) as client,
    ):
        remote.connect(delivered(client, remote, b"how much?", (INTERNET, 5300)))
        remote.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        remote.send(b"x" * 1400)
        eventually(lambda: remote.getsockopt(socket.IPPROTO_IP, IP_MTU) == NARROW, "the remote end was told")
        assert remote.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.EMSGSIZE)
        with pytest.raises(OSError, match="Message too long"):
            remote.send(b"x" * 1400)
        delivered(remote, client, b"y" * (NARROW - 28))
        assert lab.drops("server1")["too_big"] == 1


@pytest.mark.parametrize("client", CLIENTS)
def test_a_way_out_that_is_narrow(lab: PairLab, client: str, new_remote: Callable[..., str]) -> None:
    """The server's own uplink: it says so itself, as a router would."""
    remote, server = new_remote(), SERVER_OF[client]
    with narrow(lab, (server, "uplink")):
        said = lab.good(client, "tracepath", "-n", remote)
        assert f"Resume: pmtu {NARROW} hops 3" in said
        assert re.search(rf" 10.0.0.1 .*pmtu {NARROW}", said), said
