"""Lookups on loopback of programs in an agreement: they are answered by the resolvers of the pool, as those whom the
programs asked; or left alone; or refused by name. Real sockets, by the real hooks, and resolvers on this host."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from tests.bpf import families
from tests.bpf.kernel_objects import pins
from tests.bpf.programs import (
    HOWS,
    KINDS,
    PORTS,
    SLICE,
    SLOT,
    Program,
    agreed,
    counted,
    excused,
    on_loopback,
    refusal_of,
)
from tests.bpf.test_socket_hooks import opened
from tests.bpf.world import ADDRESS, World, state

from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.desired import KernelState
from softunicast.kernel import abi, socket_hooks

ONE, OTHER = "203.0.113.53", "203.0.113.54"
ASKED = {"ipv4": "127.0.0.53:53", "mapped": "127.0.0.53:53", "ipv6": "::1:53"}
LINKS = {f"links/{name}" for _, name, _ in socket_hooks.ANSWERS}


def with_dns(*resolvers: str) -> KernelState:
    """Addresses of the chosen family, or as they are written."""
    wanted = state(ports=PORTS, mine=(SLOT,), theirs=(), expired=())
    dns = tuple(ip_address(families.current(one)) for one in resolvers)
    return replace(wanted, pools={"gb": replace(wanted.pools["gb"], dns=dns)})


@pytest.fixture(params=HOWS)
def how(request: pytest.FixtureRequest) -> Iterator[str]:
    chosen: str = request.param
    with families.family(6 if chosen == "ipv6" else 4):
        yield chosen


@pytest.fixture
def small(sockets_world: World, how: str) -> Iterator[World]:
    sockets_world.reset(with_dns(ONE))
    with on_loopback(str(ADDRESS), ONE, OTHER):
        yield sockets_world


@pytest.fixture
def program(small: World, how: str) -> Iterator[Program]:
    with agreed(small), Program(how) as made:
        yield made


@contextmanager
def resolver(kind: str, address: str = ONE) -> Iterator[socket.socket]:
    """Its socket."""
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    with socket.socket(families.socket_family(), kinds[kind]) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(10)
        made.bind(families.socket_end(f"{address}:53"))
        if kind == "tcp":
            made.listen()
        yield made


def asks(program: Program, kind: str, asked: str) -> socket.socket:
    """A socket that has been connected there."""
    made = program.socket(kind)
    made.settimeout(10)
    made.connect(program.end(asked))
    return made


# -- answered


@pytest.mark.parametrize("kind", KINDS)
def test_a_connected_socket_asks_the_pools_resolver(
    small: World, program: Program, how: str, kind: str
) -> None:
    before = small.counters()
    with resolver(kind) as listening:
        made = asks(program, kind, ASKED[how])
        made.send(b"question")
        if kind == "udp":
            question, source = listening.recvfrom(100)
            listening.sendto(b"answer", source)
        else:
            talking, source = listening.accept()
            with talking:
                question = talking.recv(100)
                talking.send(b"answer")
        assert question == b"question"
        assert (source[0], source[1] in SLICE) == (families.current(str(ADDRESS)), True)
        assert program.local(made) == (str(ADDRESS), source[1])
        assert made.getpeername()[:2] == program.end(ASKED[how])
        answer, whom = made.recvfrom(100)
        assert answer == b"answer"
        if kind == "udp":
            assert whom[:2] == program.end(ASKED[how])
    assert counted(small, before) == {"sockets": 1}


@pytest.mark.parametrize("bound", [False, True])
def test_a_socket_that_is_not_connected(small: World, program: Program, how: str, bound: bool) -> None:
    made = program.bind("udp", "0.0.0.0:0") if bound else program.socket("udp")
    made.settimeout(10)
    with resolver("udp") as listening:
        made.sendto(b"question", program.end(ASKED[how]))
        question, source = listening.recvfrom(100)
        listening.sendto(b"answer", source)
        assert question == b"question"
        answer, whom = made.recvfrom(100)
        assert (answer, whom[:2]) == (b"answer", program.end(ASKED[how]))


def answered_by(program: Program, asked: str, *resolvers: socket.socket) -> list[int]:
    """Which of the resolvers it was, of four lookups that each got an answer: two connected, two not."""
    found = []
    for connected in (True, True, False, False):
        if connected:
            made = asks(program, "udp", asked)
            made.send(b"question")
        else:
            made = program.socket("udp")
            made.settimeout(10)
            made.sendto(b"question", program.end(asked))
        [listening], _, _ = select.select(resolvers, [], [], 10)
        question, source = listening.recvfrom(100)
        listening.sendto(question, source)
        assert made.recvfrom(100)[1][:2] == program.end(asked)
        found.append(resolvers.index(listening))
    return found


def test_every_resolver_of_the_pool_in_its_turn(small: World, program: Program, how: str) -> None:
    """So that whoever repeats a question asks another one."""
    small.datapath.apply(with_dns(ONE, OTHER))
    with resolver("udp") as one, resolver("udp", OTHER) as other:
        assert answered_by(program, ASKED[how], one, other) == [0, 1, 0, 1]


def test_a_connected_socket_that_says_to_whom_it_sends(small: World, program: Program, how: str) -> None:
    """It hears of one only, so that is asked."""
    small.datapath.apply(with_dns(ONE, OTHER))
    with resolver("udp") as one:
        made = asks(program, "udp", ASKED[how])
        for _ in range(2):
            made.sendto(b"question", program.end(ASKED[how]))
            _, source = one.recvfrom(100)
            one.sendto(b"answer", source)
            assert made.recvfrom(100)[1][:2] == program.end(ASKED[how])


def owe(world: World, *since_s: float) -> None:
    """The resolvers of the pool owe answers for so long; 0: none."""
    table = world.of_both.map("resolvers" if families.chosen == 4 else "resolvers6")
    record = abi.PoolDns if families.chosen == 4 else abi.PoolDns6
    now_ns = time.monotonic_ns()
    [(key, value)] = table.items()
    numbers = [int(now_ns - one * 1e9) if one else 0 for one in (*since_s, 0, 0)]
    table.set(key, record.unpack(value)._replace(owes_since_ns=struct.pack("4Q", *numbers)).pack())


def test_who_owes_an_answer_is_passed_over(small: World, program: Program, how: str) -> None:
    """Libraries ask again where they asked first: half of all lookups would fail when one of two is gone."""
    small.datapath.apply(with_dns(ONE, OTHER))
    with resolver("udp") as one, resolver("udp", OTHER) as other:
        owe(small, 5, 0)
        assert answered_by(program, ASKED[how], one, other) == [1, 1, 1, 1]
        owe(small, 5, 5)  # nobody is better
        for _ in range(2):
            asks(program, "udp", ASKED[how]).send(b"question")
        assert (one.recv(100), other.recv(100)) == (b"question", b"question")
        owe(small, 0.1, 0)  # an answer takes its time
        assert set(answered_by(program, ASKED[how], one, other)) == {0, 1}


def test_who_owes_an_answer_is_tried_again(small: World, program: Program, how: str) -> None:
    """By one lookup, now and then."""
    small.datapath.apply(with_dns(ONE, OTHER))
    with resolver("udp") as one, resolver("udp", OTHER) as other:
        owe(small, 31, 0)
        for _ in range(6):
            asks(program, "udp", ASKED[how]).send(b"question")
        assert len(select.select([one], [], [], 10)[0]) == 1
        one.recv(100)
        for _ in range(5):
            other.recv(100)
        one.setblocking(False)
        with pytest.raises(BlockingIOError):
            one.recv(100)


def test_each_answer_is_of_whom_was_asked(small: World, program: Program, how: str) -> None:
    """Where one socket asks several, as some libraries do."""
    if how == "ipv6":
        pytest.skip("there is one address of loopback only")
    small.datapath.apply(with_dns(ONE, OTHER))
    made = program.socket("udp")
    made.settimeout(10)
    ends = [program.end(f"127.0.0.{last}:53") for last in (53, 1)]
    with resolver("udp") as one, resolver("udp", OTHER) as other:
        for end in ends:
            made.sendto(b"question", end)
        for listening, end in zip((other, one), reversed(ends), strict=True):
            _, source = listening.recvfrom(100)
            listening.sendto(b"answer", source)
            assert made.recvfrom(100)[1][:2] == end


def test_whom_the_program_asks_by_its_own_address(small: World, program: Program) -> None:
    made = asks(program, "udp", f"{ONE}:53")
    assert made.getpeername()[:2] == program.end(f"{ONE}:53")


# -- left alone


def left_alone(program: Program, asked: str) -> None:
    with refusal_of(errno.ECONNREFUSED):
        asks(program, "tcp", asked)  # nobody listens there
    made = asks(program, "udp", asked)
    assert made.getsockname()[0] in ("127.0.0.1", "::ffff:127.0.0.1", "::1")
    assert made.getpeername()[:2] == program.end(asked)
    made.sendto(b"question", program.end(asked))


@pytest.mark.parametrize("port", [52, 54, 853, 13568])  # the last is 53 the other way round
def test_other_ports(small: World, program: Program, how: str, port: int) -> None:
    left_alone(program, f"{ASKED[how].removesuffix(':53')}:{port}")
    assert small.claims() == {}


@pytest.mark.parametrize("who", ["in no agreement", "excused", "without dns"])
def test_others(small: World, how: str, who: str) -> None:
    before = small.counters()
    with ExitStack() as stack:
        if who == "excused":
            stack.enter_context(excused(small))
        elif who == "without dns":
            stack.enter_context(agreed(small))
            small.datapath.apply(with_dns())
        left_alone(stack.enter_context(Program(how)), ASKED[how])
    assert counted(small, before) == {}
    assert small.claims() == {}


# -- refused


def refused(program: Program, asked: str, made: socket.socket | None = None) -> None:
    for kind in KINDS:
        if made is None or kind == "udp":
            with refusal_of(errno.EADDRNOTAVAIL):
                (made or program.socket(kind)).connect(program.end(asked))
    with refusal_of(errno.EPERM):
        (made or program.socket("udp")).sendto(b"question", program.end(asked))


def test_none_of_this_family(small: World, program: Program, how: str) -> None:
    other = ip_address(ONE if how == "ipv6" else "2001:db8::53")
    pool = replace(small.of_both.state.pools["gb"], dns=(other,))
    small.of_both.apply(replace(small.of_both.state, pools={"gb": pool}))
    before = small.counters()
    refused(program, ASKED[how])
    assert counted(small, before) == {"no_resolver": 3}


def test_bound_to_loopback(small: World, program: Program, how: str) -> None:
    """From there nothing but loopback could be asked."""
    before = small.counters()
    refused(program, ASKED[how], program.bind("udp", f"{ASKED[how].removesuffix(':53')}:0"))
    assert counted(small, before) == {"no_resolver": 2}


def test_no_port_is_free(small: World, program: Program, how: str) -> None:
    """As towards anybody else: never by another way."""
    program.fill("udp", PORTS, f"{ONE}:53")
    with refusal_of(errno.EADDRNOTAVAIL):
        program.connect("udp", ASKED[how])
    with refusal_of(errno.EPERM):
        program.socket("udp").sendto(b"question", program.end(ASKED[how]))


# -- the hooks


def test_they_are_attached_while_a_pool_has_resolvers(mount: Path) -> None:
    """They cost each datagram of the host something."""
    first = opened(mount, SocketsConfig())
    assert not pins(mount) & LINKS
    first.apply(with_dns(ONE, OTHER, "2001:db8::53"))
    assert pins(mount) >= LINKS
    first.close()
    second = opened(mount, SocketsConfig())
    assert second.state.pools["gb"].dns == tuple(map(ip_address, (ONE, OTHER, "2001:db8::53")))
    assert second.apply(with_dns(ONE, OTHER, "2001:db8::53")) == 0
    assert pins(mount) >= LINKS
    second.apply(with_dns())
    assert not pins(mount) & LINKS
    assert [len(list(second.map(name).items())) for name in ("resolvers", "resolvers6")] == [0, 0]
    second.apply(with_dns(ONE))
    second.close()
    third = opened(mount, SocketsConfig(enabled=False))
    assert not pins(mount) & LINKS
    third.remove()


def test_they_are_left_over(mount: Path) -> None:
    """An agent ended between the two steps."""
    first = opened(mount, SocketsConfig())
    first.apply(with_dns(ONE))
    for name in ("resolvers", "resolvers6"):
        for key, _ in list(first.map(name).items()):
            first.map(name).delete(key)
    first.close()
    second = opened(mount, SocketsConfig())
    assert not pins(mount) & LINKS
    second.remove()


def test_without_cgroups_there_are_none(mount: Path) -> None:
    datapath = opened(mount, None)
    datapath.apply(with_dns(ONE))
    assert not pins(mount) & LINKS
    datapath.remove()
