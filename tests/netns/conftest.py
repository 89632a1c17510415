"""Labs for the tests of `pair`: built when a module asks, removed with it, nothing left."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from softunicast.kernel import namespaces
from softunicast.lab import build, pair, pair6, routed, state

if TYPE_CHECKING:
    from tests.netns.pair_lab import PairLab

for part in ("pair_lab", "tun_program"):
    pytest.register_assert_rewrite(f"tests.netns.{part}")


@pytest.fixture(scope="module")
def labs_apart() -> Iterator[Path]:
    """Labs of this module are not those of the host. A short path: sockets are made below it."""
    with (
        tempfile.TemporaryDirectory(prefix="su-", dir="/run") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(state, "RUN_DIR", Path(name))
        yield Path(name)


@pytest.fixture(scope="module")
def make_pair(labs_apart: Path) -> Iterator[Callable[..., PairLab]]:
    """Builds a lab `pair` (or `pair6`, or `routed`) with the options of `pair.pair`; it lives as long as the module."""
    from tests.netns.pair_lab import PairLab

    made: list[str] = []
    with ExitStack() as stack:

        def make(ipv6: bool = False, with_router: bool = False, **options: Any) -> PairLab:
            made.append(f"t{secrets.token_hex(4)}")
            topology = routed.routed if with_router else pair6.pair6 if ipv6 else pair.pair
            return PairLab(stack.enter_context(build.running(topology(**options), made[-1])))

        yield make
    left = [path.name for path in namespaces.NETNS_DIR.iterdir() if any(name in path.name for name in made)]
    assert [*left, *labs_apart.iterdir()] == []


@pytest.fixture(scope="module")
def pair_lab(make_pair: Callable[..., PairLab]) -> PairLab:
    """A lab as `softunicast lab up pair` builds it."""
    return make_pair()
