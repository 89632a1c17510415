"""Logs: what a line looks like, and that nothing about them can stop a program."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
import structlog

from softunicast.core.slices import Slice
from softunicast.observe import logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_json_lines() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    log = logs.logger(server="server1")
    log.info("slice acquired", slice=Slice.parse("198.51.100.10:2048-4095"), epoch=3)
    log.debug("not asked for")
    line = json.loads(out.getvalue())
    assert list(line)[:3] == ["at", "level", "event"]
    assert line["at"].endswith("Z")
    assert line | {"at": ""} == {
        "at": "",
        "level": "info",
        "event": "slice acquired",
        "server": "server1",
        "slice": "198.51.100.10:2048-4095",
        "epoch": 3,
    }


def test_auto_is_json_where_nobody_looks() -> None:
    out = io.StringIO()
    logs.configure("auto", "info", out)
    logs.logger().info("agent ready")
    assert json.loads(out.getvalue())["event"] == "agent ready"


def test_console() -> None:
    out = io.StringIO()
    logs.configure("console", "debug", out)
    logs.logger().debug("claims swept", freed=3)
    assert "claims swept" in out.getvalue()
    assert "freed=3" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_exceptions_are_whole_and_on_one_line() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    try:
        raise ValueError("deep\nproblem")
    except ValueError:
        logs.logger().exception("defect")
    (line,) = out.getvalue().splitlines()
    assert "ValueError: deep\nproblem" in json.loads(line)["exception"]


def test_libraries_speak_in_the_same_stream() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    logging.getLogger("aiohttp.server").error("bad request from %s", "somebody")
    line = json.loads(out.getvalue())
    assert (line["event"], line["source"], line["level"]) == (
        "bad request from somebody",
        "aiohttp.server",
        "error",
    )


def test_reader_that_went_away_is_survived() -> None:
    reading, writing = os.pipe()
    out = os.fdopen(writing, "w")
    logs.configure("json", "info", out)
    os.close(reading)
    logs.logger().error("anybody there?")
    with suppress(BrokenPipeError):  # what is left in the buffer
        out.close()


def test_closed_stream_is_survived() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    out.close()
    logs.logger().error("anybody there?")


def test_rich_stays_out_of_memory_and_can_be_imported_later() -> None:
    code = "import sys; from softunicast.observe import logs; assert 'rich' not in sys.modules; import rich.table"
    subprocess.run([sys.executable, "-c", code], check=True)
