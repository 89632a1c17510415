"""What the API answers, as plain JSON-ready rows: pure functions of what the agent and the kernel know.

Field names and meanings are the API's promise (docs/reference/api.md lists them); units last in names. Slices
are written as ranges ("198.51.100.10:2048-4095").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from softunicast.agent.sockets import Member
from softunicast.core.config import Config
from softunicast.core.desired import KernelState, SlotOwner
from softunicast.core.endpoints import address_order, endpoint_text, parse_endpoint
from softunicast.core.errors import InputError, UnknownNameError
from softunicast.core.events import Event
from softunicast.core.leases import Lease
from softunicast.core.pools import Pool, select
from softunicast.core.records import HistoryEntry, Snapshot
from softunicast.core.slices import Slice
from softunicast.kernel.flows import Drop, Flow
from softunicast.kernel.links import Interface
from softunicast.kernel.reasons import MEANING
from softunicast.kernel.usage import Usage

Row = dict[str, Any]
PROTOCOLS: Final = ("tcp", "udp", "icmp")


def owners(state: KernelState) -> Iterator[tuple[Slice, SlotOwner]]:
    """Every slice in the kernel's table that somebody owns, in order."""
    for address in sorted(state.addresses, key=address_order):
        table = state.addresses[address]
        for slot in sorted(table.owners):
            yield Slice.of(address, slot * table.slice_ports, table.slice_ports), table.owners[slot]


def slices(
    state: KernelState, me: str, draining: Iterable[Slice], flows: Mapping[Slice, int], now_ns: int
) -> list[Row]:
    """The kernel's table. `flows`: live flows of this server's slices; `now_ns`: CLOCK_MONOTONIC."""
    on_the_way_out = set(draining)
    rows = []
    for slice_, owner in owners(state):
        here = owner.server == me
        pools = [name for name, pool in sorted(state.pools.items()) if slice_ in pool.slices]
        if not here:
            condition = "held"
        elif owner.deadline_ns <= now_ns:
            condition = "expired"
        elif slice_ in on_the_way_out:
            condition = "draining"
        else:
            condition = "held" if pools else "settling"
        rows.append(
            {
                "slice": str(slice_),
                "address": str(slice_.address),
                "ports": f"{slice_.port_first}-{slice_.port_last}",
                "server": owner.server,
                "epoch": owner.epoch,
                "here": here,
                "state": condition,
                "deadline_in_s": round(max(0, owner.deadline_ns - now_ns) / 1e9, 3) if here else None,
                "pool": ", ".join(pools) or None,
                "flows": flows.get(slice_, 0) if here else None,
            }
        )
    return rows


def leases(snapshot: Snapshot, now: float) -> list[Row]:
    """The ledger's leases; `now` is the ledger's clock."""
    return [_lease(lease, now) for lease in sorted(snapshot.leases, key=lambda lease: lease.slice)]


def _lease(lease: Lease, now: float) -> Row:
    until = lease.quarantined_until
    return {
        "slice": str(lease.slice),
        "server": lease.server,
        "epoch": lease.epoch,
        "state": str(lease.state),
        "expires_in_s": round(lease.expires_at - now, 3) if lease.live else None,
        "quarantined_for_s": None if until is None else round(until - now, 3),
    }


def history(entry: HistoryEntry) -> Row:
    """One entry of the ledger's book; `at` is unix time."""
    return asdict(entry) | {"slice": None if entry.slice is None else str(entry.slice)}


def pools(
    configured: Iterable[Pool],
    site: str,
    snapshot: Snapshot,
    state: KernelState,
    used: Mapping[Slice, int],
    usage: Mapping[str, Usage],
) -> list[Row]:
    """This server's pools. `used`: ports with a live flow, by slice; `usage`: as of the last sweep."""
    rows = []
    for pool in configured:
        held = state.pools[pool.name].slices if pool.name in state.pools else ()
        try:
            addresses = select(pool, snapshot.addresses, site)
        except UnknownNameError:  # a tag that left the ledger: status says so
            addresses = ()
        rows.append(
            {
                "name": pool.name,
                "tags": dict(pool.tags),
                "addresses": [str(address.address) for address in addresses],
                "slices": [str(slice_) for slice_ in held],
                "ports": sum(slice_.ports for slice_ in held),
                "ports_used": sum(used.get(slice_, 0) for slice_ in held),
                "busiest": usage[pool.name].busiest if pool.name in usage else 0,
                "busiest_to": usage[pool.name].destination if pool.name in usage else None,
                "onramps": sorted(name for name, of in state.onramps.items() if of == pool.name),
            }
        )
    return rows


