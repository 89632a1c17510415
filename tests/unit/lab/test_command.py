"""`softunicast lab` where there is no lab: what it shows, what it refuses, with which exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from softunicast.cli.main import main
from softunicast.lab import state
from softunicast.lab.failures import FAILURES


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "RUN_DIR", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == ["pair", "pair6", "routed"]
    assert found[0]["nodes"] == ["client1", "client2", "server1", "server2", "router", "internet"]


@pytest.mark.usefixtures("nobody")
def test_the_failures_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "failure", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["stray_rst"]["strategies"] == ["conntrack"]


@pytest.mark.usefixtures("root")
def test_status_without_labs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    "arguments",
    [
        "up pair",
        "status",
        "status pair",
        "down pair",
        "down --all",
        "exec client1 ls",
        "demo",
        "failure stray_rst",
    ],
)
def test_without_root_everything_but_list_ends_with_3(
    arguments: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", *arguments.split()]) == 3
    assert "needs root; fix: sudo softunicast lab" in capsys.readouterr().err
    assert not run_dir.exists()


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("failure nat", f"there is no failure 'nat'; fix: use one of {', '.join(FAILURES)}"),
        ("up pear", "there is no topology 'pear'; fix: use one of pair, pair6, routed"),
        ("up pair --id Pair", "'Pair' cannot name a lab; fix: use 1-24 of a-z 0-9 -, not starting with -"),
        ("status none", "there is no lab 'none'; fix: no lab is up: softunicast lab up pair"),
        ("down none", "there is no lab 'none'; fix: no lab is up: softunicast lab up pair"),
        ("down", "which lab?; fix: give its ID or --all"),
        ("down one --all", "which lab?; fix: give its ID or --all"),
        ("exec client1 -- ls", "no lab is up; fix: softunicast lab up pair"),
        ("exec client1 --", "which program?; fix: softunicast lab exec client1 -- CMD..."),
    ],
)
def test_wrong_input_is_one_line_with_the_fix(
    arguments: str, line: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"softunicast: {line}\n"
    assert not run_dir.exists()


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("up pair", "the program ip is missing; fix: apt-get install iproute2"),
        ("demo", "the program curl is missing; fix: apt-get install curl"),
    ],
)
def test_a_missing_program_is_named_with_its_package(
    arguments: str,
    line: str,
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["lab", *arguments.split()]) == 3
    assert capsys.readouterr().err == f"softunicast: {line}\n"
    assert not run_dir.exists()
