"""An event is a log line: what is written and what is kept are the same, and other lines just pass."""

from __future__ import annotations

from typing import Any, cast

from softunicast.core.events import QUIET_S
from softunicast.observe.events import EventLog
from softunicast.observe.logs import Log


class Lines:
    """A log that keeps (level, event, fields)."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.found.append((level, event, fields))


class Made:
    def __init__(self) -> None:
        self.lines, self.now_s = Lines(), 1000.0
        self.log = EventLog(cast(Log, self.lines), lambda: self.now_s)

    def kept(self) -> list[tuple[str, int]]:
        return [(event.kind, event.count) for event in self.log.book.since(0, 100)]


def test_a_known_line_is_an_event() -> None:
    made = Made()
    made.log.error("slice lost", slice="198.51.100.10:2048-4095", why="silence")
    made.log.info("slice acquired", slice="198.51.100.10:2048-4095", epoch=3)
    assert [line[:2] for line in made.lines.found] == [("error", "slice lost"), ("info", "slice acquired")]
    lost, acquired = made.log.book.since(0, 10)
    assert (lost.details["why"], lost.nat_event, acquired.nat_event) == ("silence", 17, 16)
    assert made.lines.found[0][2] == lost.details
    assert lost.at == 1000.0


def test_other_lines_pass() -> None:
    made = Made()
    for write in (made.log.debug, made.log.info, made.log.warning, made.log.error, made.log.exception):
        write("packets dropped", reason="no_flow")
    assert [line[0] for line in made.lines.found] == ["debug", "info", "warning", "error", "exception"]
    assert made.kept() == []


def test_a_flood_is_one_line_and_one_more_with_the_count() -> None:
    made = Made()
    for number in range(30):
        made.log.warning("client limited", pool="gb", client=f"10.0.0.{number}", count=7)
        made.log.flush()
    assert len(made.lines.found) == 1
    assert made.lines.found[0][2] == {"pool": "gb", "client": "10.0.0.0", "count": 7}
    made.now_s += QUIET_S
    made.log.flush()
    made.log.flush()
    assert made.lines.found[1:] == [
        ("warning", "client limited", {"pool": "gb", "client": "10.0.0.29", "count": 29 * 7})
    ]
    assert made.kept() == [("client limited", 7), ("client limited", 29 * 7)]


def test_an_agent_that_starts_again_goes_on_counting() -> None:
    """Whoever follows asks for what is after the last number; the next agent's are larger."""
    before, after = Made(), Made()
    for _ in range(50):
        before.log.info("slice acquired")
    after.now_s += 1.0
    later = EventLog(cast(Log, after.lines), lambda: after.now_s)
    later.info("agent ready")
    assert later.book.last > before.log.book.last
