"""`softunicast lab` as a program: what passes through `exec`, and builders that are stopped or killed."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.netns.traces import traces

TIMEOUT_S = 60.0
# The program with its directory moved, so that `down --all` here never meets somebody else's labs.
PROGRAM = """
import sys
from pathlib import Path
from softunicast.lab import state
state.RUN_DIR = Path(sys.argv.pop(1))
from softunicast.cli.main import main
sys.exit(main())
"""


class Host:
    """The command line in an environment of its own, and a look at what it leaves behind."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.lab = f"t{secrets.token_hex(4)}"

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", PROGRAM, str(self.run_dir), "lab", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            argv, env={**os.environ, "TEST_OF": self.lab}, stdin=stdin, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *arguments: str, typed: str = "") -> tuple[int, str, str]:
        with self.start(*arguments, stdin=subprocess.PIPE) as process:
            output, complaint = process.communicate(typed, timeout=TIMEOUT_S)
        return process.returncode, output, complaint

    def left(self) -> list[str]:
        """What anything started here has left."""
        return traces(self.lab, self.run_dir)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.run("down", "--all")
    assert host.left() == []


@pytest.fixture
def lab(host: Host) -> Host:
    code, _, complaint = host.run("up", "pair", "--no-agents", "--id", host.lab)
    assert code == 0, complaint
    return host


def test_the_life_of_a_lab(host: Host) -> None:
    code, output, complaint = host.run("up", "pair", "--no-agents", "--id", host.lab)
    assert (code, output) == (
        0,
        f"lab {host.lab} is up: client1, client2, server1, server2, router, internet\n",
    )
    assert f"softunicast lab down {host.lab}" in complaint

    [row] = json.loads(host.run("status", "--json")[1])
    assert (row["lab"], row["topology"], row["condition"], row["agents"]) == (host.lab, "pair", "up", [])

    whole = json.loads(host.run("status", host.lab, "--json")[1])
    nodes = {node["node"]: node for node in whole["nodes"]}
    assert all(node["exists"] for node in nodes.values())
    assert [process["name"] for process in nodes["internet"]["processes"]] == ["internet"]
    assert nodes["client1"]["processes"] == []

    assert host.run("up", "pair", "--no-agents", "--id", host.lab)[0] == 2
    assert host.run("down", host.lab)[:2] == (0, f"removed: {host.lab}\n")
    assert host.run("down", host.lab)[0] == 2
    assert host.left() == []


def test_exec_is_the_program_itself(lab: Host) -> None:
    assert lab.run("exec", "client1", "--", "cat", typed="through\n") == (0, "through\n", "")
    assert lab.run("exec", "client1", "--", "sh", "-c", "echo out; echo err >&2; exit 7") == (
        7,
        "out\n",
        "err\n",
    )
    assert "10.0.0.2/24" in lab.run("exec", "client1", "--", "ip", "-br", "address")[1]
    assert "192.0.2.1/24" in lab.run("exec", "--lab", lab.lab, "server1", "ip", "-br", "address")[1]


def test_exec_names_the_nodes_agent(lab: Host) -> None:
    output = lab.run("exec", "server1", "--", "sh", "-c", "echo $SOFTUNICAST_SOCKET; command -v softunicast")[
        1
    ]
    assert output.split() == [
        f"{lab.run_dir}/{lab.lab}/server1/agent.sock",
        str(Path(sys.executable).parent / "softunicast"),
    ]


def test_exec_has_no_terminal_less_or_more_than_its_caller(lab: Host) -> None:
    assert lab.run("exec", "client1", "--", "test", "-t", "0")[0] == 1
    # `script` gives its child a terminal; exec must hand it on.
    inner = [
        sys.executable,
        "-c",
        PROGRAM,
        str(lab.run_dir),
        "lab",
        "exec",
        "client1",
        "--",
        "test",
        "-t",
        "0",
    ]
    command = " ".join(f"'{part}'" for part in inner)
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], stdin=subprocess.DEVNULL, capture_output=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("exec nowhere -- ls", "has no node 'nowhere'; fix: use one of client1, client2, server1"),
        ("exec client1 -- no-such-program", "there is no program 'no-such-program' to run in client1"),
        ("exec --lab none client1 -- ls", "there is no lab 'none'; fix: use one of"),
        ("status none", "there is no lab 'none'; fix: use one of"),
        ("down none", "there is no lab 'none'; fix: use one of"),
    ],
)
def test_unknown_names(lab: Host, arguments: str, line: str) -> None:
    code, output, complaint = lab.run(*arguments.split())
    assert (code, output) == (2, "")
    assert line in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_builder_that_is_told_to_stop_cleans_up(host: Host, number: signal.Signals) -> None:
    process = host.start("up", "pair", "--no-agents", "--id", host.lab)
    with process:
        assert process.stderr is not None
        assert "making 6 network namespaces" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == 130
    assert host.left() == []


def test_killed_builders_leave_nothing_that_down_does_not_find(host: Host) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    length = _time_of_up(host)
    for _ in range(8):
        moment = moments.uniform(0.2, 1.0) * length
        with host.start("up", "pair", "--no-agents", "--id", host.lab) as process:
            time.sleep(moment)
            process.kill()
        assert process.returncode in (-signal.SIGKILL, 0)
        code, _, complaint = host.run("down", "--all")
        assert code == 0, complaint
        assert host.left() == [], f"killed after {moment:.3f} s"


def _time_of_up(host: Host) -> float:
    start = time.monotonic()
    assert host.run("up", "pair", "--no-agents", "--id", host.lab)[0] == 0
    length = time.monotonic() - start
    assert host.run("down", host.lab)[0] == 0
    return length
