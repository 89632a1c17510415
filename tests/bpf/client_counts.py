"""What the table of clients says, and what it should say by the claims that there are: tests compare the two."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from tests.bpf.world import World, state

from softunicast.core.desired import KernelState
from softunicast.core.pools import Behaviour, ClientLimits
from softunicast.kernel import abi

PROTOCOLS = {6: "tcp", 17: "udp", 1: "icmp"}


@dataclass(frozen=True)
class Count:
    """Of one client."""

    claims: int = 0
    tcp: int = 0
    udp: int = 0
    icmp: int = 0


def limited(behaviour: Behaviour | None = None, when_full: str = "another", **more: object) -> KernelState:
    """`state()` with limits for each client; what is not a limit is for `state`."""
    names = ClientLimits.__dataclass_fields__
    limits = ClientLimits(**{name: value for name, value in more.items() if name in names})  # type: ignore[arg-type]
    wanted = state(**{name: value for name, value in more.items() if name not in names})  # type: ignore[arg-type]
    pool = replace(wanted.pools["gb"], client_limits=limits, when_full=when_full)
    if behaviour is not None:
        pool = replace(pool, behaviour=behaviour)
    return replace(wanted, pools={"gb": pool})


def said(world: World) -> dict[tuple[int, int], Count]:
    """By (on-ramp, address): every client that has an entry and claims."""
    found = {}
    for key, value in world.datapath.map("clients").items():
        client = abi.Client.unpack(value)
        count = Count(client.claims, client.tcp, client.udp, client.icmp)
        if count != Count():
            found[tuple(abi.ClientKey.unpack(key))] = count
    return found  # type: ignore[return-value]


def counted(world: World) -> dict[tuple[int, int], Count]:
    """The same, counted claim by claim."""
    claims, open_ones = Counter[tuple[int, int]](), Counter[tuple[int, int, str]]()
    for claim in world.claims().values():
        flow = abi.FlowKey.unpack(claim.flow)
        if not claim.state & abi.TcpSeen.COUNTED:
            continue
        claims[flow.onramp, flow.client] += 1
        fins = claim.state & (abi.TcpSeen.FIN_IN | abi.TcpSeen.FIN_OUT)
        if not claim.state & abi.TcpSeen.RST and fins != abi.TcpSeen.FIN_IN | abi.TcpSeen.FIN_OUT:
            open_ones[flow.onramp, flow.client, PROTOCOLS[flow.protocol]] += 1
    return {
        who: Count(number, **{name: open_ones[*who, name] for name in PROTOCOLS.values()})
        for who, number in claims.items()
    }


def check(world: World) -> None:
    """The table says what the claims say."""
    assert said(world) == counted(world)
