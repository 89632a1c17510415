"""docs/reference/rfc.md: every requirement has a row, a status and a reason, and every test that a row names exists."""

from __future__ import annotations

import ast
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from tests.unit.pages import CODE, ROOT, page, rows, section

from softunicast.core.pools import Timers
from softunicast.core.records import HistoryEntry

# Requirements by number (RFC 7857: by section), and by letter where one asks for several things; by a word where
# they have no numbers.
REQUIREMENTS = {
    "RFC 4787: UDP": "1 2 3 3a 4 5 5a 5b 5c 6 6a 7 8 8a 9 9a 10 10a 11 12 12a 12b 13 13a 14 14a",
    "RFC 5382: TCP": "1 2 2a 3 3a 3b 4 4a 5 5a 6 7 8 8a 9 10",
    "RFC 5508: ICMP": "1 1a 2 2a 3 3a 3b 3c 3d 4 4a 4b 4c 5 5a 5b 5c 6 7 7a 8 9 10a 10b 10c 10d 10e 10f 11",
    "RFC 6888: carrier grade NAT": "1 2 3 4 4a 4b 4c 5 5a 5b 6 7 8 8a 8b 8c 9 10 11a 11b 11c 11d 12 13 14 15 log",
    "RFC 7857: updates": "2 2.1 2.2 3 4 5 6 7 7.1 8 9 10 11 12",
    "RFC 7422: deterministic mapping": (
        "functions inputs system first random dynamic alarms changes daily line algorithm unique"
    ),
    "RFC 7597: MAP-E": "a,k A>0 PSID sizes 8.1 own 8.2 8.2id 8.3",
    "RFC 8805: geofeed": "all",
    "RFC 6302 and RFC 8158: what is logged": "6302 16,17 3,12,13,18 4-9 14,15",
}
TABLES = {heading: list(rows(section(page("rfc"), heading))) for heading in REQUIREMENTS}


@cache
def names_in(path: Path) -> frozenset[str]:
    found = (node for node in ast.walk(ast.parse(path.read_text())))
    functions = (node for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


@pytest.mark.parametrize("heading", REQUIREMENTS)
def test_every_requirement_has_a_row(heading: str) -> None:
    assert [number.replace(" ", "") for number, *_ in TABLES[heading]] == REQUIREMENTS[heading].split()


@pytest.mark.parametrize("heading", REQUIREMENTS)
def test_every_row_says_how_and_is_proved(heading: str) -> None:
    for number, what, status, why, tests in TABLES[heading]:
        assert what, number
        assert status in ("yes", "option", "no"), number
        assert why if status == "no" else tests, number


@pytest.mark.parametrize("heading", REQUIREMENTS)
def test_every_test_that_is_named_exists(heading: str) -> None:
    for number, *_, tests in TABLES[heading]:
        for test in CODE.findall(tests):
            path, _, name = test.partition("::")
            assert (ROOT / path).is_file(), (number, test)
            assert name in names_in(ROOT / path), (number, test)


def test_the_default_timers_are_what_the_rfcs_ask_for() -> None:
    """RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 5508 REQ-2, RFC 7857 section 2.1."""
    timers = Timers()
    assert timers.udp_s >= 5 * 60
    assert timers.tcp_established_s >= 2 * 3600 + 4 * 60
    assert min(timers.tcp_opening_s, timers.tcp_closing_s) >= 4 * 60
    assert timers.icmp_s >= 60
    assert timers.rest_s >= 120


def test_the_history_names_no_destination() -> None:
    """RFC 6888 REQ-12 and 14: what is kept for the question who had a port is a lease, and nothing of its packets."""
    assert {field.name for field in fields(HistoryEntry)} == {
        *("id", "at", "event", "slice", "server", "epoch", "detail")
    }
