"""A cgroup that stands for the root of all, and the pinned tables of a real data path: where `softunicast run`,
`attach` and `detach` are tried out without an agent. Nothing of the host is touched.
"""

from __future__ import annotations

import io
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bpf.world import ATTACH, LIMITS, ME, UPLINK, make_server, state

from softunicast.agent.sockets import Sockets
from softunicast.cli.main import main
from softunicast.core.agreements import Board, PoolSign
from softunicast.core.config_sockets import SocketsConfig
from softunicast.kernel import cgroup_tree, cgroups
from softunicast.kernel.agreements import Agreements
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.joining import Entry, Joining
from softunicast.kernel.socket_hooks import netns_cookie

COMMAND = Path(sys.executable).with_name("softunicast")
TIMEOUT_S = 20


@dataclass
class Place:
    """A cgroup of the test's own, where the hooks of the data path are said to be."""

    folder: Path
    root: Path
    joining: Joining
    sockets: Sockets

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """`softunicast` with these arguments."""
        command = [str(COMMAND), "--socket", str(self.folder / "agent.sock"), *argv]
        return subprocess.Popen(
            command,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def ask(self, *argv: str, **options: Any) -> tuple[int, str, str]:
        """Exit code, output, complaint. What becomes no other program needs no process of its own."""
        if argv[0] != "run":
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = main(["--socket", str(self.folder / "agent.sock"), *argv])
            return code, out.getvalue(), err.getvalue()
        with self.start(*argv, **options) as child:
            said = child.communicate(timeout=TIMEOUT_S)
        return child.returncode, *said

    def pools(self) -> dict[str, str | None]:
        """Agreements: the cgroup's path below the root -> pool. A "+" behind it: of those that come after it, too."""
        return {_name(one, self.root): one.pool for one in self.joining.entries()}

    def below(self) -> list[Path]:
        return [Path(folder) for folder, _, _ in os.walk(self.root)][1:]

    def make(self, name: str) -> Path:
        path = self.root / name
        path.mkdir()
        return path

    def refused(self, code: int, what: str, *argv: str, **options: Any) -> None:
        """One line, and nothing has changed."""
        before = self.pools(), self.below()
        found, out, err = self.ask(*argv, **options)
        assert (found, out) == (code, ""), err
        assert err.startswith("softunicast: ")
        assert err.count("\n") == 1
        assert what in err
        assert "; fix: " in err
        assert (self.pools(), self.below()) == before


def _name(entry: Entry, root: Path) -> str:
    found = entry.path or entry.place
    lasts, there = "+" if entry.place else "", "" if entry.path else " gone"
    return f"{found.relative_to(root) if found else '?'}{lasts}{there}"


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def end_all(root: Path) -> None:
    """Ends the processes in the cgroup, and removes it with all that is below it."""
    for pid in cgroup_tree.processes(root):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not cgroup_tree.processes(root))
    for folder in [*(Path(folder) for folder, _, _ in os.walk(root))][::-1]:
        until(lambda folder=folder: "populated 0" in (folder / "cgroup.events").read_text())
        folder.rmdir()


@contextmanager
def pools_made(folder: Path) -> Iterator[Path]:
    """The bpffs of a server with these pools: gb and fr with slices, late past its deadline, none without."""
    with make_server(folder) as mount:
        datapath = Datapath.open(mount, UPLINK, ME, LIMITS, ATTACH, sockets=SocketsConfig(enabled=True))
        wanted = state(mine=(1, 4))
        gb, late = wanted.pools["gb"], state(mine=(3,)).pools["gb"]
        pools = {"gb": gb, "fr": gb, "none": replace(gb, slices=()), "late": late}
        datapath.apply(replace(wanted, pools=pools))
        yield mount
        datapath.remove()


@contextmanager
def place_in(mount: Path, folder: Path) -> Iterator[Place]:
    """A fresh cgroup, told about in `folder`; empty and gone afterwards, with all that was agreed."""
    mounted = cgroups.find_root()
    assert mounted is not None, "the tests need cgroup2: mount -t cgroup2 none DIR"
    root = mounted / f"softunicast-test-{secrets.token_hex(4)}"
    root.mkdir()
    signs = tuple(PoolSign(name, {"pool": name, "of": "test"}) for name in ("gb", "fr", "none", "late"))
    sockets = Sockets(folder, Board("server1", str(mount), netns_cookie(), str(root), None, signs))
    sockets.publish()
    with Agreements.open(mount) as table:
        place = Place(folder, root, Joining(table, root), sockets)
        try:
            yield place
        finally:
            end_all(root)
            place.joining.root = mounted
            place.joining.tidy()
        assert (table.list(), table.lasting()) == ((), ())
