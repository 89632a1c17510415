"""Labs with agents: up means that they hold slices; down, and a killed builder, mean that nothing is left."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.netns.traces import are_gone, attached_programs, traces

from softunicast.core.errors import AgentUnreachableError, LabError
from softunicast.core.slices import Slice
from softunicast.lab import agents, build, pair, processes, state, status
from softunicast.lab.state import Lab
from softunicast.lab.topology import Topology

TIMEOUT_S = 60.0
GONE_TIMEOUT_S = 20.0
KILLS = 5
BUILDER = """
import sys
from pathlib import Path
from softunicast.lab import build, pair, state
state.RUN_DIR = Path(sys.argv[1])
build.up(pair.pair(), sys.argv[2])
"""


@pytest.fixture(scope="module", autouse=True)
def run_dir() -> Iterator[Path]:
    """Not the host's labs. Not tmp_path: the paths of sockets must be short."""
    run_dir = Path(tempfile.mkdtemp(prefix="sulab"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "RUN_DIR", run_dir)
        yield run_dir
    shutil.rmtree(run_dir)


@pytest.fixture
def lab_id() -> Iterator[str]:
    lab_id = f"t{secrets.token_hex(4)}"
    yield lab_id
    assert traces(lab_id) == []


@pytest.fixture(scope="class")
def lab() -> Iterator[Lab]:
    lab_id = f"t{secrets.token_hex(4)}"
    with build.running(pair.pair(), lab_id) as lab:
        yield lab
    assert traces(lab_id) == []


class TestUp:
    def test_each_agent_holds_a_slice_of_its_own(self, lab: Lab) -> None:
        rows = agents.ask(lab, "server1", "/v1/leases")
        held = {row["server"]: Slice.parse(row["slice"]) for row in rows if row["state"] == "held"}

        assert set(held) == {"server1", "server2"}
        assert not held["server1"].overlaps(held["server2"])
        nodes = {node["node"]: node for node in status.nodes(lab)}
        for server in lab.agents:
            answer = nodes[server]["agent"]
            assert answer["answers"]
            assert answer["leases_held"] == 1
            assert {"pid": answer["pid"], "name": "agent"} in nodes[server]["processes"]

    def test_two_labs_with_agents_do_not_meet(self, lab: Lab) -> None:
        other_id = f"t{secrets.token_hex(4)}"
        with build.running(pair.pair(), other_id) as other:
            for one in (lab, other):
                assert agents.is_ready(one, "server1")
                output, _ = processes.popen(
                    one, "client1", ["curl", "-s", f"http://{pair.INTERNET}/"]
                ).communicate()
                assert json.loads(output)["address"] == str(pair.SHARED)
        assert [agents.is_ready(lab, server) for server in lab.agents] == [True, True]
        output, _ = processes.popen(lab, "client2", ["curl", "-s", f"http://{pair.INTERNET}/"]).communicate()
        assert json.loads(output)["address"] == str(pair.SHARED)

    def test_a_killed_agent_shows_and_can_be_started_again(self, lab: Lab) -> None:
        [process] = [process for process in lab.processes if process.node == "server1"]
        processes.end(process)
        with pytest.raises(AgentUnreachableError):
            agents.ask(lab, "server1", "/v1/status")
        shown = {node["node"]: node["agent"] for node in status.nodes(lab)}
        assert (shown["server1"]["answers"], shown["server2"]["answers"]) == (False, True)

        agents.wait_ready(lab, {"server1": agents.start(lab, "server1")}, print)

        assert agents.ask(lab, "server1", "/v1/status")["adopted"]


def with_broken_agent(topology: Topology) -> Topology:
    """server2's agent names an interface that nobody has."""
    server = topology.node("server2")
    assert server.agent is not None
    pools = (replace(server.agent.pools[0], tags={"country": "nowhere"}),)
    broken = replace(server, agent=replace(server.agent, pools=pools))
    return replace(
        topology, nodes=tuple(broken if node.name == "server2" else node for node in topology.nodes)
    )


def test_an_agent_that_cannot_start_is_told_with_its_last_words(lab_id: str) -> None:
    said: list[str] = []
    with pytest.raises(LabError, match=r"agent of server2 .*nowhere"):
        build.up(with_broken_agent(pair.pair()), lab_id, say=said.append)
    assert any(line.startswith("server2/agent: ") and "nowhere" in line for line in said)


def test_builders_killed_at_any_moment_leave_nothing_after_down(lab_id: str) -> None:
    attached: set[int] = set()
    length = _time_of_up(lab_id)
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for _ in range(KILLS):
        moment = moments.uniform(0.1, 1.0) * length
        builder = _builder(lab_id)
        try:
            builder.wait(moment)
        except subprocess.TimeoutExpired:
            builder.kill()
        assert builder.wait(TIMEOUT_S) in (0, -signal.SIGKILL)
        attached |= attached_programs(state.RUN_DIR)
        build.down_all()
        assert traces(lab_id) == [], f"killed after {moment:.3f} s"
    assert processes.wait_until(lambda: are_gone(attached), GONE_TIMEOUT_S)


def _builder(lab_id: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", BUILDER, str(state.RUN_DIR), lab_id]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=dict(os.environ))


def _time_of_up(lab_id: str) -> float:
    start = time.monotonic()
    assert _builder(lab_id).wait(TIMEOUT_S) == 0
    length = time.monotonic() - start
    build.down(lab_id)
    return length
