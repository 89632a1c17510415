"""The topologies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from softunicast.core.errors import UnknownNameError
from softunicast.lab.pair import pair
from softunicast.lab.topology import Topology

TOPOLOGIES: Final[Mapping[str, Callable[[], Topology]]] = {"pair": pair}


def topology(name: str) -> Topology:
    """Raises UnknownNameError for a name that is not in the catalogue."""
    if name not in TOPOLOGIES:
        raise UnknownNameError(f"there is no topology {name!r}", f"use one of {', '.join(TOPOLOGIES)}")
    return TOPOLOGIES[name]()
