"""What counts as success of the demo. Pure: facts in, checks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from softunicast.core.slices import Slice
from softunicast.lab.peers import Peer

# The router's hash gives each server half of the flows: with 400 these bounds are eight standard deviations away.
STEERED_LEAST: Final = 0.3
STEERED_MOST: Final = 0.7


@dataclass(frozen=True, slots=True)
class Forged:
    """Packets with a source that belongs to another server: sent, dropped under a name, seen by the internet."""

    source: str
    sent: int
    dropped: int
    reason: str | None
    meaning: str | None
    arrived: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen. `here` and `steered`: packets during the downloads, by server; `echoes`: by (client, protocol)."""

    server_of: Mapping[str, str]
    slices: Mapping[str, Sequence[Slice]]
    downloads: Mapping[str, Mapping[str, Any]]
    download_peers: Sequence[Peer]
    here: Mapping[str, int]
    steered: Mapping[str, int]
    source: str
    echoes: Mapping[tuple[str, str], Mapping[str, Any]]
    echo_peers: Sequence[Peer]
    forged: Forged


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold, and what was seen of it."""

    what: str
    expected: str
    seen: str
    passed: bool


def judge(facts: Facts) -> tuple[Check, ...]:
    """The checks in the order to show them."""
    return (
        *(_downloads(client, answer) for client, answer in facts.downloads.items()),
        *(_ports(facts, client, server) for client, server in facts.server_of.items()),
        _steered(facts),
        _same_source(facts),
        _guarded(facts.forged),
    )


def _downloads(client: str, answer: Mapping[str, Any]) -> Check:
    rate = answer["bytes"] / max(answer["seconds"], 0.001) / 1e6
    seen = f"{answer['completed']} complete in {answer['seconds']:.1f} s ({rate:.0f} MB/s)"
    failures = ", ".join(f"{times}x {why}" for why, times in answer["failures"].items())
    return Check(
        f"{client}: {answer['count']} downloads at once",
        "all complete, every checksum right",
        f"{seen}; {failures}" if failures else seen,
        answer["completed"] == answer["count"] > 0,
    )


def _ports(facts: Facts, client: str, server: str) -> Check:
    held = facts.slices[server]
    ports = [(peer.address, peer.port) for peer in facts.download_peers if peer.label == client]
    outside = [f"{address}:{port}" for address, port in ports if not _in(held, address, port)]
    wanted = facts.downloads[client]["count"]
    seen = f"{len(ports)} sources"
    if ports:
        seen += f", ports {min(port for _, port in ports)} to {max(port for _, port in ports)}"
    if outside:
        seen += f"; outside: {', '.join(outside[:3])}"
    return Check(
        f"{client}: sources seen by the internet",
        f"{wanted} in {', '.join(map(str, held)) or 'no slice'} of {server}",
        seen,
        not outside and len(ports) == wanted,
    )


def _in(slices: Sequence[Slice], address: str, port: int) -> bool:
    point = Slice.of(ip_address(address), port, 1)
    return any(slice_.contains(point) for slice_ in slices)


def _steered(facts: Facts) -> Check:
    replies, steered = sum(facts.here.values()), sum(facts.steered.values())
    share = steered / replies if replies else 0.0
    by = ", ".join(f"{packets} by {server}" for server, packets in facts.steered.items())
    return Check(
        "replies that reached the other server",
        "about half, steered to their owner",
        f"{share:.0%} of {replies}: {by}",
        STEERED_LEAST <= share <= STEERED_MOST and all(facts.steered.values()),
    )


def _same_source(facts: Facts) -> Check:
    failures = [
        f"{client} {protocol}: {answer['failure'] or answer['local']}"
        for (client, protocol), answer in facts.echoes.items()
        if answer["failure"] is not None
        or answer["local"] != facts.source
        or answer["echoed"] != answer["count"]
    ]
    apart = {(peer.protocol, peer.address, peer.port) for peer in facts.echo_peers}
    shown = ", ".join(f"{protocol} {port}" for protocol, _, port in sorted(apart))
    echoed = sum(answer["echoed"] for answer in facts.echoes.values())
    return Check(
        f"both clients as {facts.source} at once",
        "every echo right, sources differ outside",
        "; ".join([f"{echoed} echoes, as ports {shown}", *failures]),
        bool(facts.echoes) and not failures and len(apart) == len(facts.echoes),
    )


def _guarded(forged: Forged) -> Check:
    named = f"{forged.dropped} dropped as {forged.reason}" if forged.reason is not None else "not dropped"
    return Check(
        f"{forged.sent} packets forged as {forged.source}",
        "none leaves, a counter names them",
        f"{named}; {'they arrived' if forged.arrived else 'none arrived'}",
        forged.reason is not None and forged.dropped == forged.sent and not forged.arrived,
    )
