"""When is a pool or a table full, or nearly? What the sweep counts and which drops grow become events."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
from tests.unit.agent.fakes import EMPTY, POOL, Log, part

from softunicast.agent.watch import Watch
from softunicast.core.config import Limits
from softunicast.core.desired import KernelState, PoolSlices
from softunicast.core.events import KINDS
from softunicast.core.pools import Timers
from softunicast.kernel.abi import Reason
from softunicast.kernel.flows import Drop, Sample
from softunicast.kernel.usage import Usage
from softunicast.observe import logs

STATE = replace(EMPTY, pools={"gb": PoolSlices(Timers(), (part(1), part(2)))}, onramps={"clients": "gb"})
PORTS = 4096
LAST = Sample(0.1, "egress out", "clients", "tcp", "10.0.0.2:40000", "203.0.113.1:443")


class Watched:
    def __init__(self) -> None:
        self.log = Log()
        pool = replace(POOL, warn_at=0.5, warn_clear_at=0.25)
        self.watch = Watch([pool], Limits(flows_max=1000), cast(logs.Log, self.log))

    def swept(self, busiest: int, flows: int = 0, state: KernelState = STATE) -> list[str]:
        """The new events."""
        before = len(self.log.names)
        usage = {"gb": Usage(busiest, busiest, "tcp 203.0.113.1:443")} if busiest else {}
        self.watch.swept(flows, usage, state)
        return self.log.names[before:]


def test_a_pool_that_fills_and_empties() -> None:
    """By its busiest destination, as a share of all its ports; each side is said once."""
    watched = Watched()
    assert watched.swept(PORTS // 2 - 1) == []
    assert watched.swept(PORTS // 2) == ["pool nearly full"]
    assert watched.log.fields[-1] == {
        "pool": "gb",
        "busiest": PORTS // 2,
        "ports": PORTS,
        "destination": "tcp 203.0.113.1:443",
    }
    assert watched.watch.problems() == ["pool gb is nearly full"]
    for busiest in (PORTS, PORTS // 2 - 1, PORTS // 4 + 1):
        assert watched.swept(busiest) == []
    assert watched.swept(PORTS // 4) == ["pool has room again"]
    assert watched.swept(0) == []
    assert watched.watch.problems() == []


def test_a_pool_that_loses_its_slices_is_not_nearly_full() -> None:
    """It is said otherwise that it has none."""
    watched = Watched()
    watched.swept(PORTS)
    without = replace(STATE, pools={"gb": PoolSlices(Timers(), ())})
    assert watched.swept(PORTS, state=without) == ["pool has room again"]
    assert watched.swept(PORTS, state=EMPTY) == []


def test_the_table_of_flows() -> None:
    watched = Watched()
    assert watched.swept(0, 799) == []
    assert watched.swept(0, 800) == ["table nearly full"]
    assert watched.watch.problems() == ["the table of flows is nearly full"]
    assert watched.swept(0, 701) == []
    assert watched.swept(0, 700) == ["table has room again"]


@pytest.mark.parametrize(
    ("reason", "kind", "hurry"),
    [
        (Reason.SLICE_FULL, "pool full", False),
        (Reason.NO_SLICE, "pool without slices", False),
        (Reason.TABLE_FULL, "table full", True),
        (Reason.CLIENT_TABLE, "clients full", True),
        (Reason.CLIENT_FLOWS, "client limited", True),
        (Reason.CLIENT_STATE, "client limited", True),
        (Reason.CLIENT_RATE, "client limited", False),
    ],
)
@pytest.mark.parametrize("last", [LAST, None])
def test_refusals(reason: Reason, kind: str, hurry: bool, last: Sample | None) -> None:
    """With the last packet's pool and client, where it is known; a sweep is asked for when it could help."""
    watched = Watched()
    watched.watch.dropped(Drop(reason, 10, last), 4, STATE)
    assert watched.log.names == [kind]
    fields = watched.log.fields[0]
    assert fields["count"] == 4
    if "pool" in fields:
        assert fields["pool"] == ("gb" if last else None)
    if kind == "client limited":
        assert (fields["client"], fields["reason"]) == ("10.0.0.2" if last else None, reason.name.lower())
    assert watched.watch.hurry.is_set() == hurry
    assert kind in KINDS


def test_other_drops_are_no_events() -> None:
    watched = Watched()
    for reason in set(Reason) - {Reason.NONE, Reason.MAX}:
        watched.watch.dropped(Drop(reason, 1, LAST), 1, STATE)
    assert len(watched.log.names) == 7