def onramps(config: Config, found: Mapping[str, tuple[Interface | None, str]]) -> list[Row]:
    """The configured on-ramps with the interface of each, where it is there, and how it is attached."""
    rows = []
    for name in sorted(config.onramps):
        device, attachment = found[name]
        tun = config.tuns.get(name)
        rows.append(
            {
                "name": name,
                "kind": "interface" if tun is None else "fd",
                "pool": config.onramps[name],
                "state": "missing" if device is None else "ready" if attachment else "waiting",
                "attach": attachment or None,
                "layer": None if device is None else "ip" if device.bare else "ethernet",
                "address": str(device.addresses[0]) if device and device.addresses else None,
                "address6": next(
                    (str(one) for one in (device.addresses6 if device else ()) if not one.is_link_local), None
                ),
                "mtu": device.mtu if device else None,
                "sources": [str(one) for one in config.sources.get(name, ())],
                "open": device is not None and device.carrier if tun else None,
            }
        )
    return rows


def agreements(members: Iterable[Member]) -> list[Row]:
    """Who leaves from which pool, by cgroup."""
    rows = [
        {
            "cgroup": str(one.entry.path or one.entry.place),
            "number": one.entry.number,
            "by": "excused" if one.entry.pool is None else "run" if one.entry.joined else "attach",
            "pool": one.entry.pool,
            "processes": [{"pid": pid, "name": name} for pid, name in one.processes],
        }
        for one in members
    ]
    return sorted(rows, key=lambda row: str(row["cgroup"]))


class PortsUsed:
    """Counts ports that have a live flow, whatever the protocol, by slice; fed with one flow after the other."""

    def __init__(self, of: Iterable[Slice]) -> None:
        self._ports: dict[Slice, set[int]] = {slice_: set() for slice_ in of}
        self._by_address: dict[str, list[Slice]] = {}
        for slice_ in self._ports:
            self._by_address.setdefault(str(slice_.address), []).append(slice_)

    def see(self, flow: Flow) -> bool:
        """False: the flow itself is not wanted in any list."""
        address, _, port = flow.local.rpartition(":")
        for slice_ in self._by_address.get(address.strip("[]"), ()):
            if slice_.port_first <= int(port) <= slice_.port_last:
                self._ports[slice_].add(int(port))
        return False

    def counts(self) -> dict[Slice, int]:
        return {slice_: len(ports) for slice_, ports in self._ports.items()}


def _reached(state: KernelState, me: str, name: str) -> str:
    """How the director sends packets on to a server."""
    if name == me or name not in state.servers:
        return "self" if name == me else "no"
    return "tunnel" if name in state.tunnels else "neighbour"


def servers(snapshot: Snapshot, state: KernelState, me: str) -> list[Row]:
    """The servers of the ledger, how they are reached, and the number of live leases of each."""
    held = [lease.server for lease in snapshot.leases if lease.live]
    return [
        {
            "name": server.name,
            "site": server.site,
            "address": str(server.address),
            "mac": server.mac,
            "here": server.name == me,
            "reached": _reached(state, me, server.name),
            "slices": held.count(server.name),
        }
        for server in sorted(snapshot.servers, key=lambda server: server.name)
    ]


def event(one: Event) -> Row:
    """One event; `kind` is its log line's name with _ for blanks."""
    return {
        "number": one.number,
        "at": round(one.at, 3),
        "kind": one.kind.replace(" ", "_"),
        "count": one.count,
        "nat_event": one.nat_event,
        "details": one.details,
    }


def as_text(value: object) -> str:
    """JSON in which slices and the like are written as in logs."""
    return json.dumps(value, default=str)


def drops(found: Iterable[Drop]) -> list[Row]:
    """Every reason there is, also those that never happened."""
    return [
        {
            "reason": drop.reason.name.lower(),
            "packets": drop.packets,
            "meaning": MEANING[drop.reason],
            "last": asdict(drop.last) if drop.last else None,
        }
        for drop in found
    ]


def flow_filter(query: Mapping[str, str]) -> Callable[[Flow], bool] | None:
    """The flows that `protocol`, `client`, `local` and `remote` ("address" or "address:port") ask for."""
    protocol = query.get("protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        raise InputError(f"no flows of protocol {protocol[:40]!r}", f"use one of {', '.join(PROTOCOLS)}")
    ends = {name: _end(query[name]) for name in ("client", "local", "remote") if name in query}
    if protocol is None and not ends:
        return None

    def wanted(flow: Flow) -> bool:
        if protocol is not None and flow.protocol != protocol:
            return False
        for name, end in ends.items():
            value: str = getattr(flow, name)
            if value != end and value.rpartition(":")[0].strip("[]") != end:
                return False
        return True

    return wanted


def _end(text: str) -> str:
    """In the form that flows are written in."""
    return endpoint_text(*parse_endpoint(text))
