"""Endpoint-independent filtering (RFC 4787 REQ-8, RFC 5382 REQ-3): who may send to a mapping, and what strangers
begin.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from tests.bpf import frames
from tests.bpf.frames import CLIENT, FROM_WIRE, REMOTE, TO_CLIENT, TO_WIRE, echo, end, tcp
from tests.bpf.test_mapping import (
    MAPPING,
    OPEN,
    REMOTES,
    STRANGER,
    behaving,
    first,
    incoming,
    local_of,
    sessions,
)
from tests.bpf.world import World

from softunicast.core.pools import PROTOCOLS, Behaviour

FAMILIES = (4, 6)


@pytest.fixture
def open_to_all(world: World) -> World:
    world.reset(behaving(OPEN))
    return world


def strangers(protocol: str, local: str) -> list[bytes]:
    address = end(REMOTE)[0]
    if protocol == "icmp":
        return [
            incoming(protocol, STRANGER, local),
            echo(STRANGER, local, end(local)[1], macs=FROM_WIRE),
        ]
    frames_ = [incoming(protocol, remote, local) for remote in (STRANGER, f"{address}:1", "203.0.113.2:443")]
    if protocol == "tcp":
        frames_ += [tcp(STRANGER, local, flags, macs=FROM_WIRE) for flags in ("SA", "A", "R", "FA")]
    return frames_


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("let_in", [False, True])
def test_who_may_send_to_a_mapping(world: World, protocol: str, let_in: bool) -> None:
    """Who is not let in is not answered either, by nobody: a refusal by the kernel would end what two clients begin
    from both sides. Nobody's packet but a peer's keeps anything alive (RFC 7857 section 7)."""
    world.reset(behaving(OPEN if let_in else MAPPING))
    local = local_of(world.out(first(protocol)))
    before = world.claims()
    for frame in strangers(protocol, local):
        assert world.director(frame).outcome == "here"
        ran = world.back(frame)
        if let_in:
            assert (ran.verdict, dict(ran.counted)) == ("redirect", {"in": 1})
            assert frames.checksums_right(ran.frame) == (True, True)
            at = frames.transport_at()
            assert ran.frame[at - 4 : at] == socket.inet_aton("10.0.0.2")
        else:
            assert (ran.verdict, ran.reason, ran.frame) == ("drop", "filtered", frame)
    assert world.claims() == before


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_refusing_a_stranger_keeps_nothing_alive(open_to_all: World, protocol: str) -> None:
    """RFC 7857 section 7: else a stranger could keep a port taken by asking for what the client has not."""
    local = local_of(open_to_all.out(first(protocol)))
    assert open_to_all.back(incoming(protocol, STRANGER, local)).outcome == "in"
    before = open_to_all.claims()
    if protocol == "tcp":
        assert open_to_all.out(tcp(CLIENT, STRANGER, "RA")).reason == "no_flow"
    asked = frames.quoted(incoming(protocol, STRANGER, CLIENT, 63, TO_CLIENT))
    assert (
        open_to_all.out(frames.error(CLIENT, STRANGER, asked, macs=frames.FROM_CLIENT)).reason == "icmp_error"
    )
    assert open_to_all.claims() == before


def test_each_protocol_is_set_for_itself(world: World) -> None:
    for chosen in PROTOCOLS:
        world.reset(behaving(Behaviour(frozenset(PROTOCOLS), frozenset({chosen}))))
        for protocol in PROTOCOLS:
            local = local_of(world.out(first(protocol)))
            ran = world.back(incoming(protocol, STRANGER, local))
            assert ran.outcome == ("in" if protocol == chosen else None), (chosen, protocol)


def test_a_conversation_that_a_stranger_began(open_to_all: World) -> None:
    """SYN in, SYN/ACK out, and from there on one like any other: followed, and only its own RST ends it. Also when
    one before it, of the same ends, has left its claim."""
    local = local_of(open_to_all.out(tcp()))
    for theirs, ours in ((5, 3 << 30), (1 << 30, 1 << 20), (1 << 31, 1)):
        check_conversation_of_a_stranger(open_to_all, local, theirs, ours)
        for key in sessions(open_to_all):
            open_to_all.expire(key)


def check_conversation_of_a_stranger(world: World, local: str, theirs: int, ours: int) -> None:
    """`theirs`, `ours`: the numbers of the SYN and of the SYN/ACK."""
    given = world.back(tcp(STRANGER, local, "S", macs=FROM_WIRE, sequence=theirs))
    assert given.frame == tcp(STRANGER, CLIENT, "S", ttl=63, macs=TO_CLIENT, sequence=theirs)
    numbers = {"sequence": ours, "acknowledgement": theirs + 1}
    ran = world.out(tcp(CLIENT, STRANGER, "SA", **numbers))
    assert ran.frame == tcp(local, STRANGER, "SA", ttl=63, macs=TO_WIRE, **numbers)
    assert "new_flow" in ran.counted

    def state_now() -> str:
        _, found = world.datapath.flows(10)
        return next(flow.state for flow in found if flow.remote == STRANGER)

    def peer(flags: str, sequence: int) -> None:
        frame = tcp(STRANGER, local, flags, macs=FROM_WIRE, sequence=sequence, acknowledgement=ours + 1)
        assert world.back(frame).outcome == "in"

    assert state_now() == "opening"
    peer("A", theirs + 1)
    data = tcp(CLIENT, STRANGER, "PA", b"hello", sequence=ours + 1, acknowledgement=theirs + 1)
    assert local_of(world.out(data)) == local
    assert state_now() == "established"
    peer("R", theirs - 1)
    assert state_now() == "established"
    peer("R", theirs + 1)
    assert state_now() == "closing"


def test_an_echo_request_of_a_stranger_is_answered(open_to_all: World) -> None:
    local = local_of(open_to_all.out(first("icmp")))
    identifier = end(local)[1]
    request = open_to_all.back(echo(STRANGER, local, identifier, macs=FROM_WIRE))
    assert request.frame == echo(STRANGER, CLIENT, 40000, ttl=63, macs=TO_CLIENT)
    reply = open_to_all.out(echo(CLIENT, STRANGER, 40000, True))
    assert reply.frame == echo(local, STRANGER, identifier, True, ttl=63, macs=TO_WIRE)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: tcp(CLIENT, STRANGER, "SA"),
        lambda: echo(CLIENT, STRANGER, 40000, True),
    ],
)
def test_an_answer_to_what_nobody_was_let_in_to_ask(world: World, answer: Callable[[], bytes]) -> None:
    world.reset(behaving(MAPPING))
    world.out(tcp())
    world.out(first("icmp"))
    assert world.out(answer()).reason == "no_flow"
    world.reset(behaving(OPEN))
    assert world.out(answer()).reason == "no_flow"  # no mapping: nobody can have asked


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_that_moved_to_another_mac_address(open_to_all: World, protocol: str) -> None:
    """Strangers follow it as well as its peers do, from its next packet on, of an old conversation or a new one."""
    local = local_of(open_to_all.out(first(protocol)))
    for number, remote in enumerate((REMOTE, REMOTES[2]), 1):
        mac = f"02:00:00:00:0c:4{number}"
        assert (
            local_of(open_to_all.out(first(protocol, remote=remote, macs=(mac, frames.ONRAMP_MAC)))) == local
        )
        for sender in (remote, STRANGER):
            ran = open_to_all.back(incoming(protocol, sender, local))
            assert ran.frame[:6].hex(":") == mac
