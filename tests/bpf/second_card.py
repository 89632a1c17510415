"""A second card beside the uplink, and somebody at its other end, for tests of what programs send there."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute
from tests.bpf import families
from tests.bpf.far_end import Wire
from tests.bpf.programs import refusal_of
from tests.bpf.world import World, add_pair

OTHER, OTHER_END = "oth", "otp"
OWN, THERE = "10.9.0.1", "10.9.0.2:443"
MAC, THERE_MAC = "02:00:00:00:09:01", "02:00:00:00:09:02"
FROM_THERE = (THERE_MAC, MAC)


@contextmanager
def second_card() -> Iterator[None]:
    """In the network namespace of the caller, for both families."""
    index = add_pair(OTHER, OTHER_END, MAC, f"{OWN}/24")
    address = THERE.partition(":")[0]
    with IPRoute() as netlink:
        for number, dst in ((socket.AF_INET, address), (socket.AF_INET6, str(families.six(address)))):
            netlink.neigh("add", family=number, dst=dst, lladdr=THERE_MAC, ifindex=index, state="permanent")
        try:
            yield
        finally:
            netlink.link("del", index=index)


@contextmanager
def counted(world: World, **expected: int) -> Iterator[None]:
    before = world.counters()
    yield
    after = world.counters()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == expected


@contextmanager
def refused(world: World, wire: Wire, reason: str = "not_uplink") -> Iterator[None]:
    """EPERM at once, one reason for it, and nothing on the wire."""
    with counted(world, **{reason: 1}), refusal_of(errno.EPERM):
        yield
    wire.check_silent()
