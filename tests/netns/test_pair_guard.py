"""Root on a server tries to send from ports that the server has no right to, in every way there is: nothing of
it reaches the wire, the guard counts it under the right name, and what it has the right to passes untouched.

Slices past their deadline are in test_pair_one_owner.py, whose leases are short enough to wait for.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import closing
from functools import partial

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, fragment
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.packet import Packet
from tests.netns.pair_lab import PairLab, excused

from softunicast.core.slices import Slice
from softunicast.kernel import links, namespaces
from softunicast.lab.pair import ECHO_PORT, HTTP_PORT, INTERNET, SHARED


def udp(source: str, port: int) -> Packet:
    return IP(src=source, dst=INTERNET) / UDP(sport=port, dport=ECHO_PORT) / b"forged"


def tcp(source: str, port: int) -> Packet:
    return IP(src=source, dst=INTERNET) / TCP(sport=port, dport=HTTP_PORT, flags="S")


def echo(source: str, port: int) -> Packet:
    return IP(src=source, dst=INTERNET) / ICMP(type="echo-request", id=port) / b"forged"


def with_options(source: str, port: int) -> Packet:
    return IP(src=source, dst=INTERNET, options=[IPOption_NOP()] * 4) / UDP(sport=port, dport=ECHO_PORT)


@pytest.fixture
def foreign(pair_lab: PairLab) -> Slice:
    """A slice that server1 must not use."""
    return pair_lab.slice_of("server2")


def forge(lab: PairLab, packet: Packet, how: str) -> None:
    """Send the IPv4 packet from server1: "raw" IP socket, whole "frame", or frame with a "tagged" header."""
    if how == "raw":
        with lab.raw_socket("server1") as raw:
            raw.sendto(bytes(packet), (INTERNET, 0))
        return
    mac = namespaces.run_in(lab.lab.namespace("router"), links.interface, "lan").mac
    own = namespaces.run_in(lab.lab.namespace("server1"), links.interface, "uplink").mac
    head = Ether(src=own, dst=mac)
    frame = head / Dot1Q(vlan=0, prio=1) / packet if how == "tagged" else head / packet
    with closing(lab.packet_socket("server1", "uplink")) as sender:
        try:
            sender.send(bytes(frame))
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # how the kernel tells a packet socket that tc dropped it
                raise


def seen_of(lab: PairLab, send: Callable[[], None]) -> tuple[list[bytes], dict[str, int]]:
    """Frames with a soft-unicast source that left server1 while `send` ran, and what was dropped meanwhile."""
    before = lab.drops("server1")
    with lab.capture("router", "s1") as capture, excused(lab.lab, "server1"):
        send()
        frames = [bytes(frame) for frame in lab.passed("server1", capture)]
    dropped = {reason: n - before[reason] for reason, n in lab.drops("server1").items()}
    # Wherever headers begin: the address itself is looked for.
    return [frame for frame in frames if SHARED.packed[:3] in frame], {r: n for r, n in dropped.items() if n}


@pytest.mark.parametrize("how", ["raw", "frame", "tagged"])
@pytest.mark.parametrize("kind", [udp, tcp, echo, with_options])
class TestForged:
    def test_from_the_slice_of_the_other_server(
        self, pair_lab: PairLab, foreign: Slice, kind: Callable[[str, int], Packet], how: str
    ) -> None:
        for port in (foreign.port_first, foreign.port_last):
            packet = kind(str(SHARED), port)
            seen = seen_of(pair_lab, partial(forge, pair_lab, packet, how))
            assert seen == ([], {"guard_foreign": 1})
            last = pair_lab.last_drop("server1", "guard_foreign")
            assert (last["source"], last["interface"]) == (f"{SHARED}:{port}", "uplink")

    @pytest.mark.parametrize("source", [(str(SHARED), 1024), (str(SHARED), 60000), ("198.51.100.77", 5000)])
    def test_from_ports_that_nobody_holds(
        self, pair_lab: PairLab, kind: Callable[[str, int], Packet], how: str, source: tuple[str, int]
    ) -> None:
        packet = kind(*source)
        assert seen_of(pair_lab, lambda: forge(pair_lab, packet, how)) == ([], {"guard_nobody": 1})

    def test_from_its_own_slice_it_may(
        self, pair_lab: PairLab, kind: Callable[[str, int], Packet], how: str
    ) -> None:
        packet = kind(str(SHARED), pair_lab.slice_of("server1").port_last)
        left, dropped = seen_of(pair_lab, lambda: forge(pair_lab, packet, how))
        # Not changed on the way, apart from what a raw socket fills in. The kernel may answer the answers.
        assert len([frame for frame in left if bytes(packet)[12:] in frame]) == 1
        assert not {"guard_foreign", "guard_nobody", "guard_expired"} & set(dropped)


@pytest.mark.parametrize("how", ["raw", "frame"])
class TestWithoutPort:
    @pytest.mark.parametrize("number", [9, 65535])
    def test_fragments(self, pair_lab: PairLab, foreign: Slice, how: str, number: int) -> None:
        """The first one has a port; later ones follow a first one that was let pass, and leave as the first did."""
        own = pair_lab.slice_of("server1")

        def forged(port: int, later_only: bool = False) -> tuple[list[bytes], dict[str, int]]:
            whole = (
                IP(src=str(SHARED), dst=INTERNET, id=number) / UDP(sport=port, dport=ECHO_PORT) / bytes(2000)
            )
            pieces = fragment(whole, fragsize=1000)  # type: ignore[no-untyped-call]

            def send() -> None:
                for piece in pieces[later_only:]:
                    forge(pair_lab, piece, how)

            return seen_of(pair_lab, send)

        assert forged(foreign.port_first) == ([], {"guard_foreign": 1, "guard_fragment": 2})
        assert forged(own.port_first, later_only=True) == ([], {"guard_fragment": 2})
        left, dropped = forged(own.port_first)
        sent = [IP(frame[14:]) for frame in left if IP(frame[14:]).proto == 17]
        assert len(sent) == 3
        assert {own.port_first <= packet.id <= own.port_last for packet in sent} == {True}
        assert len({packet.id for packet in sent}) == 1
        assert not {"guard_fragment", "guard_foreign"} & set(dropped)

    def test_other_protocols(self, pair_lab: PairLab, how: str) -> None:
        tunnel = IP(src=str(SHARED), dst=INTERNET) / GRE() / IP(src="10.0.0.2", dst="10.0.0.3")
        assert seen_of(pair_lab, lambda: forge(pair_lab, tunnel, how)) == ([], {"guard_protocol": 1})


def test_a_program_in_no_agreement(pair_lab: PairLab) -> None:
    """It cannot bind the address, and what it makes without binding does not begin anything: not even from a slice of
    this server."""
    own = pair_lab.slice_of("server1").port_first + 5

    def bind() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made, pytest.raises(PermissionError):
            made.bind((str(SHARED), own))

    before = pair_lab.drops("server1")
    with pair_lab.capture("router", "s1") as capture:
        namespaces.run_in(pair_lab.lab.namespace("server1"), bind)
        for kind in (udp, tcp):
            forge(pair_lab, kind(str(SHARED), own), "raw")
        frames = [bytes(frame) for frame in pair_lab.passed("server1", capture)]
    assert not [frame for frame in frames if SHARED.packed in frame]
    dropped = {reason: n - before[reason] for reason, n in pair_lab.drops("server1").items()}
    assert {reason: n for reason, n in dropped.items() if n} == {"bind_refused": 1, "guard_socket": 2}


def test_an_excused_socket_on_a_foreign_port(pair_lab: PairLab, foreign: Slice) -> None:
    """It may bind; no raw socket is needed to try."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
            bound.bind((str(SHARED), foreign.port_first + 7))
            bound.sendto(b"mine?", (INTERNET, ECHO_PORT))

    namespace = pair_lab.lab.namespace("server1")
    assert seen_of(pair_lab, lambda: namespaces.run_in(namespace, send)) == ([], {"guard_foreign": 1})


def test_drops_names_it_for_people(pair_lab: PairLab, foreign: Slice) -> None:
    source = (str(SHARED), foreign.port_first + 1)
    pair_lab.good(
        "server1",
        *("python3", "-m", "softunicast.lab.traffic", "forge"),
        *("--source", "{}:{}".format(*source), "--destination", f"{INTERNET}:{ECHO_PORT}"),
    )
    table = pair_lab.good("server1", "softunicast", "drops")
    [line] = [line for line in table.splitlines() if line.startswith("guard_foreign")]
    assert "{}:{}".format(*source) in line
    assert "another server holds" in line
