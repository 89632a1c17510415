"""How full the pools are, as the last sweep counted it (bpf/usage.h)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from softunicast.kernel import abi
from softunicast.kernel.families import FAMILIES, Family
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


def read_usage(maps: Mapping[str, Map], pools: Mapping[str, int]) -> dict[str, Usage]:
    """Of every pool of which the last sweep found a flow. `pools`: their numbers. Of a pool with both families, the
    flows of both, and the destination that is the busiest of all."""
    found: dict[str, Usage] = {}
    for family in FAMILIES:
        value = maps[family.named("sweeps")].get(index_key(0))
        swept_ns = abi.Sweeping.unpack(value).swept_ns if value else 0
        for name, number in pools.items():
            entry = maps[family.named("usages")].get(index_key(number))
            usage = family.usage.unpack(entry) if entry else None
            if usage is not None and usage.at_ns >= swept_ns and usage.flows:
                here = Usage(usage.flows, usage.busiest, _destination(family, usage.destination))
                found[name] = _together(found[name], here) if name in found else here
    return found


def _together(one: Usage, other: Usage) -> Usage:
    busier = max(one, other, key=lambda usage: usage.busiest)
    return replace(busier, flows=one.flows + other.flows)


def _destination(family: Family, key: bytes) -> str:
    claim = family.claim_key.unpack(key)
    where = "any" if claim.remote == family.nowhere else end_text(claim.remote, claim.remote_port)
    return f"{protocol_name(claim.protocol)} {where}"
