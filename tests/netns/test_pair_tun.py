"""On-ramps without Ethernet in the lab `pair`: descriptors in the hands of programs without privileges, and a real
VPN device (wireguard-go) between a client and its server.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv6Interface
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_RA,
    ICMPv6NDOptPrefixInfo,
    ICMPv6TimeExceeded,
    IPv6,
)
from tests.netns.pair_lab import TIMEOUT_S, Done, PairLab, eventually
from tests.netns.tun_program import ME, ONRAMP, SERVER, echo, opened, receive, run_as, staged
from tests.netns.vpn import VPN_CLIENT, VPN_CLIENT6, VPN_SERVER, wireguard

from softunicast.core.errors import AgentUnreachableError, HostError, InputError
from softunicast.kernel import links, namespaces, tun
from softunicast.lab import pattern, processes
from softunicast.lab.pair import CLIENT, ECHO_PORT, INTERNET, POOL, SHARED
from softunicast.lab.pair6 import CLIENT6, INTERNET6, SHARED6
from softunicast.onramp import open_tun

BULK = "bulk"
OWN, SECOND = "10.9.0.1", "10.9.0.3"
OWN6, ME6 = "fd00:9::1", "fd00:9::2"
SIZE = 20_000_000

ONRAMPS = f"""
[[onramps]]
kind = "fd"
name = "{ONRAMP}"
pool = "{POOL.name}"
address = "{OWN}/24"
address6 = "{OWN6}/64"
mtu = 1400
sources = ["10.9.0.0/24", "fd00:9::/64"]
users = ["nobody"]

[[onramps]]
kind = "fd"
name = "{BULK}"
pool = "{POOL.name}"
address = "10.9.1.1/24"
sources = ["10.9.1.0/24"]
groups = ["nogroup"]
"""


@pytest.fixture(scope="module")
def vpn() -> Iterator[str]:
    """A name for devices that is nobody else's on this host: wireguard-go keeps sockets by name."""
    name = f"wg{secrets.token_hex(4)}"
    yield name
    for end in ("s", "c"):
        Path(f"/var/run/wireguard/{name}{end}.sock").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab], labs_apart: Path, vpn: str) -> PairLab:
    made = make_pair(ipv6=True)
    wireguard(made, vpn)
    made.end_agents(signal.SIGTERM, SERVER)
    config = made.config(SERVER)
    sources = json.dumps([f"{VPN_CLIENT}/32", f"{VPN_CLIENT6}/128"])
    vpn_onramp = f'[[onramps]]\ninterface = "{vpn}s"\npool = "{POOL.name}"\nsources = {sources}\n'
    config.write_text(f"{config.read_text()}\n{ONRAMPS}\n{vpn_onramp}")
    made.start_agents(SERVER)
    for folder in (labs_apart, made.lab.directory, made.lab.node_directory(SERVER)):
        folder.chmod(0o711)  # as /run is: everybody comes as far as the socket
    return made


@pytest.fixture(scope="module")
def stage(labs_apart: Path) -> Iterator[Path]:
    with staged(labs_apart.parent) as folder:
        yield folder


def claims(lab: PairLab, client: str) -> set[str]:
    return {local for _, ours, local, _ in lab.flows(SERVER) if ours.startswith(client)}


def row(lab: PairLab, name: str = ONRAMP) -> Mapping[str, object]:
    [found] = [one for one in lab.softunicast(SERVER, "onramps") if one["name"] == name]
    assert isinstance(found, dict)
    return found


# -- tests ---------------------------------------------------------------------------------------------------


def test_the_listing(lab: PairLab, vpn: str) -> None:
    assert row(lab) == {
        "name": ONRAMP,
        "kind": "fd",
        "pool": POOL.name,
        "state": "ready",
        "attach": "tc",
        "layer": "ip",
        "address": f"{OWN}/24",
        "address6": f"{OWN6}/64",
        "mtu": 1400,
        "sources": ["10.9.0.0/24", "fd00:9::/64"],
        "open": False,
    }
    assert (row(lab, "clients")["layer"], row(lab, "clients")["sources"]) == ("ethernet", [])
    assert (row(lab, f"{vpn}s")["kind"], row(lab, f"{vpn}s")["layer"]) == ("interface", "ip")
    with opened(lab):
        assert row(lab)["open"] is True
    eventually(lambda: row(lab)["open"] is False, "closed")
    assert ONRAMP in lab.good(SERVER, "softunicast", "onramps")


