"""A server with TUN devices as on-ramps, for the tests of what has no Ethernet header. The far end of the uplink and
the descriptors are the test's.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from pathlib import Path

from tests.bpf import families
from tests.bpf.test_wire import capture, captured
from tests.bpf.world import LIMITS, ME, ONRAMP, ONRAMP2, UPLINK, World, make_server, state

from softunicast.core.onramps import Tun
from softunicast.kernel import sysctl, tun
from softunicast.kernel.datapath import Datapath

BARE, OFFLOADING = "tu", "tv"
DEVICE = Tun(IPv4Interface("10.9.0.1/24"), address6=IPv6Interface("fd00::a09:1/120"))
OFFLOAD = Tun(IPv4Interface("10.9.1.1/24"), offload=True, address6=IPv6Interface("fd00::a09:101/120"))
SOURCES4 = tuple(ip_network(text) for text in ("10.9.0.0/23", "10.0.0.2/32"))
SOURCES6 = tuple(ip_network(text) for text in ("fd00::a09:0/119", "fd00::a00:2/128"))
SOURCES = dict.fromkeys((BARE, OFFLOADING), (*SOURCES4, *SOURCES6)) | {ONRAMP: (*SOURCES6, *SOURCES4)}
WAIT_S = 5.0
VNET_BYTES = 10
ZERO = "00:00:00:00:00:00"
BARE_MACS = (ZERO, ZERO)


@dataclass
class Bare:
    """A world with TUN devices as on-ramps. `descriptor` is the first one's, `wire` the far end of the uplink."""

    world: World
    descriptor: int
    offloading: int
    wire: socket.socket

    def send(self, packet: bytes) -> None:
        os.write(self.descriptor, packet)

    def received(self, offloading: bool = False) -> bytes:
        """The next packet that a device gives, but for what the host says of its multicast groups (MLD)."""
        descriptor, skipped = (self.offloading, VNET_BYTES) if offloading else (self.descriptor, 0)
        ready = select.poll()  # a server has more descriptors open than select() takes
        ready.register(descriptor, select.POLLIN)
        while ready.poll(WAIT_S * 1000):
            packet = os.read(descriptor, 1 << 17)[skipped:]
            if not (packet[0] >> 4 == 6 and packet[24] == 0xFF):
                return packet
        raise AssertionError("nothing came")

    def left(self) -> bytes:
        """The next frame of the family that left by the uplink."""
        kind = b"\x08\x00" if families.chosen == 4 else b"\x86\xdd"
        return captured(self.wire, lambda frame: frame[12:14] == kind and frame[38] != 0xFF)

    @property
    def datapath(self) -> Datapath:
        """As it is, whatever the chosen family."""
        found: Datapath = self.world._datapaths[4]
        return found

    def reset(self) -> None:
        self.world.reset(state(onramps=dict.fromkeys((ONRAMP, ONRAMP2, BARE, OFFLOADING), "gb")))


@contextmanager
def make_bare(folder: Path) -> Iterator[Bare]:
    """Everything built and opened, and gone again."""
    with make_server(folder) as mount:
        for name, device in ((BARE, DEVICE), (OFFLOADING, OFFLOAD)):
            tun.make(name, device)
            sysctl.write(sysctl.ipv4_conf(name, "forwarding"), 1)
            sysctl.write(sysctl.ipv6_conf(name, "forwarding"), 1)
        datapath = Datapath.open(mount, UPLINK, ME, LIMITS, {}, SOURCES)
        try:
            datapath.apply(state(onramps=dict.fromkeys((ONRAMP, ONRAMP2, BARE, OFFLOADING), "gb")))
            world = World(datapath)
            world.index |= {name: socket.if_nametoindex(name) for name in (BARE, OFFLOADING)}
            made = Bare(world, tun.attach(BARE, DEVICE), tun.attach(OFFLOADING, OFFLOAD), capture("upp"))
            with made.wire:
                yield made
            for descriptor in (made.descriptor, made.offloading):
                os.close(descriptor)
        finally:
            datapath.remove()
