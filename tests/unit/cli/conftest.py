"""An agent that only answers: canned JSON over a unix socket, and a note of what it was asked."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from softunicast.cli.main import main


@dataclass
class FakeAgent:
    """`answers`: path -> what to answer; bytes are sent as they are. `asked`: path, query, body of each request."""

    socket: Path
    answers: dict[str, Any] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """What a command line printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs `softunicast ARGUMENTS` in this process, with no settings from the environment."""
    for name in ("SOFTUNICAST_SOCKET", "SOFTUNICAST_LEDGER", "SOFTUNICAST_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    fake = FakeAgent(tmp_path / "agent.sock")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            target = urlsplit(self.path)
            fake.asked.append((target.path, dict(parse_qsl(target.query)), body))
            answer = fake.answers[target.path]
            payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(fake.statuses.get(target.path, 200))
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(fake.socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(run: Callable[..., Ended], agent: FakeAgent) -> Callable[..., Ended]:
    """Runs `softunicast ARGUMENTS` against the fake agent."""
    return lambda *arguments: run("--socket", agent.socket, *arguments)
