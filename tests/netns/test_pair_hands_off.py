"""Traffic that is not soft-unicast is untouched while agents run, come and go; and no moment of their coming and
going lets a server speak for ports or addresses that are not its own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import ARP, Ether
from tests.netns.pair_lab import PairLab, eventually, excused

from softunicast.core.records import SLICE_PORTS_DEFAULT
from softunicast.kernel import links, namespaces
from softunicast.lab import peers, processes
from softunicast.lab.pair import ECHO_PORT, INTERNET, SERVER_OF, SHARED

OWN = {"server1": "192.0.2.1", "server2": "192.0.2.2"}
ROUTER = "192.0.2.254"
GATEWAY = "10.0.0.1"  # the server, as its client sees it
TALK_PORT = 8080
STEP_S = 0.005


@pytest.fixture(scope="class", params=["running", "stopped"])
def lab(request: pytest.FixtureRequest, pair_lab: PairLab) -> Iterator[PairLab]:
    """The lab with both agents running, or with server1's stopped."""
    if request.param == "stopped":
        pair_lab.end_agents(signal.SIGTERM, "server1")
    yield pair_lab
    if request.param == "stopped":
        pair_lab.start_agents("server1")


@contextmanager
def listening(lab: PairLab, server: str) -> Iterator[socket.socket]:
    """A TCP service of the server itself, on all its addresses."""
    with namespaces.run_in(lab.lab.namespace(server), socket.create_server, ("0.0.0.0", TALK_PORT)) as made:
        made.settimeout(20.0)
        yield made


def dropped(lab: PairLab) -> dict[str, dict[str, int]]:
    servers = [server for server in lab.lab.agents if lab.answers(server)]
    return {server: {reason: n for reason, n in lab.drops(server).items() if n} for server in servers}


class TestUntouched:
    @pytest.mark.parametrize(
        ("node", "address"),
        [
            ("router", OWN["server1"]),
            ("internet", OWN["server1"]),
            ("server2", OWN["server1"]),
            ("server1", ROUTER),
            ("server1", INTERNET),
            ("client1", GATEWAY),
            ("server1", "10.0.0.2"),
        ],
    )
    def test_pings(self, lab: PairLab, node: str, address: str) -> None:
        before = dropped(lab)
        # Of a full packet, fragments too: nothing of it is ours to judge.
        for size in ("56", "1472", "3000"):
            assert "2 received" in lab.good(node, "ping", "-c2", "-i0.01", "-W20", "-s", size, address)
        assert dropped(lab) == before

    @pytest.mark.parametrize(
        ("node", "address"), [("router", OWN["server1"]), ("internet", OWN["server1"]), ("client1", GATEWAY)]
    )
    def test_connections_to_the_server_itself(self, lab: PairLab, node: str, address: str) -> None:
        before = dropped(lab)
        with listening(lab, "server1") as service:
            client = namespaces.run_in(
                lab.lab.namespace(node), socket.create_connection, (address, TALK_PORT), 5.0
            )
            with client, service.accept()[0] as accepted:
                data = os.urandom(1 << 20)
                sender = threading.Thread(target=client.sendall, args=(data,))
                sender.start()
                received = b""
                while len(received) < len(data):
                    received += accepted.recv(1 << 16)
                sender.join()
                assert received == data
        assert dropped(lab) == before

    def test_connections_of_the_server_itself(self, lab: PairLab) -> None:
        before = dropped(lab)
        answer = json.loads(lab.good("server1", "curl", "-s", "-m", "20", f"http://{INTERNET}/"))
        assert answer["address"] == OWN["server1"]
        assert dropped(lab) == before

    def test_ipv6_of_the_links(self, lab: PairLab) -> None:
        before = dropped(lab)
        for node, interface in (("client1", "eth0"), ("router", "s1")):
            assert "PING" in lab.run(node, "ping", "-6", "-c1", "-W1", f"ff02::1%{interface}").output
        assert dropped(lab) == before


