"""What the agent tells programs, and when it does not look after sockets at all.."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from softunicast.agent.sockets import Sockets, board_of, look_after
from softunicast.core.agreements import BOARD_FILE, Board
from softunicast.core.config import Config, parse_config
from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.errors import HostError
from softunicast.kernel import cgroups, probe

CONFIG = """
[server]
name = "server1"
site = "london"
[uplink]
interface = "eth0"
[ledger]
kind = "sqlite"
path = "/var/lib/softunicast/ledger.db"
[[pools]]
name = "gb"
tags = { country = "gb" }
"""


@pytest.fixture
def config() -> Config:
    return parse_config(CONFIG, "agent.toml")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the root of cgroup2."""
    (tmp_path / "cgroup.subtree_control").touch()
    monkeypatch.setattr(cgroups, "find_root", lambda: tmp_path)
    return tmp_path


def test_told_whole_or_not_at_all(config: Config, root: Path, tmp_path: Path) -> None:
    board = board_of(config, *look_after(config.sockets))
    assert (board.server, board.cgroup, board.off) == ("server1", str(root), None)
    assert [(pool.name, pool.tags) for pool in board.pools] == [("gb", {"country": "gb"})]
    told = Sockets(tmp_path, board)
    told.publish()
    told.publish()
    path = tmp_path / BOARD_FILE
    assert Board.parse(path.read_text()) == board
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert told.withdraw() == ()  # there is no data path
    assert not path.exists()
    assert told.withdraw() == ()


def test_where_nothing_can_be_written(config: Config, root: Path, tmp_path: Path) -> None:
    (tmp_path / "pools.new").mkdir()
    with pytest.raises(
        HostError, match=r"cannot tell programs of the pools in .*; fix: give \[agent\] state_dir"
    ):
        Sockets(tmp_path, board_of(config, *look_after(config.sockets))).publish()


@pytest.mark.usefixtures("root")
def test_looked_after_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = SocketsConfig()
    assert look_after(wanted) == (wanted, None)
    assert look_after(SocketsConfig(enabled=False)) == (None, "[sockets] enabled = false")
    for hook in probe.FOR_SOCKETS:
        monkeypatch.setenv(probe.WITHOUT_ENV, hook)
        why = f"this kernel, {os.uname().release}, lacks {hook}"
        assert look_after(wanted) == (None, why)
        with pytest.raises(HostError) as caught:
            look_after(SocketsConfig(enabled=True))
        assert str(caught.value).startswith(f"{why}, so sockets cannot be looked after; fix: boot Linux ")


def test_without_cgroup2(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "find_root", lambda: None)
    assert look_after(SocketsConfig()) == (None, "cgroup2 is not mounted")
    with pytest.raises(HostError, match="no cgroup2 is mounted"):
        look_after(SocketsConfig(enabled=True))
    board = board_of(config, *look_after(config.sockets))
    assert (board.cgroup, board.off) == (None, "cgroup2 is not mounted")
    told = Sockets(tmp_path, board)
    assert (told.tidy(), told.members()) == (0, [])
