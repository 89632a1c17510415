"""Interruptions put off, and made alike."""

from __future__ import annotations

import signal
import threading

import pytest

from softunicast.kernel import interruptions


def interrupted(done: list[str]) -> None:
    with interruptions.deferred():
        signal.raise_signal(signal.SIGINT)
        done.append("rest of the block")


def test_an_interruption_waits_for_the_end_of_the_block() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(done)
    assert done == ["rest of the block"]


def test_blocks_nest() -> None:
    done: list[str] = []

    def nested() -> None:
        with interruptions.deferred():
            interrupted(done)
            done.append("rest of the outer block")

    with pytest.raises(KeyboardInterrupt):
        nested()
    assert done == ["rest of the block", "rest of the outer block"]


def test_an_error_of_the_block_is_not_lost() -> None:
    def failing() -> None:
        with interruptions.deferred():
            interrupted([])
            raise ValueError("of the block")

    with pytest.raises(KeyboardInterrupt) as caught:
        failing()
    assert isinstance(caught.value.__context__, ValueError)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_stopped_is_like_ctrl_c_and_only_inside(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptions.all_alike():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptions.all_alike():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_are_never_interrupted_and_may_use_both() -> None:
    done = []

    def work() -> None:
        with interruptions.all_alike(), interruptions.deferred():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
