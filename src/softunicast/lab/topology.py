"""What a lab is made of, as plain data, and the `ip` commands that make it. Pure: `build.py` runs them.

A topology is nodes (each a network namespace), links (each a veth pair made directly inside two of them;
the host gets no device) and what runs in the nodes: an agent, programs. The commands are those a person
would type, so a lab can be read, and rebuilt by hand, from what `commands` returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from softunicast.core.errors import InputError
from softunicast.core.pools import Pool
from softunicast.core.records import Inventory

INTERFACE_NAME_MAX: Final = 15  # IFNAMSIZ - 1
BRIDGE_FORWARDING: Final = 3  # BR_STATE_FORWARDING

# A new namespace copies these from the host; a lab behaves the same on every host.
BASE_SYSCTLS: Final[Mapping[str, int]] = {
    "net/ipv4/ip_forward": 0,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
}


@dataclass(frozen=True, slots=True)
class Port:
    """One end of a link: an interface of a node, with its address or as a port of a bridge.

    `xdp_pass`: attach an XDP program that passes everything, without which frames that the other end sends by
    XDP_TX never arrive. `tx_checksum` off: packets start with complete checksums.
    """

    node: str
    interface: str
    address: str | None = None
    bridge: str | None = None
    tx_checksum: bool = True
    xdp_pass: bool = False
    address6: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between two ports."""

    a: Port
    b: Port

    @property
    def ends(self) -> tuple[Port, Port]:
        return self.a, self.b


@dataclass(frozen=True, slots=True)
class Bridge:
    """A switch inside a node, with the node's own address on it."""

    name: str
    address: str
    address6: str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """A Python module of ours that runs in a node. It is up when `ready_port` takes TCP connections."""

    name: str
    module: str
    ready_port: int


@dataclass(frozen=True, slots=True)
class AgentRole:
    """What the agent of a node is told in its configuration file. `onramps`: interface -> pool name."""

    site: str
    uplink: str
    pools: tuple[Pool, ...]
    onramps: Mapping[str, str]
    ttl_s: int = 300
    quarantine_s: int = 120


@dataclass(frozen=True, slots=True)
class Node:
    """One network namespace. `routes` are what follows `ip route add`; `sysctls` go over BASE_SYSCTLS."""

    name: str
    about: str
    routes: tuple[str, ...] = ()
    bridges: tuple[Bridge, ...] = ()
    sysctls: Mapping[str, int] = field(default_factory=dict)
    programs: tuple[Program, ...] = ()
    agent: AgentRole | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole lab. Raises InputError when its parts do not fit together."""

    name: str
    about: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    inventory: Inventory

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise InputError(f"topology {self.name}: {problem}")

    def node(self, name: str) -> Node:
        """Raises KeyError for a name the topology does not have."""
        return {node.name: node for node in self.nodes}[name]

    def ports(self, node: str) -> tuple[Port, ...]:
        """The ports of a node in the order of the links."""
        return tuple(port for link in self.links for port in link.ends if port.node == node)


def commands(topology: Topology, namespace: Callable[[str], str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(node, lines for `ip -batch` inside it), in order. `namespace` gives the namespace of a node."""
    for link in topology.links:
        a, b = link.ends
        yield (
            a.node,
            (f"link add name {a.interface} type veth peer name {b.interface} netns {namespace(b.node)}",),
        )
    for node in topology.nodes:
        yield node.name, tuple(_node_lines(node, topology.ports(node.name)))
    # A bridge learns that a cable is in from an event that the kernel may hold back for a second. Both ends
    # are up by now: say so, or the first packets of a new lab are lost.
    for port in (port for link in topology.links for port in link.ends if port.bridge is not None):
        yield port.node, (f"link set dev {port.interface} type bridge_slave state {BRIDGE_FORWARDING}",)


def _node_lines(node: Node, ports: tuple[Port, ...]) -> Iterator[str]:
    yield "link set dev lo up"
    for bridge in node.bridges:
        yield f"link add name {bridge.name} type bridge"
        yield f"address add {bridge.address} dev {bridge.name}"
        if bridge.address6 is not None:
            yield f"address add {bridge.address6} dev {bridge.name} nodad"
        yield f"link set dev {bridge.name} up"
    for port in ports:
        if port.address is not None:
            yield f"address add {port.address} dev {port.interface}"
        if port.address6 is not None:
            yield f"address add {port.address6} dev {port.interface} nodad"
        if port.bridge is not None:
            yield f"link set dev {port.interface} master {port.bridge}"
        yield f"link set dev {port.interface} up"
    for route in node.routes:
        yield f"route add {route}"


def _problems(topology: Topology) -> Iterator[str]:
    names = [node.name for node in topology.nodes]
    yield from (f"two nodes are called {name}" for name, count in Counter(names).items() if count > 1)
    bridges = {(node.name, bridge.name) for node in topology.nodes for bridge in node.bridges}
    ports = [port for link in topology.links for port in link.ends]
    interfaces = Counter([(port.node, port.interface) for port in ports] + sorted(bridges))
    yield from (
        f"{node} has two interfaces {name}" for (node, name), count in interfaces.items() if count > 1
    )
    for port in ports:
        if port.node not in names:
            yield f"a link ends at {port.node}, which is no node"
        if len(port.interface) > INTERFACE_NAME_MAX:
            yield f"interface name {port.interface} is longer than {INTERFACE_NAME_MAX} characters"
        if port.bridge is not None and (port.node, port.bridge) not in bridges:
            yield f"{port.node} has no bridge {port.bridge}"
    for node in topology.nodes:
        if node.agent is not None:
            for name in (node.agent.uplink, *node.agent.onramps):
                if (node.name, name) not in interfaces:
                    yield f"the agent of {node.name} uses {name}, which is no interface of it"
