"""IPv6 through the pair, beside IPv4: programs that know nothing of it, replies at either server, errors both ways."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from tests.netns.pair_lab import PairLab, eventually, excused
from tests.netns.tools import delivered

from softunicast.core.slices import Slice
from softunicast.kernel import namespaces
from softunicast.lab.pair import CLIENT, ECHO_PORT, HTTP_PORT, INTERNET, SERVER_OF
from softunicast.lab.pair6 import CLIENT6, INTERNET6, ONRAMP6, ROUTER6, SHARED6

CLIENTS = tuple(SERVER_OF)
NARROW = 1300
HERE = f"http://[{INTERNET6}]"


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    """Its nodes answer every packet: Linux limits errors."""
    made = make_pair(ipv6=True)
    for node in ("router", "internet"):
        made.good(node, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/icmp/ratelimit")
    return made


def slices6(lab: PairLab, client: str) -> list[Slice]:
    rows = lab.ask(SERVER_OF[client], "/v1/slices")
    found = [Slice.parse(row["slice"]) for row in rows if row["here"]]
    return [slice_ for slice_ in found if slice_.version == 6]


def total(lab: PairLab, what: str) -> int:
    return sum(int(lab.ask(server, "/v1/traffic")[what]) for server in lab.lab.agents)


def drops(lab: PairLab) -> dict[str, dict[str, int]]:
    return {server: lab.drops(server) for server in lab.lab.agents}


def check_nothing_dropped(lab: PairLab, before: dict[str, dict[str, int]], *but: str) -> None:
    for server, now in drops(lab).items():
        assert {name for name, packets in now.items() if packets != before[server][name]} <= set(but), server


@pytest.mark.parametrize("client", CLIENTS)
def test_http_from_a_slice_of_the_shared_address(lab: PairLab, client: str) -> None:
    (slice_,) = slices6(lab, client)
    before = drops(lab)
    for _ in range(12):
        seen = json.loads(lab.good(client, "curl", "-sSg", "-m20", f"{HERE}/"))
        assert seen["address"] == str(SHARED6)
        assert slice_.port_first <= seen["port"] <= slice_.port_last
    said = lab.good(
        client, "curl", "-sSg", "-m20", "-o", "/dev/null", "-w", "%{size_download}", f"{HERE}/bytes/5000000"
    )
    assert said == "5000000"
    seen = json.loads(lab.good(client, "curl", "-sS", "-m20", f"http://{INTERNET}:{HTTP_PORT}/"))
    assert seen["address"] == "198.51.100.10"
    check_nothing_dropped(lab, before)


def test_replies_arrive_at_either_server(lab: PairLab) -> None:
    before = total(lab, "steered")
    for client in CLIENTS:
        for _ in range(16):
            lab.good(client, "curl", "-sSg", "-m20", f"{HERE}/")
    assert total(lab, "steered") > before


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("size", [8, 1399, 1452])
def test_ping(lab: PairLab, client: str, size: int) -> None:
    said = lab.good(
        client, "ping", "-6", "-n", "-c3", "-i0.01", "-W20", "-M", "do", "-s", str(size), INTERNET6
    )
    assert "3 received" in said


@pytest.mark.parametrize("client", CLIENTS)
def test_udp_and_flows_are_listed(lab: PairLab, client: str) -> None:
    code = (
        "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(20);"
        f"s.bind(('{CLIENT6}', 40123)); s.connect(('{INTERNET6}', {ECHO_PORT})); s.send(b'x' * 1000);"
        "print(len(s.recv(2000)))"
    )
    assert lab.good(client, "python3", "-c", code).strip() == "1000"
    flows = lab.softunicast(SERVER_OF[client], "flows", "--client", f"[{CLIENT6}]:40123")
    (flow,) = [row for row in flows["flows"] if row["state"] != "mapping"]
    assert (flow["protocol"], flow["remote"]) == ("udp", f"[{INTERNET6}]:{ECHO_PORT}")
    assert flow["local"].startswith(f"[{SHARED6}]:")
    assert CLIENT not in flow["client"]


def many_large_ones() -> None:
    """Of this process, in the namespace of a client. So many fragments may be more than a link of a busy machine keeps:
    what does not come is sent again."""
    with ExitStack() as stack:
        ends = [stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) for _ in range(12)]
        for end in ends:
            end.connect((INTERNET6, ECHO_PORT))
        for size in (8192, 60000):
            sent = [os.urandom(size) for _ in ends]
            for end, data in zip(ends, sent, strict=True):
                end.send(data)
            for end, data in zip(ends, sent, strict=True):
                delivered(end, end, data, sent=True)


@pytest.mark.parametrize("client", CLIENTS)
def test_larger_than_any_link(lab: PairLab, client: str) -> None:
    """In fragments, there and back: several datagrams at once, whose replies are spread over both servers."""
    before = drops(lab)
    said = lab.good(client, "ping", "-6", "-n", "-c10", "-i0.01", "-W20", "-s", "4000", INTERNET6)
    assert "10 received" in said
    assert "wrong data" not in said
    namespaces.run_in(lab.lab.namespace(client), many_large_ones)
    check_nothing_dropped(lab, before)


@pytest.mark.parametrize("server", ["server1", "server2"])
def test_fragments_of_a_socket_on_the_shared_address(lab: PairLab, server: str) -> None:
    """The guard gives them an identification of the slice; replies come to the socket, by whichever server."""
    (client,) = [name for name, own in SERVER_OF.items() if own == server]
    port = slices6(lab, client)[0].port_last
    before = drops(lab)
    code = (
        "import os, socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(20);"
        f"s.bind(('{SHARED6}', {port})); s.connect(('{INTERNET6}', {ECHO_PORT}));"
        "sent = [os.urandom(8192) for _ in range(10)];"
        "print([s.send(data) and s.recv(1 << 16) for data in sent] == sent)"
    )
    with excused(lab.lab, server):
        assert lab.good(server, "python3", "-c", code).strip() == "True"
    check_nothing_dropped(lab, before)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("how", [(), ("-I",), ("-T", "-p", str(HTTP_PORT))], ids=["udp", "icmp", "tcp"])
def test_traceroute_shows_the_path(lab: PairLab, client: str, how: tuple[str, ...]) -> None:
    before = drops(lab)
    said = lab.good(client, "traceroute", "-6", "-n", "-q2", "-w10", *how, INTERNET6)
    hops = re.findall(r"^ *\d+  (\S+) .*ms  \S+ ms$", said, re.MULTILINE)
    assert hops == [ONRAMP6, ROUTER6, INTERNET6], said
    check_nothing_dropped(lab, before, "hop_limit")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_connection_through_a_narrow_link(lab: PairLab, client: str) -> None:
    """Packet too big, from beyond the server and about what it sent, comes to the client."""
    remote = f"2001:db8:113::{CLIENTS.index(client) + 50}"
    lab.good("internet", "ip", "address", "add", f"{remote}/64", "dev", "eth0", "nodad")
    lab.good("router", "ip", "route", "add", f"{remote}/128", "via", INTERNET6, "mtu", "lock", str(NARROW))
    said = lab.good(
        client,
        *("curl", "-sSg", "-m20", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"),
        *("-H", f"X-Long: {'x' * 4000}", f"http://[{remote}]/bytes/1000000"),
    )
    assert said == "200 1000000"
    assert f"mtu {NARROW}" in lab.good(client, "ip", "route", "get", remote)


@pytest.mark.parametrize("client", CLIENTS)
def test_nobody_listens(lab: PairLab, client: str) -> None:
    """The error about it comes to the client, whose socket is refused at once."""
    done = lab.run(client, "curl", "-sSg", "-m20", f"{HERE}:81/")
    assert done.code == 7, done
    code = (
        "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(20);"
        f"s.connect(('{INTERNET6}', 33000)); s.send(b'x'); s.recv(1)"
    )
    assert "ConnectionRefusedError" in lab.run(client, "python3", "-c", code).complaint


def test_addresses_are_put_back(lab: PairLab) -> None:
    """Both are on `lo` while the agent runs; explain knows both families."""
    for server in lab.lab.agents:
        said = lab.good(server, "ip", "-6", "address", "show", "dev", "lo")
        assert f"{SHARED6}/128" in said
        assert "deprecated" in said
        answer = lab.softunicast(
            server, "explain", "--from", "clients", "tcp", f"[{CLIENT6}]:4000", f"[{INTERNET6}]:80", "--syn"
        )
        assert answer["verdict"] == "sent out of uplink"


def test_the_host_gets_everything_back(lab: PairLab) -> None:
    """Last: an agent that ends cleanly leaves no address and no setting."""
    (server,) = [SERVER_OF["client2"]]
    setting = "/proc/sys/net/ipv6/conf/clients/forwarding"
    assert lab.good(server, "cat", setting).strip() == "1"
    lab.end_agents(15, server)
    eventually(
        lambda: str(SHARED6) not in lab.good(server, "ip", "address", "show", "dev", "lo"), "the address goes"
    )
    assert lab.good(server, "cat", setting).strip() == "0"
