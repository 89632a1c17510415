"""What an on-ramp's rules do to packets: SYNs announce no more than fits. (Exempt destinations: test_exempt.py.)

On-ramp `cl` clamps to the path's MTU, `cm` to a number.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.bpf.frames import (
    FROM_WIRE,
    REMOTE,
    changed,
    checksums_right,
    local_end,
    sum_words,
    tcp,
)
from tests.bpf.talk import Conversation
from tests.bpf.world import LIMITS, ME, ONRAMP, ONRAMP2, UPLINK, World, make_server, state

from softunicast.core.onramp_rules import OnrampRules
from softunicast.kernel import abi
from softunicast.kernel.datapath import Datapath

RULES = {
    ONRAMP: OnrampRules(mss_by_path=True),
    ONRAMP2: OnrampRules(mss=1200),
}
OPTIONS_AT = 54


@contextmanager
def opened(mount: Path, rules: Mapping[str, OnrampRules]) -> Iterator[World]:
    datapath = Datapath.open(mount, UPLINK, ME, LIMITS, rules=rules)
    try:
        datapath.apply(state())
        yield World(datapath)
    finally:
        datapath.close()


@pytest.fixture(scope="module")
def ruled_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with make_server(tmp_path_factory.mktemp("rules")) as mount, opened(mount, RULES) as made:
        yield made


@pytest.fixture
def world(ruled_world: World) -> World:
    ruled_world.reset()
    return ruled_world


# -- MSS -----------------------------------------------------------------------------------------------------


def mss(value: int) -> bytes:
    return b"\x02\x04" + value.to_bytes(2, "big")


def syn(options: bytes, flags: str = "S", **fields: object) -> bytes:
    """With these bytes of options, whatever they mean, and right checksums."""
    options = options.ljust(-(-len(options) // 4) * 4, b"\0")
    frame = tcp(flags=flags, options=[("NOP", None)] * len(options), payload=b"", **fields)  # type: ignore[arg-type]
    frame = changed(changed(frame, OPTIONS_AT, options), 50, b"\0\0")
    segment = frame[34:]
    covered = frame[26:34] + b"\0\x06" + len(segment).to_bytes(2, "big") + segment
    return changed(frame, 50, (0xFFFF ^ sum_words(covered)).to_bytes(2, "big"))


def clamped(options: bytes, limit: int) -> bytes:
    """The same rule, written down once more."""
    found, at = bytearray(options), 0
    while at + 4 <= len(found) and found[at] != 0:
        kind, length = found[at], found[at + 1]
        if kind == 1:
            at += 1
            continue
        if length < 2:
            break
        if kind == 2 and length == 4:
            value = min(limit, int.from_bytes(found[at + 2 : at + 4], "big"))
            found[at + 2 : at + 4] = value.to_bytes(2, "big")
        at += length
    return bytes(found)


def check_clamped(ran_frame: bytes, options: bytes, limit: int) -> None:
    options = options.ljust(-(-len(options) // 4) * 4, b"\0")
    assert ran_frame[OPTIONS_AT : OPTIONS_AT + len(options)] == clamped(options, limit)
    assert checksums_right(ran_frame) == (True, True)


@pytest.mark.parametrize(("onramp", "limit"), [(ONRAMP, 1460), (ONRAMP2, 1200)])
@pytest.mark.parametrize("announced", [9000, 65535, 1461, 1460, 1200, 536, 0])
def test_both_directions(world: World, onramp: str, limit: int, announced: int) -> None:
    """First SYN, retransmitted SYN, SYN/ACK; what is small enough stays, and so does everything else."""
    options = mss(announced) + b"\x04\x02\x01\x03\x03\x07"
    for _ in range(2):
        sent = world.out(syn(options), onramp)
        check_clamped(sent.frame, options, limit)
    answer = syn(options, "SA", source=REMOTE, destination=local_end(sent.frame), macs=FROM_WIRE)
    check_clamped(world.back(answer).frame, options, limit)


def test_what_is_no_syn_is_left_alone(world: World) -> None:
    talk = Conversation(world).established()
    for flags in ("A", "PA", "FA", "RA"):
        frame = syn(mss(9000), flags, sequence=talk.client, acknowledgement=talk.peer)
        assert world.out(frame).frame[OPTIONS_AT : OPTIONS_AT + 4] == mss(9000)


def test_the_route_says_less(world: World) -> None:
    """As far as the kernel believes it for what it forwards: `mtu lock`."""
    for to, lock, wanted in (("203.0.113.9", ["lock"], 1360), ("203.0.113.10", [], 1460)):
        subprocess.run(["ip", "route", "add", to, "via", "192.0.2.254", "mtu", *lock, "1400"], check=True)
        sent = world.out(syn(mss(9000), destination=f"{to}:443"))
        check_clamped(sent.frame, mss(9000), wanted)
        answer = syn(mss(9000), "SA", source=f"{to}:443", destination=local_end(sent.frame), macs=FROM_WIRE)
        check_clamped(world.back(answer).frame, mss(9000), wanted)


PIECES = [
    b"\x01",
    b"\x00",
    mss(9000),
    mss(1000),
    b"\x02\x03\x09",
    b"\x02\x00",
    b"\x05\x28",
    b"\x08\x0a" + bytes(8),
]
MADE_OF_PIECES = st.lists(st.sampled_from(PIECES), max_size=40).map(lambda parts: b"".join(parts)[:40])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=40), MADE_OF_PIECES))
@example(b"\x01" * 36 + mss(9000))
@example(b"\x01" * 37 + b"\x02\x04\x23")
@example(b"\x01" + mss(9000))
@example(mss(9000) * 10)
@example(b"\x02")
@example(b"\x02\x04")
def test_any_options(world: World, options: bytes) -> None:
    """Malformed, cut off, at odd places, twice: both directions do what the rule says, with right checksums."""
    world.reset()
    sent = world.out(syn(options))
    check_clamped(sent.frame, options, 1460)
    answer = syn(options, "SA", source=REMOTE, destination=local_end(sent.frame), macs=FROM_WIRE)
    check_clamped(world.back(answer).frame, options, 1460)


def test_an_mtu_that_changes(world: World) -> None:
    """Is noticed at the next look, like everything else that others change."""
    for device, mtu, wanted in (
        (ONRAMP, 1300, 1260),
        (UPLINK, 1280, 1240),
        (UPLINK, 1500, 1260),
        (ONRAMP, 1500, 1460),
    ):
        subprocess.run(["ip", "link", "set", device, "mtu", str(mtu)], check=True)
        world.datapath.apply(state())
        check_clamped(world.out(syn(mss(9000))).frame, mss(9000), wanted)
    assert world.datapath.apply(state()) == 0


def test_without_a_rule_nothing_is_clamped(world: World) -> None:
    onramps = world.datapath.map("onramps")
    for key in list(onramps.every_key()):
        value = onramps.get(key)
        assert value
        onramps.set(key, abi.Onramp.unpack(value)._replace(mss=0, mss_mtu=0).pack())
    try:
        assert world.out(syn(mss(9000))).frame[OPTIONS_AT:] == mss(9000)
    finally:
        for interface, pool in world.datapath.state.onramps.items():
            world.datapath._attach_onramp(interface, pool)
