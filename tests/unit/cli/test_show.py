"""Tables: plain and whole in a pipe, folded on a terminal; the words for cells and times."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from softunicast.cli import show

COLUMNS: list[show.Column] = [("NAME", lambda row: row["name"]), ("PORTS", lambda row: row["ports"])]
ROWS = [{"name": "[red]gb[/red]" + "x" * 300, "ports": 64}, {"name": "de", "ports": 2048}]


def test_a_pipe_gets_whole_rows_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show.rows(ROWS, COLUMNS, as_json=False, empty="none")
    heading, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [ROWS[0]["name"], "64"]
    assert second.split() == ["de", "2048"]
    assert heading.index("PORTS") + len("PORTS") == len(first) == len(second)  # numbers to the right


def test_json_is_the_rows_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    show.rows(ROWS, COLUMNS, as_json=True, empty="none")
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == (ROWS, "")
    show.rows([], COLUMNS, as_json=True, empty="none")
    assert json.loads(capsys.readouterr().out) == []


def test_no_rows_are_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show.rows([], COLUMNS, as_json=False, empty="no pools")
    assert tuple(capsys.readouterr()) == ("", "no pools\n")


def test_a_terminal_gets_rows_folded_to_its_width() -> None:
    program = (
        "from softunicast.cli import show; show.rows([{'name': '[b]' + 'x' * 300}],"
        "[('NAME', lambda row: row['name'])], as_json=False, empty='')"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm"}
    ended = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, env=environment)
    os.close(theirs)
    output = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        output += piece
    os.close(ours)
    assert ended.wait(60) == 0
    lines = output.decode().splitlines()
    assert "".join(lines).count("x") == 300
    assert "[b]" in output.decode()  # data is not markup
    assert all(line.count("x") <= 60 for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        ({}, "-"),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (["a", None, "b"], "a, -, b"),
        ({"product": "demo", "country": "gb"}, "country=gb product=demo"),
        ("two\nlines", "two lines"),
    ],
)
def test_text(value: object, text: str) -> None:
    assert show.text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None),
        (-0.1, "over"),
        (0, "0.0 s"),
        (9.44, "9.4 s"),
        (9.97, "10 s"),
        (59.9, "59 s"),
        (60, "1 m"),
        (252, "4 m 12 s"),
        (3600, "1 h"),
        (7440, "2 h 4 m"),
        (90_000, "1 d 1 h"),
        (86_399, "23 h 59 m"),
    ],
)
def test_span(seconds: float | None, text: str | None) -> None:
    assert show.span(seconds) == text


def test_instant() -> None:
    assert show.instant(1777644127.25) == "2026-05-01T14:02:07.250Z"
