"""What BPF_PROG_TEST_RUN cannot make: buffers of a real client's sockets, with the checksum still to be computed
(CHECKSUM_PARTIAL) or several segments in one (GSO). The client sits in a namespace of its own behind the on-ramp;
what leaves is captured at the far end of the uplink.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

import pytest
from pyroute2 import IPRoute
from tests.bpf.frames import CLIENT_MAC, GATEWAY_MAC, TO_WIRE, UPLINK_MAC, checksums_right, udp
from tests.bpf.world import ONRAMP, UPLINK, World, make_world, state

from softunicast.kernel import namespaces
from softunicast.kernel.offload import set_tx_checksum

REMOTE = ("203.0.113.1", 443)
UDP_SEGMENT = 103  # <linux/udp.h>
SOL_PACKET, PACKET_TX_RING = 263, 13  # <linux/if_packet.h>
WAIT_S = 5.0


@dataclass
class Wire:
    """A world whose first on-ramp leads to a client in another namespace."""

    world: World
    client: str

    def client_socket(self, kind: int) -> socket.socket:
        made = namespaces.run_in(self.client, socket.socket, socket.AF_INET, kind)
        made.settimeout(WAIT_S)
        return made

    def capture_at_client(self) -> socket.socket:
        return namespaces.run_in(self.client, capture, "eth0")


def capture(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    made.bind((interface, 0))
    made.settimeout(WAIT_S)
    return made


def captured(sniffer: socket.socket, wanted: Callable[[bytes], bool]) -> bytes:
    """The next frame that came in and is wanted; TimeoutError when there is none."""
    deadline = time.monotonic() + WAIT_S
    while True:
        frame, address = sniffer.recvfrom(1 << 17)
        if address[2] != socket.PACKET_OUTGOING and wanted(frame):
            return frame
        if time.monotonic() > deadline:
            raise TimeoutError


def is_protocol(number: int) -> Callable[[bytes], bool]:
    return lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == number


def configure_client() -> None:
    with IPRoute() as netlink:
        netlink.link("set", index=1, state="up")
        index = netlink.link_lookup(ifname="clp")[0]
        netlink.link("set", index=index, ifname="eth0", address=CLIENT_MAC)
        netlink.addr("add", index=index, address="10.0.0.2", prefixlen=24)
        netlink.link("set", index=index, state="up")
        netlink.route("add", dst="0.0.0.0/0", gateway="10.0.0.1")


@pytest.fixture(scope="module")
def module_wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    client = f"sutest-bpf-client-{os.getpid()}"
    namespaces.create(client)
    try:
        with make_world(tmp_path_factory.mktemp("wire")) as world:
            with IPRoute() as netlink:
                netlink.link("set", index=socket.if_nametoindex("clp"), net_ns_fd=client)
            namespaces.run_in(client, configure_client)
            yield Wire(world, client)
    finally:
        namespaces.delete(client)


@pytest.fixture
def wire(module_wire: Wire) -> Wire:
    module_wire.world.reset()
    for interface in (ONRAMP, UPLINK):
        set_tx_checksum(interface, True)
    return module_wire


@contextmanager
def refusing(wire: Wire) -> Iterator[None]:
    """The pool has no slice: every new flow is refused. One packet is, and its sender does not try again."""
    wire.world.datapath.apply(state(pool=()))
    before = wire.world.counters()
    yield
    after = wire.world.counters()
    assert after["no_slice"] - before["no_slice"] == after["icmp_sent"] - before["icmp_sent"] == 1


def ask(client: socket.socket, data: bytes) -> None:
    """What a program does that wants an answer."""
    client.connect(REMOTE)
    client.send(data)
    client.recv(1)


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(
    ("kind", "size"),
    [(socket.SOCK_STREAM, 1), *((socket.SOCK_DGRAM, size) for size in (0, 1, 40, 1471, 1472))],
)
def test_a_refused_client_is_told_at_once(wire: Wire, kind: int, offload: bool, size: int) -> None:
    """The ICMP error quotes a packet whose checksum the stack had not computed: it must be right even so."""
    if not offload:
        set_tx_checksum(ONRAMP, False)
    sniffer = wire.capture_at_client()
    with refusing(wire), sniffer, wire.client_socket(kind) as client:
        with pytest.raises(OSError, match=os.strerror(errno.EHOSTUNREACH)):
            ask(client, b"x" * size)
        frame = captured(sniffer, is_protocol(1))
    transport_bytes = 20 if kind == socket.SOCK_STREAM else 8
    assert len(frame) == 14 + 20 + 8 + 20 + transport_bytes
    assert frame[34:36] == bytes([3, 1 if kind == socket.SOCK_STREAM else 13])
    assert checksums_right(frame)[0]
    if not offload:
        assert checksums_right(frame) == (True, True)


@pytest.mark.parametrize("offload", [True, False])
def test_a_refused_burst(wire: Wire, offload: bool) -> None:
    """UDP_SEGMENT: three datagrams in one buffer are answered by one error, short enough to be sent."""
    if not offload:
        set_tx_checksum(ONRAMP, False)
    with refusing(wire), wire.client_socket(socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        with pytest.raises(OSError, match=os.strerror(errno.EHOSTUNREACH)):
            ask(client, b"x" * 3000)


def check_translated(frame: bytes) -> tuple[str, int]:
    """Right on the wire; returns the local end."""
    assert checksums_right(frame) == (True, True)
    assert (frame[6:12].hex(":"), frame[:6].hex(":")) == TO_WIRE
    assert frame[22] == 63
    assert frame[30:34] == socket.inet_aton(REMOTE[0])
    assert frame[36:38] == struct.pack("!H", REMOTE[1])
    return socket.inet_ntoa(frame[26:30]), int.from_bytes(frame[34:36], "big")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("size", [0, 1, 40, 1472])
def test_a_checksum_still_to_be_computed_is_right_in_the_end(wire: Wire, kind: int, size: int) -> None:
    set_tx_checksum(UPLINK, False)  # or the wire would see it as unfinished as the client left it
    with capture("upp") as sniffer, wire.client_socket(kind) as client:
        client.setblocking(False)
        client.connect_ex(REMOTE)
        if kind == socket.SOCK_DGRAM:
            client.send((bytes(range(256)) * 6)[:size])
        frame = captured(sniffer, is_protocol(6 if kind == socket.SOCK_STREAM else 17))
        address, port = check_translated(frame)
    assert address == "198.51.100.10"
    assert 2048 <= port < 4096


def test_a_burst_is_sent_as_datagrams_of_one_flow(wire: Wire) -> None:
    set_tx_checksum(UPLINK, False)
    with capture("upp") as sniffer, wire.client_socket(socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        client.connect(REMOTE)
        client.send(b"x" * 2500)
        parts = [captured(sniffer, is_protocol(17)) for _ in range(3)]
    assert [len(part) - 42 for part in parts] == [1000, 1000, 500]
    assert len({check_translated(part) for part in parts}) == 1
    assert wire.world.datapath.flows(1)[0] == 1


def test_a_neighbour_not_known_yet(wire: Wire) -> None:
    """The kernel asks for its MAC address and sends the translated packet when it has it."""
    set_tx_checksum(UPLINK, False)
    index = wire.world.index[UPLINK]
    with IPRoute() as netlink, capture("upp") as sniffer, wire.client_socket(socket.SOCK_DGRAM) as client:
        netlink.neigh("del", dst="192.0.2.254", ifindex=index)
        client.sendto(b"question", REMOTE)
        request = captured(sniffer, lambda frame: frame[12:14] == b"\x08\x06")
        assert request[38:42] == socket.inet_aton("192.0.2.254")
        netlink.neigh("replace", dst="192.0.2.254", lladdr=GATEWAY_MAC, ifindex=index, state="reachable")
        frame = captured(sniffer, is_protocol(17))
        assert frame[6:12].hex(":") == UPLINK_MAC
        check_translated(frame)
        client.sendto(b"question", REMOTE)
        assert check_translated(captured(sniffer, is_protocol(17))) == check_translated(frame)


class Ring:
    """A packet socket's transmit ring: of what it sends, only the Ethernet header is in the buffer's linear part."""

    FRAME_BYTES, DATA_AT = 2048, 32  # after struct tpacket_hdr

    def __init__(self, interface: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        request = struct.pack(
            "4I", 4096, 1, self.FRAME_BYTES, 2
        )  # struct tpacket_req: one block of two frames
        self.socket.setsockopt(SOL_PACKET, PACKET_TX_RING, request)
        self.socket.bind((interface, 0))
        self.memory = mmap.mmap(self.socket.fileno(), 4096)
        self.frame = 0

    def send(self, data: bytes) -> None:
        at = self.frame * self.FRAME_BYTES
        self.frame ^= 1
        self.memory[at + self.DATA_AT : at + self.DATA_AT + len(data)] = data
        self.memory[at : at + 12] = struct.pack("LI", 1, len(data))  # TP_STATUS_SEND_REQUEST
        with suppress(OSError):  # what the guard stops
            self.socket.send(b"")

    def close(self) -> None:
        self.memory.close()
        self.socket.close()


def test_headers_outside_the_linear_part(wire: Wire) -> None:
    set_tx_checksum(UPLINK, False)
    with (
        capture("upp") as sniffer,
        closing(Ring(UPLINK)) as uplink,
        closing(namespaces.run_in(wire.client, Ring, "eth0")) as client,
    ):
        before = wire.world.counters()
        uplink.send(forged("198.51.100.10", 4097))
        client.send(udp(payload=b"x" * 600))
        frame = captured(sniffer, is_protocol(17))
        assert check_translated(frame)[0] == "198.51.100.10"
        assert frame[42:] == b"x" * 600
        after = wire.world.counters()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "guard_foreign": 1,
        "out": 1,
        "new_flow": 1,
    }


FORGED_MACS = bytes.fromhex(GATEWAY_MAC.replace(":", "") + UPLINK_MAC.replace(":", ""))


def forged(source: str, port: int) -> bytes:
    """UDP, as root writes it on a raw socket."""
    ends = socket.inet_aton(source) + bytes([8, 8, 8, 0])
    header = struct.pack("!BBHHHBBH8s", 0x45, 0, 28, 0, 0, 64, 17, 0, ends)
    return FORGED_MACS + b"\x08\x00" + header + struct.pack("!HHHH", port, 9, 8, 0)


def test_the_guard_stops_a_raw_socket(wire: Wire) -> None:
    """A packet from the neighbour's slice never arrives; what is sent after it does."""
    with capture("upp") as sniffer, capture(UPLINK) as raw:
        before = wire.world.counters()["guard_foreign"]
        with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
            raw.send(forged("198.51.100.10", 4097))
        raw.send(forged("198.51.100.10", 2049))
        assert captured(sniffer, is_protocol(17))[34:36] == struct.pack("!H", 2049)
        assert wire.world.counters()["guard_foreign"] == before + 1


def test_the_guard_stops_a_header_it_cannot_read(wire: Wire) -> None:
    """Network cards pad short frames with zeros, which can make a whole header of this one."""
    with capture("upp") as sniffer, capture(UPLINK) as raw:
        before = wire.world.counters()["malformed"]
        for length in (14, 20, 33):
            with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
                raw.send(forged("198.51.100.10", 4097)[:length])
        raw.send(FORGED_MACS + b"\x88\xcc" + bytes(4))  # short, but not IPv4
        assert len(captured(sniffer, lambda frame: frame[:12] == FORGED_MACS)) == 18
        assert wire.world.counters()["malformed"] == before + 3
