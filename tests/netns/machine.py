"""A server of a lab as a machine with a real systemd: its first process, units, and a tree of cgroup2 of its own.

systemd gets namespaces of its own for everything but the network, which is the server's (machine.sh); its cgroups lie
below one that is made here. Only the units that a test writes exist. The agent of the server runs as the unit that
docs/howto/two-servers.md gives. When the block ends, all processes and cgroups of it are gone.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from tests.netns.pair_lab import TIMEOUT_S, Done, PairLab, eventually

from softunicast.kernel import cgroups, namespaces
from softunicast.lab import agents
from softunicast.lab.pair import INTERNET

SYSTEMD: Final = Path("/lib/systemd/systemd")
HERE: Final = Path(__file__).parent
HOWTO: Final = HERE.parents[1] / "docs" / "howto"
TARGETS: Final = ("machine", "sysinit", "basic", "shutdown", "network-online")
NAMESPACES: Final = ("--mount", "--pid", "--uts", "--ipc", "--cgroup")
PATH: Final = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


def code_of(page: str, language: str, word: str) -> str:
    """The one block of code in a page of docs/howto that has the word in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (HOWTO / page).read_text(), re.DOTALL)
    [block] = [one for one in blocks if word in one]
    return str(block)


@dataclass(frozen=True)
class Machine:
    """`cgroup`: its root, as the host sees it. `pid`: of its first process, likewise."""

    lab: PairLab
    server: str
    folder: Path
    cgroup: Path
    pid: int

    def run(self, *argv: str) -> Done:
        """A command of an operator who is logged in there."""
        login = f'echo 0 > {self.cgroup}/init.scope/cgroup.procs && exec "$@"'
        enter = ("nsenter", f"--target={self.pid}", *NAMESPACES, "--", *argv)
        environment = {"PATH": PATH}
        return self.lab.run(self.server, "sh", "-c", login, "sh", *enter, env=environment)

    def good(self, *argv: str) -> str:
        done = self.run(*argv)
        assert done.code == 0, f"{' '.join(argv)}: {done}"
        return done.output

    def unit(self, name: str, text: str) -> None:
        """Writes a unit, or, with a name like "x.service.d/pool.conf", a part of one."""
        path = self.folder / "units" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.good("systemctl", "daemon-reload")

    def remove_unit(self, name: str) -> None:
        (self.folder / "units" / f"{name}.service").unlink()
        shutil.rmtree(self.folder / "units" / f"{name}.service.d", ignore_errors=True)
        self.good("systemctl", "daemon-reload")

    def cgroup_of(self, unit: str) -> str:
        """As docs/howto/run.md asks for it."""
        return self.good("systemctl", "show", "-P", "ControlGroup", unit).strip()

    def agreements(self) -> list[dict[str, Any]]:
        """What `softunicast agreements` lists, as soon as the agent answers."""
        eventually(lambda: self.lab.answers(self.server), "the agent answers")
        listed = json.loads(self.good("softunicast", "agreements", "--json"))
        return list(listed)

    def asker(self, name: str) -> tuple[str, ...]:
        """The command of a long-lived program that `ask` asks."""
        return "/usr/bin/python3", str(self.folder / "asks.py"), str(self.door(name)), INTERNET

    def door(self, name: str) -> Path:
        return self.folder / f"{name}.sock"

    def ask(self, name: str) -> tuple[int, str]:
        """Lets that program open a connection: its process, as it calls itself, and the address that the internet saw,
        or why there is none."""

        def open_door() -> socket.socket | None:
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(TIMEOUT_S)
            with suppress(FileNotFoundError, ConnectionRefusedError):
                made.connect(str(self.door(name)))
                return made
            made.close()
            return None

        with eventually(open_door, f"{name} listens") as asking:
            pid, seen = json.loads(asking.makefile().read())
        return pid, seen


