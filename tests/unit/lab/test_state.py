"""Labs on disk: they appear whole and locked, disappear whole, and a killed holder leaves nothing half."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from softunicast.core.errors import InputError, LabError, UnknownNameError
from softunicast.lab import state
from softunicast.lab.state import Lab, Process


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "RUN_DIR", tmp_path / "run")
    return tmp_path / "run"


def lab(lab_id: str = "one") -> Lab:
    return Lab(lab_id, "pair", 1.5, state.boot_id(), os.getpid(), {"a": f"sulab-{lab_id}-a"}, ("a",))


def test_what_is_saved_is_what_is_loaded() -> None:
    full = replace(lab(), ready=True, processes=(Process("a", "agent", 12, 345),))
    with state.claimed(lab()):
        state.save(full)

    assert state.load("one") == full
    assert state.known() == ("one",)


def test_a_claimed_lab_is_locked_until_the_end() -> None:
    with state.claimed(lab()):
        assert state.is_locked(lab())
    assert not state.is_locked(lab())


def test_an_id_is_claimed_once() -> None:
    with (
        state.claimed(lab()),
        pytest.raises(InputError, match="there is a lab one already"),
        state.claimed(lab()),
    ):
        pass
    assert state.load("one") == lab(), "the first one is untouched"
    assert [entry.name for entry in state.RUN_DIR.iterdir()] == ["one"]


def test_unknown_labs_are_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="no lab is up: softunicast lab up pair"):
        state.load("two")
    with (
        state.claimed(lab()),
        pytest.raises(UnknownNameError, match="there is no lab 'two'; fix: use one of one"),
    ):
        state.load("two")


def test_a_state_of_another_version_is_refused() -> None:
    with state.claimed(lab()):
        file = lab().directory / state.STATE_FILE
        file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
        with pytest.raises(LabError, match="another version"):
            state.load("one")


def test_whoever_waits_for_a_lab_that_goes_away_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Lab | None] = []
    tried = threading.Event()
    real = state._try_lock

    def noticed(descriptor: int) -> bool:
        got = real(descriptor)
        tried.set()
        return got

    def wait() -> None:
        with state.locked("one") as late:
            found.append(late)

    waiting = threading.Thread(target=wait)
    monkeypatch.setattr(state, "_try_lock", noticed)
    with state.claimed(lab()):
        waiting.start()
        assert tried.wait(10), "it has opened the directory and found it locked"
        state.forget(lab())
    waiting.join(10)

    assert found == [None]
    assert state.known() == ()


def test_a_holder_who_takes_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LOCK_TIMEOUT_S", 0.1)
    with state.claimed(lab()), pytest.raises(LabError, match=f"pid {os.getpid()}"), state.locked("one"):
        pass


def test_forgetting_leaves_nothing(run_dir: Path) -> None:
    with state.claimed(lab()):
        (lab().directory / "a").mkdir()
        state.forget(lab())

    assert list(run_dir.iterdir()) == []


def test_sweep_takes_what_the_dead_left_and_nothing_else(run_dir: Path) -> None:
    (run_dir / ".new-two-123").mkdir(parents=True)
    (run_dir / ".gone-three-123" / "a").mkdir(parents=True)
    with state.claimed(lab()):
        with state._opened(run_dir / ".gone-three-123") as descriptor:
            assert state._try_lock(descriptor)
            state.sweep()
            assert sorted(entry.name for entry in run_dir.iterdir()) == [".gone-three-123", "one"]
        state.sweep()
        assert [entry.name for entry in run_dir.iterdir()] == ["one"]


@pytest.mark.parametrize("wrong", ["", "-a", "A", "a/b", "..", "a b", "a" * 25, ".new", "a\n"])
def test_ids_that_are_no_names_are_refused(wrong: str) -> None:
    with pytest.raises(InputError, match="cannot name a lab"):
        state.check_id(wrong)


def test_an_unknown_node_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="lab one has no node 'b'; fix: use one of a"):
        lab().namespace("b")
