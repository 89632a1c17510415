"""The demo: everything it shows holds, it removes its lab, and killing it half way leaves nothing after `down`."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.netns.traces import are_gone, attached_programs, traces

from softunicast.lab import build, demo, processes, state

TIMEOUT_S = 90.0
GONE_TIMEOUT_S = 20.0
DEMO = """
import sys
from pathlib import Path
from softunicast.lab import demo, state
state.RUN_DIR = Path(sys.argv[1])
demo.run(keep=False, say=print)
"""


@pytest.fixture(autouse=True)
def run_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Not the host's labs. Not tmp_path: the paths of sockets must be short."""
    run_dir = Path(tempfile.mkdtemp(prefix="sulab"))
    monkeypatch.setattr(state, "RUN_DIR", run_dir)
    yield run_dir
    assert list(run_dir.iterdir()) == []
    shutil.rmtree(run_dir)


def test_everything_holds_and_a_kept_lab_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DOWNLOAD_BYTES", 1 << 16)  # their number is what counts
    report = demo.run(keep=True, say=print)
    try:
        assert [check for check in report.checks if not check.passed] == []
        assert report.passed
        assert state.known() == (report.lab,)
    finally:
        build.down(report.lab)
    assert traces(report.lab) == []


def test_a_demo_killed_in_the_middle_of_its_traffic_leaves_nothing_after_down() -> None:
    marker = f"t{secrets.token_hex(4)}"
    argv = [sys.executable, "-u", "-c", DEMO, str(state.RUN_DIR)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "TEST_OF": marker}
    ) as running:
        assert running.stdout is not None
        assert any("downloads of 1 MB" in line for line in running.stdout)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(random.uniform(0.1, 1.5))
        running.kill()
    assert running.returncode == -signal.SIGKILL

    attached = attached_programs(state.RUN_DIR)
    assert attached
    [lab_id] = build.down_all()

    assert traces(lab_id) == []
    assert traces(marker) == []
    assert processes.wait_until(lambda: are_gone(attached), GONE_TIMEOUT_S)
