"""What does a forwarded packet cost, and what does a new flow cost?

60-byte UDP packets on one core, through: the kernel's plain forwarding, NAT by nft and by iptables, softunicast,
and a bare redirect for each kind of attachment (what nothing could beat). Columns: established flows in random
order, outward and their replies, and packets that are each the first of a new flow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import host, report
from bench.lanes import CPU, IN, NEW, OUT, Lane, lane
from bench.measure import Rounds, rounds
from bench.paths import PATHS

NAME: Final = "packets"
GENERATOR: Final = "generator"
PEERS: Final = ("nft", "plain")  # what every path is compared with

Cell = tuple[str, int]
Cells = Mapping[Cell, Rounds]
Costs = Mapping[str, Cells]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. `quick` proves that everything runs; its numbers mean nothing."""

    flows: tuple[int, ...] = (1_000, 30_000, 1_000_000)
    rounds: int = 5
    runs: int = 4
    packets: int = 65_536

    @property
    def cells(self) -> tuple[Cell, ...]:
        """(direction, flows), in the order of measuring."""
        steady = tuple((direction, flows) for flows in self.flows for direction in (OUT, IN))
        return (*steady, (NEW, self.runs * self.packets))


FULL: Final = Plan()
QUICK: Final = Plan(flows=(1_000, 30_000, 100_000), rounds=1, runs=2, packets=16_384)


def title(cell: Cell) -> str:
    """A cell in words."""
    direction, flows = cell
    return "new" if direction == NEW else f"{direction} {flows:,}"


def run(quick: bool, folder: Path) -> None:
    """Measures, prints, saves."""
    plan = QUICK if quick else FULL
    with host.settings(host.conntrack_sized()), ExitStack() as stack:
        report.say(f"packets: building {len(PATHS) + 1} worlds")
        lanes = {GENERATOR: stack.enter_context(lane(None, plan.flows[-1]))}
        for name, kind in PATHS.items():
            lanes[name] = stack.enter_context(lane(kind, plan.flows[-1]))
        measured = _measure(plan, lanes)
    costs = {
        name: {cell: measured[name][cell].less(measured[GENERATOR][cell]) for cell in plan.cells}
        for name in PATHS
    }
    _show(plan, costs, measured[GENERATOR])
    how = {
        "rounds": plan.rounds,
        "runs": plan.runs,
        "packets": plan.packets,
        "cpu": CPU,
        "unit": "ns per packet",
    }
    report.save(NAME, host.facts(), how, _records(plan, costs, measured[GENERATOR]), folder)


def _measure(plan: Plan, lanes: Mapping[str, Lane]) -> dict[str, dict[Cell, Rounds]]:
    found: dict[str, dict[Cell, list[float]]] = {name: {cell: [] for cell in plan.cells} for name in lanes}
    filled = 0
    for cell in plan.cells:
        direction, flows = cell
        report.say(f"packets: {title(cell)}")
        if direction != NEW and flows != filled:
            for each in lanes.values():
                each.fill(flows)
            filled = flows
        for number in range(plan.rounds):
            for name in _turned(list(lanes), number):
                if direction == NEW:
                    lanes[name].flush()
                found[name][cell].append(lanes[name].cost_ns(direction, flows, plan.runs, plan.packets))
    return {name: {cell: rounds(values) for cell, values in cells.items()} for name, cells in found.items()}


def _turned(names: Sequence[str], by: int) -> Sequence[str]:
    """Another one goes first in every round."""
    at = by % len(names)
    return [*names[at:], *names[:at]]


def _show(plan: Plan, costs: Costs, generator: Cells) -> None:
    columns = ["ns per packet", *(title(cell) for cell in plan.cells)]
    rows = [
        [PATHS[name].title, *(cells[cell].text(0) for cell in plan.cells)] for name, cells in costs.items()
    ]
    rows.append(["(generator, subtracted)", *(generator[cell].text(0) for cell in plan.cells)])
    report.show("Cost of a packet, one core, 60-byte UDP", columns, rows)
    for peer in PEERS:
        ratios = [
            [PATHS[name].title, *(cells[cell].ratio(costs[peer][cell]).text(2) for cell in plan.cells)]
            for name, cells in costs.items()
        ]
        report.show(f"The same, as a multiple of: {PATHS[peer].title}", ["path", *columns[1:]], ratios)


def _records(plan: Plan, costs: Costs, generator: Cells) -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    for cell in plan.cells:
        direction, flows = cell
        place = {"direction": direction, "flows": flows}
        made.append({"path": GENERATOR, **place, "cost_ns": generator[cell].as_json()})
        for name, cells in costs.items():
            against = {peer: cells[cell].ratio(costs[peer][cell]).as_json() for peer in PEERS}
            made.append({"path": name, **place, "cost_ns": cells[cell].as_json(), "ratio_to": against})
    return made
