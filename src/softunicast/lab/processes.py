"""Processes in the nodes of a lab: start them there, find them there, end them.

A child belongs to its node's namespace from the moment it is forked, because the thread that forks it is
inside; so nothing that a lab ever started can be missed by looking through /proc for its namespaces. A
process is ended through a pidfd and checked once more behind it, so that a number that was given to
somebody else is never hit.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from softunicast.core.errors import HostError, InputError, LabError
from softunicast.kernel import namespaces
from softunicast.lab.state import Lab, Process

END_TIMEOUT_S: Final = 10.0  # SIGKILL takes milliseconds; only a broken kernel or disk takes longer
LOG_TAIL_LINES: Final = 20
LOG_LINE_CHARACTERS: Final = 300


def environment(lab: Lab, node: str) -> dict[str, str]:
    """What a process in the node finds: its agent's sockets, this installation's programs first in PATH."""
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join((programs, os.environ.get("PATH", os.defpath)))
    sockets = {
        "SOFTUNICAST_SOCKET": str(lab.socket(node)),
        "SOFTUNICAST_POOL_SOCKET": str(lab.pool_socket(node)),
    }
    return {**os.environ, "PATH": path, **sockets}


def start(lab: Lab, node: str, name: str, argv: Sequence[str]) -> Process:
    """Start a process that outlives this one, in a session of its own, writing to NODE/NAME.log."""
    log = str(log_of(lab, node, name))
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = namespaces.run_in(
        lab.namespace(node),
        os.posix_spawn,
        argv[0],
        list(argv),
        environment(lab, node),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, write, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
    )
    return Process(node, name, pid, start_ticks(pid) or 0)


def popen(lab: Lab, node: str, argv: Sequence[str], *, stdin: int | None = None) -> subprocess.Popen[str]:
    """A child of this process inside the node, its output in a pipe as text: for what is waited for."""
    return namespaces.run_in(
        lab.namespace(node),
        subprocess.Popen,
        list(argv),
        env=environment(lab, node),
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE,
        text=True,
    )


def probe(
    lab: Lab, node: str, arguments: Sequence[str], *, stdin: int | None = None
) -> subprocess.Popen[str]:
    """A probe of softunicast.lab.traffic inside the node; it prints JSON."""
    return popen(lab, node, [sys.executable, "-m", "softunicast.lab.traffic", *arguments], stdin=stdin)


def become(lab: Lab, node: str, argv: Sequence[str]) -> None:
    """Turn this process into a command inside the node. InputError when there is no such program."""
    namespace, surroundings = lab.namespace(node), environment(lab, node)
    program = shutil.which(argv[0], path=surroundings["PATH"])
    if program is None:
        raise InputError(f"there is no program {argv[0]!r} to run in {node}", "check the name and PATH")
    namespaces.enter(namespace)
    try:
        os.execve(program, list(argv), surroundings)
    except OSError as error:
        raise HostError(f"cannot run {program}: {error.strerror}") from error


def log_of(lab: Lab, node: str, name: str) -> Path:
    return lab.node_directory(node) / f"{name}.log"


def failed(lab: Lab, process: Process, what: str, say: Callable[[str], None]) -> LabError:
    """The error for a process that failed. Says how its log ends first: the log may go with the lab."""
    try:
        lines = log_of(lab, process.node, process.name).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines[-LOG_TAIL_LINES:]:
        say(f"{process.node}/{process.name}: {line}")
    last = lines[-1][:LOG_LINE_CHARACTERS] if lines else "(nothing)"
    return LabError(f"{process.name} of {process.node} {what}; the last it said: {last}")


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        # The name in parentheses may hold spaces and parentheses: fields count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(process: Process) -> bool:
    return start_ticks(process.pid) == process.start_ticks


def command_name(pid: int) -> str:
    """What the process calls itself; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def inside(inodes: frozenset[int]) -> tuple[int, ...]:
    """Every process, but this one, whose network namespace is one of these."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return tuple(pid for pid in pids if pid != os.getpid() and _namespace_of(pid) in inodes)


def end_all_inside(inodes: frozenset[int]) -> None:
    """Kill until nothing is left in these namespaces. LabError with the survivors after END_TIMEOUT_S."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while pids := inside(inodes):
        if time.monotonic() > deadline:
            raise LabError(
                f"processes {', '.join(map(str, pids))} do not end", "see `ps -p PID -o pid,stat,cmd`"
            )
        for pid in pids:
            _kill(pid, lambda pid=pid: _namespace_of(pid) in inodes)  # type: ignore[misc]


def end(process: Process) -> None:
    """Kill one process that `start` started, if it still lives."""
    _kill(process.pid, lambda _: is_alive(process))


def _kill(pid: int, is_ours: Callable[[int], bool]) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not is_ours(pid):
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        ended.poll(END_TIMEOUT_S * 1000)
        with suppress(ChildProcessError):  # of another parent: that one reaps it
            os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
    finally:
        os.close(descriptor)


def _namespace_of(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.02) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def check_program(name: str, package: str) -> None:
    """Raises HostError when a program of the host is missing."""
    if shutil.which(name) is None:
        raise HostError(f"the program {name} is missing", f"apt-get install {package}")
