"""`softunicast doctor`: what it tells the doctor about the agent, what it prints, and its exit code."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from softunicast.cli import client
from softunicast.kernel import doctor
from softunicast.kernel.doctor import Finding, Scope, Severity
from softunicast.strategies import catalogue
from softunicast.strategies.catalogue import Answer

from .conftest import Ended, FakeAgent

Run = Callable[..., Ended]

CONFIG = """
[server]
name = "server1"
site = "lab"
[uplink]
interface = "uplink"
[ledger]
kind = "sqlite"
path = "/var/lib/softunicast/ledger.db"
[agent]
socket = "{directory}/agent.sock"
state_dir = "{directory}/state"
bpffs = "{directory}/bpf"
[[pools]]
name = "gb"
tags = {{}}
[[onramps]]
interface = "clients"
pool = "gb"
"""
FINDINGS = (
    Finding(Severity.OK, "tcx is there"),
    Finding(Severity.WARNING, "17 pins and no agent", "start it again"),
)


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """What the strategies of this host are said to be: none, unless a test adds some."""
    answers: list[Answer] = []
    monkeypatch.setattr(catalogue, "examine", lambda: tuple(answers))
    return answers


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Scope]:
    """Each scope that is examined; FINDINGS are found."""
    scopes: list[Scope] = []

    def examine(scope: Scope) -> tuple[Finding, ...]:
        scopes.append(scope)
        return FINDINGS

    monkeypatch.setattr(doctor, "examine", examine)
    return scopes


DEVICE = """
[[onramps]]
kind = "fd"
name = "apps"
pool = "gb"
address = "10.9.0.1/24"
sources = ["10.9.0.0/24"]
users = ["nobody"]
"""


def note(state_dir: Path) -> None:
    """What the journal of an agent looks like that changed something on this boot."""
    state_dir.mkdir(exist_ok=True)
    journal = {
        "format": 1,
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "settings": {"net/ipv4/conf/clients/forwarding": {"original": 0, "ours": 1}},
        "addresses": ["198.51.100.10"],
        "tuns": ["apps"],
    }
    (state_dir / "host.json").write_text(json.dumps(journal))


def test_problems_by_default_all_on_request(run: Run, seen: list[Scope], tmp_path: Path) -> None:
    asked = ("--socket", tmp_path / "none.sock", "doctor")
    ended = run(*asked)
    assert (ended.code, ended.err) == (0, "well: 1, see --all\n")
    assert ended.out.splitlines()[1].split("  ")[0] == "warning"
    assert "tcx" not in ended.out
    assert len(run(*asked, "--all").out.splitlines()) == 3
    assert [row["severity"] for row in run(*asked, "--all", "--json").json] == ["warning", "ok"]
    assert run(*asked, "--json").json == [
        {"severity": "warning", "what": "17 pins and no agent", "fix": "start it again"}
    ]


def test_strategies_that_cannot_run_are_notes(
    run: Run, seen: list[Scope], tmp_path: Path, answers: list[Answer]
) -> None:
    """What no host can run is none of this host's trouble."""
    answers += [
        Answer("snat", "", True, True),
        Answer("repair", "", True, False, "nftables: no", "load it"),
        Answer("terminate", "", False, False, "not built"),
        Answer("claims", "", True, False, "told already"),
    ]
    asked = ("--socket", tmp_path / "none.sock", "doctor", "--json")
    assert [row for row in run(*asked).json if row["severity"] == "note"] == [
        {"severity": "note", "what": "the strategy repair cannot run: nftables: no", "fix": "load it"}
    ]
    said = [row["what"] for row in run(*asked, "--all").json if row["severity"] == "ok"]
    assert said[-2:] == ["the strategy snat can run", "the strategy terminate cannot run: not built"]


def test_an_error_is_exit_code_3(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda scope: (Finding(Severity.ERROR, "no tcx", "boot another"),))
    assert run("--socket", tmp_path / "none.sock", "doctor").code == 3


def test_without_an_agent_the_configuration_says_where_to_look(
    run: Run, seen: list[Scope], tmp_path: Path
) -> None:
    """A device that an agent would make is not missed."""
    (tmp_path / "agent.toml").write_text(CONFIG.format(directory=tmp_path) + DEVICE)
    note(tmp_path / "state")
    assert run("doctor", "--config", tmp_path / "agent.toml").code == 0
    assert seen == [
        Scope(
            bpffs=tmp_path / "bpf",
            uplink="uplink",
            onramps=("clients",),
            agent_answers=False,
            noted_settings=("net/ipv4/conf/clients/forwarding",),
            noted_addresses=frozenset({IPv4Address("198.51.100.10")}),
            noted_tuns=("apps",),
        )
    ]


def test_with_an_agent_it_is_asked(run: Run, seen: list[Scope], agent: FakeAgent) -> None:
    agent.answers |= {
        "/v1/status": {"uplink": "eth0", "problems": ["pool gb has 1 slices less"]},
        "/v1/slices": [{"address": "198.51.100.10"}, {"address": "198.51.100.10"}],
        "/v1/pools": [
            {"onramps": ["vpn"], "addresses": []},
            {"onramps": ["clients"], "addresses": ["2001:db8::1"]},
        ],
    }
    note(agent.socket.parent)
    ended = run("--socket", agent.socket, "doctor")
    assert (seen[0].agent_answers, seen[0].uplink, seen[0].onramps) == (True, "eth0", ("clients", "vpn"))
    assert seen[0].onramps6 == ("clients",)
    assert seen[0].shared == seen[0].noted_addresses == {IPv4Address("198.51.100.10")}
    assert "the agent says: pool gb has 1 slices less" in ended.out


def test_an_agent_that_hangs_is_not_taken_for_gone(
    run: Run, seen: list[Scope], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "agent.sock"))
        silent.listen()
        ended = run("--socket", tmp_path / "agent.sock", "doctor")
    assert seen[0].agent_answers is None
    assert ended.code == 3
    assert "did not answer within" in ended.out


def test_a_journal_that_cannot_be_read_is_a_finding(run: Run, seen: list[Scope], tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text("not json")
    ended = run("--socket", tmp_path / "agent.sock", "doctor", "--json")
    assert ended.code == 3
    assert ended.json[0]["severity"] == "error"
    assert str(tmp_path / "host.json") in ended.json[0]["what"]


def test_a_missing_libbpf_is_one_finding(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTUNICAST_LIBBPF", "/nonexistent/libbpf.so.1")
    doctor.probe.load_library.cache_clear()
    try:
        ended = run("--socket", tmp_path / "none.sock", "doctor", "--json")
    finally:
        doctor.probe.load_library.cache_clear()
    assert ended.code == 3
    assert "/nonexistent/libbpf.so.1" in ended.json[0]["what"]
    assert ended.json[0]["fix"] == "apt-get install libbpf1"
