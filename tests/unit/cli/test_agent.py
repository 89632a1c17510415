"""`softunicast agent` as far as it needs no root: what it refuses, and what --check says."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from softunicast.cli.main import main

CONFIG = """\
[server]
name = "server1"
site = "lab"
[uplink]
interface = "{uplink}"
[ledger]
kind = "sqlite"
path = "/nonexistent/ledger.db"
[[pools]]
name = "gb"
tags = {{ country = "gb" }}
[[onramps]]
interface = "sutest-none"
pool = "gb"
"""


def write(path: Path, text: str) -> str:
    file = path / "agent.toml"
    file.write_text(text)
    return str(file)


def test_check_says_what_would_happen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, CONFIG.format(uplink="sutest-up"))
    assert main(["agent", "--config", path, "--check"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: no problems\n")
    assert "would hold a slice for pool gb (country=gb)" in out
    assert "would translate what comes in by sutest-none into pool gb" in out
    assert "note: on this host, there is no interface sutest-up" in out
    assert "note: there is no ledger /nonexistent/ledger.db" in out
    assert [file.name for file in tmp_path.iterdir()] == ["agent.toml"]


def test_check_speaks_of_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = """
[[onramps]]
kind = "fd"
name = "sutest-tun"
pool = "gb"
address = "10.9.0.1/24"
sources = ["10.9.0.0/24"]
users = ["no-such-one"]
groups = ["root"]
"""
    text = CONFIG.format(uplink="lo") + device
    assert main(["agent", "--config", write(tmp_path, text), "--check"]) == 0
    out = capsys.readouterr().out
    assert (
        "would make the TUN device sutest-tun (10.9.0.1/24) for no-such-one, group root, "
        "handed out at /run/softunicast/fd.sock\n"
    ) in out
    assert "on-ramp sutest-tun is not on this host" not in out
    assert "note: on this host, on-ramp sutest-tun: " in out
    assert "no-such-one" in out.partition("note: on this host, on-ramp")[2].splitlines()[0]


@pytest.mark.parametrize("check", [True, False])
def test_three_mistakes_are_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], check: bool
) -> None:
    text = CONFIG.format(uplink="eth0").replace("server1", "No Name").replace('"gb"\n[[', '"us"\n[[', 1)
    path = write(tmp_path, text.replace("[ledger]", "[ledger]\nspeed = 3") + 'color = "red"\n')
    assert main(["agent", "--config", path, *(["--check"] if check else [])]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "3 problems: line 2: " in error
    assert " | line 7: ledger.speed: unknown key" in error
    assert " | line 16: onramps[1].color: unknown key" in error


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path / "missing.toml", "No such file"),
        (lambda path: path, "Is a directory"),
        (lambda path: write(path, "x" * (2 << 20)), "over 1048576 bytes"),
    ],
)
def test_unreadable_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, says: str) -> None:
    assert callable(make)
    assert main(["agent", "--config", str(make(tmp_path))]) == 2
    assert says in capsys.readouterr().err


def test_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.toml").write_bytes(b"\xff\xfe")
    assert main(["agent", "--config", str(tmp_path / "agent.toml")]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_without_privilege_nothing_happens(capfd: pytest.CaptureFixture[str]) -> None:
    import softunicast.agent.start  # noqa: F401  (the child may not be able to read it any more)

    with TemporaryDirectory() as name:  # one that anybody can look into
        path = Path(name)
        path.chmod(0o755)
        config = write(path, CONFIG.format(uplink="lo") + f'[agent]\nstate_dir = "{path}/state"\n')
        pid = os.fork()
        if pid == 0:
            os.setuid(65534)
            os._exit(main(["agent", "--config", config]))
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 3
        assert [file.name for file in path.iterdir()] == ["agent.toml"]
    error = capfd.readouterr().err
    assert "the agent needs CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON; fix: run it as root" in error
    assert error.count("\n") == 1
