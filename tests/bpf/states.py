"""Kernel states for property tests: any that the agent could ask for."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import strategies as st
from tests.bpf.world import ME, ONRAMP, ONRAMP2

from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.pools import PROTOCOLS, Behaviour, Timers
from softunicast.core.slices import Slice

ADDRESSES = tuple(
    IPv4Address(text) for text in ("198.51.100.10", "198.51.100.11", "0.0.0.1", "255.255.255.254")
)
BLOCKS = tuple(
    Slice.parse(text) for text in ("198.51.100.0/24", "198.51.0.0/16", "198.51.100.10/32", "0.0.0.0/1")
)
NAMES = (ME, "server2", "a", "Ünïcödé-" + "x" * 35)
PORTS = (256, 2048, 32768)

seconds = st.integers(1, 10**6)
timers = st.builds(Timers, seconds, seconds, seconds, seconds, seconds)
protocols = st.frozensets(st.sampled_from(PROTOCOLS))
behaviours = st.builds(Behaviour, protocols, protocols)
macs = st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":"))
servers = st.dictionaries(st.sampled_from(NAMES), macs, min_size=1)


@st.composite
def kernel_states(draw: st.DrawFn) -> KernelState:
    """Slots have owners that are known, pools have slices of known tables. Epochs are 1: see `with_epoch`."""
    known = draw(servers)
    owners = st.builds(SlotOwner, st.sampled_from(sorted(known)), st.just(1), st.integers(0, (1 << 64) - 1))
    tables = {}
    for address in draw(st.sets(st.sampled_from(ADDRESSES))):
        ports = draw(st.sampled_from(PORTS))
        slots = st.dictionaries(st.integers(0, 65536 // ports - 1), owners, max_size=6)
        tables[address] = AddressTable(ports, draw(slots))
    places = [
        Slice.of(address, slot * table.slice_ports, table.slice_ports)
        for address, table in tables.items()
        for slot in table.owners
    ]
    some = st.lists(st.sampled_from(places), unique=True, max_size=8) if places else st.just([])
    pools = st.builds(PoolSlices, timers, some.map(tuple), behaviours)
    named = draw(st.dictionaries(st.sampled_from(["gb", "de", "a" * 47]), pools))
    onramps = {}
    if named:
        onramps = draw(st.dictionaries(st.sampled_from([ONRAMP, ONRAMP2]), st.sampled_from(sorted(named))))
    blocks = draw(st.frozensets(st.sampled_from(BLOCKS)))
    return KernelState(blocks, tables, known, named, onramps)


def with_epoch(state: KernelState, epoch: int) -> KernelState:
    """The same with every lease of this epoch: leases only ever get newer."""
    tables = {
        address: AddressTable(
            table.slice_ports, {slot: replace(owner, epoch=epoch) for slot, owner in table.owners.items()}
        )
        for address, table in state.addresses.items()
    }
    return replace(state, addresses=tables)
