"""Destinations that an on-ramp does not translate are the host's, of either family.

On-ramp `cl` exempts prefixes, `cm` nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from scapy.packet import Raw
from tests.bpf import families
from tests.bpf.frames import CLIENT, REMOTE, changed, echo, error, gre, packet, tcp, udp
from tests.bpf.test_onramp_rules import opened
from tests.bpf.world import ONRAMP, ONRAMP2, World, make_server, state

from softunicast.core.onramp_rules import OnrampRules
from softunicast.core.slices import Slice
from softunicast.kernel import abi

FAMILIES = (4, 6)
EXEMPT = ("203.0.113.128/25", "192.0.2.77/32", "198.18.0.0/15")
INSIDE = ("203.0.113.128:443", "203.0.113.255:443", "192.0.2.77:443", "198.19.255.255:443")
OUTSIDE = ("203.0.113.127:443", "192.0.2.76:443", "198.20.0.1:443")


def of_both(*texts: str) -> tuple[Slice, ...]:
    """Prefixes, and those that stand for them in IPv6."""
    prefixes = [ip_network(text) for text in texts]
    sixes = [f"{families.six(str(one.network_address))}/{96 + one.prefixlen}" for one in prefixes]
    return tuple(Slice.parse(text) for text in (*texts, *sixes))


RULES = {ONRAMP: OnrampRules(of_both(*EXEMPT))}


@pytest.fixture(scope="module")
def ruled_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with make_server(tmp_path_factory.mktemp("exempt")) as mount, opened(mount, RULES) as made:
        yield made


@pytest.fixture
def world(ruled_world: World, family: int) -> World:
    ruled_world.reset()
    return ruled_world


def is_hosts(world: World, frame: bytes, onramp: str = ONRAMP) -> bool:
    ran = world.out(frame, onramp)
    untouched = ran.verdict == "next" and ran.frame == frame and ran.counted == {"to_host": 1}
    assert untouched or ran.outcome == "out" or ran.reason, ran
    return untouched


@pytest.mark.parametrize(
    "make",
    [
        tcp,
        udp,
        lambda _, to: echo(CLIENT, to),
        lambda _, to: tcp(CLIENT, to, "PA", b"in the middle"),
        gre,
        lambda _, to: packet(CLIENT, to, Raw(b"x" * 32), flags="MF"),
        lambda _, to: error(CLIENT, to, udp("192.0.2.9:1", CLIENT)[14:]),
    ],
)
def test_exempt_destinations_are_left_to_the_host(world: World, make) -> None:  # type: ignore[no-untyped-def]
    for to in INSIDE:
        assert is_hosts(world, make(CLIENT, to))
        assert not is_hosts(world, make(CLIENT, to), ONRAMP2)
    for to in OUTSIDE:
        assert not is_hosts(world, make(CLIENT, to))
    if families.chosen == 4:
        assert world.run("fast", make(CLIENT, INSIDE[0]), ONRAMP).verdict == "pass"


@pytest.mark.parametrize("first_last", [False, True])
def test_all_fragments_of_a_datagram_are_left_to_the_host(world: World, first_last: bool) -> None:
    """Those without ports, too, in any order; none is kept waiting for another."""
    payload = udp(CLIENT, INSIDE[0], bytes(48))[34:]
    parts = [
        packet(CLIENT, INSIDE[0], Raw(payload[:24]), proto=17, flags="MF"),
        packet(CLIENT, INSIDE[0], Raw(payload[24:48]), proto=17, flags="MF", frag=3),
        packet(CLIENT, INSIDE[0], Raw(payload[48:]), proto=17, frag=6),
    ]
    for part in reversed(parts) if first_last else parts:
        assert is_hosts(world, part)


def test_a_lying_packet_is_dropped_even_so(world: World) -> None:
    assert (
        world.out(changed(udp(CLIENT, INSIDE[0]), 16 if families.chosen == 4 else 18, b"\xff\xff")).reason
        == "malformed"
    )


@pytest.mark.parametrize("source", ["198.51.100.10:2050", "198.51.100.10:5000", "198.51.100.77:2050"])
def test_a_client_that_forges_a_shared_address_is_not_exempt(world: World, source: str) -> None:
    """The host would send it as it is, and the guard could not tell it from a conversation of this server's own."""
    assert world.out(udp(source, INSIDE[0])).outcome == "out"
    assert world.out(gre(source, INSIDE[0])).reason == "protocol"


def test_a_source_in_a_list_of_destinations_means_nothing(world: World) -> None:
    assert world.out(udp("203.0.113.200:40000", REMOTE)).outcome == "out"


def test_rules_that_change(tmp_path: Path, family: int) -> None:
    """The next agent's rules replace those before; a conversation that was there goes on as it began; an on-ramp that
    goes takes its rules along."""
    other = "10.0.0.2:40002"
    with make_server(tmp_path) as mount:
        with opened(mount, {}) as world:
            world.reset()
            before = world.out(udp(CLIENT, INSIDE[0])).frame
        with opened(mount, RULES) as world:
            assert world.out(udp(CLIENT, INSIDE[0])).frame == before
            assert is_hosts(world, udp("10.0.0.2:40001", INSIDE[0]))
        with opened(mount, {ONRAMP: OnrampRules(of_both("203.0.113.0/28"))}) as world:
            world.reset()
            assert not is_hosts(world, udp(other, INSIDE[0]))
            assert is_hosts(world, udp(other, "203.0.113.15:1"))
            datapath = world._datapaths[4]
            for name, key, length in (("exempt", abi.ExemptKey, 28), ("exempt6", abi.ExemptKey6, 124)):
                (found,) = datapath.map(name).every_key()
                assert key.unpack(found).prefix_length == 32 + length
            world.datapath.apply(state(onramps={ONRAMP2: "gb"}))
            assert [list(datapath.map(name).every_key()) for name in ("exempt", "exempt6")] == [[], []]
            datapath.remove()
