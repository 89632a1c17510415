"""Netlink and sysctl in a namespace of their own, compared with what `ip` and /proc show."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv6Address

import pytest

from softunicast.core.errors import HostError
from softunicast.kernel import links, namespaces, sysctl

SHARED = IPv4Address("198.51.100.10")
ARP_IGNORE = sysctl.ipv4_conf("eth0.7", "arp_ignore")


def run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"sutest-links-{os.getpid()}"
    namespaces.create(name)
    try:
        namespaces.run_in(name, _build)
        yield name
    finally:
        namespaces.delete(name)


def _build() -> None:
    run("ip link set lo up")
    run("ip link add eth0.7 address 02:00:00:00:00:07 type veth peer name other")
    run("ip addr add 192.0.2.1/24 dev eth0.7")
    run("ip addr add 192.0.2.77/25 dev eth0.7")
    run("ip addr add 203.0.113.1/24 dev other")
    run("ip link set eth0.7 up")


def test_interface(netns: str) -> None:
    found = namespaces.run_in(netns, links.interface, "eth0.7")
    assert found.addresses == (IPv4Interface("192.0.2.1/24"), IPv4Interface("192.0.2.77/25"))
    assert (found.mac, found.up, found.name) == ("02:00:00:00:00:07", True, "eth0.7")
    assert f"{found.index}: eth0.7" in namespaces.run_in(netns, run, "ip -o link show dev eth0.7")
    other = namespaces.run_in(netns, links.interface, "other")
    assert (other.up, other.addresses) == (False, (IPv4Interface("203.0.113.1/24"),))
    assert namespaces.run_in(netns, links.interface, "lo").mac is None


def test_no_such_interface(netns: str) -> None:
    with pytest.raises(HostError, match="no interface eth9; fix: ") as caught:
        namespaces.run_in(netns, links.interface, "eth9")
    assert caught.value.exit_code == 3


def test_ipv6_address_on_loopback(netns: str) -> None:
    """Good for nothing of the host's own: deprecated, and nothing is asked about it."""
    inside, shared = partial(namespaces.run_in, netns), IPv6Address("2001:db8:64::10")
    assert inside(links.add_loopback_address, shared)
    assert not inside(links.add_loopback_address, shared)
    assert inside(links.loopback_addresses) == {shared}
    shown = inside(run, "ip -o -6 addr show dev lo")
    assert f"inet6 {shared}/128 scope global nodad deprecated" in shown
    assert inside(links.remove_loopback_address, shared)
    assert not inside(links.remove_loopback_address, shared)
    assert inside(links.loopback_addresses) == frozenset()
    inside(sysctl.write, "net/ipv6/conf/lo/disable_ipv6", 1)
    with pytest.raises(HostError, match="IPv6 is off there; fix: sysctl"):
        inside(links.add_loopback_address, shared)


def test_addresses_that_errors_come_from(netns: str) -> None:
    inside = partial(namespaces.run_in, netns)
    inside(run, "ip -6 addr add fe80::77/64 dev eth0.7 nodad")
    inside(run, "ip -6 addr add 2001:db8::1/64 dev eth0.7 nodad")
    found = links.source_addresses(inside(links.interface, "eth0.7"))
    assert [str(one) for one in found[:3]] == ["192.0.2.1", "192.0.2.77", "2001:db8::1"]
    assert all(one.is_link_local for one in found[3:])


def test_loopback_address_comes_and_goes(netns: str) -> None:
    inside = partial(namespaces.run_in, netns)
    assert inside(links.loopback_addresses) == frozenset()
    assert inside(links.add_loopback_address, SHARED)
    assert not inside(links.add_loopback_address, SHARED)
    assert inside(links.loopback_addresses) == {SHARED}
    assert f"inet {SHARED}/32 scope host lo" in inside(run, "ip -o addr show dev lo")
    assert inside(links.remove_loopback_address, SHARED)
    assert not inside(links.remove_loopback_address, SHARED)
    assert inside(links.loopback_addresses) == frozenset()


def test_address_of_scope_host_is_no_source_of_ordinary_traffic(netns: str) -> None:
    inside = partial(namespaces.run_in, netns)
    inside(links.add_loopback_address, SHARED)
    inside(run, "ip link add bare type veth peer name bare2")
    inside(run, "ip link set bare up")
    inside(run, "ip addr flush dev eth0.7")
    inside(run, "ip addr flush dev other")
    inside(run, "ip route add 203.0.113.0/24 dev bare")
    assert str(SHARED) not in inside(run, "ip route get 203.0.113.9")


def test_sysctl(netns: str) -> None:
    inside = partial(namespaces.run_in, netns)
    assert inside(sysctl.read, ARP_IGNORE) == 0
    inside(sysctl.write, ARP_IGNORE, 1)
    assert inside(sysctl.read, ARP_IGNORE) == 1
    assert inside(sysctl.read, sysctl.ipv4_conf("eth9", "arp_ignore")) is None
    with pytest.raises(HostError, match="it does not exist"):
        inside(sysctl.write, sysctl.ipv4_conf("eth9", "arp_ignore"), 1)
    # The caller's own namespace was not touched: it has no such interface.
    assert sysctl.read(ARP_IGNORE) is None