def test_a_stopped_server_forwards_nothing(pair_lab: PairLab) -> None:
    """What no egress translates must not leave as it is: forwarding ends with the agent."""
    pair_lab.end_agents(signal.SIGTERM, "server1")
    try:
        with pair_lab.capture("router", "s1") as capture:
            assert pair_lab.run("client1", "curl", "-s", "-m", "1", f"http://{INTERNET}/").code != 0
            heard = pair_lab.passed("server1", capture)
        assert {frame[IP].src for frame in heard if IP in frame} == {OWN["server1"]}
    finally:
        pair_lab.start_agents("server1")


def arp_question(mac: str, asker: str, target: str) -> bytes:
    return bytes(
        Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op="who-has", hwsrc=mac, psrc=asker, pdst=target)
    )


@pytest.mark.parametrize(
    ("node", "interface", "own", "answering"),
    [("router", "lan", ROUTER, OWN["server1"]), ("client1", "eth0", "10.0.0.2", GATEWAY)],
)
def test_arp_for_the_shared_address_is_not_answered(
    pair_lab: PairLab, node: str, interface: str, own: str, answering: str
) -> None:
    namespace = pair_lab.lab.namespace(node)
    mac = namespaces.run_in(namespace, links.interface, interface).mac
    assert mac is not None
    with (
        pair_lab.capture(node, interface) as capture,
        closing(pair_lab.packet_socket(node, interface)) as sender,
    ):
        for asker in (
            own,
            "0.0.0.0",
            str(SHARED),
        ):  # a neighbour, one that looks for duplicates, one that claims
            sender.send(arp_question(mac, asker, str(SHARED)))
        sender.send(arp_question(mac, own, answering))
        answers: set[str] = set()

        def asked() -> bool:
            answers.update(frame[ARP].psrc for frame in capture.read() if ARP in frame and frame[ARP].op == 2)
            return answering in answers

        eventually(asked, "the server answers for itself")
    assert answers == {answering}


def test_the_shared_address_asks_for_nobody(pair_lab: PairLab) -> None:
    """A server that sends from the shared address looks for its next hop under its own."""
    port = pair_lab.slice_of("server1").port_last
    with (
        excused(pair_lab.lab, "server1"),
        pair_lab.capture("router", "s1") as capture,
        pair_lab.raw_socket("server1") as raw,
    ):
        pair_lab.good("server1", "ip", "neigh", "flush", "dev", "uplink")
        syn = IP(src=str(SHARED), dst=INTERNET) / TCP(sport=port, dport=9, flags="S")
        raw.sendto(bytes(syn), (INTERNET, 0))
        heard = pair_lab.passed("server1", capture)
    assert any(IP in frame and frame[IP].src == str(SHARED) for frame in heard)
    assert {frame[ARP].psrc for frame in heard if ARP in frame and frame[ARP].op == 1} == {OWN["server1"]}


@contextmanager
def repeating(step: Callable[[], object]) -> Iterator[None]:
    """Does the step all the time, for the length of a with block."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(STEP_S):
            step()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class Cycle:
    """What was seen while server1's agent ended and started in every way."""

    pings: dict[str, str]  # node -> what ping said in the end
    mine: frozenset[int]  # the ports that server1 ever held meanwhile
    spoken: frozenset[int]  # the ports of the shared address that it answered from


@pytest.fixture(scope="class")
def cycle(pair_lab: PairLab) -> Cycle:
    """Somebody knocks on every slice at server1 and pings the server, while its agent comes and goes."""
    mac = namespaces.run_in(pair_lab.lab.namespace("server1"), links.interface, "uplink").mac
    knocks = [
        bytes(Ether(dst=mac) / IP(src=INTERNET, dst=str(SHARED)) / TCP(sport=4000, dport=port, flags="A"))
        for port in range(9, 1 << 16, SLICE_PORTS_DEFAULT)
    ]
    pings = {
        node: processes.popen(pair_lab.lab, node, ["ping", "-i", str(STEP_S), "-q", address])
        for node, address in (("router", OWN["server1"]), ("client1", GATEWAY))
    }
    held = [pair_lab.slice_of("server1")]
    try:
        with (
            pair_lab.capture("router", "s1") as capture,
            closing(pair_lab.packet_socket("router", "s1")) as sender,
        ):
            with repeating(lambda: [sender.send(knock) for knock in knocks]):
                for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
                    pair_lab.end_agents(end, "server1")
                    pair_lab.start_agents("server1")
                    held.append(pair_lab.slice_of("server1"))
            heard = pair_lab.passed("server1", capture)
        for ping in pings.values():
            ping.send_signal(signal.SIGINT)
        said = {node: ping.communicate(timeout=10)[0] for node, ping in pings.items()}
    finally:
        for ping in pings.values():
            ping.kill()
            ping.wait()
    answers = (frame for frame in heard if TCP in frame and frame[IP].src == str(SHARED))
    mine = (port for slice_ in held for port in range(slice_.port_first, slice_.port_last + 1))
    return Cycle(said, frozenset(mine), frozenset(frame[TCP].sport for frame in answers))


