"""What is known of each lab on this host: on disk before anything of it is made, gone after everything is.

A lab is a directory /run/softunicast-lab/ID with lab.json in it. It appears by one rename, state file
inside and locked by its builder, and disappears by one rename, so that whoever is killed half way leaves
either a whole record of what there may be to remove or nothing. The lock is flock(2) on the directory: it
ends with its holder. Names beginning with a dot are directories on their way in or out, with nothing else
behind them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from softunicast.core.errors import InputError, LabError, UnknownNameError

RUN_DIR = Path("/run/softunicast-lab")
STATE_FILE: Final = "lab.json"
STATE_FORMAT: Final = 1
ID_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,23}")
LOCK_TIMEOUT_S: Final = 60.0  # longer than building takes, deadlines included
LOCK_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """One process that `up` started. `start_ticks` tells it from a later process with the same number."""

    node: str
    name: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Lab:
    """One lab. `nodes`: name -> network namespace; `agents`: nodes that run one; `builder`: pid of `up`."""

    id: str
    topology: str
    created_at: float
    boot_id: str
    builder: int
    nodes: dict[str, str]
    agents: tuple[str, ...]
    ready: bool = False
    processes: tuple[Process, ...] = field(default=())

    @property
    def directory(self) -> Path:
        return RUN_DIR / self.id

    @property
    def bpffs(self) -> Path:
        """Where the lab's own bpffs is mounted; a node's pins are in the directory of its name."""
        return self.directory / "bpf"

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger.db"

    def node_directory(self, node: str) -> Path:
        """Configuration, socket and logs of one node."""
        return self.directory / node

    def socket(self, node: str) -> Path:
        """Where the agent of the node listens, if the node has one."""
        return self.node_directory(node) / "agent.sock"

    def fd_socket(self, node: str) -> Path:
        """Where that agent hands out descriptors, if it has any to hand out."""
        return self.node_directory(node) / "fd.sock"

    def pool_socket(self, node: str) -> Path:
        """Where that agent gives programs sockets and ports of its pools."""
        return self.node_directory(node) / "pools.sock"

    def namespace(self, node: str) -> str:
        """Raises UnknownNameError for a node the lab does not have."""
        if node not in self.nodes:
            raise UnknownNameError(
                f"lab {self.id} has no node {node!r}", f"use one of {', '.join(self.nodes)}"
            )
        return self.nodes[node]

    def with_process(self, process: Process) -> Lab:
        return replace(self, processes=(*self.processes, process))


def check_id(lab_id: str) -> None:
    """Raises InputError for what cannot be part of a directory and namespace name."""
    if not ID_PATTERN.fullmatch(lab_id):
        raise InputError(f"{lab_id[:40]!r} cannot name a lab", "use 1-24 of a-z 0-9 -, not starting with -")


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def known() -> tuple[str, ...]:
    """The ids of all labs on this host, also half-built and abandoned ones."""
    return tuple(sorted(found.parent.name for found in RUN_DIR.glob(f"[!.]*/{STATE_FILE}")))


def load(lab_id: str) -> Lab:
    """Raises UnknownNameError when there is no such lab, LabError when its state cannot be read."""
    try:
        return _parse((RUN_DIR / lab_id / STATE_FILE).read_bytes())
    except FileNotFoundError:
        labs = known()
        fix = f"use one of {', '.join(labs)}" if labs else "no lab is up: softunicast lab up pair"
        raise UnknownNameError(f"there is no lab {lab_id!r}", fix) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(f"cannot read the state of lab {lab_id} in {RUN_DIR}: {error}") from error


def save(lab: Lab) -> None:
    """Replace the state on disk in one step."""
    _write(lab, lab.directory)


@contextmanager
def claimed(lab: Lab) -> Iterator[None]:
    """Put a new lab on disk, locked by this process until the end. Raises InputError when its id is taken."""
    RUN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    coming = RUN_DIR / f".new-{lab.id}-{os.getpid()}"
    with ExitStack() as held:
        with _opened(RUN_DIR) as everything:
            fcntl.flock(everything, fcntl.LOCK_EX)
            coming.mkdir(mode=0o700)  # whoever can open it can lock it
            held.callback(shutil.rmtree, coming, ignore_errors=True)
            fcntl.flock(held.enter_context(_opened(coming)), fcntl.LOCK_EX)
        _write(lab, coming)
        try:
            coming.rename(lab.directory)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            fix = f"softunicast lab down {lab.id}, or another name with --id"
            raise InputError(f"there is a lab {lab.id} already", fix) from None
        yield


@contextmanager
def locked(lab_id: str) -> Iterator[Lab | None]:
    """Lock a lab. None when it went away while waiting. LabError when somebody keeps it too long."""
    lab = load(lab_id)
    with ExitStack() as held:
        try:
            descriptor = held.enter_context(_opened(lab.directory))
        except FileNotFoundError:
            yield None
            return
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise LabError(
                    f"lab {lab_id} is being built or taken down by another process",
                    f"wait for it, or stop its builder (pid {lab.builder})",
                )
            time.sleep(LOCK_POLL_S)
        yield load(lab_id) if _names(lab.directory, descriptor) else None


def is_locked(lab: Lab) -> bool:
    """Whether somebody builds it or takes it down at this moment, or just has."""
    try:
        with _opened(lab.directory) as descriptor:
            return not _try_lock(descriptor)
    except FileNotFoundError:
        return True


def forget(lab: Lab) -> None:
    """Remove the directory of a lab of which nothing else is left. The caller holds its lock."""
    going = RUN_DIR / f".gone-{lab.id}-{os.getpid()}"
    lab.directory.rename(going)
    shutil.rmtree(going)


def sweep() -> None:
    """Remove directories that somebody who was killed left on their way in or out."""
    if not RUN_DIR.is_dir():
        return
    with _opened(RUN_DIR) as everything:
        fcntl.flock(everything, fcntl.LOCK_EX)
        for entry in RUN_DIR.glob(".*-*"):
            with suppress(FileNotFoundError), _opened(entry) as descriptor:
                if _try_lock(descriptor):
                    shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _names(directory: Path, descriptor: int) -> bool:
    """Whether the directory is still, or again, the one that was opened."""
    try:
        return os.path.samestat(directory.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write(lab: Lab, directory: Path) -> None:
    fresh = directory / f".{STATE_FILE}.new"
    fresh.write_text(json.dumps({"format": STATE_FORMAT, **asdict(lab)}, indent=1))
    fresh.rename(directory / STATE_FILE)


def _parse(text: bytes) -> Lab:
    found = json.loads(text)
    if found.pop("format") != STATE_FORMAT:
        raise ValueError("written by another version of softunicast")
    found["agents"] = tuple(found["agents"])
    found["processes"] = tuple(Process(**process) for process in found["processes"])
    return Lab(**found)
