"""What concerns one link alone, of IPv6, where the clients of an on-ramp are listed: neighbours find each other on
Ethernet, and a device without it has none. (What IPv4 has of this is in test_wrap.py.)
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptPrefixInfo,
    IPv6,
)
from scapy.packet import Packet
from tests.bpf import frames
from tests.bpf.bare import BARE, BARE_MACS, Bare, make_bare
from tests.bpf.world import ONRAMP, ONRAMP2

from softunicast.kernel import sysctl

FAMILIES = (6,)
ROUTE_OF_ROUTER = 9  # RTPROT_RA
CLIENT6, STRANGER, LINK_LOCAL, OWN6 = "fd00::a09:2", "2001:db8::9", "fe80::2", "fd00::a09:1"
GROUP = "ff02::fb"
ADVERTISEMENT = ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptPrefixInfo(
    prefix="2001:db8:bad::", prefixlen=64
)
DISCOVERY = [
    (LINK_LOCAL, "ff02::1", ADVERTISEMENT),
    (LINK_LOCAL, OWN6, ADVERTISEMENT),
    (CLIENT6, "ff02::1", ADVERTISEMENT),
    (LINK_LOCAL, OWN6, ICMPv6ND_Redirect(tgt=LINK_LOCAL, dst="2001:db8::1")),
    ("::", "ff02::1:ff00:2", ICMPv6ND_NS(tgt=CLIENT6)),
    (CLIENT6, "ff02::1:ff09:1", ICMPv6ND_NS(tgt=OWN6)),
    (CLIENT6, OWN6, ICMPv6ND_NA(tgt=CLIENT6)),
    (STRANGER, OWN6, ICMPv6ND_NS(tgt=OWN6)),
]
ON_LINK = [
    (LINK_LOCAL, GROUP, UDP(sport=5353, dport=5353)),
    (LINK_LOCAL, OWN6, UDP(sport=1, dport=53)),
    (LINK_LOCAL, "fe80::1", ICMPv6EchoRequest(id=7)),
]


@pytest.fixture(scope="module")
def module_bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    with make_bare(tmp_path_factory.mktemp("bare")) as made:
        yield made


@pytest.fixture
def bare(module_bare: Bare, family: int) -> Bare:
    module_bare.reset()
    return module_bare


def linked(source: str, destination: str, content: Packet, macs: frames.Macs = frames.FROM_CLIENT) -> bytes:
    return bytes(frames.ethernet(macs) / IPv6(src=source, dst=destination, hlim=255) / content)


def verdict_on(bare: Bare, frame: bytes, onramp: str) -> str | None:
    ran = bare.world.out(frame, onramp)
    assert ran.reason or (ran.verdict, ran.frame, dict(ran.counted)) == ("next", frame, {}), ran
    return ran.reason


@pytest.mark.parametrize(("source", "destination", "content"), DISCOVERY + ON_LINK)
def test_neighbours_are_of_ethernet(bare: Bare, source: str, destination: str, content: Packet) -> None:
    """Where there is no Ethernet, and clients are listed, nobody has anything to say to the link."""
    assert verdict_on(bare, linked(source, destination, content), ONRAMP) is None
    assert verdict_on(bare, linked(source, destination, content), ONRAMP2) is None
    assert verdict_on(bare, linked(source, destination, content, BARE_MACS), ONRAMP2) is None
    assert verdict_on(bare, linked(source, destination, content, BARE_MACS), BARE) == "spoofed"


@pytest.mark.parametrize(("onramp", "macs"), [(ONRAMP, frames.FROM_CLIENT), (BARE, BARE_MACS)])
def test_multicast_of_clients(bare: Bare, onramp: str, macs: frames.Macs) -> None:
    """As of IPv4: from whoever is a client, for the host. That goes for all addresses that it made itself (SLAAC)."""
    for source, reason in (
        (CLIENT6, None),
        ("fd00::a09:1c3", None),
        (STRANGER, "spoofed"),
        ("fd00::a09:200", "spoofed"),
    ):
        for content in (UDP(sport=5353, dport=5353), ICMPv6EchoRequest(id=7)):
            for destination in (GROUP, "fe80::1"):
                assert verdict_on(bare, linked(source, destination, content, macs), onramp) == reason


def test_a_router_that_is_none(bare: Bare) -> None:
    """Even a host that believes routers, and forwards, does not come to hear what a program writes."""
    before = bare.world.counters()
    sysctl.write(sysctl.ipv6_conf(BARE, "accept_ra"), 2)
    try:
        bare.send(linked(LINK_LOCAL, "ff02::1", ADVERTISEMENT)[14:])
    finally:
        sysctl.write(sysctl.ipv6_conf(BARE, "accept_ra"), 0)
    assert bare.world.counters()["spoofed"] == before["spoofed"] + 1
    with IPRoute() as netlink:
        routes = netlink.get_routes(family=socket.AF_INET6, oif=socket.if_nametoindex(BARE))
    assert not [route for route in routes if route["proto"] == ROUTE_OF_ROUTER]
