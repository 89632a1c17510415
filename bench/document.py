"""Puts the results into docs/reference/performance.md and draws the plots: `python -m bench.document`.

The page is written by people; what stands between `<!-- bench:NAME -->` and `<!-- end -->` is written by this
file from bench/results/NAME.json, so that no number is ever copied by hand. A test compares the two.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench import connect, director, packets
from bench.paths import PATHS
from bench.report import RESULTS
from bench.svg import Bar, grouped_bars
from bench.targets import TARGETS

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reference" / "performance.md"
IMAGES: Final = ROOT / "docs" / "images"
_BLOCK: Final = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_DIRECTIONS: Final = {"out": "out", "in": "replies", "new": "new flows"}

Result = Mapping[str, Any]


def main() -> int:
    """Rewrites what is stale; with `--check` only says what is."""
    stale = sorted(_stale())
    if "--check" in sys.argv[1:]:
        sys.stderr.writelines(f"{path.relative_to(ROOT)} is not what bench/results says\n" for path in stale)
        return int(bool(stale))
    write()
    return 0


def write() -> None:
    """Rewrites the page and the plots from what is in bench/results."""
    IMAGES.mkdir(exist_ok=True)
    for path, text in _stale().items():
        path.write_text(text)


def _stale() -> dict[Path, str]:
    results = load(RESULTS)
    wanted = {PAGE: page(PAGE.read_text(), results)}
    wanted |= {IMAGES / f"bench-{name}.svg": plot(results[name]) for name, plot in PLOTS.items()}
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}


def load(folder: Path) -> dict[str, Result]:
    """Every result by its name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def page(text: str, results: Mapping[str, Result]) -> str:
    """The page with its tables made from the results."""
    return _BLOCK.sub(lambda block: block[1] + TABLES[block[2]](results) + block[3], text)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *(["---:"] * (len(columns) - 1))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(number: Mapping[str, float], digits: int) -> str:
    median = number["median"]
    spread = (number["high"] - number["low"]) / 2 / median if median else 0.0
    return f"{median:,.{digits}f} ±{spread:.0%}"


def _bar(number: Mapping[str, float]) -> Bar:
    return Bar(number["median"], number["low"], number["high"])


def _host(results: Mapping[str, Result]) -> str:
    host, how = results[packets.NAME]["host"], results[packets.NAME]["how"]
    where = "virtual machine" if host["virtual"] else "machine"
    versions = ", ".join(host["versions"].values())
    return (
        f"{host['measured_at'][:10]}; {host['processor']}, {where} with {host['cores']} cores, "
        f"{host['memory_gib']} GiB; "
        f"Linux {host['kernel']}; load {host['load_1min']} when the packets were done; {how['rounds']} rounds of "
        f"{how['runs']} x {how['packets']:,} packets; {versions}.\n"
    )


def _cells(result: Result) -> dict[tuple[str, int], str]:
    """Columns of the packet tables."""
    return {
        (row["direction"], row["flows"]): _DIRECTIONS[row["direction"]]
        + ("" if row["direction"] == "new" else f" {row['flows']:,}")
        for row in result["results"]
    }


def _packet_rows(result: Result, value: Callable[[Result], str]) -> list[list[str]]:
    found = {(row["path"], row["direction"], row["flows"]): row for row in result["results"]}
    names = _paths(result)
    return [[PATHS[path].title, *(value(found[path, *cell]) for cell in _cells(result))] for path in names]


def _paths(result: Result) -> list[str]:
    """Those that the result has; it may be older than one of them."""
    measured = {row["path"] for row in result["results"]}
    return [path for path in PATHS if path in measured]


def _packets(results: Mapping[str, Result]) -> str:
    result = results[packets.NAME]
    rows = _packet_rows(result, lambda row: _text(row["cost_ns"], 0))
    return _table(["ns per packet", *_cells(result).values()], rows)


def _packets_to(peer: str) -> Callable[[Mapping[str, Result]], str]:
    def made(results: Mapping[str, Result]) -> str:
        result = results[packets.NAME]
        rows = _packet_rows(result, lambda row: _text(row["ratio_to"][peer], 2))
        return _table([f"x of {PATHS[peer].title}", *_cells(result).values()], rows)

    return made


def _director(results: Mapping[str, Result]) -> str:
    columns = (
        "director",
        "program alone, ns",
        "x of 100 slices",
        "over veth, ns",
        "million packets/s, one core",
    )
    titles = {target.name: target.title for target in (director.REFLECT, *director.DIRECTORS)}
    rows = [
        [
            titles[row["target"]],
            _text(row["program_ns"], 0) if "program_ns" in row else "-",
            _text(row["program_ratio_to_100"], 2) if "program_ns" in row else "-",
            _text(row["whole_ns"], 0),
            _text(row["mpps"], 1),
        ]
        for row in results["director"]["results"]
    ]
    return _table(columns, rows)


def _iperf(results: Mapping[str, Result]) -> str:
    rows = results["iperf"]["results"]
    cells = list(dict.fromkeys((row["direction"], row["streams"]) for row in rows))
    found = {(row["path"], row["direction"], row["streams"]): row for row in rows}
    columns = ["Gbit/s (CPU ms per Gbit)", *(f"{direction}, {streams}" for direction, streams in cells)]
    body = [
        [
            PATHS[path].title,
            *(
                f"{_text(found[path, *cell]['gbps'], 1)} ({found[path, *cell]['cpu_ms_per_gbit']['median']:.0f})"
                for cell in cells
            ),
        ]
        for path in dict.fromkeys(row["path"] for row in rows)
    ]
    return _table(columns, body)


