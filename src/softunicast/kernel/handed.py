"""The programs of IPv6 to which those of IPv4 hand what is not theirs (bpf/handed.h): only the latter are attached.

An agent before this one attached both, one behind the other; what is left of that goes when those of IPv4 hand on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from softunicast.kernel.maps import Map
from softunicast.kernel.objects import BpfObject
from softunicast.kernel.words import index_key

# By map, in the order of abi.Handed and abi.HandedTc; those of cgroups have one (strays.py). Object and program.
HANDED: Final = {
    "handed": (("director6", "director6"), ("fast6", "fast6")),
    "handed_tc": (
        ("director_tc6", "director_tc6"),
        ("director_tc6", "remote6"),
        ("egress6", "egress_in6"),
        ("egress6", "egress_out6"),
        ("uplink6", "uplink6"),
        ("guard6", "guard6"),
    ),
    "handed_sent": (("stray6", "socket_packet6"),),
}
ON_UPLINK_BEFORE: Final = ("director_tc6", "remote6", "egress_in6", "uplink6", "guard6")
ON_ONRAMP_BEFORE: Final = "egress_out6"


def hand_on(objects: Mapping[str, BpfObject], maps: Mapping[str, Map]) -> None:
    """Writes the maps; each program takes the place of one of another version in one step."""
    for name, programs in HANDED.items():
        for place, (obj, program) in enumerate(programs):
            if obj in objects:
                maps[name].set(index_key(place), objects[obj].programs[program].to_bytes(4, "little"))
