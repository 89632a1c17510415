"""Topologies: what they refuse, and the `ip` commands that a topology becomes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from softunicast.core.errors import InputError, UnknownNameError
from softunicast.lab import catalogue
from softunicast.lab.pair import pair
from softunicast.lab.topology import Bridge, Link, Node, Port, Topology, commands

INVENTORY = pair().inventory


def small(*nodes: Node, links: tuple[Link, ...] = ()) -> Topology:
    return Topology("small", "for tests", nodes, links, INVENTORY)


def test_commands_wire_first_and_then_configure_each_node() -> None:
    topology = small(
        Node("a", "", routes=("default via 10.0.0.2",)),
        Node("b", "", bridges=(Bridge("lan", "10.0.0.2/24"),)),
        links=(Link(Port("a", "eth0", "10.0.0.1/24"), Port("b", "p1", bridge="lan")),),
    )

    assert list(commands(topology, lambda node: f"ns-{node}")) == [
        ("a", ("link add name eth0 type veth peer name p1 netns ns-b",)),
        (
            "a",
            (
                "link set dev lo up",
                "address add 10.0.0.1/24 dev eth0",
                "link set dev eth0 up",
                "route add default via 10.0.0.2",
            ),
        ),
        (
            "b",
            (
                "link set dev lo up",
                "link add name lan type bridge",
                "address add 10.0.0.2/24 dev lan",
                "link set dev lan up",
                "link set dev p1 master lan",
                "link set dev p1 up",
            ),
        ),
        ("b", ("link set dev p1 type bridge_slave state 3",)),
    ]


AB = (Node("a", ""), Node("b", ""))


@pytest.mark.parametrize(
    ("nodes", "links", "problem"),
    [
        ((*AB, Node("a", "")), (), "two nodes are called a"),
        (AB, (Link(Port("a", "x"), Port("c", "x")),), "a link ends at c, which is no node"),
        (
            AB,
            (Link(Port("a", "x"), Port("b", "x")), Link(Port("a", "x"), Port("b", "y"))),
            "a has two interfaces x",
        ),
        (AB, (Link(Port("a", "sixteen-letters-"), Port("b", "x")),), "longer than 15 characters"),
        (AB, (Link(Port("a", "x", bridge="lan"), Port("b", "x")),), "a has no bridge lan"),
        ((replace(pair().node("server1"), name="a"),), (), "uses uplink, which is no interface"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    nodes: tuple[Node, ...], links: tuple[Link, ...], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        small(*nodes, links=links)


def test_every_topology_of_the_catalogue_fits_together() -> None:
    for name in catalogue.TOPOLOGIES:
        assert catalogue.topology(name).name == name


def test_an_unknown_topology_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="no topology 'pear'; fix: use one of pair"):
        catalogue.topology("pear")


@pytest.mark.parametrize("ports", [16, 64, 32768])
def test_slices_of_any_possible_size(ports: int) -> None:
    [address] = catalogue.topology("pair", ports).inventory.addresses
    assert address.slice_ports == ports


@pytest.mark.parametrize("ports", [-64, 0, 8, 100, 65536])
def test_impossible_slices_are_refused(ports: int) -> None:
    with pytest.raises(
        InputError, match=f"slices of {ports} ports are not possible; fix: give a power of two"
    ):
        catalogue.topology("pair", ports)


def test_pair_has_what_its_data_path_needs() -> None:
    topology = pair(slice_ports=64)
    ports = {(port.node, port.interface): port for link in topology.links for port in link.ends}

    assert [port for port in ports.values() if port.xdp_pass] == [
        ports["router", "s1"],
        ports["router", "s2"],
    ]
    assert [port for port in ports.values() if not port.tx_checksum] == [ports["internet", "eth0"]]
    assert ports["client1", "eth0"].address == ports["client2", "eth0"].address
    assert topology.inventory.addresses[0].slice_ports == 64
    assert [node.name for node in topology.nodes if node.agent] == ["server1", "server2"]
