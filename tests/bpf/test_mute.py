"""How many ICMP errors of its own a server sends, and to whom (RFC 5508 REQ-9 and REQ-10, RFC 1812 section 4.3.2). What
is refused is refused and counted, told or not.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from tests.bpf.frames import CLIENT, FROM_WIRE, REMOTE, local_end, tcp, udp
from tests.bpf.test_too_big import mtu
from tests.bpf.world import ONRAMP, ONRAMP2, Ran, World, state

from softunicast.core.desired import KernelState
from softunicast.kernel import abi

MUTED = {"no_slice": 1, "icmp_muted": 1}
TOLD = {"no_slice": 1, "icmp_sent": 1}


def refusing(per_s: int, **options: object) -> KernelState:
    """No slice at all: every client is refused."""
    full = state(mine=(), **options)  # type: ignore[arg-type]
    return with_rate(full, per_s)


def with_rate(before: KernelState, per_s: int) -> KernelState:
    pools = {name: replace(pool, icmp_errors_per_s=per_s) for name, pool in before.pools.items()}
    return replace(before, pools=pools)


@pytest.fixture
def fresh(module_world: World) -> World:
    module_world.reset(refusing(5))
    return module_world


def answers(world: World, count: int, client: str = CLIENT, onramp: str = ONRAMP) -> list[Ran]:
    return [world.out(udp(client), onramp) for _ in range(count)]


def test_errors_have_the_precedence_of_routing(fresh: World) -> None:
    [ran] = answers(fresh, 1)
    assert dict(ran.counted) == TOLD
    assert ran.frame[15] == 0xC0


def test_a_seconds_worth_at_once_and_no_more(fresh: World) -> None:
    """What is not told is dropped as it came, and its reason counted like any."""
    start = time.monotonic()
    got = answers(fresh, 30)
    allowed = 5 * (1 + time.monotonic() - start)
    told = [ran for ran in got if ran.verdict == "redirect"]
    assert 5 <= len(told) <= allowed + 1
    assert [dict(ran.counted) for ran in got[:5]] == [TOLD] * 5
    assert all(dict(ran.counted) == MUTED and ran.frame == udp() for ran in got if ran not in told)


def test_each_client_for_itself(fresh: World) -> None:
    """And the same address behind another on-ramp is another client."""
    answers(fresh, 30)
    for client, onramp in (("10.0.0.3:40000", ONRAMP), (CLIENT, ONRAMP2)):
        assert dict(answers(fresh, 1, client, onramp)[0].counted) == TOLD


def test_in_time_there_is_more(fresh: World) -> None:
    answers(fresh, 30)
    assert dict(answers(fresh, 1)[0].counted) == MUTED
    table = fresh.datapath.map("told")
    [(key, value)] = table.items()
    due = int.from_bytes(value, "little")
    table.set(key, (due - 400_000_000).to_bytes(8, "little"))  # as if so much time had passed
    got = [dict(ran.counted) for ran in answers(fresh, 5)]
    assert 2 <= got.count(TOLD) <= 4


@pytest.mark.parametrize("per_s", [1, 1_000_000])
def test_other_rates(module_world: World, per_s: int) -> None:
    module_world.reset(refusing(per_s))
    told = [dict(ran.counted) for ran in answers(module_world, 200)].count(TOLD)
    assert 1 <= told <= 3 if per_s == 1 else told == 200


def test_none_by_policy(module_world: World) -> None:
    """RFC 5508 REQ-9: of whatever kind."""
    module_world.reset(with_rate(state(), 0))
    for frame in (udp(ttl=1), tcp(ttl=1), tcp(ttl=0)):
        ran = module_world.out(frame)
        assert (ran.verdict, dict(ran.counted)) == ("drop", {"hop_limit": 1, "icmp_muted": 1})
        assert ran.frame == frame
    assert module_world.out(tcp()).outcome == "out"


def test_remote_ends_are_counted_too(world: World) -> None:
    """Who sends what is too large for a client is told so, and not too often."""
    world.reset(with_rate(state(), 5))
    local = local_end(world.out(udp()).frame)
    large = udp(REMOTE, local, b"x" * 1400, macs=FROM_WIRE, flags="DF")
    with mtu(world, ONRAMP):
        got = [dict(world.back(large).counted) for _ in range(20)]
    assert got[0] == {"too_big": 1, "icmp_sent": 1}
    assert got[-1] == {"too_big": 1, "icmp_muted": 1}


def test_the_pool_says_how_many(world: World) -> None:
    """What the kernel holds is what was asked for."""
    wanted = with_rate(state(), 77)
    world.datapath.apply(wanted)
    assert world.datapath.read() == wanted
    [value] = [abi.Pool.unpack(value) for _, value in world.datapath.map("pools").items()]
    assert value.errors_max == 77
