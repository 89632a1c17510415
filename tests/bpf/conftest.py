"""A server with the real programs for every module; each test finds it with fresh tables and no flows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.bpf.place import Place
    from tests.bpf.programs import Program
    from tests.bpf.world import World

# Their assertions should explain themselves like those of test modules; before anything imports them.
for part in ("far_end", "frames", "kernel_objects", "place", "programs", "second_card", "short_way", "world"):
    pytest.register_assert_rewrite(f"tests.bpf.{part}")


@pytest.fixture(scope="module")
def module_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from tests.bpf.world import make_world

    with make_world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def sockets_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One that looks after the sockets of its namespace."""
    from tests.bpf.world import make_world

    from softunicast.core.config_sockets import SocketsConfig

    with make_world(tmp_path_factory.mktemp("world"), sockets=SocketsConfig(enabled=True)) as made:
        yield made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Modules that say FAMILIES = (4, 6) run for both."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", getattr(metafunc.module, "FAMILIES", (4,)), indirect=True)


@pytest.fixture
def family(request: pytest.FixtureRequest) -> Iterator[int]:
    from tests.bpf import families

    with families.family(request.param):
        yield request.param


@pytest.fixture
def world(module_world: World, family: int) -> World:
    module_world.reset()
    return module_world


@pytest.fixture(params=("ipv4", "ipv6", "mapped"))
def how(request: pytest.FixtureRequest) -> Iterator[str]:
    """The sockets that a program makes: programs.HOWS."""
    from tests.bpf import families

    chosen: str = request.param
    with families.family(6 if chosen == "ipv6" else 4):
        yield chosen


@pytest.fixture
def small(sockets_world: World, how: str) -> Iterator[World]:
    """Its slice has 16 ports (programs.SLICE); the next one is a neighbour's. The host has the address."""
    from tests.bpf.programs import PORTS, SLOT, on_loopback
    from tests.bpf.world import ADDRESS, state

    sockets_world.reset(state(ports=PORTS, mine=(SLOT,), theirs=(SLOT + 1,), expired=()))
    with on_loopback(str(ADDRESS)):
        yield sockets_world


@pytest.fixture
def program(small: World, how: str) -> Iterator[Program]:
    """Of this process, which is in an agreement."""
    from tests.bpf.programs import Program, agreed

    with agreed(small), Program(how) as made:
        yield made


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """The bpffs of a server on which nothing is open yet."""
    from tests.bpf.world import make_server

    with make_server(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def pinned_pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """See place.pools_made."""
    from tests.bpf.place import pools_made

    with pools_made(tmp_path_factory.mktemp("pools")) as made:
        yield made


@pytest.fixture
def place(pinned_pools: Path, tmp_path: Path) -> Iterator[Place]:
    """Where programs get agreements."""
    from tests.bpf.place import place_in

    with place_in(pinned_pools, tmp_path) as made:
        yield made
