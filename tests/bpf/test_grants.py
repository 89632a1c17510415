"""Ports that users are granted: theirs alone while they last, whoever asks, forwarded flows and sockets alike; and
sockets that are put into an agreement by descriptor. Real sockets, by the real hooks; a slice of 16 ports, 2048-2063.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from tests.bpf import families
from tests.bpf.programs import HOWS, REMOTE, Program, agreed, excused, on_loopback
from tests.bpf.test_search import Opener
from tests.bpf.world import ADDRESS, DEPENDENT, World, namespace, state

from softunicast.core.errors import KernelError
from softunicast.core.pools import BEHAVIOUR_DEFAULT, Behaviour
from softunicast.core.slices import Slice
from softunicast.kernel import abi
from softunicast.kernel.agreed import agree
from softunicast.kernel.grants import Grant, Grants
from softunicast.kernel.socket_hooks import netns_cookie

PORTS = 16
SLOT = 128
SLICE = set(range(SLOT * PORTS, (SLOT + 1) * PORTS))
ELSEWHERE = "203.0.113.2:443"
KINDS = ("tcp", "udp")
CLOCK_MONOTONIC_COARSE = 6  # <linux/time.h>: packets are counted by it
LIFE_NS = 60 * 10**9
ME = os.geteuid()
INDEPENDENT = Behaviour(frozenset({"tcp", "udp", "icmp"}), frozenset())


@pytest.fixture(params=HOWS)
def how(request: pytest.FixtureRequest) -> Iterator[str]:
    chosen: str = request.param
    with families.family(6 if chosen == "ipv6" else 4):
        yield chosen


@pytest.fixture(params=[DEPENDENT, INDEPENDENT], ids=["dependent", "independent"])
def behaviour(request: pytest.FixtureRequest) -> Behaviour:
    found: Behaviour = request.param
    return found


@pytest.fixture
def small(sockets_world: World, how: str, behaviour: Behaviour) -> Iterator[World]:
    made = state(ports=PORTS, mine=(SLOT,), theirs=(SLOT + 1,), expired=())
    sockets_world.reset(replace(made, pools={"gb": replace(made.pools["gb"], behaviour=behaviour)}))
    with on_loopback(str(ADDRESS)):
        yield sockets_world


@pytest.fixture
def program(how: str, small: World) -> Iterator[Program]:
    """Of this process, which is in no agreement."""
    with Program(how) as made:
        yield made


@pytest.fixture
def giver(small: World) -> Iterator[Giver]:
    made = Giver(small)
    yield made
    made.end_all()


class Giver:
    """Grants ports of the slice, until the end of the test."""

    def __init__(self, world: World) -> None:
        self.datapath = world._datapaths[4]
        self.grants = Grants(self.datapath)
        self.given: list[Grant] = []
        number = self.grants.number_of("gb")
        assert number is not None
        self.number = number

    @property
    def part(self) -> Slice:
        return Slice.of(self.address, SLOT * PORTS, PORTS)

    @property
    def address(self) -> IPv4Address | IPv6Address:
        return ADDRESS if families.chosen == 4 else IPv6Address(families.current(str(ADDRESS)))

    def take(self, kind: str = "tcp", uid: int = ME, life_ns: int = LIFE_NS) -> Grant | None:
        until = time.monotonic_ns() + life_ns
        grant = self.grants.take([self.part], kind, uid, self.number, until, random.random)
        if grant:
            self.given.append(grant)
        return grant

    def one(self, kind: str = "tcp", uid: int = ME, life_ns: int = LIFE_NS) -> Grant:
        grant = self.take(kind, uid, life_ns)
        assert grant
        return grant

    def any_port(self, kind: str = "tcp") -> Grant:
        grant = self.grants.open(self.address, kind, ME, self.number, time.monotonic_ns() + LIFE_NS)
        self.given.append(grant)
        return grant

    def end_all(self) -> None:
        for grant in self.given:
            self.grants.end(grant)
        self.grants.none_left()
        assert not list(self.datapath.map("granted").items())


def at(grant: Grant) -> str:
    return f"{ADDRESS}:{grant.port}"


def refused(code: int) -> pytest.RaisesContext[OSError]:
    return pytest.raises(OSError, match=os.strerror(code))


# -- one port ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_port_once(giver: Giver, kind: str) -> None:
    assert {giver.one(kind).port for _ in range(PORTS)} == SLICE
    assert giver.take(kind) is None
    other = {"tcp": "udp", "udp": "tcp"}[kind]
    assert giver.one(other).port in SLICE
    gone = giver.given.pop(0)
    giver.grants.end(gone)
    assert giver.one(kind).port == gone.port


@pytest.mark.parametrize("kind", KINDS)
def test_its_user_binds_and_connects(small: World, giver: Giver, program: Program, kind: str) -> None:
    grant = giver.one(kind)
    with refused(errno.EPERM):
        program.bind(kind, f"{ADDRESS}:{grant.port ^ 1}")
    made = program.bind(kind, at(grant))
    assert program.connect(kind, REMOTE, made) == (str(ADDRESS), grant.port)
    assert len([key for key in small.claims() if key.remote]) == 1


def test_a_port_serves_several_connections(giver: Giver, program: Program) -> None:
    """As connection pools make them: each socket bound to the one port, none asks for SO_REUSEADDR."""
    grant = giver.one("tcp")
    for remote in (REMOTE, ELSEWHERE, "203.0.113.3:80"):
        made = program.bind("tcp", at(grant))
        assert program.connect("tcp", remote, made)[1] == grant.port
    made = program.bind("tcp", at(grant))
    with refused(errno.EADDRNOTAVAIL):
        program.connect("tcp", REMOTE, made)


def test_udp_sockets_do_not_hide_each_other(giver: Giver, program: Program) -> None:
    grant = giver.one("udp")
    first = program.bind("udp", at(grant))
    with refused(errno.EADDRINUSE):
        program.bind("udp", at(grant))
    first.close()
    program.bind("udp", at(grant))


@pytest.mark.parametrize("kind", KINDS)
def test_others_may_not(small: World, giver: Giver, program: Program, kind: str) -> None:
    """Neither another user, nor one in an agreement with the same pool."""
    grant = giver.one(kind, uid=4711)
    with refused(errno.EPERM):
        program.bind(kind, at(grant))
    with agreed(small), refused(errno.EADDRNOTAVAIL):
        program.bind(kind, at(grant))


@pytest.mark.parametrize("kind", KINDS)
def test_no_socket_and_no_flow_gets_it(small: World, giver: Giver, program: Program, kind: str) -> None:
    """Whoever searches for a port finds all the others."""
    held = {giver.one(kind).port for _ in range(3)}
    opener = Opener(small, kind)
    found = {port for _, port in opener.fill(5)}
    with agreed(small):
        found |= {program.connect(kind)[1] for _ in range(8)}
        with refused(errno.EADDRNOTAVAIL):
            program.connect(kind)
    assert opener.open(100) is None
    assert found == SLICE - held
    for grant in list(giver.given):
        giver.grants.end(grant)
    giver.given.clear()
    small.forget_exhausted()
    assert opener.open(101) is not None


def test_a_listener_is_in_the_way(small: World, giver: Giver, program: Program) -> None:
    with excused(small):
        held = program.bind("tcp", f"{ADDRESS}:{SLOT * PORTS + 3}")
        held.listen()
    assert {giver.one().port for _ in range(PORTS - 1)} == SLICE - {SLOT * PORTS + 3}
    assert giver.take() is None


@pytest.mark.parametrize("behaviour", [DEPENDENT], indirect=True, ids=["dependent"])
def test_connections_of_others_are_not(small: World, giver: Giver, program: Program) -> None:
    """Their tuples are: the port serves who was granted it towards everybody else."""
    with agreed(small):
        taken = program.fill("tcp", PORTS)
    assert taken == SLICE
    grant = giver.one()
    with refused(errno.EADDRNOTAVAIL):
        program.connect("tcp", REMOTE, program.bind("tcp", at(grant)))
    program.connect("tcp", ELSEWHERE, program.bind("tcp", at(grant)))


def test_it_ends_by_itself(small: World, giver: Giver, program: Program) -> None:
    grant = giver.one(life_ns=1)
    (over_ns,) = [claim.expires_ns for claim in small.claims().values()]
    while time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) <= over_ns:
        time.sleep(0.001)
    assert not giver.grants.extend(grant, time.monotonic_ns() + LIFE_NS)
    with refused(errno.EPERM):
        program.bind("tcp", at(grant))
    assert {port for _, port in Opener(small, "tcp").fill(PORTS)} == SLICE


def test_it_is_prolonged(small: World, giver: Giver) -> None:
    grant = giver.one(life_ns=10**9)
    until = time.monotonic_ns() + 2 * LIFE_NS
    assert giver.grants.extend_all([grant], until) == []
    assert [claim.expires_ns for claim in small.claims().values()] == [until]
    giver.grants.end(grant)
    assert giver.grants.extend_all([grant], until) == [grant]
    assert not small.claims()


def test_what_somebody_else_has_by_now_is_not_touched(small: World, giver: Giver) -> None:
    grant = giver.one()
    small.change_claims(pool=77, flow=next(iter(small.claims().values())).flow[:-4] + b"\1\0\0\0")
    before = small.claims()
    assert not giver.grants.extend(grant, time.monotonic_ns() + LIFE_NS)
    giver.grants.end(grant)
    assert small.claims() == before


@pytest.mark.parametrize("behaviour", [DEPENDENT], indirect=True, ids=["dependent"])
def test_after_it_ended_its_sockets_go_on(small: World, giver: Giver, program: Program) -> None:
    """And their tuples stay taken, by the kernel's own table."""
    grant = giver.one()
    program.connect("tcp", REMOTE, program.bind("tcp", at(grant)))
    giver.grants.end(grant)
    giver.given.clear()
    giver.grants.none_left()
    small.expire()
    opener = Opener(small, "tcp")
    assert {port for _, port in opener.fill(PORTS - 1)} == SLICE - {grant.port}


