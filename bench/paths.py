"""The paths under test: what a server node does with forwarded packets. One class each, set up as an operator
would, on a world that is wired already. A new attachment is one more class in PATHS.

`local` is the source that a request must leave with, None when nothing translates. `flush` forgets every flow.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import Final

from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from bench import objects
from bench.world import CLIENT_MAC, INTERNET_MAC, ONRAMP_MAC, SERVER, UPLINK_MAC, World
from softunicast.core.config import Limits
from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.pools import Behaviour, Timers
from softunicast.core.slices import Slice
from softunicast.kernel import sysctl
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.libbpf import check, ffi, load_library
from softunicast.kernel.objects import ATTACH_TCX_INGRESS, ATTACH_XDP, BpfObject, Link, mount_bpffs
from softunicast.kernel.words import index_key, mac_bytes

# As the peers do it: one port serves many destinations, also for UDP.
DEPENDENT = Behaviour(frozenset(), frozenset())
SHARED: Final = IPv4Address("198.51.100.10")
UPLINK_ADDRESS: Final = IPv4Address("192.0.2.1")
SLICE_PORTS: Final = 2048
FLOWS_MAX: Final = 1 << 20
UDP_IDLE_S: Final = 600  # longer than any benchmark: nothing expires under it
CONNTRACK_MAX: Final = 1 << 21  # entries, and hash buckets: a million flows fill half of it


class Path:
    """Plain forwarding by the kernel, and what the others have in common with it."""

    title = "kernel forwarding, no NAT"
    local: IPv4Address | None = None
    attach_sinks = True

    def __init__(self, world: World, slices: int = 1) -> None:
        """`slices`: how many of 2,048 ports the path may use, where it has a choice."""
        self.world = world
        self.slices = slices
        self.undo = ExitStack()

    def set_up(self) -> None:
        """Makes the server do it."""

    def flush(self) -> None:
        """Forgets every flow."""

    def close(self) -> None:
        """Lets go of what is not removed with the world."""
        self.undo.close()


class Conntrack(Path):
    """What NAT by netfilter needs. The table's size is the host's: see `conntrack_sized`."""

    def set_up(self) -> None:
        self._rules()
        for timeout in ("udp_timeout", "udp_timeout_stream"):
            self.world.inside(SERVER, sysctl.write, f"net/netfilter/nf_conntrack_{timeout}", UDP_IDLE_S)

    def _rules(self) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        self.world.inside(SERVER, _flush_conntrack)


class Nft(Conntrack):
    title = "nft SNAT, port range"
    local = SHARED

    def _rules(self) -> None:
        to = f"{SHARED}:{SLICE_PORTS}-{SLICE_PORTS * (1 + self.slices) - 1}"
        self.world.run(
            SERVER,
            "nft -f -",
            "table ip bench { chain out { type nat hook postrouting priority srcnat; "
            f'oifname "uplink" meta l4proto {{ tcp, udp }} snat to {to}; }}; }}',
        )


class Masquerade(Conntrack):
    title = "iptables MASQUERADE"
    local = UPLINK_ADDRESS

    def _rules(self) -> None:
        self.world.run(SERVER, "iptables -t nat -A POSTROUTING -o uplink -j MASQUERADE")


class SoftunicastTc(Path):
    """Director, egress_in, guard on the uplink, egress_out on the on-ramp, all at tc: as an agent does it for veths."""

    title = "softunicast tc"
    local = SHARED
    attach = "tc"

    def set_up(self) -> None:
        self.world.inside(SERVER, self._open)

    def _open(self) -> None:
        attach = {"uplink": self.attach, "onramp": self.attach}
        self.datapath = Datapath.open(
            self.world.folder / "bpf", "uplink", "bench", Limits(flows_max=FLOWS_MAX), attach
        )
        self.undo.callback(self.datapath.close)
        self.datapath.apply(state(self.slices))
        self._flush = BpfObject.load(
            str(objects.compiled("flush")),
            self.datapath.folder / "maps",
            {"flows": FLOWS_MAX, "claims": FLOWS_MAX},
        )
        self.undo.callback(self._flush.close)

    def flush(self) -> None:
        options = ffi.new("struct bpf_test_run_opts *")
        options.sz = ffi.sizeof("struct bpf_test_run_opts")
        check(load_library().bpf_prog_test_run_opts(self._flush.programs["flush"], options), "flushing flows")


class SoftunicastXdp(SoftunicastTc):
    """The same with XDP in front of it on both sides, as on network cards."""

    title = "softunicast XDP"
    attach = "xdp"


class Floor(Path):
    """A program at the interface's hook that sends every packet on, and nothing more."""

    program = ""
    kind = 0

    def set_up(self) -> None:
        self.world.inside(SERVER, self._attach)

    def _attach(self) -> None:
        pins = self.world.folder / "bpf"
        mount_bpffs(pins)
        for start, end, to, source in (
            ("onramp", "uplink", INTERNET_MAC, UPLINK_MAC),
            ("uplink", "onramp", CLIENT_MAC, ONRAMP_MAC),
        ):
            made = objects.load("floor")
            self.undo.callback(made.close)
            value = struct.pack("<I6s6s", socket.if_nametoindex(end), mac_bytes(to), mac_bytes(source))
            made.maps["floors"].set(index_key(0), value)
            index = socket.if_nametoindex(start)
            link = Link.attach(
                made.programs[self.program], index, self.kind, pins / f"{self.program}@{start}"
            )
            self.undo.callback(link.close)


class FloorTc(Floor):
    title = "tc redirect, nothing else"
    program, kind = "floor_tc", ATTACH_TCX_INGRESS


class FloorXdp(Floor):
    title = "XDP redirect, nothing else"
    program, kind = "floor_xdp", ATTACH_XDP


PATHS: Final[dict[str, type[Path]]] = {
    "plain": Path,
    "nft": Nft,
    "masquerade": Masquerade,
    "softunicast_tc": SoftunicastTc,
    "softunicast_xdp": SoftunicastXdp,
    "floor_tc": FloorTc,
    "floor_xdp": FloorXdp,
}


def state(slices: int) -> KernelState:
    """One server that holds `slices` slices of one address, for one on-ramp; all leases outlive the run."""
    deadline_ns = time.monotonic_ns() + 86_400 * 1_000_000_000
    mine = range(1, 1 + slices)
    return KernelState(
        blocks=frozenset({Slice.parse("198.51.100.0/24")}),
        addresses={
            SHARED: AddressTable(SLICE_PORTS, {at: SlotOwner("bench", 1, deadline_ns) for at in mine})
        },
        servers={"bench": UPLINK_MAC},
        pools={
            "bench": PoolSlices(
                Timers(),
                tuple(Slice.of(SHARED, at * SLICE_PORTS, SLICE_PORTS) for at in mine),
                DEPENDENT,
            )
        },
        onramps={"onramp": "bench"},
    )


def _flush_conntrack() -> None:
    with NFCTSocket() as conntrack:
        conntrack.flush()
