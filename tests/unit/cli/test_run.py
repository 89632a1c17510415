"""`softunicast run` before the kernel is asked, and how it becomes the program. Cgroups: tests/bpf/test_run.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from softunicast.core.agreements import Board, PoolSign

from .conftest import Ended

Run = Callable[..., Ended]


@pytest.mark.parametrize(
    "verb", [("run", "true"), ("attach", "--cgroup", "/x"), ("detach", "--cgroup", "/x")]
)
def test_nothing_is_set_up(run: Run, tmp_path: Path, verb: tuple[str, ...]) -> None:
    ended = run("--socket", tmp_path / "agent.sock", *verb)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == (
        f"softunicast: no agent has set up anything here: there is no {tmp_path}/pools.json; fix: start it: "
        "softunicast agent --config FILE; or name its directory with --state-dir\n"
    )


def test_another_state_directory(run: Run, tmp_path: Path) -> None:
    board = Board("server1", str(tmp_path), 1, None, "cgroup2 is not mounted", (PoolSign("gb", {}),))
    (tmp_path / "pools.json").write_text(board.text())
    ended = run("run", "--state-dir", tmp_path, "--pool", "gb", "--", "true")
    assert ended.code == 3
    assert ended.err == (
        "softunicast: sockets cannot leave from pools on this host: cgroup2 is not mounted; "
        "fix: see softunicast doctor\n"
    )


@pytest.mark.parametrize("arguments", [[], ["--"], ["--", ""]])
def test_no_program(run: Run, arguments: list[str]) -> None:
    ended = run("run", *arguments)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "; fix: see softunicast run --help" in ended.err


def become(*argv: str, **surroundings: str) -> tuple[int, str]:
    """Exit code and output of a program that a fresh interpreter became."""
    code = "import os, sys; from softunicast.cli.run import become; become([os.fsencode(one) for one in sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], **surroundings},
    )
    return done.returncode, done.stdout


def test_the_environment_is_as_it_was_given() -> None:
    """In the C locale the interpreter sets LC_CTYPE in its own."""
    _, out = become("env", LC_CTYPE="C", SOME="a=b")
    found = dict(line.split("=", 1) for line in out.splitlines())
    assert found["LC_CTYPE"] == "C"
    assert found["SOME"] == "a=b"
    _, out = become("env")
    assert "LC_CTYPE" not in out


def test_signals_are_not_ignored() -> None:
    """Python ignores SIGPIPE: `yes | head` would go on for ever."""
    code, out = become("grep", "SigIgn", "/proc/self/status")
    reserved = 0b11 << 31  # for threads, by the C library: whoever runs the tests may have them ignored
    by_a_shell = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)  # that runs the tests in the background
    before = sum(1 << number - 1 for number in by_a_shell if signal.getsignal(number) == signal.SIG_IGN)
    assert (code, int(out.split()[1], 16) & ~reserved & ~before) == (0, 0)


def test_bytes_that_are_no_text() -> None:
    argument = os.fsdecode(b"\xff\xfe")
    done = become("sh", "-c", 'printf %s "$1" | od -An -tx1', "sh", argument)
    assert done == (0, " ff fe\n")
