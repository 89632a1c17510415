"""The lock on the state directory, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from softunicast.agent.lock import LOCK_FILE, StateLock
from softunicast.core.errors import HostError

CHILD = """
import sys
from pathlib import Path
from softunicast.agent.lock import StateLock
lock = StateLock.take(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def child(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_second_agent_is_refused_by_the_pid_of_the_first(tmp_path: Path) -> None:
    first = child(tmp_path)
    try:
        with pytest.raises(HostError, match=f"pid {first.pid}.*state_dir") as caught:
            StateLock.take(tmp_path)
        assert caught.value.exit_code == 3
    finally:
        first.kill()
        first.communicate()
    lock = StateLock.take(tmp_path)  # a dead one is in nobody's way
    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_file_that_went_while_we_locked_it_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our open and our lock the first agent released: its file is gone and somebody made another."""
    import fcntl

    flock, calls = fcntl.flock, []

    def interfere(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / LOCK_FILE).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", interfere)
    lock = StateLock.take(tmp_path)
    monkeypatch.undo()
    assert len(calls) == 2
    with pytest.raises(HostError, match="another agent"):
        StateLock.take(tmp_path)
    lock.release()


def test_directory_is_made_and_a_file_in_its_place_refused(tmp_path: Path) -> None:
    StateLock.take(tmp_path / "a" / "b").release()
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"cannot lock .*; fix: "):
        StateLock.take(tmp_path / "file")
