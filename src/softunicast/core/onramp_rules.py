"""What an on-ramp does with packets beside giving them a pool: which it leaves to the host, and the MSS it allows.

Pure: names of interfaces and their MTUs are for whoever applies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from softunicast.core.slices import Slice

EXEMPT_MAX: Final = 64  # prefixes of one on-ramp: each is looked for by every first packet
MSS_MIN, MSS_MAX = 88, 65495  # what Linux takes as the least; a packet of 65,535 bytes less both headers


@dataclass(frozen=True, slots=True)
class OnrampRules:
    """`exempt`: packets to these destinations are left to the host (RFC 6888 REQ-6). `mss`: the most that a SYN may
    announce, 0 for as it is; with `mss_by_path` what fits the MTUs on the way."""

    exempt: tuple[Slice, ...] = ()
    mss: int = 0
    mss_by_path: bool = False


NO_RULES: Final = OnrampRules()
