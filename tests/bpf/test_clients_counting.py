"""What a client is counted as having is what it has, whatever happened: random packets, claims that end, expire, are
swept, change hands and are used again, limits that come and go, several CPUs, an agent that starts again.
"""

from __future__ import annotations

import random
import struct
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.bpf import frames
from tests.bpf.client_counts import check, limited, said
from tests.bpf.frames import FROM_WIRE, REMOTE, echo, local_end, tcp, udp
from tests.bpf.test_races import together, udp_lifetime
from tests.bpf.world import LIMITS, ME, ONRAMP, ONRAMP2, UPLINK, World, make_server, state

from softunicast.core.desired import KernelState
from softunicast.core.pools import Behaviour
from softunicast.kernel import abi
from softunicast.kernel.datapath import Datapath

MAPPING = Behaviour(frozenset({"udp", "icmp"}), frozenset())
CLIENTS = ("10.0.0.2", "10.0.0.3", "10.0.0.4")
PORTS = 16
WORLDS: dict[str, KernelState] = {
    "limits": limited(ports=PORTS, flows_max=9, udp_max=6, state_max=12, behaviour=MAPPING),
    "other limits": limited(ports=PORTS, flows_max=1000),
    "no limits": state(ports=PORTS),
}


def first_of(protocol: str, client: str, number: int, remote: str) -> bytes:
    if protocol == "icmp":
        return echo(f"{client}:0", remote, 2000 + number)
    return (tcp if protocol == "tcp" else udp)(f"{client}:{2000 + number}", remote)


class Mill:
    """Does what a step says, and remembers the ends that were given."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ends: list[tuple[bytes, str]] = []  # first TCP packets, and where they left from

    def open(self, protocol: str, client: int, number: int, more: int) -> None:
        frame = first_of(protocol, CLIENTS[client], number, f"203.0.113.{1 + more % 2}:443")
        ran = self.world.out(frame, onramp=ONRAMP2 if more % 5 == 0 else ONRAMP)
        if ran.outcome == "out" and protocol == "tcp":
            self.ends.append((frame, local_end(ran.frame)))

    def talk(self, which: int, flags: str, from_peer: bool) -> None:
        if not self.ends:
            return
        frame, local = self.ends[which % len(self.ends)]
        client = ".".join(str(byte) for byte in frame[26:30]) + f":{int.from_bytes(frame[34:36], 'big')}"
        remote = ".".join(str(byte) for byte in frame[30:34]) + ":443"
        if from_peer:
            self.world.back(tcp(remote, local, flags, macs=FROM_WIRE, sequence=100, acknowledgement=6))
        else:
            self.world.out(tcp(client, remote, flags, sequence=6, acknowledgement=101))

    def pass_time(self, share: int, sweep: bool) -> None:
        """Some claims expire, others have been over for long enough to be used again."""
        for at, (key, claim) in enumerate(self.world.claims().items()):
            if at % 4 == share % 4:
                soon = time.monotonic_ns() + 30 * 10**9
                changed = claim._replace(expires_ns=1 if share < 8 else soon)
                self.world.datapath.map("claims").set(key.pack(), changed.pack())
        self.world.change_flows(refresh_ns=0)
        if sweep:
            self.world.datapath.sweep()


SMALL = st.integers(0, 19)
STEPS = st.one_of(
    st.tuples(
        st.just("open"), st.sampled_from(["tcp", "tcp", "udp", "icmp"]), st.integers(0, 2), SMALL, SMALL
    ),
    st.tuples(st.just("talk"), SMALL, st.sampled_from(["SA", "A", "FA", "RA", "R", "S"]), st.booleans()),
    st.tuples(st.just("pass_time"), st.integers(0, 15), st.booleans()),
    st.tuples(st.just("change"), st.sampled_from(sorted(WORLDS))),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=20, max_size=60))
def test_after_any_history(world: World, steps: list[tuple[object, ...]]) -> None:
    world.reset(WORLDS["limits"])
    mill = Mill(world)
    for name, *arguments in steps:
        if name == "change":
            world.datapath.apply(WORLDS[str(arguments[0])])
        else:
            getattr(mill, str(name))(*arguments)
        check(world)
    world.expire()
    world.datapath.sweep()
    assert said(world) == {}
    assert list(world.datapath.map("clients").items()) == []


def test_on_several_cpus(world: World) -> None:
    """Packets of the same few clients from all sides, and a sweep all the time: TCP conversations begin and end, UDP
    claims expire and change hands. A limit is a limit for all CPUs together."""
    world.reset(limited(ports=64, udp_max=20, behaviour=Behaviour(frozenset(), frozenset())))
    until, highest = time.monotonic() + 1.5, [0]

    def client(seed: int) -> None:
        numbers = random.Random(seed)
        frame, question = tcp("10.0.0.2:0"), udp("10.0.0.2:0")
        while time.monotonic() < until:
            port = struct.pack("!H", 2000 + numbers.randrange(60))
            source = bytes([10, 0, 0, numbers.randrange(2, 5)])
            asked = frames.changed(frames.changed(question, 26, source), 34, port)
            world.run("egress_out", asked, ONRAMP)
            opened = frames.changed(frames.changed(frame, 26, source), 34, port)
            sent = world.run("egress_out", opened, ONRAMP)
            if sent.frame[26] == 10:  # refused
                continue
            for flags in (0x14, 0x04, 0x11)[: numbers.randrange(4)]:  # RST with and without ACK, FIN
                answer = frames.changed(ANSWER, 36, sent.frame[34:36])
                world.run("egress_in", frames.changed(answer, 47, bytes([flags])), UPLINK)
                world.run("egress_out", frames.changed(opened, 47, bytes([flags])), ONRAMP)

    def watch() -> None:
        while time.monotonic() < until:
            world.datapath.sweep()
            highest[0] = max(highest[0], *(found.udp for found in said(world).values()), 0)

    with udp_lifetime(world, 100_000_000):
        together(partial(client, 1), partial(client, 2), watch)
        check(world)
    assert 15 < highest[0] <= 20 + 2  # what each of the two has reserved and gives back is seen, too
    world.expire()
    world.datapath.sweep()
    assert list(world.datapath.map("clients").items()) == []


ANSWER = tcp(REMOTE, "198.51.100.10:0", "RA", macs=FROM_WIRE, sequence=100, acknowledgement=6)


def test_an_agent_that_starts_again(tmp_path: Path) -> None:
    """Counts are the kernel's: the next agent finds them, and what ends under it is counted off."""
    with make_server(tmp_path) as mount:
        for number in range(2):
            datapath = Datapath.open(mount, UPLINK, ME, LIMITS)
            datapath.apply(limited(flows_max=2))
            world = World(datapath)
            assert world.out(tcp(f"10.0.0.2:{3000 + number}")).outcome == "out"
            check(world)
            assert [found.tcp for found in said(world).values()] == [number + 1]
            datapath.close()
        datapath = Datapath.open(mount, UPLINK, ME, LIMITS)
        world = World(datapath)
        try:
            assert world.out(tcp("10.0.0.2:3002")).reason == "client_flows"
            world.expire()
            datapath.sweep()
            assert said(world) == {}
        finally:
            datapath.remove()


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
def test_limits_by_protocol(world: World, protocol: str) -> None:
    """RFC 6888 REQ-4 b: the other protocols go on."""
    world.reset(limited(**{f"{protocol}_max": 2}))
    ran = [world.out(first_of(protocol, CLIENTS[0], number, REMOTE)) for number in range(3)]
    assert [found.outcome or found.reason for found in ran] == ["out", "out", "client_flows"]
    for other in {"tcp", "udp", "icmp"} - {protocol}:
        assert all(
            world.out(first_of(other, CLIENTS[0], number, REMOTE)).outcome == "out" for number in range(5)
        )
    check(world)


