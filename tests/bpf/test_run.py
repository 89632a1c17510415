"""`softunicast run` on real cgroups and tables, without an agent: from its beginning to what is left of it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.bpf.place import COMMAND, TIMEOUT_S, Place, until

from softunicast.kernel import cgroup_tree, joining

KILLS = 12


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
            "print([line for line in open('/proc/self/status') if line[:3] in ('Sig', 'Shd') and line[:4] != 'SigQ'])",
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
        (2, "of=test fits 4 pools; fix: choose one by name", ["--tag", "of=test"]),
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
        if parent.owner() == "root" and parent.name.startswith(("pytest-", "popen-", place.folder.name)):
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
