"""Programs under `softunicast run` whose resolv.conf names a resolver of their own host, in the lab `pair6`: with `dns`
for the pool, what they look up is asked from the server's slice, by whatever means. Looked at from the internet.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet
from tests.netns.pair_lab import Done, PairLab
from tests.netns.tools import listening

from softunicast.core.slices import Slice
from softunicast.lab import processes
from softunicast.lab.pair import INTERNET, POOL, SHARED
from softunicast.lab.pair6 import INTERNET6, SHARED6

SERVER = "server1"
OWN = {4: "192.0.2.1", 6: "2001:db8:2::1"}
DNS_PORT = 53
NAME, ADDRESS = "a.lab.example", "192.0.2.77"
STUB = {4: "127.0.0.53", 6: "::1"}  # another process of the server, that asks in the internet
DNSMASQ = (
    *(
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--cache-size=0",
    ),
    *("--bind-interfaces", "--user=root", "--pid-file="),
)
UNCONNECTED = f"""
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as made:
    made.settimeout(10)
    name = b"".join(bytes([len(part)]) + part.encode() for part in "{NAME}".split("."))
    made.sendto(bytes.fromhex("123401000001000000000000") + name + bytes.fromhex("0000010001"), (sys.argv[1], 53))
    answer, whom = made.recvfrom(1000)
    assert whom[:2] == (sys.argv[1], 53), whom
    print(".".join(map(str, answer[-4:])))
"""
PROGRAMS = {
    "the C library": ("getent", "ahostsv4", NAME),
    "dig": ("dig", "+short", "+time=3", NAME),
    "dig by TCP": ("dig", "+short", "+tcp", NAME),
    "a socket that is not connected": (sys.executable, "-c", UNCONNECTED, "STUB"),
}


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    """The servers' pool has `dns`, and server1 a resolver of its own on loopback besides."""
    dns = ip_address(INTERNET), ip_address(INTERNET6)
    made = make_pair(ipv6=True, pool=replace(POOL, dns=dns))
    made.good(SERVER, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/lo/disable_ipv6")
    answering = [
        f"--address=/lab.example/{ADDRESS}",
        f"--listen-address={INTERNET}",
        f"--listen-address={INTERNET6}",
    ]
    serve(made, "internet", *answering)
    serve(made, SERVER, f"--server={INTERNET}", *(f"--listen-address={stub}" for stub in STUB.values()))
    return made


def serve(lab: PairLab, node: str, *options: str) -> None:
    program = shutil.which(DNSMASQ[0], path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("missing: dnsmasq; fix: apt-get install dnsmasq-base")
    processes.start(lab.lab, node, "names", [program, *DNSMASQ[1:], *options])
    listening(lab, node, "tcp", 53)


def looked_up(
    lab: PairLab, program: Sequence[str], version: int, *under: str
) -> tuple[Done, set[tuple[str, int]]]:
    """Runs the program in a mount namespace with a resolv.conf that names STUB. What it said, and from where the
    internet was asked meanwhile."""
    file = lab.lab.node_directory(SERVER) / "resolv.conf"
    file.write_text(f"nameserver {STUB[version]}\noptions timeout:3\n")
    command = [STUB[version] if word == "STUB" else word for word in program]
    script = f'mount --bind {file} /etc/resolv.conf && exec "$@"'
    with lab.capture("internet", "eth0") as capture:
        done = lab.run(SERVER, "unshare", "--mount", "sh", "-c", script, "sh", *under, *command)
        heard = [_ip(frame) for frame in lab.passed(SERVER, capture)]
    asking = [ip for ip in heard if ip is not None and getattr(ip.payload, "dport", None) == DNS_PORT]
    return done, {(str(ip.src), int(ip.payload.sport)) for ip in asking}


def _ip(frame: Packet) -> Packet | None:
    return next((frame[kind] for kind in (IP, IPv6) if kind in frame), None)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", PROGRAMS)
def test_asked_from_the_slice(lab: PairLab, name: str, version: int) -> None:
    done, sources = looked_up(lab, PROGRAMS[name], version, "softunicast", "run", "--")
    assert (done.code, done.output.split()[0], done.complaint) == (0, ADDRESS, "")
    assert {address for address, _ in sources} == {str(SHARED if version == 4 else SHARED6)}
    held = [
        Slice.parse(row["slice"])
        for row in lab.ask(SERVER, "/v1/slices")
        if row["here"] and row["state"] == "held"
    ]
    [mine] = [slice_ for slice_ in held if slice_.version == version]
    assert {port for _, port in sources} <= set(range(mine.port_first, mine.port_last + 1))


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_it_the_hosts_resolver_asks(lab: PairLab, name: str) -> None:
    """Also what the hooks must not change."""
    done, sources = looked_up(lab, PROGRAMS[name], 4)
    assert (done.code, done.output.split()[0]) == (0, ADDRESS)
    assert {address for address, _ in sources} == {OWN[4]}


def test_what_the_program_is_told(lab: PairLab) -> None:
    """It asked the address that its resolv.conf names."""
    done, _ = looked_up(lab, ("dig", NAME), 4, "softunicast", "run", "--")
    assert f";; SERVER: {STUB[4]}#53({STUB[4]}) (UDP)" in done.output
