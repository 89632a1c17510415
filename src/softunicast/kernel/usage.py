"""How full the pools are, as the last sweep counted it (bpf/usage.h)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from softunicast.kernel import abi
from softunicast.kernel.flows import end_text, protocol_name
from softunicast.kernel.maps import Map
from softunicast.kernel.words import index_key


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one pool. `flows`: live ones, mappings included. `busiest`: of these, those towards the destination that has
    most, `destination`, as "tcp 203.0.113.1:443", or "udp any" for endpoint-independent mappings: the ports that are
    taken for whoever wants to go there next."""

    flows: int
    busiest: int
    destination: str


def read_usage(usages: Map, sweeps: Map, pools: Mapping[str, int]) -> dict[str, Usage]:
    """Of every pool of which the last sweep found a flow. `pools`: their numbers."""
    value = sweeps.get(index_key(0))
    swept_ns = abi.Sweeping.unpack(value).swept_ns if value else 0
    found = {}
    for name, number in pools.items():
        entry = usages.get(index_key(number))
        usage = abi.Usage.unpack(entry) if entry else None
        if usage is not None and usage.at_ns >= swept_ns and usage.flows:
            found[name] = Usage(usage.flows, usage.busiest, _destination(usage.destination))
    return found


def _destination(key: bytes) -> str:
    claim = abi.ClaimKey.unpack(key)
    where = end_text(claim.remote, claim.remote_port) if claim.remote else "any"
    return f"{protocol_name(claim.protocol)} {where}"
