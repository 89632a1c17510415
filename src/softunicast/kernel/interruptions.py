"""Interruptions (Ctrl-C, SIGTERM, SIGHUP) put off while something must not stop half way.

Python raises KeyboardInterrupt in the main thread between any two steps, so also between making a thing and noting
that it was made. Not a signal mask: a signal to the process would find another thread that does not mask it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

NUMBERS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@contextmanager
def deferred() -> Iterator[None]:
    """Interruptions that arrive in the block are delivered at its end. For blocks that end by themselves soon."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is ever interrupted
        yield
        return
    arrived: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        arrived.append(number)

    saved = {
        number: signal.signal(number, note) for number in NUMBERS if signal.getsignal(number) is not None
    }
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)
        for interruption in dict.fromkeys(arrived):
            signal.raise_signal(interruption)


@contextmanager
def all_alike() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt like Ctrl-C, so that whoever is stopped also undoes what it did.

    What somebody else handles or ignores (nohup) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in NUMBERS if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