def test_a_program_without_privileges(lab: PairLab, stage: Path) -> None:
    """It is nobody, and where it runs there is nothing but its descriptor."""
    said = run_as(lab, stage, "nobody", ONRAMP, f"{INTERNET}:{ECHO_PORT}", "hello")
    assert said == Done(0, f"{INTERNET} says 'hello'\n", "")
    assert {local.split(":")[0] for local in claims(lab, ME)} == {str(SHARED)}


@pytest.mark.parametrize(
    ("user", "onramp", "says"),
    [
        ("daemon", ONRAMP, "user 1 may not open on-ramp apps; fix: see users and groups"),
        ("daemon", BULK, "user 1 may not open on-ramp bulk"),
        ("nobody", "clients", "no on-ramp 'clients' of kind fd; fix: use one of apps, bulk"),
    ],
)
def test_who_may_not(lab: PairLab, stage: Path, user: str, onramp: str, says: str) -> None:
    done = run_as(lab, stage, user, onramp, f"{INTERNET}:{ECHO_PORT}", "hello")
    assert done.code == 1
    assert says in done.complaint


def test_by_group(lab: PairLab, stage: Path) -> None:
    assert run_as(lab, stage, "nobody", BULK, f"{INTERNET}:{ECHO_PORT}", "hi").code == 0


def test_one_program_at_a_time(lab: PairLab, stage: Path) -> None:
    with opened(lab) as held:
        done = run_as(lab, stage, "nobody", ONRAMP, f"{INTERNET}:{ECHO_PORT}", "hello")
        assert "another program has on-ramp apps; fix: end it first" in done.complaint
        assert bytes(echo(held, b"still mine")[UDP].payload) == b"still mine"


@pytest.mark.parametrize(
    "question", [b"", b"{}", b"x" * 5000, b'{"open": 7}', b'{"open": "apps", "x": 1}', b"\xff"]
)
def test_who_asks_for_nothing_sensible(lab: PairLab, question: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.settimeout(TIMEOUT_S)
        asking.connect(str(lab.lab.fd_socket(SERVER)))
        asking.send(question)
        answer = asking.recv(1 << 16)
    if question:
        assert json.loads(answer)["error"]["exit_code"] == InputError.exit_code
    else:
        assert answer == b""


def test_pings(lab: PairLab) -> None:
    """The internet, and the server itself, whose errors have its address."""
    with opened(lab) as held:
        for remote in (INTERNET, OWN):
            os.write(held.descriptor, bytes(IP(src=ME, dst=remote) / ICMP(id=7, seq=1) / b"ping"))
            answer = receive(held)
            assert (answer.src, answer.dst, answer[ICMP].type) == (remote, ME, 0)
            assert (answer[ICMP].id, bytes(answer[ICMP].payload)) == (7, b"ping")
        os.write(held.descriptor, bytes(IP(src=ME, dst=INTERNET, ttl=1) / UDP(dport=ECHO_PORT)))
        assert (receive(held).src, OWN) == (OWN, OWN)


def test_pings_of_ipv6(lab: PairLab) -> None:
    """By the same descriptor; the replies may come to the other server."""
    with opened(lab) as held:
        assert held.address6 == IPv6Interface(f"{OWN6}/64")
        for remote in (INTERNET6, OWN6):
            os.write(
                held.descriptor, bytes(IPv6(src=ME6, dst=remote) / ICMPv6EchoRequest(id=7, data=b"ping"))
            )
            answer = receive(held, 6)
            assert (answer.src, answer.dst, answer[ICMPv6EchoReply].id) == (remote, ME6, 7)
            assert answer[ICMPv6EchoReply].data == b"ping"
        os.write(held.descriptor, bytes(IPv6(src=ME6, dst=INTERNET6, hlim=1) / UDP(dport=ECHO_PORT)))
        error = receive(held, 6)
        assert (error.src, error.dst, ICMPv6TimeExceeded in error) == (OWN6, ME6, True)
    assert {local for local in claims(lab, f"[{ME6}]") if local.startswith(f"[{SHARED6}]")}


def test_spoofed_packets_of_ipv6(lab: PairLab) -> None:
    """Nor does the host come to believe in a router that the program says it is."""
    before = lab.drops(SERVER).get("spoofed", 0)
    spoofed = (CLIENT6, INTERNET6, str(SHARED6), OWN6, VPN_CLIENT6, "fe80::1", "::1")
    with opened(lab) as held, lab.capture("router", "s1") as capture:
        for source in spoofed:
            for destination in (INTERNET6, OWN6, "ff02::1"):
                packet = IPv6(src=source, dst=destination, hlim=255)
                os.write(held.descriptor, bytes(packet / UDP(dport=ECHO_PORT) / b"evil"))
        lab.good(SERVER, "sysctl", "-qw", f"net.ipv6.conf.{ONRAMP}.accept_ra=2")
        prefix = ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64)
        os.write(
            held.descriptor, bytes(IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA() / prefix)
        )
        assert bytes(echo(held, b"honest")[UDP].payload) == b"honest"
        frames = lab.passed(SERVER, capture)
    assert not [frame for frame in frames if b"evil" in bytes(frame)]
    assert lab.drops(SERVER)["spoofed"] == before + 3 * len(spoofed) + 1
    assert "2001:db8:bad" not in lab.good(SERVER, "ip", "-6", "route", "show", "table", "all")
    assert f"dev {ONRAMP} proto ra" not in lab.good(SERVER, "ip", "-6", "route")


