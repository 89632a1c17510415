"""Ending processes: the one that was meant, never another that got its number."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from softunicast.lab import processes
from softunicast.lab.state import Process


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


def test_a_process_is_ended(child: subprocess.Popen[bytes]) -> None:
    ticks = processes.start_ticks(child.pid)
    assert ticks is not None
    process = Process("node", "sleep", child.pid, ticks)
    assert processes.is_alive(process)

    processes.end(process)

    assert not processes.is_alive(process)


def test_a_later_process_with_the_same_number_is_left_alone(child: subprocess.Popen[bytes]) -> None:
    ticks = processes.start_ticks(child.pid)
    assert ticks is not None
    processes.end(Process("node", "sleep", child.pid, ticks - 1))

    assert child.poll() is None


def test_a_process_that_is_gone_is_no_error(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()

    processes.end(Process("node", "sleep", child.pid, 1))


def test_a_zombie_does_not_live(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert processes.start_ticks(child.pid) is None


def test_start_is_read_past_any_name() -> None:
    name = ") S 1 2 (3"
    child = subprocess.Popen(
        ["bash", "-c", f"printf '{name}' > /proc/$$/comm; echo; read"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    plain = processes.start_ticks(os.getpid())
    odd = processes.start_ticks(child.pid)
    child.communicate()

    assert plain is not None
    assert odd is not None
    now = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert plain <= odd <= now
