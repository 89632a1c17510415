"""The reference pages name every setting with its default, and every answer of the API."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from tests.unit.agent.fakes import POOL
from tests.unit.agent.test_views import NOW_NS, SNAPSHOT, STATE

from softunicast.agent import api, views
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
        [row] = re.findall(rf"^\| `{field.name}` \| (.*?) \|", CONFIGURATION, re.MULTILINE)[:1] or [None]
        assert row is not None, f"{field.name} is missing"
        if isinstance(field.default, str | int | float):
            default = field.default
            text = str(int(default)) if isinstance(default, float) and default.is_integer() else str(default)
            assert row == f"`{text}`"
        elif field.default is MISSING:
            assert row == "required"


def test_limits_of_numbers() -> None:
    for number in (config.POOLS_MAX, config.ONRAMPS_MAX, config.SOCKET_BYTES_MAX, config.TIMER_MAX_S):
        assert re.search(rf"\b{number}\b", CONFIGURATION), number


def test_the_example_is_good() -> None:
    [example] = re.findall(r"```toml\n(.*?)```", CONFIGURATION, re.DOTALL)
    assert parse_config(example, "example").onramps == {"br-clients": "gb"}


def test_every_answer() -> None:
    for name in ("status", "slices", "leases", "pools", "servers", "flows", "drops", "traffic", "explain"):
        assert re.search(rf"`(GET|POST) /v1/{name}\b", API), name
    for row in (
        views.slices(STATE, "server1", [], {}, NOW_NS)[0],
        views.leases(SNAPSHOT, 100.0)[0],
        views.pools([POOL], "lab", SNAPSHOT, STATE, {})[0],
        views.servers(SNAPSHOT, "server1")[0],
    ):
        for field in row:
            assert f"`{field}`" in API, field
    for number in (api.REQUESTS_MAX, api.BODY_BYTES_MAX, api.FLOWS_DEFAULT, api.FLOWS_MAX):
        assert f"{number:,}" in API
