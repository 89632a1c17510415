"""What does connect() cost a program that is in an agreement, and what the other programs of the host?

One loop (connect.c), in and out of the agreement in turns: socket(), connect() that does not wait, close(). TCP twice:
the far end accepts, so that the connection is there when connect() returns, and is reset when it is closed; or it
answers the SYN with a RST. Connected UDP sockets send nothing. `plain` is a server without softunicast, `attached` one
whose hooks find that the program is in no agreement. The claims that are held are
towards the same destination: of the ports that the search tries, those are in its way.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from bench import host, objects, report
from bench.lanes import CPU
from bench.measure import Rounds, rounds
from bench.paths import SHARED, SLICE_PORTS, state
from bench.services import SERVICE, listening, run_here
from bench.world import INTERNET, SERVER, World, world
from softunicast.core.config import Limits
from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.errors import HostError, LabError
from softunicast.kernel import abi, cgroups, strays, sysctl
from softunicast.kernel.agreements import Agreements
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.words import address_word, be16

NAME: Final = "connect"
SOMAXCONN: Final = 65535
SLICES: Final = 31  # all that one address has
FEW, MANY = 10, 10_000
PARTS: Final = ("connect", "whole")
_FLOWS_MAX: Final = 1 << 16
_HELD_NS: Final = 10**12


@dataclass(frozen=True, slots=True)
class Kind:
    """`port`: at the far end."""

    title: str
    program: str  # connect.c's word
    protocol: int
    port: int


KINDS: Final = {
    "accepted": Kind("TCP, accepted", "tcp", socket.IPPROTO_TCP, 80),
    "refused": Kind("TCP, refused", "tcp", socket.IPPROTO_TCP, 443),
    "udp": Kind("UDP", "udp", socket.IPPROTO_UDP, 443),
}


@dataclass(frozen=True, slots=True)
class Case:
    """`held`: claims held meanwhile; None: the program is in no agreement."""

    title: str
    held: int | None


CASES: Final = {
    "plain": Case("without softunicast", None),
    "attached": Case("hooks attached, in no agreement", None),
    "agreed_few": Case(f"in an agreement, {FEW} claims held", FEW),
    "agreed_many": Case(f"in an agreement, {MANY:,} claims held", MANY),
}


Costs = Mapping[tuple[str, str], Mapping[str, Rounds]]  # by kind and case, by part


@dataclass(frozen=True, slots=True)
class Place:
    """Where a loop runs."""

    world: World
    cgroup: Path
    hold: Callable[[], None]


def run(quick: bool, folder: Path) -> None:
    """Measures, prints, saves."""
    plan = (
        {"rounds": 1, "turns": 1, "connects": 500} if quick else {"rounds": 7, "turns": 8, "connects": 4000}
    )
    loop = objects.program("connect")
    found: dict[tuple[str, str], dict[str, list[float]]] = {
        (kind, name): {part: [] for part in PARTS} for kind in KINDS for name in CASES
    }
    with _places(loop) as places:
        for number in range(plan["rounds"]):
            report.say(f"connect: round {number + 1}")
            for kind in KINDS:
                for name, costs in _round(loop, kind, places(kind), plan["turns"], plan["connects"]).items():
                    for part, cost in zip(PARTS, costs, strict=True):
                        found[kind, name][part].append(cost)
    done = {key: {part: rounds(values) for part, values in parts.items()} for key, parts in found.items()}
    _show(done)
    report.save(NAME, host.facts(), {**plan, "cpu": CPU, "slices": SLICES}, _records(done), folder)


def _round(
    loop: Path, kind: str, places: Mapping[str, Place], turns: int, connects: int
) -> dict[str, tuple[float, ...]]:
    """Every case in turns, another one first each time. They differ only by what disturbed them: the least counts."""
    costs: dict[str, list[tuple[float, ...]]] = {name: [] for name in places}
    names = list(places)
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            costs[name].append(_loop(loop, kind, places[name], connects))
    return {name: tuple(map(min, zip(*values, strict=True))) for name, values in costs.items()}


def _loop(loop: Path, kind: str, place: Place, connects: int) -> tuple[float, ...]:
    place.hold()
    known = KINDS[kind]
    procs = str(place.cgroup / "cgroup.procs")
    command = (str(loop), known.program, SERVICE, str(known.port), str(connects), procs)
    done = place.world.inside(SERVER, run_here, command)
    if done.returncode:
        raise LabError(f"the loop failed in {place.cgroup}: {' '.join(done.stderr.split())}")
    return tuple(float(word) for word in done.stdout.split())


def _records(done: Costs) -> list[dict[str, object]]:
    records = list[dict[str, object]]()
    for (kind, name), parts in done.items():
        record: dict[str, object] = {"kind": kind, "case": name}
        for part, cost in parts.items():
            record[f"{part}_ns"] = cost.as_json()
            record[f"{part}_ratio"] = cost.ratio(done[kind, "plain"][part]).as_json()
            record[f"{part}_ratio_to_few"] = cost.ratio(done[kind, "agreed_few"][part]).as_json()
        records.append(record)
    return records


def _show(done: Costs) -> None:
    rows = []
    for (kind, name), parts in done.items():
        row = [f"{KINDS[kind].title}, {CASES[name].title}"]
        for part, cost in parts.items():
            row += [cost.text(0), cost.ratio(done[kind, "plain"][part]).text(2)]
        rows.append(row)
    columns = ["ns", "connect()", "x of plain", "socket, connect, close", "x of plain"]
    report.show("A program that connects", columns, rows)


# where the loops run


@contextmanager
def _places(loop: Path) -> Iterator[Callable[[str], Mapping[str, Place]]]:
    """Two servers, one of them without softunicast. Its hooks are attached to a cgroup of the benchmark's own: what is
    outside of it is as without."""
    with ExitStack() as stack:
        port = KINDS["accepted"].port
        bare, measured = stack.enter_context(world()), stack.enter_context(world())
        for made in (bare, measured):
            made.run(INTERNET, f"ip addr add {SERVICE}/32 dev lo")
            made.inside(INTERNET, sysctl.write, "net/core/somaxconn", SOMAXCONN)
            stack.enter_context(listening(made, (str(loop), SERVICE, str(port)), port, on_core=False))
        outside = stack.enter_context(_cgroup(_root(), bare.name))
        hooked = stack.enter_context(_cgroup(_root(), measured.name))
        others, agreed = (stack.enter_context(_cgroup(hooked, name)) for name in ("others", "agreed"))
        measured.run(SERVER, f"ip addr add {SHARED}/32 dev lo")
        datapath = measured.inside(SERVER, _open, measured, hooked)
        stack.callback(datapath.remove)
        with Agreements.open(datapath.folder) as agreements:
            strays.attach(datapath.folder, agreed)  # as `run` does
            agreements.set(cgroups.number(agreed), "bench")

        def places(kind: str) -> Mapping[str, Place]:
            def nothing() -> None:
                return None

            found = {"plain": Place(bare, outside, nothing), "attached": Place(measured, others, nothing)}
            for name in ("agreed_few", "agreed_many"):
                held = CASES[name].held or 0
                found[name] = Place(measured, agreed, partial(_hold, datapath, kind, held))
            return found

        yield places


def _open(measured: World, hooked: Path) -> Datapath:
    sockets = SocketsConfig(enabled=True, cgroup=str(hooked))
    limits = Limits(flows_max=_FLOWS_MAX)
    attach = {"uplink": "tc", "onramp": "tc"}
    made = Datapath.open(measured.folder / "bpf", "uplink", "bench", limits, attach, sockets=sockets)
    made.apply(state(SLICES))
    return made


def _hold(datapath: Datapath, kind: str, count: int) -> None:
    """Exactly so many claims, of flows that some client has, spread evenly over the ports of the pool."""
    table = datapath.map("claims")
    for key, _ in list(table.items()):
        table.delete(key)
    ports = SLICES * SLICE_PORTS
    expires_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + _HELD_NS
    protocol, to_port = KINDS[kind].protocol, KINDS[kind].port
    flow = abi.FlowKey(1, 1, 1, 1, 1, protocol).pack()
    claim = abi.Claim(expires_ns, flow, 0, 0, 0, 0, 0, 0, bytes(6), bytes(6)).pack()
    local, remote = address_word(SHARED), address_word(IPv4Address(SERVICE))
    taken = (SLICE_PORTS + number * ports // count for number in range(count))
    table.set_many(
        (abi.ClaimKey(local, remote, be16(port), be16(to_port), protocol).pack(), claim) for port in taken
    )


def _root() -> Path:
    found = cgroups.find_root()
    if found is None:
        raise HostError("no cgroup2 is mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")
    return found


@contextmanager
def _cgroup(parent: Path, name: str) -> Iterator[Path]:
    made = parent / name
    made.mkdir()
    try:
        yield made
    finally:
        made.rmdir()
