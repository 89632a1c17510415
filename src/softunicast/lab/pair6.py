"""The lab `pair6`: the lab `pair` with IPv6 beside IPv4. The same cables, and on each of them, by RFC 3849 and 4193:

fd00:10::/64 behind each server, 2001:db8:2::/64 to the router, 2001:db8:113::/64 to internet; and one shared
address, 2001:db8:64::10, in 2001:db8:64::/64, which the router spreads over both servers as it does with IPv4.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any, Final

from softunicast.core.records import Address, Block, Inventory
from softunicast.core.slices import Slice
from softunicast.lab.pair import SITE, pair
from softunicast.lab.topology import Link, Node, Port, Topology

BLOCK6: Final = Slice.parse("2001:db8:64::/64")
SHARED6: Final = IPv6Address("2001:db8:64::10")
CLIENT6: Final = "fd00:10::2"  # both clients
ONRAMP6: Final = "fd00:10::1"
ROUTER6: Final = "2001:db8:2::254"
INTERNET6: Final = "2001:db8:113::1"

_ADDRESSES: Final = {
    **{("client" + n, "eth0"): f"{CLIENT6}/64" for n in "12"},
    **{("server" + n, "clients"): f"{ONRAMP6}/64" for n in "12"},
    **{("server" + n, "uplink"): f"2001:db8:2::{n}/64" for n in "12"},
    ("router", "inet"): "2001:db8:113::254/64",
    ("internet", "eth0"): f"{INTERNET6}/64",
}
_ROUTES: Final = {
    **{"client" + n: f"default via {ONRAMP6}" for n in "12"},
    **{"server" + n: f"default via {ROUTER6}" for n in "12"},
    "router": f"{BLOCK6} nexthop via 2001:db8:2::1 nexthop via 2001:db8:2::2",
    "internet": "default via 2001:db8:113::254",
}
_SYSCTLS: Final = {
    "net/ipv6/conf/all/disable_ipv6": 0,
    "net/ipv6/conf/default/disable_ipv6": 0,
    "net/ipv6/conf/default/accept_dad": 0,  # addresses are good at once, those that the kernel makes, too
    "net/ipv6/conf/default/accept_ra": 0,
    "net/ipv6/conf/default/router_solicitations": 0,
}
_ROUTER_SYSCTLS: Final = {
    "net/ipv6/conf/all/forwarding": 1,
    "net/ipv6/conf/default/forwarding": 1,
    "net/ipv6/fib_multipath_hash_policy": 1,
}


def pair6(*arguments: Any, slice_ports6: int | None = None, **options: Any) -> Topology:
    """`pair`, with its arguments, and IPv6. `slice_ports6`: of the IPv6 address; as that of IPv4 unless told."""
    base = pair(*arguments, **options)
    (shared,) = base.inventory.addresses
    address6 = Address(SHARED6, SITE, shared.tags, slice_ports6 or shared.slice_ports)
    return replace(
        base,
        name="pair6",
        about=f"{base.about}; and the same in IPv6, with {SHARED6}",
        nodes=tuple(_node(node) for node in base.nodes),
        links=tuple(Link(_port(link.a), _port(link.b)) for link in base.links),
        inventory=Inventory(
            blocks=(*base.inventory.blocks, Block(BLOCK6)),
            addresses=(*base.inventory.addresses, address6),
        ),
    )


def _port(port: Port) -> Port:
    return replace(port, address6=_ADDRESSES.get((port.node, port.interface)))


def _node(node: Node) -> Node:
    more = _ROUTER_SYSCTLS if node.name == "router" else {}
    return replace(
        node,
        routes=(*node.routes, _ROUTES[node.name]),
        bridges=tuple(replace(bridge, address6=f"{ROUTER6}/64") for bridge in node.bridges),
        sysctls={**node.sysctls, **_SYSCTLS, **more},
    )
