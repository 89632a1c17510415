"""On-ramps without Ethernet: the program that wraps their packets, alone and on a real TUN device, both ways; and
who may be a client of an on-ramp.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Interface

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw
from tests.bpf import families, frames
from tests.bpf.bare import BARE, BARE_MACS, DEVICE, OFFLOAD, SOURCES4, SOURCES6, Bare, make_bare
from tests.bpf.frames import FROM_WIRE, REMOTE, TO_WIRE, checksums_right, local_end
from tests.bpf.world import ONRAMP, ONRAMP2, UPLINK

from softunicast.core.errors import HostError, KernelError
from softunicast.core.onramps import Tun
from softunicast.kernel import abi, sysctl, tun
from softunicast.kernel.attached import attached
from softunicast.kernel.explain import explain
from softunicast.kernel.testrun import run_tc

FAMILIES = (4, 6)
CLIENT = "10.9.0.2:40000"
FOUR = Tun(IPv4Interface("10.9.7.1/24"))


@pytest.fixture(scope="module")
def module_bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    with make_bare(tmp_path_factory.mktemp("bare")) as made:
        yield made


@pytest.fixture
def bare(module_bare: Bare, family: int) -> Bare:
    module_bare.reset()
    return module_bare


def udp(
    source: str = CLIENT, destination: str = REMOTE, ttl: int = 64, payload: bytes = b"question"
) -> bytes:
    """An IP packet without anything in front."""
    return frames.udp(source, destination, payload, ttl)[14:]


# -- the program alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "kind"),
    [
        (udp(), b"\x08\x00"),
        (bytes(IPv6(dst="2001:db8::1") / UDP()), b"\x86\xdd"),
        (b"\x50" + bytes(40), b"\0\0"),
        (b"\x45" + bytes(13), b"\x08\x00"),  # the shortest that can be run; what it is, egress says
    ],
)
def test_a_packet_gets_a_header(bare: Bare, packet: bytes, kind: bytes) -> None:
    """Where any client may come in (ONRAMP2), as the device would give it: the IP header is the first thing."""
    before = bare.world.counters()
    result = run_tc(bare.world.program("wrap"), packet, bare.world.index[ONRAMP2])
    assert (result.verdict, result.frame) == ("next", bytes(12) + kind + packet)
    assert bare.world.counters() == before


# -- who is a client -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("onramp", [ONRAMP, BARE])
@pytest.mark.parametrize(
    ("address", "is_client"),
    [
        ("10.9.0.2", True),
        ("10.9.0.0", True),
        ("10.9.1.255", True),
        ("10.0.0.2", True),
        ("10.9.2.0", False),
        ("10.8.255.255", False),
        ("10.0.0.3", False),
        ("127.0.0.1", False),
        ("198.51.100.10", False),
        ("192.0.2.1", False),
    ],
)
def test_who_is_a_client(bare: Bare, address: str, is_client: bool, onramp: str) -> None:
    """Nothing is sent to whoever is not."""
    for frame in (
        frames.udp(f"{address}:4000"),
        frames.tcp(f"{address}:4000"),
        frames.echo(f"{address}:4000"),
        frames.gre(f"{address}:0"),
        frames.udp(f"{address}:4000", ttl=1),
        frames.udp(f"{address}:4000", "10.0.0.1:53"),  # for the host
        frames.gre(f"{address}:0", "10.0.0.1:0"),
        frames.udp(f"{address}:4000", "224.0.0.251:5353"),
        frames.udp(f"{address}:4000", "255.255.255.255:67"),
    ):
        ran = bare.world.out(frame, onramp)
        assert (ran.reason == "spoofed") is not is_client, ran
        assert is_client or ran.verdict == "drop"
    for claim in bare.world.claims().values():
        assert is_client, claim


@pytest.mark.parametrize("onramp", [ONRAMP, BARE])
def test_the_servers_own_address_is_no_client(bare: Bare, onramp: str) -> None:
    own = {ONRAMP: "10.0.0.1", BARE: "10.9.0.1"}[onramp]
    assert bare.world.out(frames.udp(f"{own}:4000"), onramp).reason == "spoofed"


def test_a_list_of_one_family_is_nobody_of_the_other(bare: Bare) -> None:
    real, before = bare.datapath, bare.datapath._sources
    frame = frames.udp(CLIENT, macs=BARE_MACS)
    try:
        for sources, version in ((SOURCES4, 4), (SOURCES6, 6)):
            real._sources = {BARE: sources}
            real._attach_onramp(BARE, "gb")
            bare.reset()
            ran = bare.world.out(frame, BARE)
            assert (ran.reason is None) == (families.chosen == version), ran
    finally:
        real._sources = before
        real._attach_onramp(BARE, "gb")


def test_where_nobody_is_listed_everybody_is(bare: Bare) -> None:
    for address in ("10.0.0.1", "172.16.0.1", "203.0.113.77"):
        assert bare.world.out(frames.udp(f"{address}:4000"), ONRAMP2).outcome == "out"


def test_whoever_asks_for_an_address_has_none(bare: Bare) -> None:
    """And nobody does so where there is no Ethernet. IPv6 asks by neighbour discovery: test_ipv6_link.py."""
    if families.chosen == 6:
        families.ipv4_only("DHCP")
    asking = frames.udp("0.0.0.0:68", "255.255.255.255:67", macs=BARE_MACS)
    assert bare.world.out(asking, BARE).reason == "spoofed"
    assert bare.world.out(frames.udp("0.0.0.0:68", "255.255.255.255:67"), ONRAMP).verdict == "next"


def test_somebody_who_is_no_client_any_more(bare: Bare) -> None:
    """The list changed while the flow lived: it ends when it asks its claim."""
    frame = frames.udp("10.0.0.2:4000")
    assert bare.world.out(frame, ONRAMP).outcome == "out"
    key = socket.if_nametoindex(ONRAMP).to_bytes(4, "little")
    table = bare.world.datapath.map("onramps")
    entry = abi.Onramp.unpack(table.get(key) or b"")
    table.set(key, entry._replace(source_count=1).pack())
    try:
        assert bare.world.out(frame, ONRAMP).outcome == "out"  # the known flow does not look
        bare.world.change_flows(refresh_ns=0)
        assert bare.world.out(frame, ONRAMP).reason == "spoofed"
        assert bare.world.flows() == {}
    finally:
        table.set(key, entry.pack())


# -- a real device -------------------------------------------------------------------------------------------


def test_programs_in_their_order(bare: Bare) -> None:
    assert [one.program for one in attached(BARE)] == ["wrap", "egress_out"]
    assert [one.program for one in attached(ONRAMP2)] == ["egress_out"]


def test_the_order_is_made_right(bare: Bare) -> None:
    """Where a program was attached alone, its packets would come to it without a header."""
    bare.world.datapath._detach("wrap", BARE)
    assert [one.program for one in attached(BARE)] == ["egress_out"]
    bare.world.datapath._attach_onramp(BARE, "gb")
    assert [one.program for one in attached(BARE)] == ["wrap", "egress_out"]
    bare.send(udp())
    assert local_end(bare.left()).startswith("198.51.100.10:")


def test_what_would_happen(bare: Bare) -> None:
    """The question has Ethernet addresses, as those that `wrap` gives."""
    found = explain(bare.world.datapath, frames.udp(CLIENT), BARE)
    assert (found.verdict, found.reason) == (f"sent out of {UPLINK}", None)
    found = explain(bare.world.datapath, frames.udp("10.0.0.3:4000"), BARE)
    assert (found.verdict, found.reason) == ("dropped", abi.Reason.SPOOFED)


def test_out_and_back(bare: Bare) -> None:
    bare.send(udp())
    left = bare.left()
    assert left == frames.udp(local_end(left), REMOTE, ttl=63, macs=TO_WIRE)
    bare.wire.send(frames.udp(REMOTE, local_end(left), b"answer", ttl=60, macs=FROM_WIRE))
    assert bare.received() == frames.udp(REMOTE, CLIENT, b"answer", ttl=59)[14:]


def test_a_conversation_of_tcp(bare: Bare) -> None:
    """Its first packet and one later: the first finds its way anew, the other knows it."""
    bare.send(frames.tcp(CLIENT)[14:])
    left = bare.left()
    local = local_end(left)
    assert left == frames.tcp(local, REMOTE, ttl=63, macs=TO_WIRE)
    bare.wire.send(frames.tcp(REMOTE, local, "SA", macs=FROM_WIRE, sequence=9, acknowledgement=6))
    assert bare.received() == frames.tcp(REMOTE, CLIENT, "SA", ttl=63, sequence=9, acknowledgement=6)[14:]
    bare.send(frames.tcp(CLIENT, flags="A", payload=b"hello", sequence=6, acknowledgement=10)[14:])
    assert bare.left() == frames.tcp(
        local, REMOTE, "A", b"hello", ttl=63, macs=TO_WIRE, sequence=6, acknowledgement=10
    )


def test_errors_have_no_header_either(bare: Bare) -> None:
    """Time exceeded, and a size that fits."""
    bare.send(udp(ttl=1))
    assert bare.received() == frames.refusal(frames.udp(CLIENT, ttl=1), 11, 0, source="10.9.0.1")[14:]
    if families.chosen == 6:
        bare.send(frames.udp(CLIENT, REMOTE, b"x" * 4000)[14:])
        assert IPv6(bare.received())[ICMPv6PacketTooBig].mtu == 1500
        return
    bare.send(frames.udp(CLIENT, REMOTE, b"x" * 4000, flags="DF")[14:])
    error = IP(bare.received())
    assert (error[ICMP].type, error[ICMP].code, error[ICMP].nexthopmtu) == (3, 4, 1500)
    assert checksums_right(bytes(14) + bytes(error)) == (True, True)


def test_a_packet_for_the_host(bare: Bare) -> None:
    """The kernel takes the header off again."""
    bare.send(frames.echo(CLIENT, "10.9.0.1:0")[14:])
    data = bare.received()
    answer, kind = (IP(data), data[20]) if families.chosen == 4 else (IPv6(data), data[40] - 129)
    ends = families.current("10.9.0.1"), families.current("10.9.0.2")
    assert (answer.src, answer.dst, kind) == (*ends, 0)


def test_spoofed_packets_of_a_device(bare: Bare) -> None:
    before = bare.world.counters()
    for packet in (udp("10.0.0.3:4000"), udp("127.0.0.1:4000"), bytes(IPv6(dst="ff02::1") / UDP())):
        bare.send(packet)
    bare.send(udp())
    assert local_end(bare.left()).startswith("198.51.100.10:")  # and nothing before it
    assert bare.world.counters()["spoofed"] == before["spoofed"] + 3


def test_garbage_of_a_device(bare: Bare) -> None:
    """Whatever is written, nothing but the one packet that is right leaves."""
    whole = udp()
    garbage = [os.urandom(size) for size in (1, 13, 14, 19, 20, 27, 28, 60, 1500)]
    garbage += [bytes([0x45, *part[1:]]) for part in garbage] + [whole[:size] for size in (1, 19, 20, 27)]
    garbage += [bytes([0x4F]) + whole[1:], bytes([0x60]) + whole[1:], whole[:2] + b"\xff\xff" + whole[4:]]
    for part in garbage:
        try:
            bare.send(part)
        except OSError:  # the device itself refuses what is neither version
            assert part[0] >> 4 not in (4, 6)
    bare.send(whole)
    left = bare.left()
    assert left == frames.udp(local_end(left), REMOTE, ttl=63, macs=TO_WIRE)


def test_large_buffers_stay_whole(bare: Bare) -> None:
    """40 kB of TCP in one write leave as one buffer, its checksum still to be computed; likewise coming back."""
    client, size = "10.9.1.2:40000", 40_000
    vnet = struct.Struct("<BBHHHH")
    no_offload = vnet.pack(0, 0, 0, 0, 0, 0)
    os.write(bare.offloading, no_offload + frames.tcp(client)[14:])
    local = local_end(bare.left())
    bare.wire.send(frames.tcp(REMOTE, local, "SA", macs=FROM_WIRE, sequence=9, acknowledgement=6))
    assert bare.received(offloading=True)[9 if families.chosen == 4 else 6] == 6
    segment = TCP(sport=40000, dport=443, flags="A", seq=6, ack=10) / Raw(b"d" * size)
    ends = families.current("10.9.1.2"), families.current("203.0.113.1")
    if families.chosen == 4:
        header, ip_bytes, kind = IP(src=ends[0], dst=ends[1], ttl=64, id=7), 20, 1
    else:
        header, ip_bytes, kind = IPv6(src=ends[0], dst=ends[1]), 40, 4
    packet = bytearray(bytes(header / segment))
    addresses = packet[12:20] if families.chosen == 4 else packet[8:40]
    pseudo = addresses + struct.pack("!BBH", 0, 6, len(packet) - ip_bytes)
    packet[ip_bytes + 16 : ip_bytes + 18] = frames.sum_words(bytes(pseudo)).to_bytes(2, "big")
    os.write(bare.offloading, vnet.pack(1, kind, ip_bytes + 20, 1400, ip_bytes, 16) + bytes(packet))
    left = bare.left()
    assert len(left) == 14 + ip_bytes + 20 + size
    assert (local_end(left), left[34 + ip_bytes :]) == (local, b"d" * size)


# -- devices -------------------------------------------------------------------------------------------------


def test_a_device_as_it_was_made(bare: Bare) -> None:
    found = tun.find(BARE)
    assert found is not None
    assert found.is_as_made(DEVICE)
    assert found.open
    assert not found.is_as_made(OFFLOAD)
    assert not found.is_as_made(Tun(DEVICE.address))
    assert sysctl.read(f"net/ipv6/conf/{BARE}/disable_ipv6") == 0
    assert tun.find("nobody") is None
    veth = tun.find(ONRAMP)
    assert veth is not None
    assert not veth.is_as_made(DEVICE)


def test_one_program_at_a_time(bare: Bare) -> None:
    with pytest.raises(KernelError, match="cannot open tu: Device or resource busy"):
        tun.attach(BARE, DEVICE)
    with pytest.raises(KernelError, match="cannot open tu: "):
        tun.make(BARE, DEVICE)


def test_a_device_outlives_its_program(bare: Bare) -> None:
    """Also when the program said that it should not; and its conversations go on with the next one."""
    tun.make("tw", FOUR)
    assert sysctl.read("net/ipv6/conf/tw/disable_ipv6") in (1, None)
    index = socket.if_nametoindex("tw")
    for _ in range(2):
        descriptor = tun.attach("tw", FOUR)
        found = tun.find("tw")
        assert found is not None
        assert found.open
        os.close(descriptor)
        found = tun.find("tw")
        assert found is not None
        assert found.is_as_made(FOUR)
        assert not found.open
    assert socket.if_nametoindex("tw") == index
    tun.remove("tw")
    tun.remove("tw")
    assert tun.find("tw") is None


def test_xdp_is_refused(bare: Bare) -> None:
    bare.datapath._attach_by = {BARE: "xdp"}
    try:
        with pytest.raises(HostError, match="tu has no Ethernet header"):
            bare.datapath._attach_onramp(BARE, "gb")
    finally:
        bare.datapath._attach_by = {}
