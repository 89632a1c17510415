"""The lab `routed`: the lab `pair6` with a segment of its own for each server, so that what arrives at the wrong one
goes on through a tunnel.

    client1 .2 -- 10.0.0.0/24 -- .1 server1 .1 -- 192.0.2.0/24 -- .254 router .254 -- 203.0.113.0/24 -- .1 internet
    client2 .2 -- 10.0.0.0/24 -- .1 server2 .2 -- 192.0.3.0/24 -- .254 router

In IPv6 the segments are 2001:db8:2::/64 and 2001:db8:3::/64. The router spreads the shared addresses over both servers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from softunicast.lab.pair import BLOCK
from softunicast.lab.pair6 import BLOCK6, pair6
from softunicast.lab.topology import Link, Node, Port, Topology

UPLINK_OF: Final = {"server1": "192.0.2.1", "server2": "192.0.3.2"}
_UPLINK6_OF: Final = {"server1": "2001:db8:2::1", "server2": "2001:db8:3::2"}


def routed(*arguments: Any, **options: Any) -> Topology:
    """`pair6`, with its arguments."""
    base = pair6(*arguments, **options)
    return replace(
        base,
        name="routed",
        about="two servers on segments of their own share 198.51.100.10, in IPv4 and IPv6, by tunnels",
        nodes=tuple(_node(node) for node in base.nodes),
        links=tuple(_link(link) for link in base.links),
    )


def _gateway(address: str) -> str:
    return address.rstrip("12") + "254"


def _node(node: Node) -> Node:
    if node.name in UPLINK_OF:
        return replace(
            node,
            routes=(
                f"default via {_gateway(UPLINK_OF[node.name])}",
                f"default via {_gateway(_UPLINK6_OF[node.name])}",
            ),
        )
    if node.name == "router":
        ways = (
            (block, " ".join(f"nexthop via {address}" for address in uplinks.values()))
            for block, uplinks in ((BLOCK, UPLINK_OF), (BLOCK6, _UPLINK6_OF))
        )
        return replace(node, bridges=(), routes=tuple(f"{block} {nexthops}" for block, nexthops in ways))
    return node


def _link(link: Link) -> Link:
    server, router = link.ends
    if router.node != "router" or server.node not in UPLINK_OF:
        return link
    address, address6 = UPLINK_OF[server.node], _UPLINK6_OF[server.node]
    return Link(
        replace(server, address=f"{address}/24", address6=f"{address6}/64"),
        Port(router.node, router.interface, f"{_gateway(address)}/24", address6=f"{_gateway(address6)}/64"),
    )