def test_spoofed_packets_and_garbage(lab: PairLab) -> None:
    """Nothing of it leaves, what is spoofed is counted, and the conversation beside it goes on."""
    before = lab.drops(SERVER).get("spoofed", 0)
    spoofed = (CLIENT, INTERNET, str(SHARED), OWN, "192.0.2.1", "127.0.0.1", "10.9.1.2")
    with opened(lab) as held, lab.capture("router", "s1") as capture:
        for source in spoofed:
            for destination in (INTERNET, "192.0.2.1", "224.0.0.1"):
                os.write(
                    held.descriptor, bytes(IP(src=source, dst=destination) / UDP(dport=ECHO_PORT) / b"evil")
                )
        for size in range(1, 300):
            garbage = os.urandom(size)
            try:
                os.write(held.descriptor, bytes([0x45, *garbage[1:]]) if size % 2 else garbage)
            except OSError:  # the device takes only what could be IP
                assert garbage[0] >> 4 not in (4, 6)
        assert bytes(echo(held, b"honest")[UDP].payload) == b"honest"
        frames = lab.passed(SERVER, capture)
    sources = {frame[IP].src for frame in frames if IP in frame}
    assert not sources & set(spoofed) - {str(SHARED), "192.0.2.1"}
    assert not [frame for frame in frames if b"evil" in bytes(frame)]
    assert lab.drops(SERVER)["spoofed"] >= before + 3 * len(spoofed)
    assert lab.last_drop(SERVER, "spoofed")["interface"] == ONRAMP


