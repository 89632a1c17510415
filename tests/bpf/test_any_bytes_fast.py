"""Any bytes at all, to the programs that `test_any_bytes` leaves out: XDP in front of tc, where it either moves a
packet exactly as tc would or passes it on untouched and uncounted; and the sweep, over claims of any content.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.bpf.frames import (
    CLIENT,
    FROM_CLIENT,
    FROM_WIRE,
    REMOTE,
    changed,
    echo,
    end,
    error,
    tagged,
    tcp,
    udp,
)
from tests.bpf.short_way import FAST_IN, FAST_OUT, PROTOCOLS, attached, established
from tests.bpf.talk import Conversation
from tests.bpf.test_any_bytes import QUIET, check_frame, mutated
from tests.bpf.world import ONRAMP, ONRAMP2, UPLINK, World, state

from softunicast.kernel import abi

BUSY = (1 << 64) - 1
LONG = 1 << 62
Damage = list[tuple[int, bytes]]
HEADERS_END = 80


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """On-ramp `cl` by XDP and tc, with one established flow of each protocol."""
    folder = tmp_path_factory.mktemp("any")
    with attached(folder, {ONRAMP: "xdp", ONRAMP2: "tc"}, UPLINK, ONRAMP) as made:
        yield made


@pytest.fixture(scope="module")
def locals_(world: World) -> dict[str, str]:
    """What the flows are outside. They need not ask their claims, nor the way, for as long as the tests run."""
    world.reset(state())
    found = {protocol: established(world, protocol).local for protocol in PROTOCOLS}
    world.change_flows(hop_ns=LONG, refresh_ns=LONG)
    world.change_claims(refresh_in_ticks=(1 << 32) - 1)
    return found


def packets(local: str, protocol: str, payload: bytes, ttl: int, flags: str) -> tuple[bytes, bytes]:
    """Of the flow: one of the client's, one to it."""
    if protocol == "tcp":
        return (
            tcp(CLIENT, REMOTE, flags, payload, ttl),
            tcp(REMOTE, local, flags, payload, ttl, FROM_WIRE),
        )
    if protocol == "udp":
        return udp(CLIENT, REMOTE, payload, ttl), udp(REMOTE, local, payload, ttl, FROM_WIRE)
    reply = echo(REMOTE, local, end(local)[1], True, payload, ttl, FROM_WIRE)
    return echo(payload=payload, ttl=ttl), reply


@st.composite
def aimed(draw: st.DrawFn) -> tuple[str, bytes, int, str, Damage, int | None, bytes]:
    """A packet of one of the flows, then damaged: mostly in its headers, sometimes cut or lengthened."""
    return (
        draw(st.sampled_from(PROTOCOLS)),
        draw(st.binary(max_size=40)),
        draw(st.sampled_from([0, 1, 2, 64, 255])),
        draw(st.sampled_from(["A", "PA", "S", "F", "R", "", "FSRPAU"])),
        draw(
            st.lists(st.tuples(st.integers(12, HEADERS_END), st.binary(min_size=1, max_size=2)), max_size=2)
        ),
        draw(st.none() | st.integers(15, HEADERS_END)),
        draw(st.sampled_from([b"", b"\0", bytes(60)])),
    )


def damaged(frame: bytes, damage: Damage, length: int | None, tail: bytes) -> bytes:
    whole = frame
    for at, value in damage:
        whole = changed(whole, at, value)[: len(frame)]
    return whole[:length] + tail


def check_out(world: World, frame: bytes) -> None:
    """XDP passes it on as it came, uncounted, or does what tc does with it."""
    before = world.flows()
    ran = world.fast(frame)
    check_frame("fast", frame, ran)
    if ran.verdict == "pass":
        assert (dict(ran.counted), world.flows()) == ({}, before)
        return
    assert (ran.verdict, dict(ran.counted)) == ("redirect", FAST_OUT)
    same = world.out(frame)
    assert (same.verdict, dict(same.counted), same.frame) == ("redirect", {"out": 1}, ran.frame)


def check_in(world: World, frame: bytes) -> None:
    ran = world.director(frame)
    if ran.verdict != "redirect":
        check_frame("director", frame, ran)
        return
    check_frame("back", frame, ran)
    assert dict(ran.counted) == FAST_IN
    same = world.back(frame)
    assert (same.verdict, dict(same.counted), same.frame) == ("redirect", {"in": 1}, ran.frame)


