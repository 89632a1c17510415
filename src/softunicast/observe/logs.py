"""Structured logs on stderr: an event in a few words, and what it is about as fields, for people or for machines.

Events are named "noun verb" ("slice acquired"); fields carry units last. Writing a log line must never stop the
program: when whoever reads stderr has gone, lines are lost and nothing else.
"""

from __future__ import annotations

import logging
import sys
from typing import Final, TextIO

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("auto", "json", "console")


def configure(style: str = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Sets up logging for the process. `style` "auto" is console on a terminal and JSON lines elsewhere."""
    target = sys.stderr if stream is None else stream
    people = style == "console" or (style == "auto" and target.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=target.isatty())
        if people
        else structlog.processors.JSONRenderer(default=str, sort_keys=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            *([] if people else [structlog.processors.dict_tracebacks]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Lines(target),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


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
        logger = structlog.get_logger()
        logger.log(record.levelno, record.getMessage(), source=record.name, exc_info=record.exc_info)