def test_a_program_is_killed(lab: PairLab) -> None:
    """Another one goes on with its conversations: the device and its addresses are the same."""
    with opened(lab) as held:
        echo(held, b"one", SECOND, 41000)
        [port] = claims(lab, f"{SECOND}:41000")
        child = os.fork()
        if child == 0:
            signal.pause()  # holds what its parent lets go
    with pytest.raises(HostError, match="another program has"):
        open_tun(ONRAMP, str(lab.lab.fd_socket(SERVER)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with opened(lab) as held:
        echo(held, b"two", SECOND, 41000)
    assert claims(lab, f"{SECOND}:41000") == {port}


def test_the_agent_is_killed(lab: PairLab) -> None:
    """The descriptor works without it, and after it came back."""
    with opened(lab) as held:
        assert not os.get_inheritable(held.descriptor)
        echo(held, b"before")
        before = claims(lab, ME)
        lab.end_agents(signal.SIGKILL, SERVER)
        echo(held, b"meanwhile")
        lab.start_agents(SERVER)
        echo(held, b"after")
        assert claims(lab, ME) == before
        assert row(lab)["open"] is True
        with pytest.raises(HostError, match="another program has"):
            open_tun(ONRAMP, str(lab.lab.fd_socket(SERVER)))


def test_programs_that_keep_more_than_they_were_given(lab: PairLab) -> None:
    """Whoever has the queue can give the device away, or let it go. The agent makes it anew."""
    inside = lab.lab.namespace(SERVER)

    def numbers() -> list[int | None]:
        return [namespaces.run_in(inside, links.index_of, name) for name in (ONRAMP, BULK)]

    before = numbers()
    with opened(lab) as held:
        with opened(lab, BULK) as let_go:
            fcntl.ioctl(let_go.descriptor, tun._TUNSETPERSIST, 0)
        fcntl.ioctl(held.descriptor, tun._TUNSETOWNER, 65534)
        eventually(lambda: not {None, *before} & set(numbers()), "made anew")
        with pytest.raises(OSError, match=os.strerror(errno.EBADFD)):
            os.write(held.descriptor, b"\x45" + bytes(40))
    eventually(lambda: {row(lab, name)["state"] for name in (ONRAMP, BULK)} == {"ready"}, "ready")
    with opened(lab) as held:
        echo(held, b"again")


def test_a_clean_stop(lab: PairLab) -> None:
    """Takes the devices and the socket away; the program that had one hears of it."""
    with opened(lab) as held:
        lab.end_agents(signal.SIGTERM, SERVER)
        with pytest.raises(OSError, match=os.strerror(errno.EBADFD)):
            os.write(held.descriptor, b"\x45" + bytes(40))
    inside = lab.lab.namespace(SERVER)
    assert [namespaces.run_in(inside, links.index_of, name) for name in (ONRAMP, BULK)] == [None, None]
    assert not lab.lab.fd_socket(SERVER).exists()
    with pytest.raises(AgentUnreachableError, match="no agent answers on"):
        open_tun(ONRAMP, str(lab.lab.fd_socket(SERVER)))
    lab.start_agents(SERVER)
    with opened(lab) as held:
        echo(held, b"again")


# -- a VPN ---------------------------------------------------------------------------------------------------


@contextmanager
def iperf_server(lab: PairLab) -> Iterator[None]:
    child = processes.popen(lab.lab, "internet", ["iperf3", "--server", "--one-off", "--port", "5201"])
    with child:
        try:
            eventually(lambda: ":5201" in lab.good("internet", "ss", "-Hltn"), "iperf3 listens")
            yield
        finally:
            child.kill()


def test_downloads_through_the_vpn(lab: PairLab) -> None:
    said = lab.good("client1", "sh", "-c", f"curl -sS -m20 http://{INTERNET}/bytes/{SIZE} | sha256sum")
    assert said.split()[0] == pattern.sha256(SIZE)
    assert {local.split(":")[0] for local in claims(lab, VPN_CLIENT)} == {str(SHARED)}
    for size in ("1300", "4000", "30000"):  # whose replies come in fragments larger than the tunnel carries
        said = lab.good("client1", "ping", "-c3", "-i0.01", "-W20", "-s", size, INTERNET)
        assert "3 received" in said
        assert "wrong data" not in said


def test_downloads_through_the_vpn_by_ipv6(lab: PairLab) -> None:
    url = f"http://[{INTERNET6}]/bytes/{SIZE}"
    said = lab.good("client1", "sh", "-c", f"curl -gsS -m20 {url} | sha256sum")
    assert said.split()[0] == pattern.sha256(SIZE)
    assert {local.rpartition(":")[0] for local in claims(lab, f"[{VPN_CLIENT6}]")} == {f"[{SHARED6}]"}
    said = lab.good("client1", "ping", "-c3", "-i0.01", "-W20", "-s", "1200", INTERNET6)
    assert "3 received" in said


@pytest.mark.parametrize("options", [(), ("-R",), ("-u", "-b", "20M", "-l", "1200")])
def test_iperf_through_the_vpn(lab: PairLab, options: tuple[str, ...]) -> None:
    with iperf_server(lab):
        argv = ("iperf3", "--client", INTERNET, "--port", "5201", "--time", "1", "--json", *options)
        said = json.loads(lab.good("client1", *argv))
    received = said["end"].get("sum_received") or said["end"]["sum"]
    assert received["bytes"] > 1_000_000


def test_traceroute_through_the_vpn(lab: PairLab) -> None:
    said = lab.good("client1", "traceroute", "-n", "-q1", "-w10", INTERNET)
    assert [line.split()[1] for line in said.splitlines()[1:]] == [VPN_SERVER, "192.0.2.254", INTERNET]


def test_a_vpn_client_that_spoofs(lab: PairLab, vpn: str) -> None:
    """WireGuard itself refuses what its peer may not send; the on-ramp would, too. The server's list is shorter."""
    before = lab.drops(SERVER).get("spoofed", 0)
    config = lab.config(SERVER)
    lab.end_agents(signal.SIGKILL, SERVER)
    config.write_text(config.read_text().replace(f"{VPN_CLIENT}/32", "10.10.0.77/32"))
    lab.start_agents(SERVER)
    done = lab.run("client1", "curl", "-sS", "-m2", f"http://{INTERNET}/")
    assert done.code != 0
    assert lab.drops(SERVER)["spoofed"] > before
    assert lab.last_drop(SERVER, "spoofed")["interface"] == f"{vpn}s"
