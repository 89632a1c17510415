"""A `World` whose neighbour is behind a router, and what goes through the tunnel to it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.bpf import families
from tests.bpf.frames import FROM_WIRE, GATEWAY_MAC, UPLINK_MAC, Macs
from tests.bpf.world import ME, NEIGHBOUR, Ran, World, state

from softunicast.core.desired import KernelState
from softunicast.kernel import abi
from softunicast.kernel.words import index_key

PORT: Final = 6080
HEADER_BYTES: Final = 28
OWN, PEER, STRANGER = "192.0.2.1", "192.0.3.2", "192.0.3.9"
OPENED_MAC: Final = "02:47:55:45:00:00"
TUNNELS: Final = {ME: IPv4Address(OWN), NEIGHBOUR: IPv4Address(PEER)}


def tunnelled(before: KernelState | None = None) -> KernelState:
    return replace(before or state(), tunnels=TUNNELS)


def set_up(world: World, before: KernelState | None = None) -> None:
    """The tables, no next hop known, and what the agent sets on the host."""
    Path("/proc/sys/net/ipv4/conf/lo/forwarding").write_text("1")
    world.reset(tunnelled(before))
    forget_hops(world)
    for index in range(3):
        world.datapath.map("paths").set(index_key(index), bytes(abi.PATH_BYTES))


def forget_hops(world: World) -> None:
    hops = world.datapath.map("hops")
    for index in range(3):
        hops.set(index_key(index), bytes(len(hops.get(index_key(index)) or b"")))


def in_tunnel(
    inner: bytes,
    source: str = PEER,
    destination: str = OWN,
    macs: Macs = FROM_WIRE,
    port: int = PORT,
    from_port: int = 50000,
    content: bytes | None = None,
    **fields: object,
) -> bytes:
    """A frame with the packet of the frame `inner` (or this content) in a tunnel."""
    outer = IP(src=source, dst=destination, **{"ttl": 64, "id": 0, "flags": "DF", **fields})
    datagram = UDP(sport=from_port, dport=port, chksum=0)
    return bytes(
        Ether(src=macs[0], dst=macs[1], type=0x0800)
        / outer
        / datagram
        / Raw(inner[14:] if content is None else content)
    )


def entered(frame: bytes, tos: int = 0) -> bytes:
    """The frame as it leaves through the tunnel: `frame` with one hop less. Its source port is any of a flow's."""
    return in_tunnel(frame, OWN, PEER, (UPLINK_MAC, GATEWAY_MAC), tos=tos)


def without_port(frame: bytes) -> bytes:
    """A tunnel's frame without its source port."""
    return frame[:34] + frame[36:]


def opened(frame: bytes) -> bytes:
    """The frame as it comes out of the tunnel at its other end."""
    return frame[:6] + bytes.fromhex(OPENED_MAC.replace(":", "")) + frame[12:]


class Ends:
    """Both attachments of the director, as one: what XDP leaves to tc, tc does."""

    def __init__(self, world: World, attach: str) -> None:
        self.world, self.attach = world, attach

    def send(self, frame: bytes) -> Ran:
        """A packet from the wire."""
        if self.attach == "tc":
            return self.world.director_tc(frame)
        if families.chosen == 4:
            ran = self.world.director(frame)
            if ran.verdict != "pass" or ran.counted:
                return ran
            assert ran.frame == frame  # untouched
        return self.world.remote(frame)

    def open(self, frame: bytes) -> Ran:
        """One with a tunnel's header from the wire. The outer header is IPv4, whatever comes out."""
        with families.family(4):
            return self.send(frame)
