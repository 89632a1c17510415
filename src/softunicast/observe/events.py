"""A log that keeps events: lines whose name is a kind of event (core/events.py) are also kept for whoever asks, and
merged when there are too many of them; all others just pass.

So an event is written by logging it, and the log, the API and `softunicast events` cannot differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from softunicast.core.events import KINDS, Event, EventBook
from softunicast.observe.logs import Log

_MILLISECONDS = (
    1000  # events are numbered from the start of the agent in these: later agents give larger numbers
)


class EventLog:
    """Stands in for a Log."""

    def __init__(self, log: Log, wall_s: Callable[[], float] = time.time) -> None:
        self._log = log
        self._wall_s = wall_s
        self.book = EventBook(int(wall_s() * _MILLISECONDS))

    def debug(self, event: str, **fields: Any) -> None:
        self._log.debug(event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        self._log.exception(event, **fields)

    def flush(self) -> None:
        """Writes what was only counted, once it is time."""
        for event in self.book.due(self._wall_s()):
            self._line("warning", event)

    def _write(self, level: str, name: str, fields: dict[str, Any]) -> None:
        if name not in KINDS:
            getattr(self._log, level)(name, **fields)
            return
        details = {key: value for key, value in fields.items() if key != "exc_info"}
        count = details.pop("count", 1)
        event = self.book.note(self._wall_s(), name, details, count)
        if event is not None:
            self._line(level, event)

    def _line(self, level: str, event: Event) -> None:
        times = {"count": event.count} if event.count > 1 else {}
        getattr(self._log, level)(event.kind, **event.details, **times)
