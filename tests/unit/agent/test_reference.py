"""The reference pages name every setting with its default, and every answer of the API."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from tests.unit.agent.fakes import POOL
from tests.unit.agent.test_views import NOW_NS, SNAPSHOT, STATE

from softunicast.agent import views
from softunicast.core import config
from softunicast.core.config import parse_config
from softunicast.core.pools import Timers

DOCS = Path(__file__).parents[3] / "docs" / "reference"
CONFIGURATION = (DOCS / "configuration.md").read_text()
API = (DOCS / "api.md").read_text()


@pytest.mark.parametrize(
    "settings",
    [
        config.ServerConfig,
        config.UplinkConfig,
        config.LedgerConfig,
        config.AgentConfig,
        config.Limits,
        Timers,
    ],
)
def test_every_setting_with_its_default(settings: type) -> None:
    for field in fields(settings):
        rows = re.findall(rf"^\| `{field.name}` \|(.*)$", CONFIGURATION, re.MULTILINE)
        assert rows, f"{field.name} is missing"
        if isinstance(field.default, str | int | float):
            default = field.default
            text = str(int(default)) if isinstance(default, float) and default.is_integer() else str(default)
            assert f"| `{text}` |" in rows[0]
        elif field.default is MISSING:
            assert "| required |" in rows[0]


def test_the_examples_are_good() -> None:
    examples = re.findall(r"```toml\n(.*?)```", CONFIGURATION, re.DOTALL)
    assert examples
    for example in examples:
        assert parse_config(example, "example").onramps["br-clients"] == "gb"


def test_every_answer() -> None:
    for name in ("status", "slices", "leases", "pools", "servers", "flows", "drops", "traffic", "explain"):
        assert re.search(rf"`(GET|POST) /v1/{name}\b", API), name
    for row in (
        views.slices(STATE, "server1", [], {}, NOW_NS)[0],
        views.leases(SNAPSHOT, 100.0)[0],
        views.pools([POOL], "lab", SNAPSHOT, STATE, {}, {})[0],
        views.servers(SNAPSHOT, STATE, "server1")[0],
    ):
        for field in row:
            assert f"`{field}`" in API, field
