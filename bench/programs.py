"""Where do the nanoseconds of softunicast's path go? The run time of each of its programs, by number of flows.

The kernel counts run time and runs of every BPF program while kernel.bpf_stats_enabled is set (it is put back).
Counting costs time itself, which is measured with a program that does nothing and subtracted. What the programs
do not account for is the path around them: buffers, hooks, queues, the two veth hops.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench import host, objects, report
from bench.lanes import CPU, IN, NEW, OUT, Lane, attach_sink, lane
from bench.measure import Rounds, rounds
from bench.packets import FULL, QUICK, Cell, Plan, title
from bench.paths import SoftunicastTc
from bench.world import INTERNET, World, world
from softunicast.core.errors import KernelError
from softunicast.kernel import attached  # noqa: F401 - declares bpf_prog_get_fd_by_id
from softunicast.kernel.libbpf import check, load_library
from softunicast.kernel.objects import mount_bpffs
from softunicast.kernel.testrun import run_xdp

NAME: Final = "programs"
PROGRAMS: Final = {
    OUT: ("egress_out", "guard"),
    IN: ("director_tc", "egress_in"),
    NEW: ("egress_out", "guard"),
}
CALIBRATION_RUNS: Final = 1_000_000

Times = Mapping[Cell, Mapping[str, Rounds]]


def run(quick: bool, folder: Path) -> None:
    """Measures, prints, saves."""
    plan = QUICK if quick else FULL
    with host.settings(host.conntrack_sized()), lane(SoftunicastTc, plan.flows[-1]) as measured:
        found = _measure(plan, measured)
    rows = [
        [title(cell), *(f"{name} {time.text(0)}" for name, time in times.items())]
        for cell, times in found.items()
    ]
    report.show(
        "Run time of softunicast's programs, ns", ["packets", "first program", "second program"], rows
    )
    records = [
        {"direction": cell[0], "flows": cell[1], "program": name, "run_ns": time.as_json()}
        for cell, times in found.items()
        for name, time in times.items()
    ]
    report.save(
        NAME, host.facts(), {"rounds": plan.rounds, "packets": plan.packets, "cpu": CPU}, records, folder
    )


def _measure(plan: Plan, measured: Lane) -> Times:
    found: dict[Cell, dict[str, list[float]]] = {}
    programs, filled = _programs(measured.world.folder / "bpf" / "links"), 0
    for cell in plan.cells:
        direction, flows = cell
        report.say(f"programs: {title(cell)}")
        if direction != NEW and flows != filled:
            measured.fill(flows)
            filled = flows
        found[cell] = {name: [] for name in PROGRAMS[direction]}
        for _ in range(plan.rounds):
            if direction == NEW:
                measured.flush()
            with host.settings({"kernel/bpf_stats_enabled": 1}):
                before = {name: _counted(programs[name]) for name in PROGRAMS[direction]}
                measured.cost_ns(direction, flows, plan.runs, plan.packets)
                for name, (time_ns, runs) in before.items():
                    now_ns, now_runs = _counted(programs[name])
                    found[cell][name].append((now_ns - time_ns) / (now_runs - runs))
    for descriptor in programs.values():
        os.close(descriptor)
    overhead = _overhead_ns()
    return {
        cell: {name: rounds([value - overhead for value in values]) for name, values in times.items()}
        for cell, times in found.items()
    }


def _programs(links: Path) -> dict[str, int]:
    """Descriptors of the attached programs, by name: asked of the pinned links, so of what packets really meet."""
    library, found = load_library(), {}
    for pin in links.iterdir():
        link = check(library.bpf_obj_get(str(pin).encode()), f"opening {pin}")
        number = _field(link, "prog_id")
        os.close(link)
        found[pin.name.partition("@")[0]] = check(
            library.bpf_prog_get_fd_by_id(number), f"opening program {number}"
        )
    return found


def _counted(program: int) -> tuple[int, int]:
    """Run time in ns and runs since the program was loaded."""
    return _field(program, "run_time_ns"), _field(program, "run_cnt")


def _field(descriptor: int, name: str) -> int:
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    if not found:
        raise KernelError(f"the kernel does not tell {name} of descriptor {descriptor}")
    return int(found[1])


def _overhead_ns() -> float:
    """What the counting itself adds to every run."""
    with world() as somewhere:
        return somewhere.inside(INTERNET, _overhead_here, somewhere)


def _overhead_here(somewhere: World) -> float:
    os.sched_setaffinity(0, {CPU})
    floor = objects.load("floor")
    try:
        mount_bpffs(somewhere.folder / "sinks")
        program = floor.programs["nothing"]
        attach_sink(program, "i0", somewhere)
        with host.settings({"kernel/bpf_stats_enabled": 1}):
            before = _counted(program)
            run_xdp(program, bytes(60), socket.if_nametoindex("i0"), CALIBRATION_RUNS)
            after = _counted(program)
        return (after[0] - before[0]) / (after[1] - before[1])
    finally:
        floor.close()