# -- an address ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_with_any_port(small: World, giver: Giver, program: Program, kind: str) -> None:
    giver.any_port(kind)
    sockets = [program.bind(kind, f"{ADDRESS}:0") for _ in range(PORTS)]
    ports = {program.local(made)[1] for made in sockets}
    assert ports == SLICE
    assert program.connect(kind, REMOTE, sockets[0])[1] in SLICE
    with refused(errno.EPERM):
        program.bind(kind, f"{ADDRESS}:{SLOT * PORTS}")


# -- sockets that are handed over ----------------------------------------------------------------------------


def test_a_socket_that_is_put_into_an_agreement(small: World, giver: Giver, program: Program) -> None:
    for kind in KINDS:
        ours, mine = program.socket(kind), program.socket(kind)
        giver.grants.agree([ours.fileno()], giver.number)
        assert program.connect(kind, REMOTE, ours)[1] in SLICE
        assert program.connect(kind, REMOTE, mine)[0] != str(ADDRESS)
    for _ in range(PORTS - 1):
        made = program.socket("tcp")
        giver.grants.agree([made.fileno()], giver.number)
        program.connect("tcp", REMOTE, made)
    made = program.socket("tcp")
    giver.grants.agree([made.fileno()], giver.number)
    with refused(errno.EADDRNOTAVAIL):
        program.connect("tcp", REMOTE, made)


