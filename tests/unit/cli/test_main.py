"""One line on stderr and the right exit code for everything; imports only for the noun that is asked."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from softunicast import __version__
from softunicast.cli import main as cli_main
from softunicast.cli.main import NOUNS
from softunicast.core.errors import HostError, InputError, LeaseError, SoftunicastError

from .conftest import Ended, FakeAgent

Run = Callable[..., Ended]
SOFTUNICAST = [sys.executable, "-c", "import sys; from softunicast.cli.main import main; sys.exit(main())"]
HEAVY = ("aiohttp", "pyroute2", "cffi", "rich", "asyncio", "sqlite3", "structlog", "ctypes")


def test_help_names_every_noun(run: Run) -> None:
    ended = run("--help")
    assert ended.code == 0
    for noun, about in NOUNS.items():
        assert noun in ended.out
        assert about in ended.out
    assert max(len(line) for line in ended.out.splitlines()) <= 80


def test_version(run: Run) -> None:
    assert run("--version") == Ended(0, f"softunicast {__version__}\n", "")


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_has_help_with_an_example(noun: str, run: Run) -> None:
    assert isinstance(importlib.import_module(f"softunicast.cli.{noun}").command, click.Command)
    ended = run(noun, "--help")
    assert ended.code == 0
    assert "Example" in ended.out
    assert f"softunicast {noun}" in ended.out


def test_no_arguments_print_help_and_fail(run: Run) -> None:
    ended = run()
    assert (ended.code, ended.out) == (2, "")
    assert "Usage: softunicast" in ended.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["slics"], "softunicast: no such command 'slics'; fix: see softunicast --help"),
        (["slices", "--jso"], "softunicast: no such option '--jso'"),
        (["drops", "x"], "softunicast: got unexpected extra argument (x); fix: see softunicast drops --help"),
        (["flows", "--limit", "0"], "softunicast: invalid value for '--limit': 0 is not in the range"),
        (["explain", "tcp", "10.0.0.2:1", "10.0.0.3:2"], "softunicast: missing option '--from'"),
        (["ledger", "show"], "softunicast: missing option '--ledger'"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments: list[str], line: str, run: Run) -> None:
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(line)
    assert ended.err.count("\n") == 1
    assert "; fix: " in ended.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SoftunicastError("it\nfailed"), 1),
        (LeaseError("gone", "take another"), 1),
        (InputError("wrong", "write it right"), 2),
        (HostError("cannot", "run as root"), 3),
    ],
)
def test_our_errors_are_one_line_with_their_exit_code(
    error: SoftunicastError, code: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_main.Nouns, "invoke", raising(error))
    line = " ".join(str(error).split())
    assert run("slices") == Ended(code, "", f"softunicast: {line}\n")


def test_a_defect_is_one_line_that_says_how_to_see_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_main.Nouns, "invoke", raising(KeyError("slices")))
    ended = run("slices")
    assert ended.code == 1
    assert ended.err.startswith("softunicast: defect: KeyError: 'slices'; fix: report it")
    assert ended.err.count("\n") == 1
    monkeypatch.setenv("SOFTUNICAST_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli_main.main(["slices"])


def test_interrupted_is_130_and_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_main.Nouns, "invoke", raising(KeyboardInterrupt()))
    ended = run("slices")
    assert (ended.code, ended.out, ended.err.strip()) == (130, "", "")


def test_the_exit_code_of_a_command_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_main.Nouns, "invoke", lambda self, context: context.exit(7))
    assert run("slices").code == 7


def test_a_reader_that_goes_away_is_no_error(agent: FakeAgent) -> None:
    row = {
        "name": "n" * 100,
        "site": "s",
        "address": "192.0.2.1",
        "mac": "02::",
        "reached": "self",
        "slices": 1,
    }
    agent.answers["/v1/servers"] = [row] * 5000  # more than a pipe holds
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody_reads:
        ended = subprocess.run(
            [*SOFTUNICAST, "--socket", str(agent.socket), "servers"],
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize("arguments", [["--help"], ["slices"], ["flows", "--json"], ["drops"]])
def test_looking_imports_nothing_heavy(arguments: list[str], agent: FakeAgent) -> None:
    agent.answers |= {"/v1/slices": [], "/v1/flows": {"total": 0, "shown": 0, "flows": []}, "/v1/drops": []}
    program = (
        "import sys; from softunicast.cli.main import main; code = main();"
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "--socket", str(agent.socket), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stderr.splitlines()[-1] == "0 []"


def raising(error: BaseException) -> Callable[..., object]:
    def invoke(self: click.Group, context: click.Context) -> object:
        raise error

    return invoke
