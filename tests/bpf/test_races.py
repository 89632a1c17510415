"""Both CPUs at once: the programs run in several threads while others sweep. What must hold is what claims are
for: one tuple, one conversation; and nothing is left over.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from tests.bpf import frames
from tests.bpf.frames import FROM_WIRE, REMOTE, udp
from tests.bpf.test_mapping import MAPPING, behaving
from tests.bpf.test_search import Opener, slice_ends
from tests.bpf.world import DEPENDENT, ONRAMP, UPLINK, World, state

from softunicast.core.pools import Behaviour
from softunicast.kernel import abi
from softunicast.kernel.words import index_key

THREADS = 3
OTHER_REMOTE = "203.0.113.2:443"


def together(*functions: Callable[[], None]) -> None:
    """Runs them in threads of this namespace; the first failure is raised here."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def guarded(function: Callable[[], None]) -> None:
        try:
            start.wait()
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("protocol", ["tcp", "udp", "echo"])
def test_a_slice_filled_from_several_sides(world: World, protocol: str) -> None:
    """Exactly as many as there are ports, all different, however many ask at once."""
    world.reset(state(ports=1024, mine=(2,), theirs=(), expired=()))
    got: list[list[tuple[str, int]]] = [[] for _ in range(THREADS)]

    def fill(index: int) -> None:
        opener = Opener(world, protocol)
        for number in range(index, 1024 + 30, THREADS):
            if found := opener.open(number):
                got[index].append(found)

    together(*(partial(fill, index) for index in range(THREADS)))
    ends = [found for part in got for found in part]
    assert len(ends) == len(set(ends)) == 1024
    assert set(ends) == slice_ends(2, ports=1024)
    assert len(world.claims()) == len(world.flows()) == 1024


@pytest.mark.parametrize(
    ("behaviour", "others"), [(DEPENDENT, REMOTE), (MAPPING, REMOTE), (MAPPING, OTHER_REMOTE)]
)
def test_one_flow_opened_on_two_cpus(world: World, behaviour: Behaviour, others: str) -> None:
    """Both packets leave from the same port, and only one claim is kept; so is only one mapping, also when the two
    packets have different destinations."""
    world.reset(behaving(behaviour))
    flows = 1500
    got: list[list[tuple[str, int] | None]] = [[], []]

    def open_all(index: int) -> None:
        opener = Opener(world, "udp", (REMOTE, others)[index])
        for number in range(flows):
            got[index].append(opener.open(number))

    together(partial(open_all, 0), partial(open_all, 1))
    assert got[0] == got[1]
    assert None not in got[0]
    conversations = flows * len({REMOTE, others})
    mappings = flows if behaviour is MAPPING else 0
    assert len(world.claims()) == len(world.flows()) == conversations + mappings


@contextmanager
def udp_lifetime(world: World, lifetime_ns: int) -> Iterator[None]:
    """Below what can be configured, so that claims change hands all the time."""
    pools = world.datapath.map("pools")
    key = index_key(world.datapath._tables.pool_numbers()["gb"])
    before = pools.get(key)
    assert before
    pools.set(key, abi.Pool.unpack(before)._replace(udp_ns=lifetime_ns).pack())
    try:
        yield
    finally:
        pools.set(key, before)


@pytest.mark.parametrize("behaviour", [DEPENDENT, MAPPING])
def test_claims_that_change_hands_all_the_time(world: World, behaviour: Behaviour) -> None:
    """A reply right after a client's packet reaches that client and nobody else; in the end all memory is free."""
    lifetime_ns = 150_000_000
    world.reset(behaving(behaviour, 64))
    until = time.monotonic() + 1.5
    checked = [0, 0]

    def going() -> bool:
        """Ports become free in bursts, of which one of the two may get most."""
        now = time.monotonic()
        return now < until or (min(checked) <= 100 and now < until + 20)

    def talk(index: int) -> None:
        question, number = udp(f"10.0.0.{index + 2}:0"), 0
        while going():
            number += 1
            port = struct.pack("!H", 1024 + number % 5000)
            asked_ns = time.monotonic_ns()
            sent = world.run("egress_out", frames.changed(question, 34, port), ONRAMP)
            if sent.frame[26] == 10:  # refused: an ICMP error from 10.0.0.1
                continue
            answer = frames.changed(ANSWER, 36, sent.frame[34:36])
            back = world.run("egress_in", answer, UPLINK)
            if time.monotonic_ns() - asked_ns < lifetime_ns // 2:  # the claim cannot have expired since
                assert back.frame[30:34] == bytes([10, 0, 0, index + 2])
                assert back.frame[36:38] == port
                checked[index] += 1

    def sweep() -> None:
        while going():
            world.datapath.sweep()

    with udp_lifetime(world, lifetime_ns):
        together(partial(talk, 0), partial(talk, 1), sweep)
    assert min(checked) > 100
    deadline = time.monotonic() + 5
    while world.datapath.sweep()[1]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert world.claims() == {}
    assert world.flows() == {}


ANSWER = udp(REMOTE, "198.51.100.10:0", macs=FROM_WIRE)
