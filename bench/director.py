"""What does the director cost, and does it grow with the table? 100, 32,768 and 1,000,000 slices.

Every packet is for a random port of a random slice of a neighbour, so it is looked up, rewritten and sent back
out (XDP_TX); or put into a tunnel, where the neighbours are behind a router. Two
measurements: the program alone (run in place, behind a wrapper that makes the packet; the wrapper's cost is
subtracted), and the whole way over a veth, from which the packet rate of one core follows.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from bench import host, objects, report
from bench.flood import RANDOM, Flood
from bench.lanes import CPU, attach_sink
from bench.measure import Rounds, rounds
from bench.world import INTERNET, INTERNET_MAC, SERVER, UPLINK_MAC, World, world
from softunicast.core.config import Limits
from softunicast.core.desired import KernelState
from softunicast.core.errors import LabError
from softunicast.core.slices import Slice
from softunicast.kernel import abi
from softunicast.kernel.address_places import Places, group_lines
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.objects import BpfObject, mount_bpffs
from softunicast.kernel.slot_tables import where_word
from softunicast.kernel.testrun import run_xdp
from softunicast.kernel.words import address_word, index_key, mac_bytes, name_bytes

NAME: Final = "director"
SLICES: Final = (100, 32_768, 1_000_000)
SLICES_PER_ADDRESS, SLICE_SHIFT, NEIGHBOURS = 32, 11, 31  # as in bpf/steer.bpf.c
FIRST_ADDRESS: Final = IPv4Address("10.128.0.0")
LIMITS: Final = Limits(flows_max=1024, addresses_max=1 << 16, slots_max=1 << 20)  # for every number of slices
TABLE_SIZES: Final = {
    "groups": group_lines(LIMITS.addresses_max),
    "addresses": LIMITS.addresses_max,
    "owners": LIMITS.slots_max // abi.AbiLimit.LINE_OWNERS,
    "slots": LIMITS.slots_max,
    "flows": LIMITS.flows_max,
    "claims": LIMITS.flows_max,
}


@dataclass(frozen=True, slots=True)
class Target:
    """What is at the uplink: the director with a table of `slices`, or (0) a program to compare it with."""

    name: str
    title: str
    slices: int
    tunnels: bool = False


DROP: Final = Target("drop", "drop at once", 0)
REFLECT: Final = Target("reflect", "XDP_TX, nothing else", 0)
STEERING: Final = tuple(Target(f"director_{n}", f"director, {n:,} slices", n) for n in SLICES)
TUNNELS: Final = tuple(Target(f"tunnel_{n}", f"into a tunnel, {n:,} slices", n, True) for n in SLICES)
DIRECTORS: Final = (*STEERING, *TUNNELS)
TUNNELS_END_AT: Final = IPv4Address("198.19.0.0")  # and above, one for each neighbour; as in bpf/steer.bpf.c


@dataclass(frozen=True, slots=True)
class Bench:
    """A target in a world of its own."""

    target: Target
    world: World
    flood: Flood
    datapath: Datapath | None

    def whole_ns(self, runs: int, packets: int) -> float:
        """Nanoseconds per packet over the veth, generator included."""
        return self.world.inside(INTERNET, self._whole, runs, packets)

    def program_ns(self, runs: int, packets: int) -> float:
        """Nanoseconds per run of the program alone, wrapper included."""
        return self.world.inside(SERVER, self._program, runs, packets)

    def _whole(self, runs: int, packets: int) -> float:
        os.sched_setaffinity(0, {CPU})
        self._aim("i0")
        costs = [self.flood.run("arrivals", packets) for _ in range(runs)]
        tally = self.flood.tally()
        if self.datapath is not None and tally.right != runs * packets:
            raise LabError(f"{self.target.title}: of {runs * packets} packets {tally}")
        return min(costs)

    def _program(self, runs: int, packets: int) -> float:
        os.sched_setaffinity(0, {CPU})
        index = self._aim("uplink")
        before = self._steered()
        program, frame = self.flood.programs["unwrapped" if self.target.tunnels else "wrapped"], bytes(60)
        costs = [run_xdp(program, frame, index, packets).nanoseconds for _ in range(runs)]
        if self.datapath is not None and self._steered() - before != runs * packets:
            raise LabError(
                f"{self.target.title}: steered {self._steered() - before} of {runs * packets} packets"
            )
        return min(costs)

    def _aim(self, interface: str) -> int:
        index = socket.if_nametoindex(interface)
        self.flood.aim(index, (UPLINK_MAC, INTERNET_MAC), max(self.target.slices, SLICES[0]), RANDOM)
        return index

    def _steered(self) -> int:
        return self.datapath.traffic()["steered"] if self.datapath is not None else 0


def run(quick: bool, folder: Path) -> None:
    """Measures, prints, saves."""
    plan = (
        {"rounds": 1, "runs": 2, "packets": 16_384} if quick else {"rounds": 5, "runs": 6, "packets": 131_072}
    )
    targets = (DROP, REFLECT, *DIRECTORS)
    whole: dict[str, list[float]] = {target.name: [] for target in targets}
    program: dict[str, list[float]] = {target.name: [] for target in (DROP, *DIRECTORS)}
    with ExitStack() as stack:
        report.say(f"director: tables of {', '.join(f'{n:,}' for n in SLICES)} slices")
        benches = {target.name: stack.enter_context(_bench(target)) for target in targets}
        for number in range(plan["rounds"]):
            report.say(f"director: round {number + 1}")
            for name, bench in benches.items():
                whole[name].append(bench.whole_ns(plan["runs"], plan["packets"]))
                if name in program:
                    program[name].append(bench.program_ns(plan["runs"], plan["packets"]))
    wholes = {name: rounds(values) for name, values in whole.items()}
    programs = {name: rounds(values) for name, values in program.items()}
    results = _show(wholes, programs)
    report.save(NAME, host.facts(), {**plan, "cpu": CPU, "unit": "ns per packet"}, results, folder)


def _show(wholes: Mapping[str, Rounds], programs: Mapping[str, Rounds]) -> list[dict[str, object]]:
    rows, records = [], list[dict[str, object]]()
    for target in (REFLECT, *DIRECTORS):
        whole = wholes[target.name].less(wholes[DROP.name])
        rate = Rounds(tuple(1000 / value for value in whole.values))
        row = [target.title]
        record: dict[str, object] = {
            "target": target.name,
            "slices": target.slices,
            "tunnels": target.tunnels,
        }
        if target.name in programs:
            base, first = programs[DROP.name], (TUNNELS if target.tunnels else STEERING)[0].name
            alone = programs[target.name].less(base)
            ratio = alone.ratio(programs[first].less(base))
            row += [alone.text(0), ratio.text(2)]
            record |= {"program_ns": alone.as_json(), "program_ratio_to_100": ratio.as_json()}
        else:
            row += ["-", "-"]
        row += [whole.text(0), rate.text(2)]
        rows.append(row)
        records.append({**record, "whole_ns": whole.as_json(), "mpps": rate.as_json()})
    columns = (
        "sent on to another server",
        "program, ns",
        "x of 100 slices",
        "over veth, ns",
        "Mpps, one core",
    )
    report.show("Director: one core, 60-byte UDP, random slices", columns, rows)
    return records


@contextmanager
def _bench(target: Target) -> Iterator[Bench]:
    with ExitStack() as stack:
        built = stack.enter_context(world())
        flood = Flood("steer", 1)
        stack.callback(flood.close)
        mount_bpffs(built.folder / "sinks")
        sink = flood.programs["untunnelled" if target.tunnels else "returned"]
        built.inside(INTERNET, attach_sink, sink, "i0", built)
        datapath = None
        if target.slices:
            datapath = built.inside(SERVER, _open, built, target)
            stack.callback(datapath.close)
            under_test = BpfObject.load("director", datapath.folder / "maps", TABLE_SIZES)
            stack.callback(under_test.close)
            descriptor = under_test.programs["director"]
        else:
            floor = objects.load("floor")
            stack.callback(floor.close)
            value = struct.pack("<I6s6s", 0, mac_bytes(INTERNET_MAC), mac_bytes(UPLINK_MAC))
            floor.maps["floors"].set(index_key(0), value)
            descriptor = floor.programs["nothing" if target is DROP else "floor_tx"]
            built.inside(SERVER, attach_sink, descriptor, "uplink", built)
        flood.maps["under_test"].set(index_key(0), descriptor.to_bytes(4, "little"))
        yield Bench(target, built, flood, datapath)


def _open(built: World, target: Target) -> Datapath:
    """A data path whose table is written straight into the maps: a million slices in a second."""
    slices = target.slices
    made = Datapath.open(built.folder / "bpf", "uplink", "bench", LIMITS, {"uplink": "xdp"})
    block = frozenset({Slice.parse("10.128.0.0/9")})
    tunnels = {"bench": IPv4Address("192.0.2.1")} if target.tunnels else {}
    made.apply(KernelState(block, {}, {"bench": UPLINK_MAC}, {}, {}, tunnels))
    for number in range(NEIGHBOURS):
        mac = bytes((2, 0, 0, 0, 3, number))
        kind = abi.ServerKind.REMOTE if target.tunnels else abi.ServerKind.NEIGHBOUR
        end = address_word(TUNNELS_END_AT + number) if target.tunnels else 0
        server = abi.Server(mac, kind, end, name_bytes(f"neighbour-{number}"))
        made.map("servers").set(index_key(2 + number), server.pack())
    made.map("owners").set_words("H", ((at, 2 + at % NEIGHBOURS) for at in range(slices)))
    groups, addresses = made.map("groups"), made.map("addresses")
    bases = {FIRST_ADDRESS + at: at * SLICES_PER_ADDRESS for at in range(-(-slices // SLICES_PER_ADDRESS))}
    places = Places(groups.max_entries, addresses.max_entries).with_more(bases)
    where = ((places.word(address), where_word(base, 1 << SLICE_SHIFT)) for address, base in bases.items())
    addresses.set_words("I", where)
    groups.set_words("Q", ((mark, 1) for mark in places.marks))
    groups.set_words("Q", ((group.word, group.entry(number)) for number, group in places.groups.items()))
    return made
