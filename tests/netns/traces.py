"""What is left of a lab on this host, wherever it may be: tests of labs compare it with nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from softunicast.kernel import namespaces
from softunicast.lab import processes, state


def traces(lab_id: str, run_dir: Path | None = None) -> list[str]:
    """Namespaces, mounts, processes and files that carry the id: everything that a lab makes does."""
    names = [f"namespace {path.name}" for path in namespaces.NETNS_DIR.iterdir() if lab_id in path.name]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if lab_id in line]
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    running = [
        f"process {pid} {processes.command_name(pid)}" for pid in pids if _carries(pid, lab_id.encode())
    ]
    files = [str(path) for path in (run_dir or state.RUN_DIR).iterdir() if lab_id in path.name]
    return names + mounts + running + files


def attached_programs(run_dir: Path) -> set[int]:
    """The ids of the BPF programs whose attachments the labs in this directory have pinned."""
    pins = [path for path in run_dir.glob("*/bpf/**/*") if path.is_file() and path.parent.name != "maps"]
    shown = (_bpftool("link", "show", "pinned", str(pin)) for pin in pins)
    return {link["prog_id"] for link in shown if link is not None}


def are_gone(programs: set[int]) -> bool:
    """Whether the kernel holds none of these any more. It frees programs some time after their last user."""
    return not programs & {program["id"] for program in _bpftool("prog", "show")}


def _bpftool(*arguments: str) -> Any:
    done = subprocess.run(["bpftool", "-j", *arguments], capture_output=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def _carries(pid: int, lab_id: bytes) -> bool:
    # Every process in a node is told of its agent's socket, whose path has the id.
    try:
        texts = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    except OSError:
        return False
    return any(lab_id in text for text in texts) and processes.start_ticks(pid) is not None
