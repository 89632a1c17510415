"""People's tools on a server itself, in a cgroup that is in an agreement: what claims no port when it connects (UDP
without connect(), ping, traceroute, sockets that are bound elsewhere) leaves from the server's slice, and nothing as
it is.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet
from tests.netns.pair_lab import Done, PairLab, eventually
from tests.netns.tools import make_quick

from softunicast.core.slices import Slice
from softunicast.kernel import cgroups
from softunicast.kernel.agreements import Agreements
from softunicast.lab import processes
from softunicast.lab.pair import ECHO_PORT, INTERNET, POOL, SHARED
from softunicast.lab.pair6 import INTERNET6, ROUTER6, SHARED6

SERVER = "server1"
HOSTS = {4: "192.0.2.1", 6: "2001:db8:2::1"}
REMOTES = {4: INTERNET, 6: INTERNET6}
ROUTERS = {4: "192.0.2.254", 6: ROUTER6}
ASK = """
import socket, sys
remote, port, count, bound, tries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
family = socket.AF_INET6 if ":" in remote else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as asks:
    asks.settimeout(1)
    asks.bind((bound, 0))
    for number in range(count):
        sent = b"%d" % number + b"x" * (number * 1000)
        for _ in range(tries):
            asks.sendto(sent, (remote, port))
            try:
                while asks.recvfrom(65536)[0] != sent:
                    pass
                break
            except TimeoutError:
                pass
        else:
            sys.exit("no answer")
