"""The lab `pair`: one shared address, two servers, two clients that look the same from inside.

    client1 .2 -- 10.0.0.0/24 -- .1 server1 .1 --+
                                                 |-- 192.0.2.0/24 -- .254 router .254 --+
    client2 .2 -- 10.0.0.0/24 -- .1 server2 .2 --+                                      |
                                                   internet .1 -- 203.0.113.0/24 -------+

The router knows nothing of slices: it spreads 198.51.100.0/24 over both servers by a hash of the flow, so
about half of all replies reach the server that does not own their port.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Final

from softunicast.core.pools import Pool
from softunicast.core.records import SLICE_PORTS_DEFAULT, Address, Block, Inventory
from softunicast.core.slices import Slice
from softunicast.lab.topology import AgentRole, Bridge, Link, Node, Port, Program, Topology

SITE: Final = "lab"
BLOCK: Final = Slice.parse("198.51.100.0/24")
SHARED: Final = IPv4Address("198.51.100.10")
POOL: Final = Pool("demo", {"country": "gb", "product": "demo"})

CLIENT: Final = "10.0.0.2"  # both clients
SERVER_OF: Final = {"client1": "server1", "client2": "server2"}
INTERNET: Final = "203.0.113.1"
HTTP_PORT: Final = 80
ECHO_PORT: Final = 7


def pair(
    slice_ports: int = SLICE_PORTS_DEFAULT, ttl_s: int = 300, quarantine_s: int = 120, pool: Pool = POOL
) -> Topology:
    """The topology, with slices of `slice_ports` ports (a power of two), leases of `ttl_s` seconds, and `pool`."""
    numbers = (1, 2)
    return Topology(
        name="pair",
        about="two servers share 198.51.100.10, a client with the same private address behind each",
        nodes=(
            *(_client(number) for number in numbers),
            *(_server(number, ttl_s, quarantine_s, pool) for number in numbers),
            _ROUTER,
            _INTERNET,
        ),
        links=(
            *(
                Link(Port(f"client{n}", "eth0", f"{CLIENT}/24"), Port(f"server{n}", "clients", "10.0.0.1/24"))
                for n in numbers
            ),
            *(
                Link(
                    Port(f"server{n}", "uplink", f"192.0.2.{n}/24"),
                    Port("router", f"s{n}", bridge="lan", xdp_pass=True),
                )
                for n in numbers
            ),
            Link(
                Port("router", "inet", "203.0.113.254/24"),
                Port("internet", "eth0", f"{INTERNET}/24", tx_checksum=False),
            ),
        ),
        inventory=Inventory(
            blocks=(Block(BLOCK),), addresses=(Address(SHARED, SITE, pool.tags, slice_ports),)
        ),
    )


def _client(number: int) -> Node:
    return Node(f"client{number}", f"behind server{number}", routes=("default via 10.0.0.1",))


def _server(number: int, ttl_s: int, quarantine_s: int, pool: Pool) -> Node:
    role = AgentRole(SITE, "uplink", (pool,), {"clients": pool.name}, ttl_s=ttl_s, quarantine_s=quarantine_s)
    return Node(f"server{number}", f"{SHARED} in its slice", routes=("default via 192.0.2.254",), agent=role)


_ROUTER: Final = Node(
    "router",
    f"{BLOCK} to either server",
    bridges=(Bridge("lan", "192.0.2.254/24"),),
    routes=(f"{BLOCK} nexthop via 192.0.2.1 nexthop via 192.0.2.2",),
    sysctls={"net/ipv4/ip_forward": 1, "net/ipv4/fib_multipath_hash_policy": 1},
)

_INTERNET: Final = Node(
    "internet",
    f"{INTERNET}: HTTP on {HTTP_PORT}, TCP and UDP echo on {ECHO_PORT}",
    routes=("default via 203.0.113.254",),
    programs=(Program("internet", "softunicast.lab.internet", HTTP_PORT),),
)
