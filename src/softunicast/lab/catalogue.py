"""The topologies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from softunicast.core.errors import InputError, UnknownNameError
from softunicast.core.records import SLICE_PORTS_DEFAULT, SLICE_PORTS_MAX, SLICE_PORTS_MIN
from softunicast.lab.pair import pair
from softunicast.lab.pair6 import pair6
from softunicast.lab.routed import routed
from softunicast.lab.topology import Topology

TOPOLOGIES: Final[Mapping[str, Callable[[int], Topology]]] = {"pair": pair, "pair6": pair6, "routed": routed}


def topology(name: str, slice_ports: int = SLICE_PORTS_DEFAULT) -> Topology:
    """Raises UnknownNameError for a name that is not in the catalogue, InputError for impossible slices."""
    if name not in TOPOLOGIES:
        raise UnknownNameError(f"there is no topology {name!r}", f"use one of {', '.join(TOPOLOGIES)}")
    if not SLICE_PORTS_MIN <= slice_ports <= SLICE_PORTS_MAX[4] or slice_ports & (slice_ports - 1):
        between = f"a power of two from {SLICE_PORTS_MIN} to {SLICE_PORTS_MAX[4]}"
        raise InputError(f"slices of {slice_ports} ports are not possible", f"give {between}")
    return TOPOLOGIES[name](slice_ports)
