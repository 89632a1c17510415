"""Asking the agent: its refusals arrive as its errors, everything else as AgentUnreachableError with a way out."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from softunicast.cli import client
from softunicast.core.errors import AgentUnreachableError, HostError, InputError, SoftunicastError

from .conftest import FakeAgent


def test_get_sends_what_is_known_and_leaves_none_out(agent: FakeAgent) -> None:
    agent.answers["/v1/flows"] = {"total": 0}
    asked = {"limit": 5, "client": "10.0.0.2:40000", "remote": None}
    assert client.get(str(agent.socket), "/v1/flows", asked) == {"total": 0}
    assert agent.asked == [("/v1/flows", {"limit": "5", "client": "10.0.0.2:40000"}, None)]


def test_post_sends_json(agent: FakeAgent) -> None:
    agent.answers["/v1/explain"] = {"verdict": "dropped"}
    assert client.post(str(agent.socket), "/v1/explain", {"from": "clients"}) == {"verdict": "dropped"}
    assert agent.asked == [("/v1/explain", {}, {"from": "clients"})]


@pytest.mark.parametrize(
    ("exit_code", "kind"), [(1, SoftunicastError), (2, InputError), (3, HostError), (77, SoftunicastError)]
)
def test_a_refusal_comes_back_as_the_same_error(
    exit_code: int, kind: type[SoftunicastError], agent: FakeAgent
) -> None:
    agent.answers["/v1/flows"] = {"error": {"what": "no", "fix": "say yes", "exit_code": exit_code}}
    agent.statuses["/v1/flows"] = 400
    with pytest.raises(SoftunicastError, match=r"^no; fix: say yes$") as raised:
        client.get(str(agent.socket), "/v1/flows")
    assert type(raised.value) is kind


@pytest.mark.parametrize("payload", [b"", b"<html>", b"[]", b'{"error": "text"}', b'{"error": {"what": 1}}'])
def test_a_refusal_that_is_not_the_agents(payload: bytes, agent: FakeAgent) -> None:
    agent.answers["/v1/flows"] = payload
    agent.statuses["/v1/flows"] = 500
    with pytest.raises(SoftunicastError) as raised:
        client.get(str(agent.socket), "/v1/flows")
    assert raised.value.exit_code in (1, 2, 3)


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(
        AgentUnreachableError, match=r"no agent answers on .*\(No such file.*fix: start `soft"
    ):
        client.get(str(tmp_path / "none.sock"), "/v1/status")


def test_a_socket_nobody_listens_on(tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(AgentUnreachableError, match="Connection refused"):
        client.get(str(path), "/v1/status")


def test_a_socket_path_that_is_too_long() -> None:
    with pytest.raises(AgentUnreachableError, match="path too long"):
        client.get("/run/" + "x" * 200, "/v1/status")


def test_an_agent_that_is_silent_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.05)
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(AgentUnreachableError, match="did not answer within"):
            client.get(str(path), "/v1/status")


def test_an_agent_that_hangs_up(tmp_path: Path) -> None:
    path = tmp_path / "rude.sock"
    with socket.socket(socket.AF_UNIX) as rude:
        rude.bind(str(path))
        rude.listen()
        hang_up = threading.Thread(target=lambda: rude.accept()[0].close())
        hang_up.start()
        with pytest.raises(AgentUnreachableError, match="no agent answers"):
            client.get(str(path), "/v1/status")
        hang_up.join()


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(client._UnixConnection, "connect", refuse)
    with pytest.raises(AgentUnreachableError, match=r"not allowed to open .*join the group softunicast"):
        client.get(str(tmp_path / "agent.sock"), "/v1/status")
