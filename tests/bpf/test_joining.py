"""`softunicast run`, `attach` and `detach` on real cgroups and the pinned tables of a real data path, without an agent.

The hooks' root is a cgroup of the test's own, so that nothing of the host is touched.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.bpf.kernel_objects import running
from tests.bpf.world import make_server, state

from softunicast.agent.sockets import Sockets
from softunicast.cli.main import main
from softunicast.core.agreements import Board, PoolSign
from softunicast.kernel import cgroup_tree, cgroups, joining
from softunicast.kernel.agreements import Agreements
from softunicast.kernel.joining import Joining
from softunicast.kernel.socket_hooks import netns_cookie

COMMAND = Path(sys.executable).with_name("softunicast")
TIMEOUT_S = 20
KILLS = 12
CGROUP1 = Path("/sys/fs/cgroup/memory")


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
        """Agreements: the cgroup's path below the root -> pool."""
        return {
            str(one.path.relative_to(self.root)) if one.path else "gone": one.pool
            for one in self.joining.entries()
        }

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


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bpffs of a server with these pools: gb and fr with slices, late past its deadline, none without."""
    with make_server(tmp_path_factory.mktemp("joining")) as mount:
        datapath = running(mount)
        wanted = state(mine=(1, 4))
        gb, late = wanted.pools["gb"], state(mine=(3,)).pools["gb"]
        pools = {"gb": gb, "fr": gb, "none": replace(gb, slices=()), "late": late}
        datapath.apply(replace(wanted, pools=pools))
        yield mount
        datapath.remove()


@pytest.fixture
def place(data_path: Path, tmp_path: Path) -> Iterator[Place]:
    mounted = cgroups.find_root()
    assert mounted is not None, "the tests need cgroup2: mount -t cgroup2 none DIR"
    root = mounted / f"softunicast-test-{secrets.token_hex(4)}"
    root.mkdir()
    signs = tuple(PoolSign(name, {"pool": name, "of": "test"}) for name in ("gb", "fr", "none", "late"))
    board = Board("server1", str(data_path), netns_cookie(), str(root), None, signs)
    sockets = Sockets(tmp_path, board)
    sockets.publish()
    with Agreements.open(data_path) as table:
        place = Place(tmp_path, root, Joining(table, root), sockets)
        try:
            yield place
        finally:
            end_all(root)
            place.joining.root = mounted
            place.joining.tidy()
        assert table.list() == ()


# -- run -----------------------------------------------------------------------------------------------------


def test_run_from_beginning_to_end(place: Place) -> None:
    """In its cgroup with the entry, below the root because this process is not there; tidied up when it has ended."""
    with place.start("run", "--pool", "gb", "--", "cat") as child:
        [(name, pool)] = until(lambda: place.pools() if cgroup_tree.processes(place.root) else None).items()
        assert pool == "gb"
        assert cgroup_tree.processes(place.root / name) == [child.pid]
        until(lambda: cgroup_tree.name_of(child.pid) == "cat")
        assert place.joining.tidy() == 0
        assert child.communicate("hello", timeout=TIMEOUT_S) == ("hello", "")
    assert child.returncode == 0
    assert place.sockets.tidy() == 1
    assert (place.pools(), place.below()) == ({}, [])


def test_the_next_run_tidies_up(place: Place) -> None:
    assert place.ask("run", "--pool", "gb", "--", "sh", "-c", "kill -9 $$")[0] == -signal.SIGKILL
    before = place.pools()
    assert len(before) == 1
    assert place.ask("run", "--tag", "pool=fr", "true")[0] == 0
    assert list(place.pools().values()) == ["fr"]


def test_killed_at_any_moment(place: Place) -> None:
    """Whatever was made by then is tidied up, and nobody stands in the way of the next one."""
    usual_s = min(duration_s(lambda: place.ask("run", "--pool", "gb", "true")) for _ in range(2))
    for number in range(KILLS):
        with place.start("run", "--pool", "gb", "--", "cat") as child:
            time.sleep(usual_s * (number + 1) / KILLS)
            child.kill()
    made = place.make(f"{cgroup_tree.PREFIX}stray")  # the moment that is too short to be hit
    assert place.sockets.withdraw() == ()
    assert (place.pools(), place.below()) == ({}, [])
    assert not made.exists()


def duration_s(function: Callable[[], object]) -> float:
    start = time.monotonic()
    function()
    return time.monotonic() - start


def test_what_outlives_the_program_stays_in_its_agreement(place: Place) -> None:
    """A daemon that forks away, in a session of its own."""
    code, out, _ = place.ask(
        "run", "--pool", "gb", "--", "sh", "-c", "setsid sleep 60 >&- 2>&- & echo $!; exit 3"
    )
    assert code == 3
    assert place.joining.tidy() == 0
    assert list(place.pools().values()) == ["gb"]
    os.kill(int(out), signal.SIGKILL)
    assert until(place.joining.tidy) == 1
    assert (place.pools(), place.below()) == ({}, [])


def test_run_in_run(place: Place) -> None:
    """The inner one has its own agreement, below the outer one's cgroup, so that either can end first."""
    inner = f"{COMMAND} --socket {place.folder}/agent.sock run --pool fr -- setsid sleep 60"
    with place.start("run", "--pool", "gb", "--", "sh", "-c", f"{inner} & cat") as child:
        found = until(lambda: place.pools() if len(place.pools()) == 2 else None)
        outer, within = sorted(found, key=len)
        assert Path(within).parent == Path(outer)
        assert (found[outer], found[within]) == ("gb", "fr")
        [sleeping] = until(lambda: cgroup_tree.processes(place.root / within))
        until(lambda: cgroup_tree.name_of(sleeping) == "sleep")
        child.kill()
    until(lambda: cgroup_tree.processes(place.root) == [sleeping])
    assert place.joining.tidy() == 0
    os.kill(sleeping, signal.SIGKILL)
    until(lambda: place.joining.tidy() and not place.pools())
    assert place.below() == []


