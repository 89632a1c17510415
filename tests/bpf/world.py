"""A server to test the data path on: a network namespace of its own, entered by the test's thread, with an
uplink, two on-ramps (both with the same addresses), one known gateway, and the real programs on a bpffs of
its own. Packets are run with BPF_PROG_TEST_RUN; nothing is ever sent.

Every run is checked against the rule of counting (see `Ran`): a test that only looks at the verdict still
fails when a packet is dropped without a reason or counted twice.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, netns
from tests.bpf import families, frames

from softunicast.core.config import Limits
from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.pools import Behaviour, Timers
from softunicast.core.slices import Slice
from softunicast.kernel import abi, namespaces
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.testrun import Result, run_tc, run_xdp
from softunicast.kernel.words import be16, index_key

# Every protocol: one port serves many destinations.
DEPENDENT = Behaviour(frozenset(), frozenset())
ME, NEIGHBOUR = "server1", "server2"
UPLINK, ONRAMP, ONRAMP2 = "upl", "cl", "cm"
BLOCK = Slice.parse("198.51.100.0/24")
ADDRESS = IPv4Address("198.51.100.10")
ADDRESS2 = IPv4Address("198.51.100.11")
SERVERS = {ME: frames.UPLINK_MAC, NEIGHBOUR: frames.NEIGHBOUR_MAC}
FAR_NS = time.monotonic_ns() + 10**13  # a deadline that no test lives to see
ATTACH = {UPLINK: "xdp"}  # as on a network card; on a veth it would be tc, which can be run unattached
LIMITS = Limits(
    flows_max=16384, clients_max=4096, addresses_max=16, slots_max=10240, fragments_max=1024, held_max=64
)

# One of these, or a drop reason, for every packet that a program does anything with; and, where the director
# itself gives a reply to the client, "here" and "in".
OUTCOMES = {"here", "steered", "out", "in", "to_host"}
SPENT = {"held", "released", "cut"}
XDP_PROGRAMS = {"director", "fast"}
REASONS = {reason.name.lower() for reason in abi.Reason}

_numbers = itertools.count()


@dataclass(frozen=True)
class Ran:
    """What a program did with a packet: the verdict, the frame afterwards, and what was counted.

    Dropped: one reason and nothing else. Refused: one reason and one ICMP error sent. Sent: one outcome.
    Passed: at most one outcome. Spent: what was made of it has arrived and was counted, too (fragments).
    """

    verdict: str
    frame: bytes
    counted: Mapping[str, int]

    def __post_init__(self) -> None:
        reasons = [name for name in self.counted if name in REASONS]
        outcomes = [name for name in self.counted if name in OUTCOMES]
        if outcomes and "fragment_lost" in reasons:
            reasons.remove("fragment_lost")  # others, that had waited for this one
        if SPENT & set(self.counted):
            assert self.verdict == "drop"
            return
        if "fast_in" in self.counted:
            outcomes.remove("here")
        assert set(self.counted.values()) <= {1}, self.counted
        assert len(reasons) + len(outcomes) <= 1, self.counted
        if self.verdict == "drop":
            assert len(reasons) == 1, self.counted
        elif self.verdict in ("redirect", "tx"):
            assert len(outcomes) == 1 or (reasons and "icmp_sent" in self.counted), self.counted
        else:
            assert self.verdict in ("next", "pass"), self.verdict
            assert not reasons, self.counted

    @property
    def reason(self) -> str | None:
        return next((name for name in self.counted if name in REASONS), None)

    @property
    def outcome(self) -> str | None:
        skipped = {"here"} if "fast_in" in self.counted else set()
        return next((name for name in self.counted if name in OUTCOMES - skipped), None)


def state(
    *,
    ports: int = 2048,
    mine: tuple[int, ...] = (1,),
    theirs: tuple[int, ...] = (2,),
    expired: tuple[int, ...] = (3,),
    pool: tuple[int, ...] | None = None,
    timers: Timers = Timers(),
    onramps: Mapping[str, str] | None = None,
) -> KernelState:
    """ADDRESS cut into slices of `ports`: those of this server, its neighbour's, this server's past their
    deadline (by slot number; the rest is nobody's). Pool "gb" uses `pool`, by default `mine`.
    """
    owners = {slot: SlotOwner(ME, 1, FAR_NS) for slot in mine}
    owners |= {slot: SlotOwner(NEIGHBOUR, 1, 0) for slot in theirs}
    owners |= {slot: SlotOwner(ME, 1, 1) for slot in expired}
    slices = tuple(Slice.of(ADDRESS, slot * ports, ports) for slot in (mine if pool is None else pool))
    return KernelState(
        blocks=frozenset({BLOCK}),
        addresses={ADDRESS: AddressTable(ports, owners)},
        servers=SERVERS,
        pools={"gb": PoolSlices(timers, slices, DEPENDENT)},
        onramps={ONRAMP: "gb", ONRAMP2: "gb"} if onramps is None else onramps,
    )


class World:
    """The namespace is the calling thread's. `run_...` methods are the four hooks."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath
        self.index = {device: socket.if_nametoindex(device) for device in (UPLINK, ONRAMP, ONRAMP2)}

    @property
    def datapath(self) -> Any:
        """That of the chosen family; tests write and read what is IPv4 (families.py)."""
        return self._datapaths[families.chosen]

    @datapath.setter
    def datapath(self, datapath: Datapath) -> None:
        self._datapaths: dict[int, Any] = {4: datapath, 6: families.OtherFamily(datapath)}

    @property
    def of_both(self) -> Datapath:
        """The same, in its own words whatever family is chosen."""
        found: Datapath = self._datapaths[4]
        return found

    # running packets

    def director(self, frame: bytes) -> Ran:
        """In XDP."""
        return self._run("director", frame, UPLINK)

    def director_tc(self, frame: bytes) -> Ran:
        """At tc; the verdict in the words of XDP."""
        ran = self._run("director_tc", frame, UPLINK)
        return replace(ran, verdict={"next": "pass", "redirect": "tx"}.get(ran.verdict, ran.verdict))

    def remote(self, frame: bytes) -> Ran:
        """At tc behind the director in XDP; the verdict in the words of XDP."""
        ran = self._run("remote", frame, UPLINK)
        return replace(ran, verdict={"next": "pass", "redirect": "tx"}.get(ran.verdict, ran.verdict))

    def guard(self, frame: bytes, came_by: str | None = None) -> Ran:
        """A packet of this host, or one that came in by an interface."""
        return self._run("guard", frame, UPLINK, came_by=self.index[came_by] if came_by else 0)

    def out(self, frame: bytes, onramp: str = ONRAMP, segment_bytes: int | None = None) -> Ran:
        return self._run("egress_out", frame, onramp, segment_bytes)

    def back(self, frame: bytes, segment_bytes: int | None = None) -> Ran:
        return self._run("egress_in", frame, UPLINK, segment_bytes)

    def own(self, frame: bytes, segment_bytes: int | None = None, came_by: str | None = None) -> Ran:
        """A packet of this host's own, as `guard`; its socket is in the cgroup of this process."""
        interface = self.index[came_by] if came_by else 0
        return self._run("uplink", frame, UPLINK, segment_bytes, interface)

    def fast(self, frame: bytes, onramp: str = ONRAMP) -> Ran:
        """XDP in front of `out`; the on-ramp must have been attached so."""
        return self._run("fast", frame, onramp)

    def run(
        self,
        program: str,
        frame: bytes,
        interface: str,
        segment_bytes: int | None = None,
        came_by: int | None = None,
    ) -> Result:
        """Nothing counted or checked: for tests that run many."""
        if program in XDP_PROGRAMS:
            return run_xdp(self.program(program), frame, self.index[interface])
        return run_tc(
            self.program(program),
            frame,
            self.index[interface],
            segment_bytes=segment_bytes,
            came_by=came_by,
        )

    def program(self, name: str) -> int:
        """One that is attached: of both families, handed.h."""
        found: int = next(
            obj.programs[name] for obj in self.datapath._objects.values() if name in obj.programs
        )
        return found

    def _run(
        self,
        program: str,
        frame: bytes,
        interface: str,
        segment_bytes: int | None = None,
        came_by: int | None = None,
    ) -> Ran:
        before = self.counters()
        result = self.run(program, frame, interface, segment_bytes, came_by)
        counted = {
            name: value - before[name] for name, value in self.counters().items() if value != before[name]
        }
        return Ran(result.verdict, result.frame, counted)

    def counters(self) -> dict[str, int]:
        drops = {drop.reason.name.lower(): drop.packets for drop in self.datapath.drops()}
        return drops | self.datapath.traffic()

    # tables

    def reset(self, wanted: KernelState | None = None) -> None:
        """No claims, flows or clients, and the tables that `state()` describes, or others."""
        for name in ("claims", "flows", "exhausted", "clients", "told", "datagrams"):
            self._empty(name)
        sweeps = self.datapath.map("sweeps")
        before = abi.Sweeping.unpack(sweeps.get(index_key(0)) or b"")
        sweeps.set(index_key(0), before._replace(swept_ns=0, again_ns=0).pack())  # `runs` only grows
        self.datapath.apply(wanted or state())

    def _empty(self, name: str) -> None:
        for suffix in ("", "6"):  # the test before may have been about the other family
            table = self._datapaths[4]._maps.get(name + suffix)
            for key, _ in list(table.items()) if table else ():
                table.delete(key)

    def forget_exhausted(self) -> None:
        """The next search is an exact one: for tests that free a port behind the programs' back."""
        self._empty("exhausted")

    def claims(self) -> dict[abi.ClaimKey, abi.Claim]:
        items = self.datapath.map("claims").items()
        return {abi.ClaimKey.unpack(key): abi.Claim.unpack(value) for key, value in items}

    def flows(self) -> dict[abi.FlowKey, abi.Flow]:
        items = self.datapath.map("flows").items()
        return {abi.FlowKey.unpack(key): abi.Flow.unpack(value) for key, value in items}

    def change_claims(self, **fields: Any) -> None:
        """Sets fields of every claim."""
        for key, claim in self.claims().items():
            self.datapath.map("claims").set(key.pack(), claim._replace(**fields).pack())
        self.forget_exhausted()

    def change_flows(self, **fields: Any) -> None:
        for key, flow in self.flows().items():
            self.datapath.map("flows").set(key.pack(), flow._replace(**fields).pack())

    def expire(self, claim: abi.ClaimKey | None = None) -> None:
        """Makes one claim, or every one, expired, and its flow ask before the next packet."""
        for key, value in self.claims().items():
            if claim in (None, key):
                self.datapath.map("claims").set(key.pack(), value._replace(expires_ns=1).pack())
        self.forget_exhausted()
        self.change_flows(refresh_ns=0)

    def local_ports(self) -> list[int]:
        """Of all claims, sorted; with one entry per claim."""
        return sorted(be16(key.local_port) for key in self.claims())


@contextmanager
def namespace() -> Iterator[str]:
    """A fresh network namespace, entered; loopback is up, IPv6 off so that nothing speaks unasked."""
    name = f"sutest-bpf-{os.getpid()}-{next(_numbers)}"
    namespaces.create(name)
    try:
        netns.pushns(name)
        try:
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
            with IPRoute() as netlink:
                netlink.link("set", index=1, state="up")
            yield name
        finally:
            netns.popns()
    finally:
        namespaces.delete(name)


def add_pair(name: str, peer: str, mac: str, address: str) -> int:
    """A veth pair, both ends up and in this namespace; `address` with its prefix length goes to `name`."""
    with IPRoute() as netlink:
        netlink.link("add", ifname=name, kind="veth", peer=peer, address=mac)
        index = socket.if_nametoindex(name)
        for key, value in (
            ("accept_dad", 0),
            ("accept_ra", 0),
            ("router_solicitations", 0),
            ("disable_ipv6", 0),
        ):
            Path(f"/proc/sys/net/ipv6/conf/{name}/{key}").write_text(str(value))
        ip, _, length = address.partition("/")
        netlink.addr(
            "add", index=index, address=str(families.six(ip)), prefixlen=96 + int(length), flags=0x02
        )
        netlink.addr("add", index=index, address=ip, prefixlen=int(length))
        for part in (index, socket.if_nametoindex(peer)):
            netlink.link("set", index=part, state="up")
    return index


def build_server() -> None:
    """The interfaces of `World`, the default route and the gateway's MAC address."""
    uplink = add_pair(UPLINK, "upp", frames.UPLINK_MAC, "192.0.2.1/24")
    add_pair(ONRAMP, "clp", frames.ONRAMP_MAC, "10.0.0.1/24")
    add_pair(ONRAMP2, "cmp", frames.ONRAMP2_MAC, "10.0.0.1/24")
    for onramp in (ONRAMP, ONRAMP2):
        for version in ("ipv4", "ipv6"):
            Path(f"/proc/sys/net/{version}/conf/{onramp}/forwarding").write_text("1")
    with IPRoute() as netlink:
        netlink.route("add", dst="0.0.0.0/0", gateway="192.0.2.254")
        netlink.neigh("add", dst="192.0.2.254", lladdr=frames.GATEWAY_MAC, ifindex=uplink, state="permanent")
        gateway = str(families.six("192.0.2.254"))
        netlink.route("add", family=socket.AF_INET6, dst="::/0", gateway=gateway, oif=uplink)
        netlink.neigh(
            "add",
            family=socket.AF_INET6,
            dst=gateway,
            lladdr=frames.GATEWAY_MAC,
            ifindex=uplink,
            state="permanent",
        )


@contextmanager
def bpffs(folder: Path) -> Iterator[Path]:
    """A bpffs of its own: `Datapath.open` mounts it."""
    mount = folder / "bpf"
    try:
        yield mount
    finally:
        namespaces.unmount(mount)


@contextmanager
def make_server(folder: Path) -> Iterator[Path]:
    """The namespace with its interfaces, entered; gives the bpffs, on which nothing is open yet."""
    with namespace(), bpffs(folder) as mount:
        build_server()
        yield mount


@contextmanager
def make_world(
    folder: Path, limits: Limits = LIMITS, sockets: SocketsConfig | None = None
) -> Iterator[World]:
    """Everything built, opened, with the tables of `state()`; and everything gone again."""
    with make_server(folder) as mount:
        datapath = Datapath.open(mount, UPLINK, ME, limits, ATTACH, sockets=sockets)
        try:
            datapath.apply(state())
            yield World(datapath)
        finally:
            datapath.remove()


def slot_changed(before: KernelState, slot: int, owner: SlotOwner | None) -> KernelState:
    """The state with one slot of ADDRESS owned by somebody else, or nobody."""
    table = before.addresses[ADDRESS]
    owners = {key: value for key, value in table.owners.items() if key != slot}
    if owner:
        owners[slot] = owner
    return replace(before, addresses={**before.addresses, ADDRESS: AddressTable(table.slice_ports, owners)})
