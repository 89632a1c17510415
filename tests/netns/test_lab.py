"""Labs, built for real but without agents: apart from each other, and gone without a trace."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.netns.traces import traces

from softunicast.core.errors import InputError, LabError, UnknownNameError
from softunicast.kernel import namespaces
from softunicast.lab import build, pair, peers, processes, state, status
from softunicast.lab.pair import INTERNET
from softunicast.lab.state import Lab
from softunicast.lab.topology import Program, Topology

TIMEOUT_S = 30.0


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Labs of these tests are not those of the host: `down_all` here never meets somebody else's."""
    monkeypatch.setattr(state, "RUN_DIR", tmp_path)
    return tmp_path


@pytest.fixture
def lab_id() -> Iterator[str]:
    lab_id = f"t{secrets.token_hex(4)}"
    yield lab_id
    assert traces(lab_id) == []


@pytest.fixture
def lab(lab_id: str) -> Iterator[Lab]:
    with build.running(pair.pair(), lab_id, agents=False) as lab:
        yield lab


def run(lab: Lab, node: str, command: str) -> str:
    child = processes.popen(lab, node, command.split())
    output, _ = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 0, f"{command} in {node}: {output}"
    return output


class TestApart:
    def test_two_labs_do_not_meet(self, lab: Lab) -> None:
        other_id = f"t{secrets.token_hex(4)}"
        with build.running(pair.pair(), other_id, agents=False) as other:
            for one in (lab, other):
                peers.forget(one)
            run(lab, "server1", f"curl -s http://{INTERNET}/")

            assert len(peers.seen(lab)) == 1
            assert peers.seen(other) == {}
            assert state.known() == tuple(sorted((lab.id, other.id)))
        assert traces(other_id) == []
        assert status.condition(lab) == "up"
        assert json.loads(run(lab, "server1", f"curl -s http://{INTERNET}/"))["address"] == "192.0.2.1"

    def test_an_id_that_is_up_is_refused_and_stays_up(self, lab: Lab) -> None:
        before = status.nodes(lab)
        with pytest.raises(InputError, match=f"there is a lab {lab.id} already"):
            build.up(pair.pair(), lab.id, agents=False)
        assert status.nodes(lab) == before

    def test_somebody_elses_namespace_is_left_alone(self, lab_id: str) -> None:
        foreign = f"sulab-{lab_id}-router"
        namespaces.create(foreign)
        try:
            inode = namespaces.inode(foreign)
            with pytest.raises(InputError, match=f"there is a network namespace {foreign} already"):
                build.up(pair.pair(), lab_id, agents=False)
            assert namespaces.inode(foreign) == inode
            assert build.down_all() == ()
            assert namespaces.inode(foreign) == inode
        finally:
            namespaces.delete(foreign)


class TestDown:
    def test_everything_in_the_nodes_ends(self, lab: Lab) -> None:
        children = [processes.popen(lab, node, ["sleep", "600"]) for node in lab.nodes]
        build.down(lab.id)
        try:
            assert [child.wait(timeout=TIMEOUT_S) for child in children]
            assert not any(processes.is_alive(process) for process in lab.processes)
        finally:
            build.up(pair.pair(), lab.id, agents=False)  # for the fixture to remove

    def test_processes_elsewhere_go_on(self, lab_id: str) -> None:
        outside = subprocess.Popen(["sleep", "600"])
        try:
            with build.running(pair.pair(), lab_id, agents=False):
                pass
            assert outside.poll() is None
        finally:
            outside.kill()
            outside.wait()

    def test_what_somebody_removed_before_is_no_obstacle(self, lab_id: str) -> None:
        lab = build.up(pair.pair(), lab_id, agents=False)
        namespaces.delete(lab.namespace("router"))
        namespaces.delete(lab.namespace("internet"))
        assert status.condition(lab) == "broken"

        build.down(lab_id)

        assert not any(processes.is_alive(process) for process in lab.processes), (
            "found by its recorded number"
        )
        with pytest.raises(UnknownNameError):
            build.down(lab_id)

    def test_mounts_below_the_directory_are_undone(self, lab_id: str) -> None:
        lab = build.up(pair.pair(), lab_id, agents=False)
        lab.bpffs.mkdir()
        namespaces.mount("bpf", "bpf", lab.bpffs)
        (lab.bpffs / "server1").mkdir()

        build.down(lab_id)

    def test_a_lab_in_work_is_waited_for_and_then_left_alone(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(state, "LOCK_TIMEOUT_S", 0.1)
        with state.locked(lab.id):
            assert status.condition(lab) == "busy"
            with pytest.raises(LabError, match="being built or taken down by another process"):
                build.down_all()
        assert status.condition(lab) == "up"


def without_internet(topology: Topology, **programs: Any) -> Topology:
    nodes = [replace(node, **programs) if node.name == "internet" else node for node in topology.nodes]
    return replace(topology, nodes=tuple(nodes))


class TestFailure:
    """Whatever goes wrong, nothing stays: the lab_id fixture looks."""

    def test_a_program_that_ends_at_once_is_told_with_its_last_words(self, lab_id: str) -> None:
        broken = without_internet(pair.pair(), programs=(Program("nothing", "softunicast.lab.nothing", 80),))
        said: list[str] = []
        with pytest.raises(
            LabError, match=r"nothing of internet ended .*No module named softunicast\.lab\.nothing"
        ):
            build.up(broken, lab_id, agents=False, say=said.append)
        assert any("No module named" in line for line in said)

    def test_a_program_that_never_listens_is_not_waited_for_forever(
        self, lab_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(build, "PROGRAM_TIMEOUT_S", 0.3)
        deaf = without_internet(pair.pair(), programs=(Program("deaf", "softunicast.lab.internet", 81),))
        with pytest.raises(LabError, match="took no connection on port 81 within 0 s"):
            build.up(deaf, lab_id, agents=False)

    def test_a_wrong_route_says_what_ip_says(self, lab_id: str) -> None:
        wrong = without_internet(pair.pair(), routes=("default via 192.0.2.1",))
        with pytest.raises(
            LabError, match=r"cannot wire node internet: ip says: .*Nexthop has invalid gateway"
        ):
            build.up(wrong, lab_id, agents=False)

    def test_an_interruption_in_every_phase(self, lab_id: str) -> None:
        phases: list[str] = []
        with build.running(pair.pair(), lab_id, agents=False, say=phases.append):
            pass
        for phase in range(len(phases)):
            with pytest.raises(KeyboardInterrupt):
                build.up(pair.pair(), lab_id, agents=False, say=_interrupting(phase))
            assert traces(lab_id) == []


def _interrupting(phase: int) -> Callable[[str], None]:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) > phase:
            raise KeyboardInterrupt

    return say