def test_the_program_is_as_it_would_be_without(place: Place) -> None:
    """Environment, working directory, descriptors, ignored signals, its pid and its parent."""
    script = "; ".join(
        (
            "import os, sys",
            "print(open('/proc/self/environ').read().replace(chr(0), chr(10)))",
            "print(os.getcwd(), os.getppid(), os.read(int(sys.argv[1]), 9))",
            "print(sorted(os.listdir('/proc/self/fd')))",
            "print(open('/proc/self/limits').read(), open('/proc/self/oom_score_adj').read(), os.umask(0))",
            "print([line for line in open('/proc/self/status') if line[:3] in ('Sig', 'Shd')])",
        )
    )
    reading, writing = os.pipe()
    surroundings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "B": "x=y",
        "A": "",
    }
    options: dict[str, Any] = {"env": surroundings, "cwd": place.folder, "pass_fds": (reading,)}
    argv = ["/usr/bin/env", "python3", "-c", script, str(reading)]
    os.write(writing, b"one")
    code, out, err = place.ask("run", "--pool", "gb", "--", *argv, **options)
    assert (code, err) == (0, "")
    os.write(writing, b"one")
    plain = subprocess.run(
        argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options
    )
    os.close(reading)
    os.close(writing)

    assert out == plain.stdout


@pytest.mark.parametrize(
    ("code", "what", "program"),
    [
        (127, "there is no program 'no-such-program'", "no-such-program"),
        (127, "there is no program './nothing'", "./nothing"),
        (126, "cannot run '/etc': Permission denied", "/etc"),
        (126, "cannot run '/etc/passwd': Permission denied", "/etc/passwd"),
    ],
)
def test_a_program_that_cannot_be_run(place: Place, code: int, what: str, program: str) -> None:
    place.refused(code, what, "run", "--pool", "gb", "--", program)


