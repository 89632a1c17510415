"""Fragments of clients behind an on-ramp without Ethernet (a real TUN device): what waits, is put back or is cut goes
round through the program that wraps packets, and comes out as if it had been behind Ethernet.
"""

from __future__ import annotations

import itertools

import pytest
from tests.bpf import frames
from tests.bpf.frames import FROM_WIRE, REMOTE, TO_WIRE, local_end, with_ip
from tests.bpf.pieces import cut, id_of, joined
from tests.bpf.test_too_big import mtu
from tests.bpf.test_wrap import BARE, BARE_MACS, CLIENT, Bare, bare, module_bare, udp
from tests.bpf.world import UPLINK

__all__ = ["bare", "module_bare"]  # fixtures

PAYLOAD = bytes(range(256)) * 11
WRAPPED = bytes(12) + b"\x08\0"
ORDERS = list(itertools.permutations(range(3)))


def opened(bare: Bare) -> str:
    bare.send(udp())
    return local_end(bare.left())


@pytest.mark.parametrize("order", ORDERS)
def test_out_in_any_order(bare: Bare, order: tuple[int, ...]) -> None:
    local = opened(bare)
    pieces = cut(frames.udp(CLIENT, REMOTE, PAYLOAD, macs=BARE_MACS))
    for at in order:
        bare.send(pieces[at][14:])
    made = joined([bare.left() for _ in pieces])
    assert made == with_ip(frames.udp(local, REMOTE, PAYLOAD, 63, TO_WIRE), id=id_of(made))


@pytest.mark.parametrize("order", ORDERS)
def test_in_in_any_order(bare: Bare, order: tuple[int, ...]) -> None:
    local = opened(bare)
    pieces = cut(frames.udp(REMOTE, local, PAYLOAD, macs=FROM_WIRE))
    for at in order:
        bare.wire.send(pieces[at])
    got = [WRAPPED + bare.received() for _ in pieces]
    expected = frames.udp(REMOTE, CLIENT, PAYLOAD, 63, BARE_MACS)
    assert joined(got)[14:] == expected[14:]


def test_out_by_a_narrow_way(bare: Bare) -> None:
    local = opened(bare)
    with mtu(bare.world, UPLINK):
        bare.world.change_flows(hop_ns=0)
        bare.send(udp(payload=b"\xa5" * 1400))
        made = joined([bare.left() for _ in range(2)])
    assert made == with_ip(frames.udp(local, REMOTE, b"\xa5" * 1400, 63, TO_WIRE), id=id_of(made))


def test_in_to_a_narrow_device(bare: Bare) -> None:
    local = opened(bare)
    with mtu(bare.world, BARE):
        bare.wire.send(frames.udp(REMOTE, local, b"\xa5" * 1400, macs=FROM_WIRE))
        got = [WRAPPED + bare.received() for _ in range(2)]
    assert joined(got)[14:] == frames.udp(REMOTE, CLIENT, b"\xa5" * 1400, 63, BARE_MACS)[14:]


def test_from_somebody_who_is_no_client(bare: Bare) -> None:
    """Not even what waits for its first: that would be room that others need."""
    for piece in cut(frames.udp("10.8.0.1:4000", REMOTE, PAYLOAD, macs=BARE_MACS)):
        assert bare.world.out(piece, BARE).reason == "spoofed"
    assert not list(bare.world.datapath.map("datagrams").items())
