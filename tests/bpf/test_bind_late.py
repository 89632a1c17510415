"""Binding a shared address without a port, which is to be found when the socket connects (IP_BIND_ADDRESS_NO_PORT), as
nginx, HAProxy and Envoy do; and what becomes of a socket that never does. Its port is the kernel's choice then, because
no hook is asked, and nothing may leave from there.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bpf.far_end import far_end
from tests.bpf.frames import FROM_WIRE, tcp, udp
from tests.bpf.programs import (
    ELSEWHERE,
    KINDS,
    PORTS,
    REMOTE,
    SLICE,
    Program,
    counted,
    refusal_of,
)
from tests.bpf.world import ADDRESS, World

from softunicast.core.pools import Behaviour


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_chosen_for_the_destination(small: World, program: Program, kind: str) -> None:
    """Every port serves every destination."""
    for remote in (REMOTE, ELSEWHERE):
        ends = [program.connect(kind, remote, program.bind_late(kind)) for _ in range(PORTS)]
        assert set(ends) == {(str(ADDRESS), port) for port in SLICE}
        with refusal_of(errno.EADDRNOTAVAIL):
            program.connect(kind, remote, program.bind_late(kind))
    port = program.local(program.made[0])[1]
    program.made.pop(0).close()
    assert program.connect(kind, REMOTE, program.bind_late(kind))[1] == port


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_sockets_alone_where_the_pool_maps_so(small: World, program: Program, kind: str) -> None:
    wanted = small.datapath.state
    mapping = replace(wanted.pools["gb"], behaviour=Behaviour(frozenset(KINDS), frozenset()))
    small.datapath.apply(replace(wanted, pools={"gb": mapping}))
    ports = {program.connect(kind, REMOTE, program.bind_late(kind))[1] for _ in range(PORTS)}
    assert ports == SLICE
    with refusal_of(errno.EADDRNOTAVAIL):
        program.connect(kind, ELSEWHERE, program.bind_late(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_agreed(small: World, how: str, kind: str) -> None:
    with Program(how) as program, refusal_of(errno.EPERM):
        program.bind_late(kind)


def test_a_datagram_without_connecting(small: World, program: Program) -> None:
    """The kernel has given it a port of its own by then."""
    made = program.bind_late("udp")
    before = small.counters()
    with far_end() as wire:
        with refusal_of(errno.EPERM):
            made.sendto(b"words", program.end(REMOTE))
        wire.check_silent()
    assert program.local(made)[1] not in SLICE
    assert counted(small, before) == {"bind_outside": 1}
    with refusal_of(errno.EADDRNOTAVAIL):
        program.connect("udp", REMOTE, made)


@pytest.fixture
def ports_of_the_kernel() -> Iterator[None]:
    """It chooses in the slice."""
    setting = Path("/proc/sys/net/ipv4/ip_local_port_range")
    before = setting.read_text()
    setting.write_text(f"{min(SLICE)} {max(SLICE)}")
    yield
    setting.write_text(before)


def test_the_kernel_chose_one_of_the_pool(small: World, program: Program, ports_of_the_kernel: None) -> None:
    """It may send from there, but not from where a client has a mapping."""
    made = program.bind_late("udp")
    made.sendto(b"words", program.end(REMOTE))
    assert program.local(made)[1] in SLICE
    made.close()
    wanted = small.datapath.state
    mapping = replace(wanted.pools["gb"], behaviour=Behaviour(frozenset(KINDS), frozenset()))
    small.datapath.apply(replace(wanted, pools={"gb": mapping}))
    for number in range(PORTS):
        assert small.out(udp(f"10.0.0.2:{5000 + number}", ELSEWHERE)).outcome == "out"
    made = program.bind_late("udp")
    before = small.counters()
    with refusal_of(errno.EPERM):
        made.sendto(b"words", program.end(REMOTE))
    assert counted(small, before) == {"socket_taken": 1}


def test_a_listener_is_heard_by_nobody(small: World, program: Program) -> None:
    """What is for its port does not come to this server. Where it does, by another way, the answer does not leave."""
    made = program.bind_late("tcp")
    made.listen()
    local = f"{ADDRESS}:{program.local(made)[1]}"
    before = small.counters()
    with far_end() as wire, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as other:
        wire.send(tcp(REMOTE, local, "S", macs=FROM_WIRE))
        assert counted(small, before) == {"no_owner": 1}
        other.bind(("lo", 0))
        other.send(tcp(REMOTE, local, "S", macs=("00:00:00:00:00:00", "00:00:00:00:00:00")))
        wire.check_silent()
    assert counted(small, before) == {"no_owner": 1, "guard_nobody": 1}
