"""Programs of a server itself in the lab `pair`: under `run` and `attach` they leave from the server's slice, without
from its own address; also while the agent is down.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.netns.pair_lab import PairLab, eventually

from softunicast.kernel import cgroups
from softunicast.lab import processes
from softunicast.lab.pair import INTERNET, POOL, SHARED

SERVER = "server1"
OWN = "192.0.2.1"
CURL = ("curl", "-s", "--max-time", "20", f"http://{INTERNET}/")


@pytest.fixture(scope="module")
def left() -> Iterator[list[Path]]:
    """Cgroups that the lab has to take with it when it goes: their programs have ended."""
    paths: list[Path] = []
    yield paths
    assert [path for path in paths if path.exists()] == []


@pytest.fixture(scope="module")
def lab(left: list[Path], make_pair: Callable[..., PairLab]) -> PairLab:
    return make_pair()


@pytest.fixture
def unit() -> Iterator[Path]:
    """An empty cgroup, as that of a unit or container."""
    root = cgroups.find_root()
    assert root is not None
    path = root / f"softunicast-test-{secrets.token_hex(4)}"
    path.mkdir()
    yield path
    eventually(lambda: "populated 0" in (path / "cgroup.events").read_text(), f"{path} is empty")
    path.rmdir()


def seen(output: str) -> str:
    """The address that the internet saw."""
    address = json.loads(output)["address"]
    assert isinstance(address, str)
    return address


def run(lab: PairLab, *argv: str) -> str:
    return lab.good(SERVER, "softunicast", "run", *argv)


def within(unit: Path, *argv: str) -> tuple[str, ...]:
    """The program, as a process of the unit."""
    return ("sh", "-c", f'echo 0 > {unit}/cgroup.procs && exec "$@"', "sh", *argv)


def test_from_the_pool_under_run_and_from_the_host_without(lab: PairLab) -> None:
    before = lab.drops(SERVER)
    for number in range(20):  # replies come in by both servers
        [(key, value), *_] = POOL.tags.items()
        chosen = ("--pool", POOL.name) if number % 2 else ("--tag", f"{key}={value}")
        answer = json.loads(run(lab, *chosen, "--", *CURL))
        assert answer["address"] == str(SHARED)
        assert answer["port"] in range(lab.slice_of(SERVER).port_first, lab.slice_of(SERVER).port_last + 1)
        assert seen(lab.good(SERVER, *CURL)) == OWN
    assert lab.drops(SERVER) == before


def test_children_and_what_they_leave_running(lab: PairLab) -> None:
    """A shell in the background of a program that has ended: listed, in the agreement, tidied up in the end."""
    script = f'(sleep 1; {" ".join(CURL)} > "$0"; read line < "$1") >&- 2>&- & echo $!'
    answer, gate = lab.lab.directory / "answer", lab.lab.directory / "gate"
    os.mkfifo(gate)
    pid = int(run(lab, "--", "sh", "-c", script, str(answer), str(gate)))
    [row] = [
        row
        for row in lab.softunicast(SERVER, "agreements")
        if pid in {one["pid"] for one in row["processes"]}
    ]
    assert (row["by"], row["pool"]) == ("run", POOL.name)
    eventually(lambda: answer.exists() and answer.read_text(), "the answer")
    assert seen(answer.read_text()) == str(SHARED)
    gate.write_text("end\n")
    eventually(lambda: not Path(row["cgroup"]).exists(), "the agent tidies up")
    assert row["number"] not in {one["number"] for one in lab.softunicast(SERVER, "agreements")}


def test_attached_and_detached(lab: PairLab, unit: Path) -> None:
    where = ("--cgroup", str(unit))
    assert seen(lab.good(SERVER, *within(unit, *CURL))) == OWN
    lab.good(SERVER, "softunicast", "attach", *where, "--pool", POOL.name)
    assert seen(lab.good(SERVER, *within(unit, *CURL))) == str(SHARED)
    lab.end_agents(signal.SIGKILL, SERVER)
    lab.start_agents(SERVER)
    assert seen(lab.good(SERVER, *within(unit, *CURL))) == str(SHARED)
    [row] = lab.softunicast(SERVER, "agreements")
    assert (row["cgroup"], row["by"], row["pool"], row["processes"]) == (str(unit), "attach", POOL.name, [])
    lab.good(SERVER, "softunicast", "detach", *where)
    assert seen(lab.good(SERVER, *within(unit, *CURL))) == OWN


def test_without_the_agent(lab: PairLab) -> None:
    lab.end_agents(signal.SIGKILL, SERVER)
    try:
        assert seen(run(lab, "--pool", POOL.name, "--", *CURL)) == str(SHARED)
        done = lab.run(SERVER, "softunicast", "agreements")
        assert done.code == 3
    finally:
        lab.start_agents(SERVER)


def test_after_the_agent_took_everything_back(lab: PairLab) -> None:
    pools = lab.lab.node_directory(SERVER) / "pools.json"
    assert pools.exists()
    lab.end_agents(signal.SIGTERM, SERVER)
    try:
        done = lab.run(SERVER, "softunicast", "run", "--", *CURL)
        assert (done.code, done.output) == (3, "")
        assert "no agent has set up anything here" in done.complaint
        assert not pools.exists()
    finally:
        lab.start_agents(SERVER)
    assert seen(run(lab, "--", *CURL)) == str(SHARED)


def test_another_network_namespace_than_the_server(lab: PairLab) -> None:
    socket = processes.environment(lab.lab, SERVER)["SOFTUNICAST_SOCKET"]
    done = lab.run("client1", "softunicast", "--socket", socket, "run", "--", *CURL)
    assert (done.code, done.output) == (3, "")
    assert f"this is another network namespace than the one of {SERVER}" in done.complaint


def test_a_kernel_without_a_hook(lab: PairLab) -> None:
    """The agent works without, and says so to whoever asks for it."""
    lab.end_agents(signal.SIGTERM, SERVER)
    os.environ["SOFTUNICAST_PROBE_WITHOUT"] = "cgroup-connect"
    try:
        lab.start_agents(SERVER)
        done = lab.run(SERVER, "softunicast", "run", "--", *CURL)
        assert (done.code, done.output) == (3, "")
        assert "lacks cgroup-connect; fix: see softunicast doctor" in done.complaint
        assert lab.softunicast(SERVER, "agreements") == []
        assert seen(lab.good("client1", *CURL)) == str(SHARED)
    finally:
        del os.environ["SOFTUNICAST_PROBE_WITHOUT"]
        lab.end_agents(signal.SIGTERM, SERVER)
        lab.start_agents(SERVER)
    assert seen(run(lab, "--", *CURL)) == str(SHARED)


def test_the_lab_takes_its_cgroups_with_it(lab: PairLab, left: list[Path]) -> None:
    root = cgroups.find_root()
    assert root is not None
    own = run(lab, "--", "sed", "-n", "s/^0:://p", "/proc/self/cgroup").strip()
    left.append(cgroups.path_below(root, own))
    assert left[0].exists()
