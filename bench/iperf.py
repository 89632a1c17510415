"""How much bulk TCP goes through, and what does a gigabit cost? iperf3, one and eight streams, both directions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import host, report
from bench.lanes import CPU
from bench.measure import Rounds, rounds
from bench.paths import PATHS
from bench.services import SERVICE, Wire, busy_s, wires

NAME: Final = "iperf"
PEER: Final = "nft"
PORT: Final = 5201
CELLS: Final = tuple((streams, direction) for direction in ("upload", "download") for streams in (1, 8))


@dataclass(slots=True)
class Series:
    """What the rounds of one path and cell gave."""

    gbps: list[float] = field(default_factory=list)
    cpu_ms_per_gbit: list[float] = field(default_factory=list)

    def measure(self, wire: Wire, streams: int, direction: str, seconds: int) -> None:
        """One more round."""
        command = ("iperf3", "-c", SERVICE, "-p", str(PORT), "-t", str(seconds), "-P", str(streams), "-J")
        before = busy_s()
        output = wire.client(*command, *(("-R",) if direction == "download" else ()))
        busy = busy_s() - before
        received = json.loads(output)["end"]["sum_received"]
        self.gbps.append(received["bits_per_second"] / 1e9)
        self.cpu_ms_per_gbit.append(busy * 1e3 / (received["bytes"] * 8 / 1e9))


def run(quick: bool, folder: Path) -> None:
    """Measures, prints, saves."""
    plan = {"rounds": 1, "seconds": 1} if quick else {"rounds": 5, "seconds": 1}
    cells = CELLS[:1] if quick else CELLS
    with (
        host.settings(host.conntrack_sized()),
        wires(("iperf3", "-s", "-p", str(PORT)), PORT, 1) as all_wires,
    ):
        found = {name: {cell: Series() for cell in cells} for name in all_wires}
        for number in range(plan["rounds"]):
            report.say(f"iperf: round {number + 1}")
            for streams, direction in cells:
                for name, wire in all_wires.items():
                    found[name][streams, direction].measure(wire, streams, direction, plan["seconds"])
    rate = {name: {cell: rounds(series.gbps) for cell, series in at.items()} for name, at in found.items()}
    cost = {
        name: {cell: rounds(series.cpu_ms_per_gbit) for cell, series in at.items()}
        for name, at in found.items()
    }
    _show("Gbit/s, TCP, everything on one core", rate)
    _show("CPU ms per Gbit, ends included", cost)
    report.save(NAME, host.facts(), {**plan, "cpu": CPU}, _records(rate, cost), folder)


Cells = Mapping[tuple[int, str], Rounds]


def _show(title: str, found: Mapping[str, Cells]) -> None:
    columns = ["path", *(f"{direction} {streams}" for streams, direction in found[PEER])]
    peers = {path: {cell: at[cell].ratio(found[PEER][cell]) for cell in at} for path, at in found.items()}
    for heading, values, digits in ((title, found, 1), (f"{title}: as a multiple of nft's", peers, 2)):
        rows = [
            [PATHS[path].title, *(value.text(digits) for value in at.values())] for path, at in values.items()
        ]
        report.show(heading, columns, rows)


def _records(rate: Mapping[str, Cells], cost: Mapping[str, Cells]) -> list[dict[str, object]]:
    return [
        {
            "path": path,
            "streams": cell[0],
            "direction": cell[1],
            "gbps": rate[path][cell].as_json(),
            "cpu_ms_per_gbit": cost[path][cell].as_json(),
            "gbps_ratio_to_nft": rate[path][cell].ratio(rate[PEER][cell]).as_json(),
        }
        for path in rate
        for cell in rate[path]
    ]
