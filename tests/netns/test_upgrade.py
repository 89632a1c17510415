"""New programs in place of the old, while packets go through: none is lost, none goes past."""

from __future__ import annotations

import pytest
from bench.soak import ATTACHMENTS, soak

UPGRADES = 6  # twelve, with both


@pytest.mark.alone
@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_under_traffic(attachment: str) -> None:
    """Both ways, with conversations that begin and end all the while: each packet that enters the server is counted
    as sent on, or as what it would be at any time, and each that leaves comes from the port it had before."""
    report = soak(attachment, 2048, 2_000, 0.0, UPGRADES)
    assert report.faults == []
    assert report.tally.returned > report.opened > 2000
    assert (report.traffic["fast_out"] > 0) == (attachment == "xdp")
