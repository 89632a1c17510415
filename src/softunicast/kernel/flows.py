"""Reading flows and counters of the data path. Every flow is one claim: the claims table has both its ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from typing import Any, Final

from softunicast.core.endpoints import endpoint_text
from softunicast.core.slices import Slice
from softunicast.kernel import abi
from softunicast.kernel.families import IPV4, IPV6, Family
from softunicast.kernel.maps import Map
from softunicast.kernel.words import be16, index_key, word_address

PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}  # ICMPv6 is IPv6's ICMP
BUSY: Final = (1 << 64) - 1
NS: Final = 1_000_000_000
HOST: Final = "host"  # in place of an on-ramp: a socket of this server
HOOKS: Final = {hook.value: hook.name.lower().replace("_", " ") for hook in abi.Hook}


@dataclass(frozen=True, slots=True)
class Flow:
    """One translated conversation. Ends are "address:port" (ICMP: the echo identifier as the port).

    A mapping of an endpoint-independent pool is listed too: remote "any", state "mapping". So is what a socket of this
    host has claimed: on-ramp "socket", state "claimed", and the client is the socket itself. On-ramp "host": a
    socket of this host, translated at the uplink.
    """

    onramp: str
    protocol: str
    client: str
    local: str
    remote: str
    state: str
    age_s: float
    expires_in_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The last packet dropped for a reason."""

    age_s: float
    hook: str
    interface: str
    protocol: str
    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Drop:
    """How many packets were dropped for a reason since the data path was loaded, and the last one."""

    reason: abi.Reason
    packets: int
    last: Sample | None


def end_text(address: int | bytes, port: int) -> str:
    """ "198.51.100.10:2049" from two words of a map."""
    return endpoint_text(word_address(address), be16(port))


def protocol_name(number: int) -> str:
    return PROTOCOLS.get(number, str(number))


def interface_name(index: int) -> str:
    """Its name, or "#5" when it is gone; "socket" for what no interface but a program of this host asked."""
    if not index:
        return "socket"
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"#{index}"


def tcp_state(seen: int) -> str:
    """The state by what was seen, in the words of bpf/flow.h."""
    both_fins = abi.TcpSeen.FIN_OUT | abi.TcpSeen.FIN_IN
    if seen & abi.TcpSeen.RST or seen & both_fins == both_fins:
        return "closing"
    both_ways = abi.TcpSeen.OUT | abi.TcpSeen.IN
    return "established" if seen & both_ways == both_ways else "opening"


def _family_of(claims: Map) -> Family:
    return IPV6 if claims.key_bytes == abi.CLAIM_KEY6_BYTES else IPV4


def live_claims(claims: Map, now_ns: int) -> Iterator[tuple[Any, Any]]:
    """Claims (abi.ClaimKey and abi.Claim of the table's family) that have not expired at `now_ns` (CLOCK_MONOTONIC)."""
    family = _family_of(claims)
    for key, value in claims.items():
        claim = family.claim.unpack(value)
        if now_ns < claim.expires_ns < BUSY:
            yield family.claim_key.unpack(key), claim


def list_flows(
    tables: Iterable[Map], limit: int, wanted: Callable[[Flow], bool] | None = None, uplink: int = 0
) -> tuple[int, list[Flow]]:
    """How many live flows there are (of those `wanted`) in the claims of each family, and the first `limit` of them.

    Those whose on-ramp is the interface with the number `uplink` are this host's own.
    """
    now_ns, names = time.monotonic_ns(), {uplink: HOST} if uplink else dict[int, str]()
    total, shown = 0, list[Flow]()
    for key, claim in chain.from_iterable(live_claims(claims, now_ns) for claims in tables):
        if wanted is None and len(shown) >= limit:
            total += 1
            continue
        flow = _flow(key, claim, now_ns, names)
        if wanted is None or wanted(flow):
            total += 1
            if len(shown) < limit:
                shown.append(flow)
    return total, shown


def _flow(key: Any, claim: Any, now_ns: int, names: dict[int, str]) -> Flow:
    family = IPV4 if isinstance(key, abi.ClaimKey) else IPV6
    client = family.flow_key.unpack(claim.flow)
    local = end_text(key.local, key.local_port)
    if client.onramp not in names:
        names[client.onramp] = interface_name(client.onramp)
    return Flow(
        onramp=names[client.onramp],
        protocol=protocol_name(key.protocol),
        client=end_text(client.client, client.client_port) if client.onramp else local,
        local=local,
        remote="any" if key.remote == family.nowhere else end_text(key.remote, key.remote_port),
        state=_state(family, key, claim) if client.onramp else "claimed",
        age_s=round(max(0, now_ns - claim.since_ticks * abi.AbiLimit.TICK_NS) / NS, 3),
        expires_in_s=round((claim.expires_ns - now_ns) / NS, 3),
    )


def _state(family: Family, key: Any, claim: Any) -> str:
    if key.remote == family.nowhere:
        return "mapping"
    return tcp_state(claim.state) if key.protocol == socket.IPPROTO_TCP else "open"


def count_by_slice(tables: Iterable[Map], slices: Iterable[Slice]) -> dict[Slice, int]:
    """Live flows of each slice, in one pass over the claims of each family. Slices must not overlap."""
    counts = dict.fromkeys(slices, 0)
    places: dict[tuple[int, int, int, int], Slice] = {}
    masks = set[int]()
    for part in counts:
        mask = -part.ports & 0xFFFF
        masks.add(mask)
        places[part.version, int(part.address), mask, part.port_first] = part
    now_ns = time.monotonic_ns()
    for key, _ in chain.from_iterable(live_claims(claims, now_ns) for claims in tables):
        address, port = word_address(key.local), be16(key.local_port)
        for mask in masks:
            found = places.get((address.version, int(address), mask, port & mask))
            if found is not None:
                counts[found] += 1
    return counts


def read_drops(drops: Map) -> list[Drop]:
    """Every reason, also those that never happened."""
    now_ns, found = time.monotonic_ns(), []
    for reason in abi.Reason:
        if reason in (abi.Reason.NONE, abi.Reason.MAX):
            continue
        parts = [abi.Drop.unpack(value) for value in drops.per_cpu(index_key(reason))]
        packets = sum(part.packets for part in parts)
        samples = [abi.Sample.unpack(part.last) for part in parts if part.packets]
        last = max(samples, key=lambda sample: sample.at_ns, default=None)
        found.append(Drop(reason, packets, _sample(last, now_ns) if last else None))
    return found


def _sample(sample: abi.Sample, now_ns: int) -> Sample:
    return Sample(
        age_s=round(max(0, now_ns - sample.at_ns) / NS, 3),
        hook=HOOKS.get(sample.hook, str(sample.hook)),
        interface=interface_name(sample.interface),
        protocol=protocol_name(sample.protocol),
        source=_sample_end(sample, sample.source, sample.source_port),
        destination=_sample_end(sample, sample.destination, sample.destination_port),
    )


def _sample_end(sample: abi.Sample, address: bytes, port: int) -> str:
    if sample.family == 6:
        return endpoint_text(IPv6Address(address), be16(port))
    return endpoint_text(IPv4Address(address[:4]), be16(port))


def read_traffic(traffic: Map) -> dict[str, int]:
    """Packets that were not dropped, by what was done with them (abi.Traffic in lower case)."""
    return {
        kind.name.lower(): sum(int.from_bytes(value, "little") for value in traffic.per_cpu(index_key(kind)))
        for kind in abi.Traffic
        if kind != abi.Traffic.MAX
    }


def differences(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What grew, and by how much."""
    return {
        name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)
    }