def unfit() -> Iterator[tuple[str, socket.socket, int]]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    connected = socket.create_connection(listening.getsockname())
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect(("127.0.0.1", 9))
    opening = socket.socket()
    opening.setblocking(False)
    opening.connect_ex(("192.0.2.77", 9))
    yield "connected", connected, errno.EISCONN
    yield "listening", listening, errno.EISCONN
    yield "connecting", opening, errno.EISCONN
    yield "udp", udp, errno.EISCONN
    yield "unix", socket.socket(socket.AF_UNIX), errno.EPROTONOSUPPORT
    yield "raw", socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP), errno.EPROTONOSUPPORT
    yield "packet", socket.socket(socket.AF_PACKET, socket.SOCK_RAW), errno.EPROTONOSUPPORT
    yield "ping", socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP), errno.EPROTONOSUPPORT
    yield "mptcp", socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262), errno.EPROTONOSUPPORT


@pytest.mark.parametrize("behaviour", [BEHAVIOUR_DEFAULT], indirect=True, ids=["default"])
@pytest.mark.parametrize("how", ["ipv4"], indirect=True)
def test_descriptors_that_are_no_such_socket(giver: Giver, tmp_path: Path) -> None:
    """Nothing changes, for those that are handed over with them neither."""
    table = giver.datapath.map("agreed")
    for name, made, code in unfit():
        with made, socket.socket() as good:
            with pytest.raises(KernelError) as caught:
                giver.grants.agree([good.fileno(), made.fileno()], giver.number)
            assert caught.value.errno == code, name
            assert table.get(good.fileno().to_bytes(4, "little")) is None, name
    file = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(KernelError, match="no socket; fix: hand over a TCP or UDP socket before"):
        giver.grants.agree([file], giver.number)
    os.close(file)
    with namespace():
        foreign = socket.socket()
    with foreign, pytest.raises(KernelError, match="of another network namespace") as caught:
        giver.grants.agree([foreign.fileno()], giver.number)
    assert caught.value.errno == errno.EXDEV