print("all came back")
"""


@dataclass
class Host:
    """A server, and the cgroup of its that is in an agreement."""

    lab: PairLab
    place: Path
    version: int

    @property
    def remote(self) -> str:
        return REMOTES[self.version]

    @cached_property
    def slices(self) -> dict[int, Slice]:
        rows = self.lab.ask(SERVER, "/v1/slices")
        held = [Slice.parse(row["slice"]) for row in rows if row["here"] and row["state"] == "held"]
        return {part.version: part for part in held}

    def run(self, *argv: str) -> Done:
        """A program in the agreement."""
        return self.lab.run(
            SERVER, "sh", "-c", 'echo $$ > "$0" && exec "$@"', f"{self.place}/cgroup.procs", *argv
        )

    def good(self, *argv: str) -> str:
        done = self.run(*argv)
        assert done.code == 0, done
        return done.output

    def left(self, *argv: str) -> list[Packet]:
        """What the program put on the wire: all of it has to be from the server's slice."""
        with self.lab.capture("router", "s1") as capture:
            self.good(*argv)
            heard = [frame for frame in self.lab.passed(SERVER, capture) if self._of_program(frame)]
        assert heard
        for frame in heard:
            self.check(frame)
        return heard

    def _of_program(self, frame: Packet) -> bool:
        """Not the sentinel of `passed`, and nothing of neighbours or other clients."""
        layer = frame.getlayer(IPv6 if self.version == 6 else IP)
        return (
            layer is not None
            and layer.dst == self.remote
            and not (frame.haslayer("UDP") and frame["UDP"].dport == 9)
        )

    def check(self, frame: Packet) -> None:
        layer = frame[IPv6 if self.version == 6 else IP]
        mine = self.slices[self.version]
        assert ip_address(layer.src) == mine.address == (SHARED6 if self.version == 6 else SHARED)
        transport = frame.getlayer("TCP") or frame.getlayer("UDP")
        echo = frame.getlayer("ICMP") or frame.getlayer("ICMPv6EchoRequest")
        port = transport.sport if transport else echo.id if echo else None
        assert port is None or mine.port_first <= port < mine.port_first + mine.ports


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    made = make_quick(make_pair(ipv6=True))
    for node in ("router", "internet"):
        made.good(node, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/icmp/ratelimit")
    return made


@pytest.fixture(params=[4, 6])
def host(lab: PairLab, request: pytest.FixtureRequest) -> Iterator[Host]:
    root = cgroups.find_root()
    assert root is not None
    place = root / f"sutest-{secrets.token_hex(4)}"
    place.mkdir()
    try:
        with Agreements.open(lab.lab.bpffs / SERVER) as agreements:
            agreements.set(cgroups.number(place), POOL.name)
            try:
                yield Host(lab, place, request.param)
            finally:
                agreements.remove(cgroups.number(place))
    finally:
        place.rmdir()


def unchanged(host: Host, before: dict[str, int]) -> bool:
    return host.lab.drops(SERVER) == before


@pytest.mark.parametrize("size", [56, 1473, 4000, 20000])
def test_ping(host: Host, size: int) -> None:
    before = host.lab.drops(SERVER)
    host.left("ping", "-n", "-c3", "-i0.05", "-W20", "-s", str(size), host.remote)
    assert unchanged(host, before)


@pytest.mark.parametrize("how", [(), ("-I",), ("-T",)], ids=["udp", "icmp", "tcp"])
def test_traceroute(host: Host, how: tuple[str, ...]) -> None:
    said = host.good("traceroute", "-n", "-q1", "-m5", "-w10", *how, host.remote).splitlines()
    assert [line.split()[1] for line in said[1:]] == [ROUTERS[host.version], host.remote]
    host.left("traceroute", "-n", "-q2", "-m2", "-w10", *how, host.remote)


@pytest.mark.parametrize("bound", [False, True])
def test_a_udp_socket_without_connect(host: Host, bound: bool) -> None:
    address = HOSTS[host.version] if bound else ("::" if host.version == 6 else "0.0.0.0")
    before = host.lab.drops(SERVER)
    heard = host.left(sys.executable, "-c", ASK, host.remote, str(ECHO_PORT), "10", address, "20")
    assert len({frame["UDP"].sport for frame in heard if frame.haslayer("UDP")}) == 1
    assert unchanged(host, before)


def test_curl_from_an_address_of_its_own(host: Host) -> None:
    """Bound elsewhere: its connection is translated."""
    remote = f"http://[{host.remote}]/" if host.version == 6 else f"http://{host.remote}/"
    own = HOSTS[host.version]
    host.left("curl", "-sS", "-m20", "-o", "/dev/null", "--interface", own, remote)


def test_flows_say_that_it_is_the_host(host: Host) -> None:
    host.good("ping", "-n", "-c1", "-W20", host.remote)
    said = host.lab.softunicast(SERVER, "flows", "--limit", "100000")["flows"]
    flows = [flow for flow in said if flow["onramp"] == "host" and flow["protocol"] == "icmp"]
    assert any(HOSTS[host.version] in flow["client"] for flow in flows)


def test_an_unreachable_port(host: Host) -> None:
    """The far end's error comes back to the socket."""
    done = host.run(sys.executable, "-c", ASK, host.remote, "9999", "1", HOSTS[host.version], "1")
    assert (done.code, done.complaint) == (1, "no answer\n")
    said = host.good("traceroute", "-n", "-q1", "-m3", "-w10", "-p", "9999", host.remote)
    assert host.remote in said.splitlines()[-1]


def test_other_programs_leave_as_ever(host: Host) -> None:
    with host.lab.capture("router", "s1") as capture:
        host.lab.good(SERVER, "ping", "-n", "-c1", "-W20", host.remote)
        heard = [frame for frame in host.lab.passed(SERVER, capture) if host._of_program(frame)]
    layer = IPv6 if host.version == 6 else IP
    assert {frame[layer].src for frame in heard} == {HOSTS[host.version]}


def test_dig(host: Host) -> None:
    """Its socket is connected, so it has a port of the slice from the start."""
    if not (server := shutil.which("dnsmasq", path="/usr/sbin:/usr/bin")):
        pytest.skip("missing: dnsmasq; fix: apt-get install dnsmasq-base")
    options = ("--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--address=/lab.example/192.0.2.77")
    listen = (f"--listen-address={host.remote}", "--bind-interfaces", "--user=root", "--pid-file=")
    name = f"dnsmasq{host.version}"
    processes.start(host.lab.lab, "internet", name, [server, "--keep-in-foreground", *options, *listen])
    eventually(
        lambda: host.remote in host.lab.good("internet", "ss", "-Hlnu", "sport = :53"), f"{name} listens"
    )
    assert "192.0.2.77" in host.good("dig", "+short", "+time=10", f"@{host.remote}", "www.lab.example")
    host.left("dig", "+short", "+time=10", f"@{host.remote}", "www.lab.example")
    host.left("dig", "+short", "+tcp", "+time=10", f"@{host.remote}", "www.lab.example")