def test_state_of_ended_conversations(world: World) -> None:
    """RFC 6888 REQ-5: a scanner whose connections are all refused has no flows, but it fills the table."""
    world.reset(limited(flows_max=2, state_max=5))
    for number in range(5):
        sent = world.out(tcp(f"10.0.0.2:{3000 + number}"))
        assert sent.outcome == "out"
        refused = tcp(REMOTE, local_end(sent.frame), "RA", macs=FROM_WIRE, sequence=0, acknowledgement=6)
        assert world.back(refused).outcome == "in"
        check(world)
    assert [(found.claims, found.tcp) for found in said(world).values()] == [(5, 0)]
    assert world.out(tcp("10.0.0.2:3005")).reason == "client_state"
    assert world.out(tcp("10.0.0.3:3005")).outcome == "out"


def test_a_scanner_beside_a_normal_client(world: World) -> None:
    """It tries every port of one destination, then many destinations; the other client has its port each time."""
    world.reset(limited(ports=64, flows_max=40, state_max=60))
    for round_ in range(4):
        for number in range(64):
            remote = (
                f"203.0.113.{1 + round_}:{1000 + number}" if round_ % 2 else f"203.0.113.{1 + round_}:443"
            )
            world.out(tcp(f"10.0.0.2:{3000 + round_ * 64 + number}", remote))
        assert world.out(tcp(f"10.0.0.3:{3000 + round_}", "203.0.113.1:443")).outcome == "out"
    assert sorted(found.tcp for found in said(world).values()) == [4, 40]


def test_no_room_for_another_client(world: World) -> None:
    """Those that are known go on; the new one is refused by name, in a pool without limits not at all."""
    world.reset(limited(flows_max=10))
    clients = world.datapath.map("clients")
    assert world.out(tcp("10.0.0.2:3000")).outcome == "out"
    template = abi.Client(0, 1, 1, 0, 0, 0).pack()
    clients.set_many(
        (abi.ClientKey(999, number).pack(), template) for number in range(clients.max_entries - 1)
    )
    try:
        refused = world.out(tcp("10.0.0.3:3000"))
        assert (refused.reason, "icmp_sent" in refused.counted) == ("client_table", True)
        assert world.out(tcp("10.0.0.2:3001")).outcome == "out"
        world.datapath.apply(state())
        assert world.out(tcp("10.0.0.3:3000")).outcome == "out"
    finally:
        for key, _ in list(clients.items()):
            clients.delete(key)


def test_the_table_of_clients_is_as_large_as_was_asked(world: World) -> None:
    assert world.datapath.map("clients").max_entries == LIMITS.clients_max