@pytest.mark.parametrize("behaviour", [BEHAVIOUR_DEFAULT], indirect=True, ids=["default"])
@pytest.mark.parametrize("how", ["ipv4"], indirect=True)
def test_all_or_none(giver: Giver, monkeypatch: pytest.MonkeyPatch) -> None:
    table, wrote = giver.datapath.map("agreed"), itertools.count()
    before = type(table).set

    def set_(self: object, key: bytes, value: bytes, flags: int = 0) -> None:
        if next(wrote) == 2:
            raise KernelError("no memory", errno.ENOMEM)
        before(table, key, value, flags)

    sockets = [socket.socket() for _ in range(4)]
    monkeypatch.setattr(type(table), "set", set_)
    with pytest.raises(KernelError, match="no memory"):
        agree(table, [one.fileno() for one in sockets], giver.number, netns_cookie())
    for one in sockets:
        assert table.get(one.fileno().to_bytes(4, "little")) is None
        one.close()


def test_without_hooks_nothing_is_promised(world: World) -> None:
    grants = Grants(world.datapath)
    with pytest.raises(KernelError, match=r"does not look after the sockets .* see \[sockets\]"):
        grants.require_hooks()


@pytest.mark.parametrize("behaviour", [BEHAVIOUR_DEFAULT], indirect=True, ids=["default"])
@pytest.mark.parametrize("how", ["ipv4"], indirect=True)
def test_the_search_asks_only_while_there_are_grants(small: World, giver: Giver) -> None:
    def asks() -> int:
        return int(abi.Settings.unpack(giver.datapath.map("settings").get(bytes(4)) or b"").granted)

    assert asks() == 0
    giver.one()
    assert asks() == 1
    giver.datapath._write_settings(*asked_before(giver))  # as the next agent does
    assert asks() == 1
    giver.end_all()
    giver.given.clear()
    assert asks() == 0


def asked_before(giver: Giver) -> tuple[int, int]:
    before = giver.datapath._settings()
    return before.uplink, before.self
