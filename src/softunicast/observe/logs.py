"""Structured logs on stderr: an event in a few words, and what it is about as fields, for people or for machines.

Events are named "noun verb" ("slice acquired"); fields carry units last. Writing a log line must never stop the
program: when whoever reads stderr has gone, lines are lost and nothing else. The only importer of structlog.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

# structlog imports rich, where it is installed, for tracebacks in colour. That is a sixth of the memory the agent
# may use, for something that nobody sees: it is not to be found while structlog is imported.
_HIDDEN: Final = "rich" not in sys.modules
if _HIDDEN:
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
    import structlog.dev
finally:
    if _HIDDEN:
        del sys.modules["rich"]

Log = structlog.typing.FilteringBoundLogger

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("auto", "json", "console")


def configure(style: str = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Sets up logging for the process. `style` "auto" is console on a terminal and JSON lines elsewhere."""
    target = sys.stderr if stream is None else stream
    people = style == "console" or (style == "auto" and target.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp" if people else "at"),
    ]
    if people:
        processors += [_as_text, structlog.dev.ConsoleRenderer(colors=target.isatty())]
    else:
        # Values appear as str() gives them: a slice is its text.
        renderer = structlog.processors.JSONRenderer(default=str)
        processors += [structlog.processors.format_exc_info, _in_order, renderer]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Lines(target),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def _as_text(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Values as str() gives them, as in JSON: a slice is its text."""
    plain = (str, int, float, bool, type(None), list, dict, tuple)
    return {key: value if isinstance(value, plain) else str(value) for key, value in event.items()}


def logger(**fields: object) -> Log:
    """A logger whose every event carries these fields."""
    log: Log = structlog.get_logger(**fields)
    return log


def _in_order(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """When, how bad and what first: lines are also read by eye."""
    first = {key: event.pop(key) for key in ("at", "level", "event") if key in event}
    return first | dict(event)


class _Lines:
    """What structlog writes to: whole lines, and no exception when they cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # a closed pipe or file: there is nobody left to tell

    debug = info = warning = error = critical = exception = msg


class _Forward(logging.Handler):
    """Libraries that use the standard logging module appear as events of the same stream."""

    def emit(self, record: logging.LogRecord) -> None:
        logger().log(record.levelno, record.getMessage(), source=record.name, exc_info=record.exc_info)
