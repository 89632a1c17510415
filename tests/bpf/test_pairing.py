"""One client, one address (RFC 4787 REQ-2, RFC 6888 REQ-2, RFC 7857 section 4), whatever happens to the pool; and
what a client gets whose address is full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from tests.bpf.client_counts import check
from tests.bpf.frames import echo, local_end, refusal, tcp, udp
from tests.bpf.world import DEPENDENT, FAR_NS, ME, ONRAMP, ONRAMP2, World, state

from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.pools import Behaviour, Timers
from softunicast.core.slices import Slice

PORTS = 64
ALL = (10, 11, 12, 13)
EVERY_PROTOCOL = Behaviour(frozenset({"tcp", "udp", "icmp"}), frozenset())


def having(
    numbers: Iterable[int],
    when_full: str = "another",
    several: bool = True,
    behaviour: Behaviour = DEPENDENT,
    slots: Iterable[int] = (1, 5),
) -> KernelState:
    """A pool of two slices of each of the addresses 198.51.100.N."""
    addresses = [IPv4Address(f"198.51.100.{number}") for number in numbers]
    slots = tuple(slots)
    owners = {slot: SlotOwner(ME, 1, FAR_NS) for slot in slots}
    slices = tuple(Slice.of(address, slot * PORTS, PORTS) for address in addresses for slot in slots)
    pool = PoolSlices(Timers(), slices, behaviour, when_full=when_full, several=several)
    return replace(
        state(), addresses={address: AddressTable(PORTS, owners) for address in addresses}, pools={"gb": pool}
    )


def left_from(world: World, client: str, port: int = 2000, remote: str = "203.0.113.1:443") -> str:
    ran = world.out(tcp(f"{client}:{port}", remote))
    assert ran.outcome == "out"
    return local_end(ran.frame).partition(":")[0]


def clients(count: int) -> list[str]:
    return [f"10.0.{number // 200}.{2 + number % 200}" for number in range(count)]


@pytest.mark.parametrize("behaviour", [DEPENDENT, EVERY_PROTOCOL])
def test_one_address_for_everything(world: World, behaviour: Behaviour) -> None:
    """All destinations and protocols; several clients use all addresses between them."""
    world.reset(having(ALL, behaviour=behaviour))
    used = Counter[str]()
    for client in clients(12):
        first = left_from(world, client)
        used[first] += 1
        for number, frame in enumerate(
            [
                tcp(f"{client}:2001", "203.0.113.9:80"),
                udp(f"{client}:2002"),
                echo(f"{client}:0", identifier=9),
            ]
        ):
            assert local_end(world.out(frame).frame).startswith(f"{first}:"), number
    assert len(used) == 4


def test_clients_are_spread_evenly(world: World) -> None:
    world.reset(having(ALL, several=False))
    many = clients(400)
    spread = Counter(
        left_from(world, client, remote=f"203.0.113.{at % 200}:443") for at, client in enumerate(many)
    )
    assert len(spread) == 4
    assert min(spread.values()) > 60


def test_the_same_address_behind_two_onramps_is_two_clients(world: World) -> None:
    world.reset(having(ALL))
    both = [
        [
            local_end(world.out(udp(f"{client}:2000"), onramp=onramp).frame).partition(":")[0]
            for client in clients(12)
        ]
        for onramp in (ONRAMP, ONRAMP2)
    ]
    assert both[0] != both[1]


def test_a_client_with_flows_keeps_its_address_when_others_come(world: World) -> None:
    """One without may move, and about as many do as the new address deserves."""
    world.reset(having(ALL[:3]))
    before = {client: left_from(world, client) for client in clients(30)}
    world.datapath.apply(having(ALL))
    assert {client: left_from(world, client, 2001) for client in before} == before
    world.expire()
    world.datapath.sweep()
    after = {client: left_from(world, client, 2002) for client in before}
    moved = {client for client in before if after[client] != before[client]}
    assert {after[client] for client in moved} == {"198.51.100.13"}
    assert 1 <= len(moved) <= 16


@pytest.mark.parametrize("several", [True, False])
def test_only_clients_of_an_address_that_goes_are_moved(world: World, several: bool) -> None:
    world.reset(having(ALL, several=several))
    before = {client: left_from(world, client) for client in clients(30)}
    world.datapath.apply(having(ALL[1:], several=several))
    after = {client: left_from(world, client, 2001) for client in before}
    assert all(after[client] == address for client, address in before.items() if address != "198.51.100.10")
    assert "198.51.100.10" not in after.values()
    world.datapath.apply(having(ALL, several=several))
    again = {client: left_from(world, client, 2002) for client in before}
    assert again == (after if several else before)  # who has moved and has flows does not move back


def test_a_lease_that_ran_out_is_no_address(world: World) -> None:
    """Its slices are still in the pool; a new flow must not wait for somebody to take them out."""
    wanted = having(ALL[:2])
    world.reset(wanted)
    first = left_from(world, "10.0.0.2")
    gone = IPv4Address(first)
    expired = AddressTable(PORTS, {slot: SlotOwner(ME, 1, 1) for slot in (1, 5)})
    world.datapath.apply(replace(wanted, addresses={**wanted.addresses, gone: expired}))
    other = left_from(world, "10.0.0.2", 2001)
    assert other != first
    assert left_from(world, "10.0.0.2", 2002) == other


@pytest.mark.parametrize(("protocol", "several"), [("tcp", True), ("udp", False), ("echo", True)])
def test_another_address_when_it_is_full(world: World, protocol: str, several: bool) -> None:
    """Every port of every slice is used before anybody is refused, the client's own first; and once there is room,
    that address is used again."""
    world.reset(having(ALL, several=several))
    make = {"tcp": tcp, "udp": udp}.get(protocol)

    def frame(number: int, remote: str = "203.0.113.1:443") -> bytes:
        return make(f"10.0.0.2:{number}", remote) if make else echo("10.0.0.2:0", remote, number)

    ends = [local_end(world.out(frame(2000 + number)).frame) for number in range(8 * PORTS)]
    assert len(set(ends)) == 8 * PORTS
    own = {end.partition(":")[0] for end in ends[: 2 * PORTS]}
    assert len(own) == 1
    assert Counter(end.partition(":")[0] for end in ends) == {
        f"198.51.100.{number}": 2 * PORTS for number in ALL
    }
    assert world.out(frame(4000)).reason == "slice_full"
    assert local_end(world.out(frame(4000, "203.0.113.2:443")).frame).partition(":")[0] in own
    if several:
        check(world)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("behaviour", [DEPENDENT, EVERY_PROTOCOL])
def test_refused_when_it_is_full(world: World, protocol: str, behaviour: Behaviour) -> None:
    """RFC 7857 section 4: the packet is dropped; clients of other addresses do not notice."""
    world.reset(having(ALL, "refuse", behaviour=behaviour))
    make = tcp if protocol == "tcp" else udp
    ends = {local_end(world.out(make(f"10.0.0.2:{2000 + number}")).frame) for number in range(2 * PORTS)}
    assert len(ends) == 2 * PORTS
    (own,) = {end.partition(":")[0] for end in ends}
    late = make("10.0.0.2:4000")
    ran = world.out(late)
    assert dict(ran.counted) == {"slice_full": 1, "icmp_sent": 1}
    assert ran.frame == refusal(late, 3, 1 if protocol == "tcp" else 13)
    others = [world.out(make(f"{client}:2000")) for client in clients(20)[1:]]
    served = [local_end(ran.frame).partition(":")[0] for ran in others if ran.outcome]
    assert own not in served
    assert len(served) >= 10
    assert {ran.reason for ran in others if not ran.outcome} == {"slice_full"}
    check(world)


def test_a_full_address_with_ended_conversations(world: World) -> None:
    """`refuse` does not refuse what can be used again: RFC 6888 REQ-8 a."""
    world.reset(having(ALL, "refuse"))
    for number in range(2 * PORTS):
        left_from(world, "10.0.0.2", 2000 + number)
    own = left_from(world, "10.0.0.2", 2000)
    ended = {key: claim for key, claim in world.claims().items() if claim.expires_ns}
    world.change_claims(state=4 | 8 | 32, expires_ns=next(iter(ended.values())).expires_ns - 10 * 10**9)
    assert left_from(world, "10.0.0.2", 4000) == own
