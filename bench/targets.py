"""What performance must be reached, and whether the last results reach it. Pure.

Ratios are between values of one run. `missing` is what no result tells, because that part is not built yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Result = Mapping[str, Any]
Results = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class Target:
    """`measured` looks the value up; `bound` is the least (or, `at_most`, the most) that will do."""

    what: str
    against: str
    bound: float
    at_most: bool
    measured: Callable[[Results], float | None]

    def row(self, results: Results) -> list[str]:
        """what, against, must be, is, met."""
        value = self.measured(results)
        must = f"{'<=' if self.at_most else '>='} {self.bound:g}"
        if value is None:
            return [self.what, self.against, must, "not built yet", ""]
        met = value <= self.bound if self.at_most else value >= self.bound
        return [self.what, self.against, must, f"{value:.2f}", "met" if met else "**missed**"]


def _row(results: Results, name: str, **wanted: object) -> Result | None:
    for row in results[name]["results"]:
        if all(row.get(key) == value for key, value in wanted.items()):
            return dict(row)
    return None


def _packet(path: str, direction: str, flows: int | None, peer: str) -> Callable[[Results], float | None]:
    def measured(results: Results) -> float | None:
        wanted = {"path": path, "direction": direction} | ({"flows": flows} if flows else {})
        row = _row(results, "packets", **wanted)
        return float(row["ratio_to"][peer]["median"]) if row else None

    return measured


def _growth(results: Results) -> float | None:
    """How many times the cost at 1,000 flows is at 1,000,000; softunicast's as a multiple of nft's."""
    growths = []
    for path in ("softunicast_tc", "nft"):
        few = _row(results, "packets", path=path, direction="out", flows=1_000)
        many = _row(results, "packets", path=path, direction="out", flows=1_000_000)
        if few is None or many is None:
            return None
        growths.append(many["cost_ns"]["median"] / few["cost_ns"]["median"])
    return float(growths[0] / growths[1])


def _iperf(streams: int, direction: str) -> Callable[[Results], float | None]:
    def measured(results: Results) -> float | None:
        row = _row(results, "iperf", path="softunicast_tc", streams=streams, direction=direction)
        return float(row["gbps_ratio_to_nft"]["median"]) if row else None

    return measured


def _director(target: str, field: str) -> Callable[[Results], float | None]:
    def measured(results: Results) -> float | None:
        row = _row(results, "director", target=f"{target}_1000000")
        return float(row[field]["median"]) if row else None

    return measured


def _connections(results: Results) -> float | None:
    row = _row(results, "connections", path="softunicast_tc")
    return float(row["ratio_to_nft"]["median"]) if row else None


def _connect(field: str, case: str) -> Callable[[Results], float | None]:
    def measured(results: Results) -> float | None:
        row = _row(results, "connect", kind="accepted", case=case)
        return float(row[field]["median"]) if row else None

    return measured


TARGETS: Final = (
    Target(
        "packet, 30,000 flows, XDP",
        "plain forwarding",
        0.6,
        True,
        _packet("softunicast_xdp", "out", 30_000, "plain"),
    ),
    Target(
        "packet, 30,000 flows, tc", "nft SNAT", 0.6, True, _packet("softunicast_tc", "out", 30_000, "nft")
    ),
    Target("its reply, tc", "nft SNAT", 0.6, True, _packet("softunicast_tc", "in", 30_000, "nft")),
    Target("packet of a new flow, tc", "nft SNAT", 0.35, True, _packet("softunicast_tc", "new", None, "nft")),
    Target("growth from 1,000 to 1,000,000 flows, tc", "nft SNAT's growth", 1.0, True, _growth),
    Target("iperf3, one stream up, tc", "nft SNAT", 1.0, False, _iperf(1, "upload")),
    Target("iperf3, one stream down, tc", "nft SNAT", 1.0, False, _iperf(1, "download")),
    Target("new HTTP connections per second, tc", "nft SNAT", 1.0, False, _connections),
    Target(
        "socket, connect, close in an agreement, TCP",
        "without softunicast",
        1.15,
        True,
        _connect("whole_ratio", "agreed_few"),
    ),
    Target(
        "of that, connect() alone",
        "without softunicast",
        1.15,
        True,
        _connect("connect_ratio", "agreed_few"),
    ),
    Target(
        "the whole, 10,000 claims held",
        "10 claims",
        1.03,
        True,
        _connect("whole_ratio_to_few", "agreed_many"),
    ),
    Target(
        "director, 1,000,000 slices", "100 slices", 1.5, True, _director("director", "program_ratio_to_100")
    ),
    Target("director, steering, 1,000,000 slices, Mpps", "-", 4.0, False, _director("director", "mpps")),
    Target("and putting into a tunnel, Mpps", "-", 4.0, False, _director("tunnel", "mpps")),
)
