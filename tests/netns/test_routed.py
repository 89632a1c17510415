"""Two servers with a router between them: replies that arrive at the wrong one come through a tunnel, whole and in
every size, in both families; and the sender hears of the room that the tunnel's header takes.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Callable

import pytest
from tests.netns.pair_lab import PairLab, eventually
from tests.netns.tools import delivered

from softunicast.kernel import namespaces
from softunicast.kernel.offload import set_tx_checksum
from softunicast.kernel.passing import attach_pass
from softunicast.lab.pair import CLIENT, ECHO_PORT, INTERNET, SERVER_OF
from softunicast.lab.pair6 import CLIENT6, INTERNET6
from softunicast.lab.routed import UPLINK_OF

CLIENTS = tuple(SERVER_OF)
HEADER_BYTES = 28
WEB = (f"http://{INTERNET}", f"http://[{INTERNET6}]")
ENDS = {4: (CLIENT, INTERNET), 6: (CLIENT6, INTERNET6)}


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    """Its nodes answer every packet: Linux limits errors."""
    made = make_pair(with_router=True)
    for node in ("router", "internet"):
        for setting in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):
            made.good(node, "sh", "-c", f"echo 0 > /proc/sys/net/{setting}")
    return made


def total(lab: PairLab, what: str) -> int:
    return sum(int(lab.ask(server, "/v1/traffic")[what]) for server in lab.lab.agents)


def drops(lab: PairLab) -> dict[str, dict[str, int]]:
    return {server: lab.drops(server) for server in lab.lab.agents}


def check_nothing_dropped(lab: PairLab, before: dict[str, dict[str, int]], *but: str) -> None:
    for server, now in drops(lab).items():
        grown = {name: packets for name, packets in now.items() if packets != before[server][name]}
        assert set(grown) <= set(but), (server, grown)


def test_how_servers_are_reached(lab: PairLab) -> None:
    for server, address in UPLINK_OF.items():
        rows = {row["name"]: row for row in lab.softunicast(server, "servers")}
        assert rows[server]["reached"] == "self"
        (other,) = set(rows) - {server}
        assert (rows[other]["reached"], rows[other]["address"]) == ("tunnel", UPLINK_OF[other])
        assert rows[server]["address"] == address


@pytest.mark.parametrize("web", WEB)
def test_conversations_whose_replies_arrive_at_either_server(lab: PairLab, web: str) -> None:
    before, out, came = drops(lab), total(lab, "tunnel_out"), total(lab, "tunnel_in")
    for client in CLIENTS:
        for _ in range(12):
            assert json.loads(lab.good(client, "curl", "-sSg", "-m20", f"{web}/"))["port"]
    assert total(lab, "tunnel_out") > out
    assert total(lab, "tunnel_out") - out == total(lab, "tunnel_in") - came
    check_nothing_dropped(lab, before)


@pytest.mark.parametrize("web", WEB)
def test_large_transfers(lab: PairLab, web: str) -> None:
    """In large buffers, whose packets do not fit behind the header until the remote end knows."""
    before, out = drops(lab), total(lab, "tunnel_out")
    for client in CLIENTS:
        for _ in range(3):
            said = lab.good(
                client,
                *("curl", "-sSg", "-m20", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"),
                *("-H", f"X-Long: {'x' * 4000}", f"{web}/bytes/3000000"),
            )
            assert said == "200 3000000"
    assert total(lab, "tunnel_out") > out
    check_nothing_dropped(lab, before, "too_big")
    assert sum(now["too_big"] for now in drops(lab).values()) > 0  # the remote end was told, and went on


@pytest.mark.parametrize("web", WEB)
def test_large_buffers_that_the_server_has_to_cut_itself(lab: PairLab, web: str) -> None:
    """Where the way to the client takes no large ones: they are whole packets, although they came out of a tunnel."""
    before, came = drops(lab), total(lab, "tunnel_in")
    for server in UPLINK_OF:
        namespaces.run_in(lab.lab.namespace(server), set_tx_checksum, "clients", False)
    try:
        for client in CLIENTS:
            for _ in range(3):
                said = lab.good(
                    client,
                    "curl",
                    "-sSg",
                    "-m20",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{size_download}",
                    f"{web}/bytes/3000000",
                )
                assert said == "3000000"
    finally:
        for server in UPLINK_OF:
            namespaces.run_in(lab.lab.namespace(server), set_tx_checksum, "clients", True)
    assert total(lab, "tunnel_in") > came
    check_nothing_dropped(lab, before, "too_big")


def test_the_remote_end_knows_the_size_that_fits(lab: PairLab) -> None:
    """After the transfers: its kernel keeps the size for the shared address."""
    for route in (("-4", "198.51.100.10"), ("-6", "2001:db8:64::10")):
        said = lab.good("internet", "ip", route[0], "route", "get", route[1])
        assert f"mtu {1500 - HEADER_BYTES}" in said


def ports_by_way(lab: PairLab, client: str, version: int) -> dict[bool, int]:
    """Of each way, straight and through the tunnel, a port of the client whose replies take it."""
    found: dict[bool, int] = {}
    for port in range(40300, 40340):
        before = total(lab, "tunnel_in")
        exchange(lab, client, version, port, 100)
        found.setdefault(total(lab, "tunnel_in") > before, port)
        if len(found) == 2:
            return found
    raise AssertionError(f"replies of {client} take one way only: {found}")


def exchange(lab: PairLab, client: str, version: int, port: int, size: int, datagrams: int = 1) -> None:
    """Datagrams to the echo service and back, whole."""
    own, remote = ENDS[version]

    def run() -> None:
        with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.bind((own, port))
            end.connect((remote, ECHO_PORT))
            for number in range(datagrams):
                delivered(end, end, struct.pack("!I", number) * (size // 4))

    namespaces.run_in(lab.lab.namespace(client), run)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("client", CLIENTS)
def test_fragments_take_the_tunnel_too(lab: PairLab, client: str, version: int) -> None:
    """They meet at one server and go on to the owner; full ones do not fit behind the header, and are cut once more."""
    before = drops(lab)
    for port in ports_by_way(lab, client, version).values():
        exchange(lab, client, version, port, 8192, 8)
        exchange(lab, client, version, port, 40000, 4)
    check_nothing_dropped(lab, before, "too_big")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_narrow_way_between_the_servers(lab: PairLab, client: str) -> None:
    """A router there says so to the server that made the tunnel, which tells the remote end."""
    narrow = 1400
    for number, server in ((1, "server1"), (2, "server2")):
        lab.good(
            "router",
            "ip",
            "route",
            "replace",
            UPLINK_OF[server],
            "dev",
            f"s{number}",
            "mtu",
            "lock",
            str(narrow),
        )
    try:

        def knows() -> bool:
            """Once a download has taken the tunnel: one in two does."""
            said = lab.good(
                client,
                "curl",
                "-sS",
                "-m20",
                "-o",
                "/dev/null",
                "-w",
                "%{size_download}",
                f"{WEB[0]}/bytes/1000000",
            )
            assert said == "1000000"
            route = lab.good("internet", "ip", "route", "get", "198.51.100.10")
            return f"mtu {narrow - HEADER_BYTES}" in route

        eventually(knows, "the remote end knows")
    finally:
        for number, server in ((1, "server1"), (2, "server2")):
            lab.good("router", "ip", "route", "del", UPLINK_OF[server], "dev", f"s{number}")


@pytest.mark.parametrize("client", CLIENTS)
def test_ping_and_traceroute(lab: PairLab, client: str) -> None:
    """Errors come back through the tunnel as well, by what they quote."""
    before = drops(lab)
    for to in (INTERNET, INTERNET6):
        assert "6 received" in lab.good(client, "ping", "-n", "-c6", "-i0.01", "-W20", "-s", "1000", to)
    said = lab.good(client, "traceroute", "-n", "-q2", "-w10", INTERNET)
    hops = re.findall(r"^ *\d+  (\S+) .*ms", said, re.MULTILINE)
    assert len(hops) == 3, said
    assert (hops[0], hops[-1]) == ("10.0.0.1", INTERNET), said
    check_nothing_dropped(lab, before, "hop_limit")


def test_a_client_reaches_the_other_servers_client(lab: PairLab) -> None:
    """Hairpin from one server to the other, through the tunnel, both ways."""
    code = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20);"
        f"s.bind(('{CLIENT}', 40999)); s.connect(('{INTERNET}', {ECHO_PORT})); s.send(b'x'); s.recv(9)"
    )
    lab.good("client2", "python3", "-c", code)
    flows = lab.softunicast("server2", "flows", "--client", f"{CLIENT}:40999")["flows"]
    address, _, port = flows[0]["local"].rpartition(":")
    before = total(lab, "tunnel_in")
    lab.run(
        "client1", "python3", "-c", f"import socket; socket.socket(2, 2).sendto(b'hi', ('{address}', {port}))"
    )
    eventually(lambda: total(lab, "tunnel_in") > before, "it comes out at the other server")


def test_nobody_else_opens_or_fills_a_tunnel(lab: PairLab) -> None:
    """From the internet it is a stranger's; from a program on a server, the guard's."""
    to = UPLINK_OF["server2"]
    send = f"import socket; socket.socket(2, 2).sendto(b'E' * 60, ('{to}', 6080))"
    before = lab.drops("server2")["tunnel_stranger"]
    lab.good("internet", "python3", "-c", send)
    eventually(lambda: lab.drops("server2")["tunnel_stranger"] > before, "it is counted")
    lab.run("server1", "python3", "-c", send)
    assert lab.drops("server1")["guard_tunnel"] == 1


def test_the_host_gets_everything_back(lab: PairLab) -> None:
    """The one setting that tunnels need."""
    setting = "/proc/sys/net/ipv4/conf/lo/forwarding"
    assert lab.good("server1", "cat", setting).strip() == "1"
    lab.end_agents(15)
    assert lab.good("server1", "cat", setting).strip() == "0"


def test_the_same_in_xdp(lab: PairLab) -> None:
    """Last: the agents start anew, with the director in XDP."""
    for port in ("s1", "s2"):  # so that frames that XDP sends arrive
        namespaces.run_in(lab.lab.namespace("router"), attach_pass, port, lab.lab.bpffs / f"router-{port}")
    for server in UPLINK_OF:
        config = lab.config(server)
        config.write_text(config.read_text().replace("[uplink]\n", '[uplink]\nattach = "xdp"\n'))
    lab.start_agents()
    assert "xdp" in lab.good("server1", "ip", "link", "show", "uplink")
    before, out = drops(lab), total(lab, "tunnel_out")
    for client in CLIENTS:
        for web in WEB:
            for _ in range(4):
                said = lab.good(
                    client,
                    "curl",
                    "-sSg",
                    "-m20",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{size_download}",
                    f"{web}/bytes/300000",
                )
                assert said == "300000"
        for port in ports_by_way(lab, client, 4).values():
            exchange(lab, client, 4, port, 1472)
            exchange(lab, client, 4, port, 8192, 4)
    assert total(lab, "tunnel_out") > out + 100
    check_nothing_dropped(lab, before, "too_big")