@QUIET
@given(packet=aimed())
def test_damaged_packets_of_established_flows(
    world: World,
    locals_: dict[str, str],
    packet: tuple[str, bytes, int, str, Damage, int | None, bytes],
) -> None:
    protocol, payload, ttl, flags, damage, length, tail = packet
    out, back = packets(locals_[protocol], protocol, payload, ttl, flags)
    if flags not in ("S", "F", "R", "FSRPAU"):  # else tc would change what the flow is
        check_out(world, damaged(out, damage, length, tail))
        check_in(world, damaged(back, damage, length, tail))
    world.fast(damaged(out, damage, length, tail))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_undamaged_ones_are_moved(world: World, locals_: dict[str, str], protocol: str) -> None:
    """Or the test above would say little."""
    out, back = packets(locals_[protocol], protocol, b"payload", 64, "PA")
    assert dict(world.fast(out).counted) == FAST_OUT
    assert dict(world.director(back).counted) == FAST_IN


@QUIET
@given(frame=mutated())
def test_mutated_frames(world: World, locals_: dict[str, str], frame: bytes) -> None:
    """Most are of no flow: then XDP has nothing to say."""
    ran = world.fast(frame)
    check_frame("fast", frame, ran)
    assert dict(ran.counted) in ({}, FAST_OUT)


@QUIET
@given(data=st.binary(min_size=14, max_size=120))
def test_random_bytes(world: World, locals_: dict[str, str], data: bytes) -> None:
    for start in (b"", udp()[:34]):
        frame = start + data
        ran = world.fast(frame)
        assert (ran.verdict, dict(ran.counted), ran.frame) == ("pass", {}, frame)


def test_what_is_no_plain_packet(world: World, locals_: dict[str, str]) -> None:
    """Errors, tags, fragments, other protocols: tc's matter, or the kernel's."""
    quoted = udp(REMOTE, CLIENT)[14:42]
    for frame in (
        error(CLIENT, REMOTE, quoted, macs=FROM_CLIENT),
        tagged(udp()),
        udp(flags="MF"),
        udp(frag=1),
        tcp(frag=8191),
        changed(udp(), 23, b"\x2f"),
        changed(udp(), 14, b"\x65"),
    ):
        ran = world.fast(frame)
        assert (ran.verdict, dict(ran.counted), ran.frame) == ("pass", {}, frame)


# -- the sweep

times = st.sampled_from([0, 1, 1 << 62, BUSY - 1, BUSY])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(times, st.integers(0, 255), st.booleans()), min_size=1, max_size=30))
def test_claims_of_any_content(module_world: World, wanted: list[tuple[int, int, bool]]) -> None:
    """Freed is exactly what has expired, whatever else the claims say; busy ones are somebody's; a flow goes with its
    claim, and with no other."""
    world = module_world
    world.reset()
    for port in range(len(wanted)):
        Conversation(world, f"10.0.0.2:{50000 + port}")
    names = {key.local_port: key for key in world.claims()}
    expected = {}
    for (expires_ns, seen, strange), key in zip(wanted, names.values(), strict=True):
        claim = world.claims()[key]._replace(expires_ns=expires_ns, state=seen)
        if strange:  # a flow that nobody has, a pool that is gone
            claim = claim._replace(flow=bytes(len(claim.flow)), pool=77)
        world.datapath.map("claims").set(key.pack(), claim.pack())
        if expires_ns > time.monotonic_ns():
            expected[key] = claim
    flows_before = world.flows()
    gone = {claim.flow for key, claim in world.claims().items() if key not in expected}
    freed, live = world.datapath.sweep()
    assert (freed, live) == (len(wanted) - len(expected), len(expected))
    assert world.claims() == expected
    assert world.flows() == {key: flow for key, flow in flows_before.items() if key.pack() not in gone}
    assert world.datapath.sweep() == (0, len(expected))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 9), st.integers(1, 99)), st.tuples(times, st.integers(0, 2)), max_size=20
    )
)
def test_clients_of_any_content(module_world: World, wanted: dict[tuple[int, int], tuple[int, int]]) -> None:
    """An entry goes when its client has no claim and is not waited for."""
    world = module_world
    world.reset()
    table = world.datapath.map("clients")
    for key, _ in list(table.items()):
        table.delete(key)
    blank = abi.ClientKey.unpack(bytes(abi.CLIENT_KEY_BYTES))
    for (onramp, address), (next_ns, claims) in wanted.items():
        key = blank._replace(onramp=onramp, address=_like(blank.address, address))
        value = abi.Client.unpack(bytes(abi.CLIENT_BYTES))._replace(next_ns=next_ns, claims=claims)
        table.set(key.pack(), value.pack())
    world.datapath.sweep()
    kept = [value for value in wanted.values() if value[1] or value[0] > time.monotonic_ns()]
    left = [abi.Client.unpack(value) for _, value in table.items()]
    assert sorted((client.next_ns, client.claims) for client in left) == sorted(kept)
    for key, _ in list(table.items()):
        table.delete(key)


def _like(blank: object, number: int) -> object:
    """An address in the form that the tables have."""
    return number.to_bytes(len(blank), "big") if isinstance(blank, bytes) else number