def test_a_script_that_does_not_say_by_what(place: Place) -> None:
    script = place.folder / "script"
    script.write_text("echo $1 from the script\n")
    script.chmod(0o755)
    assert place.ask("run", "--pool", "gb", "--", str(script), "hello")[:2] == (0, "hello from the script\n")


@pytest.mark.parametrize(
    ("code", "what", "arguments"),
    [
        (2, "there is no pool 'de'; fix: known pools: fr, gb, late, none", ["--pool", "de"]),
        (2, "no pool has a tag 'country'; fix: known tags: of, pool", ["--tag", "country=gb"]),
        (2, "no pool has pool=de; fix: known values of pool", ["--tag", "pool=de"]),
        (2, "of=test fits 4 pools; fix: choose one with --pool", ["--tag", "of=test"]),
        (2, "no tag fits 4 pools", []),
        (2, "'pool' is not of the form key=value", ["--tag", "pool"]),
        (3, "pool none has no slice on this server", ["--pool", "none"]),
        (3, "the leases of pool late are over since", ["--pool", "late"]),
    ],
)
def test_refused_before_the_program_starts(place: Place, code: int, what: str, arguments: list[str]) -> None:
    place.refused(code, what, "run", *arguments, "--", "touch", str(place.folder / "started"))
    unit = place.make("unit")
    place.refused(code, what, "attach", *arguments, "--cgroup", str(unit))
    assert not (place.folder / "started").exists()


def test_without_a_data_path(place: Place) -> None:
    board = json.loads((place.folder / "pools.json").read_text())
    for change, what in (
        ({"bpffs": str(place.folder)}, "there is no data path for sockets in"),
        ({"cookie": 1}, "this is another network namespace than the one of server1"),
        ({"cgroup": None, "off": "cgroup2 is not mounted"}, "on this host: cgroup2 is not mounted"),
        ({"format": 9}, "cannot read"),
    ):
        (place.folder / "pools.json").write_text(json.dumps(board | change))
        place.refused(3, what, "run", "--pool", "gb", "--", "true")
        place.refused(3, what, "attach", "--pool", "gb", "--cgroup", str(place.make(secrets.token_hex(3))))
        place.refused(3, what, "detach", "--cgroup", str(place.root))
    assert place.sockets.withdraw() == ()
    place.refused(3, "no agent has set up anything here", "run", "--pool", "gb", "--", "true")


NOBODY = """
import os, sys
from softunicast.cli import run, main
from softunicast.kernel import agreements, cgroup_tree, joining, pool_state, socket_hooks
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.exit(main.main())
"""


def test_not_root(place: Place) -> None:
    for parent in (place.folder, *place.folder.parents):
        if parent.owner() == "root" and parent.name.startswith(("pytest-", place.folder.name)):
            parent.chmod(0o755)
    argv = ["--socket", str(place.folder / "agent.sock"), "run", "--pool", "gb", "--", "true"]
    command = [sys.executable, "-c", NOBODY, *argv]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("softunicast: not allowed to use the data path; fix: run as root")
    assert (place.pools(), place.below()) == ({}, [])