def _folder(lab: PairLab) -> Path:
    """What the machine finds of ours: units, programs."""
    folder = lab.lab.directory / "machine"
    (folder / "units").mkdir(parents=True)
    (folder / "programs").mkdir()
    shutil.copy(HERE / "asks.py", folder)
    for target in TARGETS:
        (folder / "units" / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (folder / "programs" / "softunicast").symlink_to(Path(sys.executable).parent / "softunicast")
    return folder


def _agent_unit(lab: PairLab, server: str) -> str:
    """That of the how-to, with the places of the lab."""
    text = code_of("two-servers.md", "ini", "Type=notify")
    for before, after in (
        ("/opt/softunicast/bin/softunicast", "softunicast"),
        ("/etc/softunicast/agent.toml", str(agents.config_of(lab.lab, server))),
        ("ReadWritePaths=/sys/fs/bpf", f"ReadWritePaths={lab.lab.directory}"),
        ("[Service]", f"[Service]\nStandardError=append:{lab.lab.directory}/machine/agent.log"),
        ("ProtectHome=yes", "ProtectHome=read-only"),  # this checkout may be there
    ):
        assert before in text
        text = text.replace(before, after)
    return text


@contextmanager
def machine(lab: PairLab, server: str) -> Iterator[Machine]:
    """The server's agent ends, and runs as a unit of the machine until that ends."""
    if not SYSTEMD.exists():
        pytest.skip("missing: systemd; fix: apt-get install systemd")
    lab.end_agents(signal.SIGTERM, server)
    root = cgroups.find_root()
    assert root is not None
    cgroup = root / f"softunicast-test-{secrets.token_hex(4)}"
    cgroup.mkdir()
    folder = _folder(lab)
    (folder / "units" / "softunicast.service").write_text(_agent_unit(lab, server))
    try:
        with _booted(lab, server, folder, cgroup) as pid:
            made = Machine(lab, server, folder, cgroup, pid)
            eventually(lambda: made.run("systemctl", "is-active", "machine.target").code == 0, "systemd runs")
            if "PYTHONPATH" in os.environ:  # a checkout that is not the one that is installed
                made.good("systemctl", "set-environment", f"PYTHONPATH={os.environ['PYTHONPATH']}")
            started = made.run("systemctl", "start", "softunicast")
            status = made.run("systemctl", "status", "softunicast").output
            assert started.code == 0, f"{status}{(folder / 'agent.log').read_text()}"
            eventually(lambda: agents.is_ready(lab.lab, server), "the agent works")
            yield made
    finally:
        eventually(lambda: "populated 0" in (cgroup / "cgroup.events").read_text(), f"{cgroup} is empty")
        for path, _, _ in os.walk(cgroup, topdown=False):
            Path(path).rmdir()


@contextmanager
def _booted(lab: PairLab, server: str, folder: Path, cgroup: Path) -> Iterator[int]:
    """systemd, from its start to its end; gives its process."""
    unshare = ("unshare", *NAMESPACES, "--mount-proc", "--fork", "--kill-child", "sh")
    places = {
        "LAB": lab.lab.directory,
        "AGENT": lab.lab.node_directory(server),
        "PROGRAMS": folder / "programs",
        "UNITS": folder / "units",
    }
    with (folder / "systemd.log").open("w") as log:
        child = namespaces.run_in(
            lab.lab.namespace(server),
            subprocess.Popen,
            ["sh", "-c", f'echo 0 > {cgroup}/cgroup.procs && exec "$@"', "sh", *unshare, HERE / "machine.sh"],
            env={**os.environ, **places},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        yield int(eventually(_first(child, children), "systemd starts"))
    finally:
        child.kill()  # and with it its child, and with that all others of its namespace
        child.wait()


def _first(child: subprocess.Popen[bytes], children: Path) -> Callable[[], str]:
    def found() -> str:
        assert child.poll() is None, "see machine/systemd.log"
        return children.read_text().strip()

    return found
