"""The rows of the API."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface

import pytest
from tests.unit.agent.fakes import EMPTY, INVENTORY, ME, NEIGHBOUR, POOL, SHARED, part

from softunicast.agent import views
from softunicast.core.config import parse_config
from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.errors import InputError
from softunicast.core.leases import Lease, LeaseState
from softunicast.core.pools import Timers
from softunicast.core.records import HistoryEntry, Snapshot
from softunicast.core.slices import Slice
from softunicast.kernel.abi import Reason
from softunicast.kernel.flows import Drop, Flow, Sample
from softunicast.kernel.links import Interface
from softunicast.kernel.usage import Usage

NOW_NS = 10_000_000_000
STATE = replace(
    EMPTY,
    addresses={
        SHARED: AddressTable(
            2048,
            {
                1: SlotOwner("server1", 4, 15_500_000_000),
                2: SlotOwner("server2", 5, 0),
                3: SlotOwner("server1", 6, 15_000_000_000),
                4: SlotOwner("server1", 7, 15_000_000_000),
                5: SlotOwner("server1", 8, NOW_NS),
            },
        )
    },
    pools={"gb": PoolSlices(Timers(), (part(1),))},
    onramps={"clients": "gb"},
)
SNAPSHOT = Snapshot(
    3,
    INVENTORY.blocks,
    INVENTORY.addresses,
    (NEIGHBOUR, ME),
    (
        Lease(part(2), "server2", 5, LeaseState.QUARANTINED, 90.0, 130.0),
        Lease(part(1), "server1", 4, LeaseState.HELD, 150.25),
    ),
)

CONFIG = """
[server]
name = "server1"
site = "lab"
[uplink]
interface = "uplink"
[ledger]
kind = "sqlite"
path = "/l"
[[pools]]
name = "gb"
[[onramps]]
interface = "clients"
pool = "gb"
"""


def flow(
    local: str, protocol: str = "tcp", client: str = "10.0.0.2:40000", remote: str = "203.0.113.1:80"
) -> Flow:
    return Flow("clients", protocol, client, local, remote, "established", 1.0, 2.0)


def test_slices() -> None:
    rows = views.slices(STATE, "server1", [part(4)], {part(1): 7}, NOW_NS)
    assert rows[0] == {
        "slice": "198.51.100.10:2048-4095",
        "address": "198.51.100.10",
        "ports": "2048-4095",
        "server": "server1",
        "epoch": 4,
        "here": True,
        "state": "held",
        "deadline_in_s": 5.5,
        "pool": "gb",
        "flows": 7,
    }
    assert [row["state"] for row in rows] == ["held", "held", "settling", "draining", "expired"]
    assert [row["deadline_in_s"] for row in rows] == [5.5, None, 5.0, 5.0, 0]
    assert [row["flows"] for row in rows] == [7, None, 0, 0, 0]


def test_leases() -> None:
    assert views.leases(SNAPSHOT, 100.0) == [
        {
            "slice": "198.51.100.10:2048-4095",
            "server": "server1",
            "epoch": 4,
            "state": "held",
            "expires_in_s": 50.25,
            "quarantined_for_s": None,
        },
        {
            "slice": "198.51.100.10:4096-6143",
            "server": "server2",
            "epoch": 5,
            "state": "quarantined",
            "expires_in_s": None,
            "quarantined_for_s": 30.0,
        },
    ]


def test_history() -> None:
    entry = HistoryEntry(9, 1.5e9, "taken", part(1), "server1", 4, "for 300 s")
    assert views.history(entry) == {
        "id": 9,
        "at": 1.5e9,
        "event": "taken",
        "slice": "198.51.100.10:2048-4095",
        "server": "server1",
        "epoch": 4,
        "detail": "for 300 s",
    }
    assert views.history(replace(entry, slice=None))["slice"] is None


def test_pools_count_ports_once() -> None:
    used = views.PortsUsed([part(1), part(3)])
    for local, protocol in [
        ("198.51.100.10:2048", "tcp"),
        ("198.51.100.10:2048", "udp"),
        ("198.51.100.10:4095", "tcp"),
        ("198.51.100.10:4096", "tcp"),
        ("198.51.100.11:2049", "tcp"),
        ("198.51.100.10:6144", "tcp"),
    ]:
        assert not used.see(flow(local, protocol))
    assert used.counts() == {part(1): 2, part(3): 1}
    usage = {"gb": Usage(5, 3, "tcp 203.0.113.1:443")}
    assert views.pools([POOL], "lab", SNAPSHOT, STATE, used.counts(), usage) == [
        {
            "name": "gb",
            "tags": {"country": "gb"},
            "addresses": ["198.51.100.10"],
            "slices": ["198.51.100.10:2048-4095"],
            "ports": 2048,
            "ports_used": 2,
            "busiest": 3,
            "busiest_to": "tcp 203.0.113.1:443",
            "onramps": ["clients"],
        }
    ]


def test_onramps() -> None:
    text = (
        CONFIG
        + """
        [[onramps]]
        kind = "fd"
        name = "apps"
        pool = "gb"
        address = "10.9.0.1/24"
        address6 = "fd00:9::1/64"
        sources = ["10.9.0.0/24", "fd00:9::/64"]
        users = ["nobody"]
    """
    )
    device = Interface(
        "apps",
        7,
        None,
        True,
        True,
        False,
        1500,
        "tun",
        (IPv4Interface("10.9.0.1/24"),),
        (IPv6Interface("fe80::1/64"), IPv6Interface("fd00:9::1/64")),
    )
    clients = Interface("clients", 3, "02:00:00:00:00:01", False, True, True, 1500, "veth", ())
    rows = views.onramps(parse_config(text, "x"), {"apps": (device, "tc"), "clients": (clients, "")})
    assert rows == [
        {
            "name": "apps",
            "kind": "fd",
            "pool": "gb",
            "state": "ready",
            "attach": "tc",
            "layer": "ip",
            "address": "10.9.0.1/24",
            "address6": "fd00:9::1/64",
            "mtu": 1500,
            "sources": ["10.9.0.0/24", "fd00:9::/64"],
            "open": False,
        },
        {
            "name": "clients",
            "kind": "interface",
            "pool": "gb",
            "state": "waiting",
            "attach": None,
            "layer": "ethernet",
            "address": None,
            "address6": None,
            "mtu": 1500,
            "sources": [],
            "open": None,
        },
    ]
    [gone] = views.onramps(parse_config(CONFIG, "x"), {"clients": (None, "")})
    assert (gone["state"], gone["layer"], gone["mtu"]) == ("missing", None, None)


def test_servers() -> None:
    rows = views.servers(SNAPSHOT, STATE, "server1")
    assert [(row["name"], row["here"], row["slices"]) for row in rows] == [
        ("server1", True, 1),
        ("server2", False, 0),
    ]
    assert rows[1]["address"] == "192.0.2.2"


def test_how_servers_are_reached() -> None:
    def reached(state: KernelState) -> list[object]:
        return [row["reached"] for row in views.servers(SNAPSHOT, state, "server1")]

    known = replace(STATE, servers={"server1": "02:00:00:00:00:01", "server2": "02:00:00:00:00:02"})
    ends = {"server1": IPv4Address("192.0.2.1"), "server2": IPv4Address("192.0.2.2")}
    assert reached(known) == ["self", "neighbour"]
    assert reached(replace(known, tunnels=ends)) == ["self", "tunnel"]
    assert reached(replace(known, servers={})) == ["self", "no"]


def test_drops() -> None:
    sample = Sample(1.5, "guard", "uplink", "tcp", "198.51.100.10:1", "203.0.113.1:80")
    rows = views.drops([Drop(Reason.GUARD_FOREIGN, 3, sample), Drop(Reason.NO_FLOW, 0, None)])
    assert (rows[0]["reason"], rows[0]["packets"], rows[0]["last"]["hook"]) == ("guard_foreign", 3, "guard")
    assert "another server" in rows[0]["meaning"]
    assert (rows[1]["packets"], rows[1]["last"]) == (0, None)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({"protocol": "tcp"}, True),
        ({"protocol": "udp"}, False),
        ({"client": "10.0.0.2"}, True),
        ({"client": "10.0.0.2:40000"}, True),
        ({"client": "10.0.0.2:4000"}, False),
        ({"client": "10.0.0.20"}, False),
        ({"local": "198.51.100.10:2048", "remote": "203.0.113.1"}, True),
        ({"local": "198.51.100.10:2048", "remote": "203.0.113.2"}, False),
    ],
)
def test_flow_filter(query: dict[str, str], wanted: bool) -> None:
    accepts = views.flow_filter(query)
    assert accepts is not None
    assert accepts(flow("198.51.100.10:2048")) is wanted


def test_ends_of_ipv6() -> None:
    known = replace(flow("[2001:db8:64::10]:2049"), client="[fd00::2]:40000", remote="[2001:db8::1]:443")
    for query, wanted in (
        ({"client": "fd00::2"}, True),
        ({"client": "[fd00:0::2]:40000"}, True),
        ({"client": "fd00::20"}, False),
        ({"remote": "[2001:db8::1]:444"}, False),
    ):
        accepts = views.flow_filter(query)
        assert accepts is not None
        assert accepts(known) is wanted
    slice_ = Slice.parse("[2001:db8:64::10]:2048-4095")
    used = views.PortsUsed([slice_, part(1)])
    used.see(known)
    assert used.counts() == {slice_: 1, part(1): 0}


def test_no_filter_is_cheap() -> None:
    assert views.flow_filter({"limit": "5"}) is None


@pytest.mark.parametrize("query", [{"protocol": "sctp"}, {"client": "10.0.0"}, {"remote": "10.0.0.1:99999"}])
def test_bad_filter(query: dict[str, str]) -> None:
    with pytest.raises(InputError):
        views.flow_filter(query)