def _connections(results: Mapping[str, Result]) -> str:
    rows = [
        [PATHS[row["path"]].title, _text(row["per_s"], 0), _text(row["ratio_to_nft"], 2)]
        for row in results["connections"]["results"]
    ]
    return _table(("new HTTP connections", "per second", "x of nft"), rows)


def _connect(results: Mapping[str, Result]) -> str:
    rows = [
        [f"{connect.KINDS[row['kind']].title}, {connect.CASES[row['case']].title}"]
        + [
            text
            for part in connect.PARTS
            for text in (_text(row[f"{part}_ns"], 0), _text(row[f"{part}_ratio"], 2))
        ]
        for row in results["connect"]["results"]
    ]
    return _table(("ns", "connect()", "x of without", "socket, connect, close", "x of without"), rows)


def _plot_packets(result: Result) -> str:
    cells = [cell for cell in _cells(result) if cell[0] != "in"]
    found = {(row["path"], row["direction"], row["flows"]): row for row in result["results"]}
    names = _paths(result)
    series = {PATHS[path].title: [_bar(found[path, *cell]["cost_ns"]) for cell in cells] for path in names}
    groups = [
        f"{flows:,} flows" if direction == "out" else "every packet a new flow" for direction, flows in cells
    ]
    return grouped_bars("Cost of a forwarded packet, one core, 60-byte UDP", "ns", groups, series)


def _plot_director(result: Result) -> str:
    rows = {row["target"]: row for row in result["results"] if row["slices"]}
    measured = {
        "program alone": "program_ns",
        "receive, send on, transmit over veth": "whole_ns",
    }
    series = {
        f"{name}{where}": [_bar(rows[target.name][field]) for target in targets if target.name in rows]
        for where, targets in ((", neighbour", director.STEERING), (", tunnel", director.TUNNELS))
        for name, field in measured.items()
        if targets[0].name in rows
    }
    groups = [f"{n:,} slices" for n in director.SLICES]
    return grouped_bars("Director: cost of sending a packet on", "ns", groups, series)


def _plot_iperf(result: Result) -> str:
    rows = result["results"]
    cells = list(dict.fromkeys((row["direction"], row["streams"]) for row in rows))
    found = {(row["path"], row["direction"], row["streams"]): row for row in rows}
    names = dict.fromkeys(row["path"] for row in rows)
    series = {PATHS[name].title: [_bar(found[name, *cell]["gbps"]) for cell in cells] for name in names}
    groups = [f"{direction}, {streams} stream{'s' if streams > 1 else ''}" for direction, streams in cells]
    return grouped_bars("Bulk TCP (iperf3), sender, path and receiver on one core", "Gbit/s", groups, series)


def _plot_connections(result: Result) -> str:
    series = {PATHS[row["path"]].title: [_bar(row["per_s"])] for row in result["results"]}
    title = "New HTTP connections, client, path and server on one core"
    return grouped_bars(title, "per s", ["wrk, Connection: close"], series)


def _programs(results: Mapping[str, Result]) -> str:
    found: dict[tuple[str, int], list[str]] = {}
    for row in results["programs"]["results"]:
        text = f"{row['program']} {_text(row['run_ns'], 0)}"
        found.setdefault((row["direction"], row["flows"]), []).append(text)
    titles = _cells(results[packets.NAME])
    return _table(
        ("packets", "first program, ns", "second program, ns"),
        [[titles[cell], *texts] for cell, texts in found.items()],
    )


def _strategies(results: Mapping[str, Result]) -> str:
    columns = (
        *("strategy", "right?", "new flows/s", "x of snat", "CPU per flow, us", "memory per flow, bytes"),
        *("sockets/s, x of plain", "works with", "survives a restart", "what breaks it"),
    )
    return _table(columns, [_strategy_row(row) for row in results["strategies"]["results"]])


def _strategy_row(row: Result) -> list[str]:
    works = ", ".join(name.upper() for name in row["protocols"]) + (", IPv6" if row["ipv6"] else "")
    words = [works, row["restart"].partition(":")[0].partition(";")[0]]
    if not row["offered"]:
        return [f"`{row['strategy']}`", "not offered", *(["-"] * 5), *words, "-"]
    lock = f" (lock: {row['lock_us']['median']:.0f})" if row["lock_us"] else ""
    return [
        f"`{row['strategy']}`",
        "no" if row["fails"] else "yes",
        _text(row["flows_per_s"], 0),
        _text(row["ratio_to_snat"], 2),
        _text(row["added_us"], 1) + lock,
        f"{row['bytes']['median']:,.0f}",
        _text(row["sockets_ratio_to_plain"], 2),
        *words,
        ", ".join(row["fails"]) or "-",
    ]


def _targets(results: Mapping[str, Result]) -> str:
    return _table(("what", "against", "must be", "is", ""), [target.row(results) for target in TARGETS])


TABLES: Final[Mapping[str, Callable[[Mapping[str, Result]], str]]] = {
    "host": _host,
    "packets": _packets,
    "packets_to_nft": _packets_to("nft"),
    "packets_to_plain": _packets_to("plain"),
    "programs": _programs,
    "targets": _targets,
    "director": _director,
    "iperf": _iperf,
    "connections": _connections,
    "connect": _connect,
    "strategies": _strategies,
}
PLOTS: Final[Mapping[str, Callable[[Result], str]]] = {
    "packets": _plot_packets,
    "director": _plot_director,
    "iperf": _plot_iperf,
    "connections": _plot_connections,
}

if __name__ == "__main__":
    sys.exit(main())