class TestComingAndGoing:
    """Server1's agent ends and starts."""

    def test_the_kernel_never_answers_for_ports_of_others(self, cycle: Cycle) -> None:
        """With the address on `lo` but no director or guard, it would answer every segment with a reset."""
        assert cycle.spoken, "on its own ports the kernel does answer: this test can see it"
        assert cycle.spoken <= cycle.mine

    def test_not_a_ping_is_lost(self, cycle: Cycle) -> None:
        """Attaching and detaching programs costs what is not ours not one packet."""
        for node, said in cycle.pings.items():
            assert " 0% packet loss" in said, f"{node}: {said}"

    def test_not_a_datagram_of_a_flow_is_lost(self, pair_lab: PairLab) -> None:
        """Killing agents costs no packet: neither of their own clients nor of those whose replies they steer.
        (A clean stop takes the director away: the router has to send elsewhere before.)"""
        peers.forget(pair_lab.lab)
        talks = [
            pair_lab.probe(
                client,
                *("echo", "--protocol", "udp", "--source-port", str(43000 + number), "--count", "500"),
                *("--destination", f"{INTERNET}:{ECHO_PORT}", "--delay-s", str(STEP_S)),
            )
            for client in SERVER_OF
            for number in range(4)
        ]
        eventually(lambda: len(peers.seen(pair_lab.lab)) == len(talks), "all talk")
        pair_lab.end_agents(signal.SIGKILL)
        pair_lab.start_agents()
        for talk in talks:
            answer = json.loads(talk.communicate(timeout=60)[0])
            assert (answer["failure"], answer["echoed"]) == (None, 500)


def test_a_new_uplink_without_programs_does_not_speak(pair_lab: PairLab) -> None:
    """The interface goes, and director and guard with it; when it is back, the kernel stays silent."""
    lab = pair_lab
    foreign = lab.slice_of("server2").port_first
    lab.good("server1", "ip", "link", "delete", "uplink")
    eventually(lambda: not processes.is_alive(lab.agent("server1")), "the agent ends")
    for node, line in (
        ("server1", f"link add uplink type veth peer name s1 netns {lab.lab.namespace('router')}"),
        ("server1", "address add 192.0.2.1/24 dev uplink"),
        ("server1", "link set uplink up"),
        ("server1", "route add default via 192.0.2.254"),
        ("router", "link set s1 master lan up"),
        ("router", "link set s1 type bridge_slave state 3"),
    ):
        lab.good(node, "ip", *line.split())
    mac = namespaces.run_in(lab.lab.namespace("server1"), links.interface, "uplink").mac

    with lab.capture("router", "s1") as capture, closing(lab.packet_socket("router", "s1")) as sender:
        sender.send(
            bytes(
                Ether(dst=mac) / IP(src=INTERNET, dst=str(SHARED)) / TCP(sport=4000, dport=foreign, flags="S")
            )
        )
        heard = lab.passed("server1", capture)
    assert [frame for frame in heard if IP in frame and frame[IP].src == str(SHARED)] == []

    lab.start_agents("server1")
    assert json.loads(lab.good("client1", "curl", "-s", "-m", "20", f"http://{INTERNET}/"))["address"] == str(
        SHARED
    )
