"""Real clients and servers on both sides of a path, all on the core under test.

With sender, receiver and everything between on one core, the rate is the reciprocal of the CPU time that the
whole way takes, and another program of the machine hardly disturbs it (they run at the highest nice level).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bench.lanes import CPU
from bench.paths import PATHS
from bench.paths import Path as NetworkPath
from bench.world import CLIENT, INTERNET, World, world
from softunicast.core.errors import HostError, LabError

SERVICE: Final = "203.0.113.1"
PATHS_COMPARED: Final = ("plain", "nft", "masquerade", "softunicast_tc")
START_TIMEOUT_S: Final = 10.0
RUN_TIMEOUT_S: Final = 60.0
_NICE: Final = -20
_LISTENING: Final = "0A"  # TCP_LISTEN in /proc/net/tcp
_TICK_HZ: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Wire:
    """A path with a service at its far end."""

    world: World
    path: NetworkPath

    def client(self, *command: str) -> str:
        """Runs a client program to its end; returns what it printed."""
        done = self.world.inside(CLIENT, run_here, command)
        if done.returncode:
            words = " ".join((done.stderr or done.stdout).split())[-300:]
            raise LabError(f"{command[0]} through {self.path.title}: {words}")
        return done.stdout


@contextmanager
def wires(
    server: tuple[str, ...], port: int, slices: int, files: Mapping[str, str] = MappingProxyType({})
) -> Iterator[dict[str, Wire]]:
    """Every path compared, each with a server of its own listening. `{folder}` in the command is private to it."""
    with ExitStack() as stack:
        made = {}
        for name in PATHS_COMPARED:
            built = stack.enter_context(world())
            path = PATHS[name](built, slices)
            stack.callback(path.close)
            path.set_up()
            built.run(INTERNET, f"ip addr add {SERVICE}/32 dev lo")
            for file, text in files.items():
                (built.folder / file).write_text(text.replace("{folder}", str(built.folder)))
            command = tuple(word.replace("{folder}", str(built.folder)) for word in server)
            stack.enter_context(listening(built, command, port))
            made[name] = Wire(built, path)
        yield made


@contextmanager
def listening(built: World, command: tuple[str, ...], port: int, on_core: bool = True) -> Iterator[None]:
    """Runs a server in the internet node, from when it listens on the port until the `with` block ends.
    `on_core`: on the core under test."""
    process = built.inside(INTERNET, _start_here, command, on_core)
    try:
        _wait_listening(built, process, command[0], port)
        yield
    finally:
        _end(process)


def busy_s() -> float:
    """Seconds that the core under test has been busy since it started, whatever with."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{CPU}":
            user, nice, system, _idle, _iowait, irq, softirq = (int(tick) for tick in ticks[:7])
            return (user + nice + system + irq + softirq) / _TICK_HZ
    raise HostError(f"/proc/stat does not know core {CPU}")


def _settle() -> None:
    os.sched_setaffinity(0, {CPU})
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # of this thread, and of what it starts


def run_here(command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, in the network namespace of the calling thread, on the core under test."""
    _settle()
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_TIMEOUT_S)
    except FileNotFoundError as error:
        raise HostError(f"there is no {command[0]}", "bash bench/setup.sh") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(command)} did not end within {RUN_TIMEOUT_S:.0f} s") from error


def _start_here(command: tuple[str, ...], on_core: bool) -> subprocess.Popen[bytes]:
    if on_core:
        _settle()
    try:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise HostError(f"there is no {command[0]}", "bash bench/setup.sh") from error


def _wait_listening(built: World, process: subprocess.Popen[bytes], name: str, port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not built.inside(INTERNET, _listens, port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"{name} does not listen on port {port}")
        time.sleep(0.02)


def _listens(port: int) -> bool:
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/thread-self/net/{family}").read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
