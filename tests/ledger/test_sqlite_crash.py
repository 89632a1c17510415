"""Processes on one ledger file: several at once, and killed at any moment."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tests.ledger.sqlite_child import UNITS

from softunicast.ledger.sqlite import SqliteLedger

CHILD = Path(__file__).with_name("sqlite_child.py")
CHILD_S = 30  # no child lives longer, whatever happens
ROUNDS = 12
RACES = 100


@contextmanager
def child(verb: str, path: Path, server: str) -> Iterator[subprocess.Popen[str]]:
    """A child that is ready to open the ledger."""
    with subprocess.Popen(
        [sys.executable, CHILD, verb, path, server],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        stuck = threading.Timer(CHILD_S, process.kill)
        stuck.start()
        try:
            wait_for(process, "ready")
            yield process
        finally:
            stuck.cancel()
            process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert heard(process) == f"{word}\n"


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_four_processes_never_get_the_same_slice(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with ExitStack() as stack:
        racers = [stack.enter_context(child("race", path, f"server{number}")) for number in range(4)]
        for racer in racers:  # they make the file together, too
            go_on(racer)
        for racer in racers:
            wait_for(racer, "open")
        for racer in racers:
            go_on(racer)
        winners = set()
        epochs = []
        for slice in UNITS[:RACES]:
            racers = racers[1:] + racers[:1]  # the head start goes round
            for racer in racers:
                go_on(racer)
            said = {racer.pid: heard(racer).split() for racer in racers}
            held = [(pid, words) for pid, words in said.items() if words[0] == "held"]
            assert len(held) == 1
            assert all(words[1] == str(slice) for words in said.values())
            winners.add(held[0][0])
            epochs.append(int(held[0][1][2]))
        assert epochs == sorted(set(epochs))
        assert len(winners) > 1  # otherwise there was no race
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.close()
            assert racer.wait(CHILD_S) == 0


async def test_what_was_promised_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    promised: dict[str, tuple[str, str]] = {}  # slice: (state, epoch), the child's last word on it
    epoch_max = 0
    moments = random.Random(0)
    for round in range(ROUNDS):
        with child("churn", path, f"server{round}") as process:
            go_on(process)
            wait_for(process, "open")
            go_on(process)
            killer = threading.Timer(moments.uniform(0.0, 0.15), process.kill)
            killer.start()
            out, err = process.communicate()
            killer.join()
        assert (process.returncode, err) == (-9, "")
        # A line cut by the kill is no promise.
        lines = [line.split() for line in out[: out.rfind("\n") + 1].splitlines()]
        promised |= {slice: (state, epoch) for state, slice, epoch in lines}
        with closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        epoch_max = await _check(path, promised, epoch_max)
    assert len(promised) > 20  # the kills came late enough to mean something


async def _check(path: Path, promised: dict[str, tuple[str, str]], epoch_max: int) -> int:
    """Everything promised is there, nothing is half there; frees the slices and returns the latest epoch."""
    ledger = await SqliteLedger.open(path)
    leases = (await ledger.snapshot()).leases
    found = {str(lease.slice): (lease.epoch, lease.state.value) for lease in leases}
    for slice, (word, epoch) in promised.items():
        if word == "free":
            assert slice not in found or found[slice][0] > int(epoch)
        elif word != "releasing":
            # The child may have been killed between the next promise and its line.
            assert found[slice] in [(int(epoch), word), (int(epoch), "draining")]
    entries = await ledger.history(None, None, 10_000)
    last_event = {entry.epoch: entry.event for entry in entries[::-1] if entry.epoch is not None}
    unfinished = {epoch for epoch, event in last_event.items() if event in ("taken", "drain_started")}
    assert unfinished == {lease.epoch for lease in leases}
    assert sorted(last_event) == list(range(1, len(last_event) + 1))
    assert len(last_event) >= epoch_max
    for lease in leases:  # the next child starts with an empty address
        await ledger.release(lease, clean=True)
        promised[str(lease.slice)] = ("free", str(lease.epoch))
    await ledger.close()
    return len(last_event)


async def test_a_kill_while_the_file_is_made_leaves_a_ledger_or_none(tmp_path: Path) -> None:
    moments = random.Random(0)
    for round in range(8):
        path = tmp_path / f"ledger{round}.db"
        with child("race", path, "server1") as process:
            killer = threading.Timer(moments.uniform(0.0, 0.02), process.kill)
            go_on(process)
            killer.start()
            process.communicate()
            killer.join()
        ledger = await SqliteLedger.open(path)
        await ledger.snapshot()
        await ledger.close()