def test_lost_to_somebody_who_tidied_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the making of its cgroup and the moving in: made once more, and what is refused leaves nothing."""
    made: list[Path] = []

    def lost(path: Path) -> bool:
        made.append(path)
        if len(made) == 1:
            assert place.joining.tidy() == 1
        return len(made) > 1

    monkeypatch.setattr(joining.cgroup_tree, "enter", lost)
    assert place.joining.join("gb") == made[1]
    assert list(place.pools()) == [made[1].name]

    def refused(path: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(joining.cgroup_tree, "enter", refused)
    with pytest.raises(PermissionError):
        place.joining.join("gb")
    assert place.pools() == {}  # and the one before, which nobody entered, was tidied up
    assert place.below() == []


# -- attach, detach ------------------------------------------------------------------------------------------


def test_attach_and_detach(place: Place) -> None:
    unit = place.make("unit")
    where = ["--cgroup", str(unit)]
    assert place.ask("attach", *where, "--pool", "gb") == (0, f"{unit} leaves from pool gb\n", "")
    assert place.ask("attach", *where, "--tag", "pool=gb") == (
        0,
        f"{unit} leaves from pool gb, as before\n",
        "",
    )
    assert place.pools() == {"unit": "gb"}
    assert place.ask("attach", "--cgroup", "/unit", "--pool", "fr") == (
        0,
        f"{unit} leaves from pool fr\n",
        "",
    )
    assert place.pools() == {"unit": "fr"}
    assert place.joining.tidy() == 0
    assert place.ask("detach", *where) == (0, f"{unit} is in no agreement any more\n", "")
    assert place.pools() == {}
    place.refused(2, "is in no agreement of its own", "detach", *where)


def test_what_the_agent_lists(place: Place) -> None:
    unit = place.make("unit")
    place.joining.attach(unit, "gb")
    with place.start("run", "--pool", "fr", "--", "cat") as child:
        until(lambda: cgroup_tree.name_of(child.pid) == "cat")
        run, attached = sorted(place.sockets.members(), key=lambda one: str(one.entry.path))
        assert (run.entry.joined, run.entry.pool, run.processes) == (True, "fr", ((child.pid, "cat"),))
        assert (attached.entry.path, attached.entry.pool, attached.processes) == (unit, "gb", ())
        assert not attached.entry.joined
        path = str(run.entry.path)
        assert place.sockets.withdraw() == (path,)
        place.sockets.publish()
        place.refused(2, "was made by softunicast run", "attach", "--cgroup", path, "--pool", "gb")
        place.refused(2, "was made by softunicast run", "detach", "--cgroup", path)
        child.communicate("", timeout=TIMEOUT_S)


class Refusing:
    """A C library whose open_by_handle_at is not permitted."""

    def open_by_handle_at(self, *_: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1


@pytest.mark.parametrize("permitted", [True, False])
def test_an_entry_goes_with_its_cgroup(
    place: Place, permitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not permitted:  # as for an agent without CAP_DAC_READ_SEARCH
        monkeypatch.setattr(cgroup_tree, "_libc", Refusing())
    unit = place.make("unit")
    place.joining.attach(unit, "gb")
    unit.rmdir()
    assert place.pools() == {"gone": "gb"}
    again = place.make("unit")
    assert place.joining.tidy() == 1
    assert place.pools() == {}
    assert again.is_dir()


def test_an_excused_cgroup_stays_so(place: Place) -> None:
    unit = place.make("unit")
    place.joining._table.excuse(cgroups.number(unit))
    place.refused(2, "is excused", "attach", "--cgroup", str(unit), "--pool", "gb")
    place.refused(2, "is excused", "detach", "--cgroup", str(unit))


def test_what_is_no_cgroup_of_ours(place: Place) -> None:
    other = place.root.with_name(f"{place.root.name}-other")
    other.mkdir()
    try:
        for path, what in (
            (other, "does not lie below"),
            (place.root, "is the root of all cgroups"),
            (place.folder, "is no cgroup"),
            (place.root / "nothing", "there is no cgroup"),
            (place.root / "cgroup.procs", "is no cgroup"),
            (CGROUP1, "is a cgroup of version 1"),
        ):
            if path == CGROUP1 and not CGROUP1.exists():
                continue  # a host without the old hierarchies
            place.refused(2, what, "attach", "--pool", "gb", "--cgroup", str(path))
            place.refused(2, what, "detach", "--cgroup", str(path))
    finally:
        other.rmdir()


def test_a_container_with_a_network_of_its_own(place: Place) -> None:
    unit = place.make("unit")
    with subprocess.Popen(["unshare", "-n", "sleep", "60"]) as child:
        try:
            until(lambda: cgroup_tree.name_of(child.pid) == "sleep")
            (place.make("unit/inner") / "cgroup.procs").write_text(str(child.pid))
            what = f"process {child.pid} (sleep) in {unit} has a network of its own"
            place.refused(2, what, "attach", "--pool", "gb", "--cgroup", str(unit))
        finally:
            child.kill()
