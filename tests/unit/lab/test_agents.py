"""The files that a lab writes for its agents are read back as what the topology says, and asking has an end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.core.config import parse_config
from softunicast.core.errors import AgentUnreachableError
from softunicast.core.inventory import parse_inventory
from softunicast.core.pools import Pool, Timers
from softunicast.lab import agents, state
from softunicast.lab.pair import pair
from softunicast.lab.state import Lab
from softunicast.lab.topology import AgentRole

LAB = Lab("one", "pair", 0.0, "boot", 1, {"server1": "sulab-one-server1"}, ("server1",))


def test_inventory_file() -> None:
    inventory = pair(slice_ports=64).inventory
    assert parse_inventory(agents.inventory_text(inventory), "inventory.toml") == inventory


def test_configuration_file() -> None:
    pools = (Pool("demo", {"country": "gb"}, 2, Timers(udp_s=7)), Pool("other", {"product": "x"}))
    role = AgentRole("lab", "uplink", pools, {"c1": "demo", "c2": "other"}, ttl_s=9, quarantine_s=3)

    config = parse_config(agents.config_text(LAB, "server1", role), "agent.toml")

    assert (config.server.name, config.server.site, config.uplink.interface) == ("server1", "lab", "uplink")
    assert (config.pools, config.onramps) == (pools, role.onramps)
    assert (config.agent.ttl_s, config.agent.quarantine_s) == (9, 3)
    assert (config.agent.socket, config.ledger.path) == (str(LAB.socket("server1")), str(LAB.ledger))
    assert Path(config.agent.bpffs).parent == LAB.bpffs


class TestAsk:
    @pytest.fixture
    def listener(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
        monkeypatch.setattr(state, "RUN_DIR", tmp_path)
        monkeypatch.setattr(agents, "ASK_TIMEOUT_S", 0.3)
        LAB.socket("server1").parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(LAB.socket("server1")))
            listener.listen()
            yield listener

    def answer(self, listener: socket.socket, status: str, body: bytes) -> None:
        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                length = f"Content-Length: {len(body)}".encode()
                connection.sendall(b"HTTP/1.1 " + status.encode() + b"\r\n" + length + b"\r\n\r\n" + body)

        threading.Thread(target=serve, daemon=True).start()

    @pytest.mark.parametrize(
        ("pools", "ready"),
        [
            ([{"slices": ["198.51.100.10:2048-4095"], "onramps": ["clients"]}], True),
            ([{"slices": [], "onramps": ["clients"]}], False),
            ([{"slices": ["198.51.100.10:2048-4095"], "onramps": []}], False),
            ([], False),
        ],
    )
    def test_ready_is_what_clients_can_use(
        self, listener: socket.socket, pools: list[dict[str, list[str]]], ready: bool
    ) -> None:
        self.answer(listener, "200 OK", json.dumps(pools).encode())
        assert agents.is_ready(LAB, "server1") is ready

    @pytest.mark.parametrize(
        ("status", "body", "why"),
        [
            ("500 Oops", b'{"error": {}}', "answers /v1/status with 500"),
            ("200 OK", b"not json", "does not answer /v1/status"),
        ],
    )
    def test_anything_else_is_unreachable(
        self, listener: socket.socket, status: str, body: bytes, why: str
    ) -> None:
        self.answer(listener, status, body)
        with pytest.raises(AgentUnreachableError, match=why):
            agents.ask(LAB, "server1", "/v1/status")

    def test_silence_has_an_end(self, listener: socket.socket) -> None:
        with pytest.raises(AgentUnreachableError, match="timed out"):
            agents.ask(LAB, "server1", "/v1/status")

    def test_no_socket(self, listener: socket.socket) -> None:
        LAB.socket("server1").unlink()
        assert not agents.is_ready(LAB, "server1")
