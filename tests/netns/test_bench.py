"""The benchmarks run from end to end and give every row. What the numbers are is nobody's business here: a
benchmark is no timed test. The page that shows the last full run must show what its JSON says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from softunicast.lab.failures import FAILURES
from softunicast.strategies.catalogue import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
NETNS = Path("/run/netns")
PATHS = {"plain", "nft", "masquerade", "softunicast_tc", "softunicast_xdp", "floor_tc", "floor_xdp"}
SERVED = {"plain", "nft", "masquerade", "softunicast_tc"}
RUN_TIMEOUT_S = 280.0


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    document = json.loads((folder / f"{name}.json").read_text())
    assert document["benchmark"] == name
    assert {"processor", "cores", "kernel", "measured_at", "versions"} <= document["host"].keys()
    found: list[dict[str, Any]] = document["results"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One quick run of everything."""
    out = tmp_path_factory.mktemp("bench")
    subprocess.run(["bash", "bench/setup.sh"], cwd=ROOT, check=True, timeout=RUN_TIMEOUT_S)
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "--quick", "--out", out],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    printed, said = process.communicate(timeout=RUN_TIMEOUT_S)
    assert process.returncode == 0, said[-2000:]
    assert printed.count("\n") > 20
    assert not list(NETNS.glob(f"subench-{process.pid}-*"))
    assert not list(Path("/run").glob(f"subench-{process.pid}-*"))
    return out


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_packets_has_every_path_and_column(folder: Path) -> None:
    rows = results(folder, "packets")
    cells = {(row["direction"], row["flows"]) for row in rows}
    assert {direction for direction, _ in cells} == {"out", "in", "new"}
    assert len({flows for direction, flows in cells if direction == "out"}) == 3
    assert {(row["path"], row["direction"], row["flows"]) for row in rows} == {
        (path, *cell) for path in PATHS | {"generator"} for cell in cells
    }
    for row in rows:
        assert row["path"] == "generator" or row["ratio_to"].keys() == {"plain", "nft"}
        assert len(row["cost_ns"]["rounds"]) == 1


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_programs_are_each_accounted_for(folder: Path) -> None:
    rows = results(folder, "programs")
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["direction"], set()).add(row["program"])
    out, back = {"egress_out", "guard"}, {"director_tc", "egress_in"}
    assert found == {"out": out, "in": back, "new": out}
    assert all(row["run_ns"]["median"] > 0 for row in rows)


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_director_has_every_table_size(folder: Path) -> None:
    rows = results(folder, "director")
    cells = [(row["slices"], row["tunnels"]) for row in rows]
    assert cells == [
        (0, False),
        *((n, tunnels) for tunnels in (False, True) for n in (100, 32_768, 1_000_000)),
    ]
    assert all(row["mpps"]["median"] > 0 for row in rows if row["slices"])
    assert all("program_ns" in row for row in rows if row["slices"])


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_real_programs_go_through_every_path(folder: Path) -> None:
    bulk, connections = results(folder, "iperf"), results(folder, "connections")
    assert {row["path"] for row in bulk} == {row["path"] for row in connections} == SERVED
    assert all(row["gbps"]["median"] > 0 and row["cpu_ms_per_gbit"]["median"] > 0 for row in bulk)
    assert all(row["per_s"]["median"] > 0 for row in connections)


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_strategies_has_every_one_and_claims_is_right(folder: Path) -> None:
    rows = {row["strategy"]: row for row in results(folder, "strategies")}
    assert rows.keys() == STRATEGIES.keys()
    assert {name for name, row in rows.items() if not row["offered"]} == {"terminate"}
    assert rows["claims"]["fails"] == rows["claims"]["avoided"] == []
    for name, row in rows.items():
        failing = {one.name for one in FAILURES.values() if name in one.of}
        assert {*row["fails"], *row["avoided"]} == failing
        if row["offered"]:
            assert row["flows_per_s"]["median"] > 0
            assert row["sockets_per_s"]["median"] > 0


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_connecting_is_measured_in_and_out_of_an_agreement(folder: Path) -> None:
    rows = results(folder, "connect")
    cases = {"plain", "attached", "agreed_few", "agreed_many"}
    kinds = {"accepted", "refused", "udp"}
    assert {(row["kind"], row["case"]) for row in rows} == {(kind, case) for kind in kinds for case in cases}
    assert all(row["whole_ns"]["median"] > row["connect_ns"]["median"] > 0 for row in rows)


def test_page_and_plots_show_the_results() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.document", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
