"""The soak, short: `make soak` takes its time. Every count has to be right however long it runs."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from bench.churn import Tally
from bench.soak import ATTACHMENTS, HOT_EVERY, Report, soak

RATE, SECONDS = 20_000, 1.0


@pytest.mark.alone
@pytest.mark.parametrize("slice_ports", HOT_EVERY)
@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_nothing_leaks_nothing_strays_everything_adds_up(attachment: str, slice_ports: int) -> None:
    report = soak(attachment, slice_ports, RATE, SECONDS)
    assert report.faults == []
    assert report.tally.returned > report.opened > 4000
    assert {"no_flow", "no_owner"} <= report.drops.keys(), "losses and strays were part of it"
    assert (report.traffic["fast_out"] > 0) == (report.traffic["fast_in"] > 0) == (attachment == "xdp")
    if slice_ports == min(HOT_EVERY):
        assert report.drops["slice_full"] > 0


def a_good_report() -> Report:
    nothing = {item.name: 0 for item in fields(Tally)}
    tally = Tally(**nothing | {"sent": 100, "arrived": 90, "replied": 80, "returned": 80, "refused": 5})
    traffic = {"out": 90, "to_host": 0, "here": 80, "in": 80, "icmp_sent": 5, "new_flow": 10, "reused": 1}
    drops = {"slice_full": 5, "no_flow": 5}
    return Report(
        "tc", 64, 1.0, 10, traffic, drops, tally, {"onramp": 100, "uplink": 80}, freed=9, left={"claims": 0}
    )


def test_the_judge_is_content_with_what_adds_up() -> None:
    report = a_good_report()
    report.judge()
    assert report.faults == []


@pytest.mark.parametrize(
    "change",
    [
        {"traffic": {"out": 91}},  # counted twice
        {"traffic": {"in": 81}},
        {"traffic": {"in": 70}},  # to the stack, and no stray
        {"traffic": {"icmp_sent": 4}},
        {"drops": {"no_flow": 4}},
        {"drops": {"internal": 1}},
        {"entered": {"onramp": 101}},
        {"entered": {"uplink": 81}},
        {"freed": 8},
        {"left": {"claims": 1}},
        {"tally": {"arrived": 91}},
        {"tally": {"arrived": 10}},
        *({"tally": {name: 1}} for name in ("wrong", "bad_checksum", "outside", "moved", "shared")),
    ],
    ids=str,
)
def test_the_judge_sees(change: dict[str, object]) -> None:
    report = a_good_report()
    for name, value in change.items():
        before = getattr(report, name)
        if isinstance(before, dict):
            before.update(value)
        else:
            setattr(report, name, replace(before, **value) if isinstance(value, dict) else value)
    report.judge()
    assert len(report.faults) >= 1
