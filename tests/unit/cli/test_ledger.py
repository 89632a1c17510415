"""The ledger's commands on a real file: apply, show, history, and attribution without an agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from softunicast.core.records import Server
from softunicast.core.slices import Slice
from softunicast.ledger.sqlite import SqliteLedger

from .conftest import Ended

Run = Callable[..., Ended]

INVENTORY = """
[[blocks]]
prefix = "198.51.100.0/24"
[[addresses]]
address = "198.51.100.10"
site = "lab"
tags = { country = "gb" }
"""
SLICE = Slice.parse("198.51.100.10:8192-10239")


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "inventory.toml"
    path.write_text(INVENTORY)
    return path


@pytest.fixture
def ledger(tmp_path: Path, inventory: Path, run: Run) -> Path:
    path = tmp_path / "ledger.db"
    assert run("ledger", "apply", inventory, "--ledger", path).code == 0
    return path


def lease(ledger: Path, release: bool = False) -> None:
    async def take() -> None:
        book = await SqliteLedger.open(ledger)
        await book.register_server(Server("server1", "lab", IPv4Address("192.0.2.1"), "02:00:00:00:00:01"))
        taken = await book.acquire("server1", SLICE, 300)
        if release:
            await book.release(taken, clean=True)
        await book.close()

    asyncio.run(take())


def now() -> str:
    return datetime.now(UTC).isoformat()


def test_apply_says_what_changed(tmp_path: Path, inventory: Path, run: Run) -> None:
    path = tmp_path / "new.db"
    assert run("ledger", "apply", inventory, "--ledger", path).out == "2 added, 0 changed, 0 removed\n"
    inventory.write_text(INVENTORY.replace("gb", "de"))
    ended = run("ledger", "apply", inventory, "--ledger", path, "--json")
    assert ended.json == {"added": 0, "changed": 1, "removed": 0}


def test_an_inventory_with_mistakes_changes_nothing(tmp_path: Path, inventory: Path, run: Run) -> None:
    inventory.write_text(INVENTORY.replace("198.51.100.10", "203.0.113.1").replace("0/24", "1/24"))
    path = tmp_path / "new.db"
    ended = run("ledger", "apply", inventory, "--ledger", path)
    assert ended.code == 2
    assert "line 3" in ended.err
    assert ended.err.count("\n") == 1
    assert not path.exists()


def test_show(ledger: Path, run: Run) -> None:
    lease(ledger)
    ended = run("ledger", "show", "--ledger", ledger)
    assert ended.out.splitlines()[1].split() == ["198.51.100.10", "lab", "country=gb", "2048", "1", "31"]
    assert "blocks: 198.51.100.0/24; servers: server1" in ended.err
    book = run("ledger", "show", "--ledger", ledger, "--json").json
    assert book["addresses"][0]["tags"] == {"country": "gb"}
    assert book["servers"][0]["mac"] == "02:00:00:00:00:01"
    assert (book["leases"][0]["slice"], book["leases"][0]["state"]) == (str(SLICE), "held")
    assert 0 < book["leases"][0]["expires_in_s"] <= 300


def test_history_latest_first(ledger: Path, run: Run) -> None:
    lease(ledger, release=True)
    entries = run("ledger", "history", "--ledger", ledger, "--slice", SLICE, "--json").json
    assert [entry["event"] for entry in entries][:2] == ["handed_over", "taken"]
    limited = run("leases", "--history", "--ledger", ledger, "--slice", SLICE, "--limit", "1", "--json").json
    assert limited == entries[:1]
    before = run("ledger", "history", "--ledger", ledger, "--at", "2020-01-01T00:00:00Z")
    assert before == Ended(0, "", "the history has nothing about that\n")


def test_who_held_a_port_then(ledger: Path, run: Run) -> None:
    before = now()
    lease(ledger)
    after = now()
    ended = run("leases", "--who", "198.51.100.10:9017", "--at", after, "--ledger", ledger)
    assert ended.out.startswith(f"server1 held {SLICE} at ")
    for port, at in (("9017", before), ("2048", after)):
        ended = run("leases", "--who", f"198.51.100.10:{port}", "--at", at, "--ledger", ledger)
        assert ended.out.startswith(f"nobody could send from 198.51.100.10:{port} at ")
    assert (
        run("leases", "--who", "198.51.100.10:9017", "--ledger", ledger, "--json").json["server"] == "server1"
    )


def test_leases_of_the_file(ledger: Path, run: Run) -> None:
    lease(ledger)
    (row,) = run("leases", "--ledger", ledger, "--json").json
    assert (row["server"], row["state"], row["quarantined_for_s"]) == ("server1", "held", None)
    assert "server1" in run("leases", "--ledger", ledger).out


@pytest.mark.parametrize(
    "arguments",
    [["ledger", "show"], ["ledger", "history"], ["leases"], ["leases", "--who", "198.51.100.10:9017"]],
)
def test_looking_makes_no_ledger(arguments: list[str], tmp_path: Path, run: Run) -> None:
    path = tmp_path / "typo.db"
    ended = run(*arguments, "--ledger", path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"softunicast: there is no ledger {path}; fix: ")
    assert not path.exists()


def test_the_environment_names_the_ledger(ledger: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTUNICAST_LEDGER", str(ledger))
    assert "198.51.100.10" in run("ledger", "show").out
    # but `leases` without --ledger asks the agent, whatever the environment says
    assert run("--socket", ledger.parent / "none.sock", "leases").code == 3


@pytest.mark.parametrize(("content", "line"), [(b"\xff\xfe", "is not UTF-8 text"), (None, "cannot read")])
def test_inventories_that_cannot_be_read(
    content: bytes | None, line: str, tmp_path: Path, ledger: Path, run: Run
) -> None:
    path = tmp_path / "strange.toml"
    if content is not None:
        path.write_bytes(content)
    ended = run("ledger", "apply", path, "--ledger", ledger)
    assert ended.code == 2
    assert line in ended.err
