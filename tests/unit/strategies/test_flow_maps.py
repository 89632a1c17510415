"""The rules as text: which hooks they use, and that nothing of a client's leaves untranslated."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from softunicast.core.slices import Slice
from softunicast.strategies.flow_maps import rules
from softunicast.strategies.strategy import Place

PLACE = Place(
    Slice.parse("198.51.100.10:2048-4095"),
    *("up0", "on0", IPv4Network("10.0.0.0/24"), IPv4Address("10.0.0.2"), Path()),
)


def test_a_place() -> None:
    assert PLACE.address == IPv4Address("198.51.100.10")
    assert (PLACE.ports[0], PLACE.ports[-1]) == (2048, 4095)


def test_at_the_ingress_no_routing_is_touched() -> None:
    text = rules(PLACE, "ingress")
    assert 'hook egress device "up0"' in text
    assert 'hook ingress device "up0"' in text
    assert "mark" not in text


def test_by_rules_replies_are_marked_before_routing() -> None:
    text = rules(PLACE, "rules")
    assert "hook prerouting" in text
    assert "meta mark set" in text


def test_what_has_no_entry_is_dropped() -> None:
    for way in ("ingress", "rules"):
        lines = rules(PLACE, way).splitlines()  # type: ignore[arg-type]
        at = next(number for number, line in enumerate(lines) if line.startswith("tcp sport set"))
        assert lines[at].endswith("accept")
        assert lines[at + 1] == "ip saddr 10.0.0.0/24 drop"
