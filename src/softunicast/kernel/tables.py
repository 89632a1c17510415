"""The kernel's tables as one value: reads them into a KernelState, and makes them equal to another one.

The tables are the truth about what the data path does, and they describe themselves: server and pool names
are in them. A mirror in memory, read once, saves reading a million slots at every change; only this process
writes them. Changes go in an order in which no packet is without an owner: servers before the slots that
point to them, slots before the pools that open flows in them, additions before removals.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any, Final
from zlib import crc32

from softunicast.core.desired import KernelState, PoolSlices
from softunicast.core.onramps import IPNetwork
from softunicast.core.plan import diff
from softunicast.core.pools import NO_LIMITS, PROTOCOLS, WHEN_FULL, Behaviour, ClientLimits, Timers
from softunicast.core.slices import IPAddress, Slice, slice_of_port
from softunicast.kernel import abi
from softunicast.kernel.families import FAMILIES, Family, family_of
from softunicast.kernel.maps import Map
from softunicast.kernel.resolvers import read_dns, set_dns
from softunicast.kernel.room import check_room
from softunicast.kernel.slot_tables import SlotTables
from softunicast.kernel.words import address_word, bytes_name, index_key, mac_bytes, name_bytes, word_address

NS: Final = 1_000_000_000
EMPTY: Final = KernelState(frozenset(), {}, {}, {}, {})


_Place = tuple[str, IPv4Address | None]  # of a server: its MAC address, and where its tunnels end


def _places(state: KernelState) -> dict[str, _Place]:
    return {name: (mac, state.tunnels.get(name)) for name, mac in state.servers.items()}


def _peer_key(address: IPv4Address) -> bytes:
    return index_key(address_word(address))


def _pool_slices(family: Family, pool: Any) -> Iterator[Slice]:
    for at in range(pool.slice_count):
        step = family.pool_slice_bytes
        entry = family.pool_slice.unpack(pool.slices[at * step :][:step])
        yield Slice.of(word_address(entry.address), entry.first, entry.mask + 1)


def _block_key(block: Slice) -> bytes:
    key: bytes = family_of(block.address).block_key(block.length, address_word(block.address)).pack()
    return key


def _behaviour_bits(behaviour: Behaviour) -> int:
    bits = [abi.Behaviour[f"MAPPING_{name.upper()}"] for name in behaviour.independent_mapping]
    bits += [abi.Behaviour[f"FILTERING_{name.upper()}"] for name in behaviour.independent_filtering]
    return sum(bits)


def _sharing_bits(pool: PoolSlices) -> int:
    bits = abi.Behaviour.LIMIT if pool.client_limits != NO_LIMITS else 0
    bits |= abi.Behaviour.ONE_ADDRESS if pool.when_full == "refuse" else 0
    return bits | (abi.Behaviour.SEVERAL if pool.several else 0)


def _behaviour(bits: int) -> Behaviour:
    def having(what: str) -> frozenset[str]:
        return frozenset(name for name in PROTOCOLS if bits & abi.Behaviour[f"{what}_{name.upper()}"])

    return Behaviour(having("MAPPING"), having("FILTERING"))


def _sources(family: Family, sources: Sequence[IPNetwork]) -> list[bytes]:
    """The prefixes of a family. Where only the other one has any, none of this may come in: one that none fits."""
    found: list[bytes] = [
        family.source(address_word(one.network_address), address_word(one.netmask)).pack()
        for one in sources
        if one.version == family.version
    ]
    nobody: bytes = b"\xff" * (family.source_bytes // 2) + bytes(family.source_bytes // 2)
    return found or [nobody] * bool(sources)


@dataclass
class Tables:
    """The tables of one data path, with their mirror."""

    maps: Mapping[str, Map]
    me: str
    state: KernelState = EMPTY
    _servers: dict[str, int] = field(default_factory=dict)
    _slots: SlotTables = field(default_factory=SlotTables)
    _pools: dict[str, int] = field(default_factory=dict)
    _onramps: dict[str, int] = field(default_factory=dict)

    # reading

    def read(self) -> KernelState:
        """Reads everything anew; also the answer to "what does the kernel really hold?"."""
        servers = dict(self._read_servers())
        tunnels = {name: address for name, (_, address) in servers.items() if address is not None}
        names = {index: name for name, index in self._servers.items()}
        self.state = KernelState(
            blocks=frozenset(self._read_blocks()),
            addresses={},
            servers={name: mac for name, (mac, _) in servers.items()},
            pools={},
            onramps={},
            tunnels=tunnels,
        )
        addresses = dict(self._slots.read(self.maps, names))
        pools = self._read_pools()
        self.state = replace(self.state, addresses=addresses, pools=pools, onramps=dict(self._read_onramps()))
        return self.state

    def _read_blocks(self) -> Iterator[Slice]:
        for family in FAMILIES:
            for key, _ in self.maps[family.named("blocks")].items():
                block = family.block_key.unpack(key)
                yield Slice.parse(f"{word_address(block.address)}/{block.prefix_length}")

    def _read_servers(self) -> Iterator[tuple[str, _Place]]:
        self._servers = {}
        for key, value in self.maps["servers"].items():
            server = abi.Server.unpack(value)
            if server.kind != abi.ServerKind.UNUSED:
                name = bytes_name(server.name)
                self._servers[name] = int.from_bytes(key, "little")
                address = word_address(server.address) if server.address else None
                yield name, (server.mac.hex(":"), address)

    def _read_pools(self) -> dict[str, PoolSlices]:
        self._pools = {}
        found: dict[str, PoolSlices] = {}
        for family in FAMILIES:
            table = self.maps[family.named("pools")]
            for key in table.every_key():
                if (value := table.get(key)) is None:
                    continue
                pool = family.pool.unpack(value)
                name = bytes_name(pool.name)
                self._pools[name] = int.from_bytes(key, "little")
                before = found.get(name)
                found[name] = PoolSlices(
                    Timers(*(ns // NS for ns in pool[:6])),
                    (*(before.slices if before else ()), *_pool_slices(family, pool)),
                    _behaviour(pool.behaviour),
                    ClientLimits(
                        flows_max=pool.client_flows_max,
                        tcp_max=pool.client_tcp_max,
                        udp_max=pool.client_udp_max,
                        icmp_max=pool.client_icmp_max,
                        state_max=pool.client_state_max,
                        new_per_s=pool.client_rate_max,
                    ),
                    pool.errors_max,
                    WHEN_FULL[bool(pool.behaviour & abi.Behaviour.ONE_ADDRESS)],
                    bool(pool.behaviour & abi.Behaviour.SEVERAL),
                    frozenset({family.version}) | (before.families if before else frozenset()),
                    read_dns(self.maps, self._pools[name]),
                )
        return found

    def _read_onramps(self) -> Iterator[tuple[str, str]]:
        self._onramps = {}
        pools = {index: name for name, index in self._pools.items()}
        for key in self.maps["onramps"].every_key():
            value = self.maps["onramps"].get(key)
            if value is not None:
                onramp = abi.Onramp.unpack(value)
                self._onramps[bytes_name(onramp.name)] = int.from_bytes(key, "little")
                yield bytes_name(onramp.name), pools.get(onramp.pool, "?")

    # before writing

    def newest(self, wanted: KernelState) -> KernelState:
        """`wanted`, but where it has an older lease (smaller epoch) than the one in force, that one stays."""
        tables, servers, tunnels = dict(wanted.addresses), dict(wanted.servers), dict(wanted.tunnels)
        for address, table in wanted.addresses.items():
            actual = self.state.addresses.get(address)
            if actual is None or actual.slice_ports != table.slice_ports:
                continue
            newer = {
                slot: actual.owners[slot]
                for slot, owner in table.owners.items()
                if slot in actual.owners and actual.owners[slot].epoch > owner.epoch
            }
            tables[address] = replace(table, owners={**table.owners, **newer})
            for owner in newer.values():
                if owner.server not in servers:
                    servers[owner.server] = self.state.servers[owner.server]
                    tunnels |= {name: to for name, to in self.state.tunnels.items() if name == owner.server}
        return replace(wanted, addresses=tables, servers=servers, tunnels=tunnels)

    def check(self, wanted: KernelState) -> None:
        """InputError or KernelError when the tables cannot hold what is wanted beside what is there."""
        check_room({name: table.max_entries for name, table in self.maps.items()}, self.state, wanted)
        self._slots.plan(self.maps, wanted.addresses, self.state.addresses)

    # writing: additions and changes, then removals; what `newest` and `check` have let pass

    def _blocks(self, block: Slice) -> Map:
        return self.maps[family_of(block.address).named("blocks")]

    def add(self, wanted: KernelState) -> int:
        """Everything that is new or different. Returns the number of entries written."""
        written, actual = 0, self.state.addresses
        plan = self._slots.plan(self.maps, wanted.addresses, actual)
        self._slots.begin(self.maps, plan)
        for block in wanted.blocks - self.state.blocks:
            self._blocks(block).set(_block_key(block), bytes(4))
            written += 1
        for address, table in wanted.addresses.items():
            written += self._slots.write(self.maps, address, table, actual.get(address), plan, self._servers)
        for name, pool in wanted.pools.items():
            written += self._set_pool(name, pool)
        return written

    def remove(self, wanted: KernelState) -> int:
        """Everything that is not wanted any more; `state` is `wanted` afterwards, but for the on-ramps."""
        removed = 0
        for name in diff(wanted.pools, self.state.pools).remove:
            index = self._pools.pop(name)
            for family in FAMILIES:
                self.maps[family.named("pools")].delete(index_key(index))
            set_dns(self.maps, index, ())
            removed += 1
        for address, table in self.state.addresses.items():
            removed += self._slots.clear(self.maps, address, table, wanted.addresses.get(address))
        for block in self.state.blocks - wanted.blocks:
            self._blocks(block).delete(_block_key(block))
            removed += 1
        for name in diff(wanted.servers, self.state.servers).remove:
            self.maps["servers"].set(index_key(self._servers.pop(name)), bytes(abi.SERVER_BYTES))
            removed += 1
        for address in set(self.state.tunnels.values()) - set(wanted.tunnels.values()):
            self.maps["peers"].delete(_peer_key(address))
        self.state = replace(wanted, onramps=self.state.onramps)
        return removed

    def set_servers(self, wanted: KernelState) -> int:
        """New servers, and those that are somewhere else now. First of all: slots point to servers."""
        plan = diff(_places(wanted), _places(self.state))
        for name, (mac, address) in [*plan.add.items(), *plan.change.items()]:
            used = set(self._servers.values())
            limit = self.maps["servers"].max_entries
            free = next(index for index in range(1, limit) if index not in used)
            index = self._servers.get(name, free)
            kind = abi.ServerKind.NEIGHBOUR if address is None else abi.ServerKind.REMOTE
            kind = abi.ServerKind.SELF if name == self.me else kind
            word = address_word(address) if address is not None else 0
            self.maps["paths"].set(index_key(index), bytes(abi.PATH_BYTES))
            entry = abi.Server(mac_bytes(mac), kind, word, name_bytes(name))
            self.maps["servers"].set(index_key(index), entry.pack())
            if address is not None and name != self.me:
                self.maps["peers"].set(_peer_key(address), index_key(index))
            self._servers[name] = index
        return len(plan.add) + len(plan.change)

    def _set_pool(self, name: str, pool: PoolSlices) -> int:
        if self.state.pools.get(name) == pool:
            return 0
        index = self._pools.get(name)
        if index is None:
            # Of the name, so that what outlives a pool (an agreement) never comes to mean another one.
            index, taken = max(1, crc32(name.encode())), set(self._pools.values())
            while index in taken:
                index = index % 0xFFFFFFFF + 1
        set_dns(self.maps, index, pool.dns)
        for family in FAMILIES:
            table = self.maps[family.named("pools")]
            if family.version in pool.families:
                table.set(index_key(index), self._pool_entry(family, name, pool))
            else:
                table.delete(index_key(index))
        self._pools[name] = index
        return 1

    def _pool_entry(self, family: Family, name: str, pool: PoolSlices) -> bytes:
        slices = [part for part in pool.slices if part.version == family.version]
        entries = b"".join(self._pool_slice(family, part) for part in slices)
        timers, limits = pool.timers, pool.client_limits
        entry: bytes = family.pool(
            timers.tcp_opening_s * NS,
            timers.tcp_established_s * NS,
            timers.tcp_closing_s * NS,
            timers.udp_s * NS,
            timers.icmp_s * NS,
            timers.rest_s * NS,
            len(slices),
            _behaviour_bits(pool.behaviour) | _sharing_bits(pool),
            limits.flows_max,
            limits.tcp_max,
            limits.udp_max,
            limits.icmp_max,
            limits.state_max,
            limits.new_per_s,
            pool.icmp_errors_per_s,
            name_bytes(name),
            entries.ljust(abi.AbiLimit.POOL_SLICES_MAX * family.pool_slice_bytes, b"\0"),
        ).pack()
        return entry

    def _pool_slice(self, family: Family, part: Slice) -> bytes:
        slot = self._slots.regions[part.address][0] + part.port_first // part.ports
        word = address_word(part.address)
        entry: bytes = family.pool_slice(word, slot, part.port_first, part.ports - 1).pack()
        return entry

    # on-ramps: the interface's number is the key

    def set_onramp(
        self,
        name: str,
        pool: str,
        addresses: Iterable[IPAddress],
        xdp_mtu: int,
        sources: Sequence[IPNetwork] = (),
        mss: int = 0,
        mss_mtu: int = 0,
    ) -> None:
        """Clients behind interface `name` use `pool`; the first of `addresses` of each family is the source of
        ICMP errors to them.

        `xdp_mtu`: largest packet in bytes that XDP may hand to the interface; 0 where XDP is not attached.
        `sources`: the addresses that clients may have; none: any.
        `mss`: the most that a SYN may announce, 0 for anything, or what fits packets of `mss_mtu` bytes.
        """
        index = socket.if_nametoindex(name)
        before = self._onramps.get(name)
        words = {family_of(address).version: address_word(address) for address in reversed(list(addresses))}
        for family in FAMILIES:
            table = self.maps[family.named("onramps")]
            word = words.get(family.version, family.nowhere)
            prefixes = _sources(family, sources)
            packed = b"".join(prefixes).ljust(abi.AbiLimit.ONRAMP_SOURCES_MAX * family.source_bytes, b"\0")
            numbers = self._pools[pool], word, xdp_mtu, mss, mss_mtu, len(prefixes)
            entry = family.onramp(*numbers, packed, name_bytes(name, 16))
            table.set(index_key(index), entry.pack())
            if before is not None and before != index:
                table.delete(index_key(before))
        self._onramps[name] = index
        self.state = replace(self.state, onramps={**self.state.onramps, name: pool})

    def mss_mtu(self, name: str) -> int:
        """As `set_onramp` was told; 0 when there is no such on-ramp."""
        index = self._onramps.get(name)
        value = self.maps["onramps"].get(index_key(index)) if index is not None else None
        return abi.Onramp.unpack(value).mss_mtu if value else 0

    def onramp_index(self, name: str) -> int | None:
        """The number of the interface that the entry of this on-ramp is for."""
        return self._onramps.get(name)

    def remove_onramp(self, name: str) -> int:
        """The program must be detached already. Returns the number of the interface."""
        index = self._onramps.pop(name)
        for family in FAMILIES:
            self.maps[family.named("onramps")].delete(index_key(index))
        self.state = replace(
            self.state, onramps={key: pool for key, pool in self.state.onramps.items() if key != name}
        )
        return index

    def pool_numbers(self) -> Mapping[str, int]:
        """The number that stands for each pool."""
        return self._pools

    def server_index(self, name: str) -> int:
        """The number that stands for a server in the slots, 0 while it has none."""
        return self._servers.get(name, 0)

    def slice_at(self, address: IPAddress, port: int) -> Slice | None:
        """The slice of the table that the port belongs to, owned or not."""
        table = self.state.addresses.get(address)
        return slice_of_port(address, port, table.slice_ports) if table else None
