"""The storm, short: `make storm` takes a minute."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import pytest
from bench.storm import LAST, Report, storm
from bench.storm_worker import destination

from softunicast.core.slices import Slice

SLICE = Slice.parse("198.51.100.10:1024-1279")


@pytest.mark.alone
def test_forwarded_flows_and_sockets_share_a_slice() -> None:
    report = storm(seconds=8, restart_every_s=2)
    assert report.faults == []
    assert report.restarts == 4


def a_good_report() -> Report:
    names = [name for protocol in ("tcp", "udp") for name in (f"{protocol} opened", f"kept {protocol}")]
    half = Counter(dict.fromkeys(names, 128))
    whole = list(range(1024, 1280))
    live = {protocol: {destination(LAST): list(whole)} for protocol in ("tcp", "udp")}
    return Report(
        {"sockets": Counter(half), "forwarded": Counter(half)},
        {"counts": {}, "shared": [], "live": live},
        {"begun": 0, "shared": [], "resets": [], "lost": 0},
        SLICE,
        0,
    )


def test_the_judge_is_content_with_what_must_be() -> None:
    report = a_good_report()
    report.judge()
    assert report.faults == []


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.witness["shared"].append("two at once"),
        lambda it: it.watch["shared"].append("two at once"),
        lambda it: it.watch.update(lost=1),
        lambda it: it.counts["sockets"].update({"kept tcp": -1}),
        lambda it: it.counts["forwarded"].subtract({"udp opened": 128}),
        lambda it: it.witness["live"]["tcp"][destination(LAST)].pop(),
        lambda it: it.witness["live"]["udp"][destination(LAST)].append(1280),
        lambda it: it.witness["live"]["udp"][destination(LAST)].append(1279),
        lambda it: it.faults.append("wrong words"),
    ],
)
def test_the_judge_sees(change: object) -> None:
    report = deepcopy(a_good_report())
    change(report)  # type: ignore[operator]
    report.judge()
    assert report.faults
