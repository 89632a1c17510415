"""The strategies by name, and which of them this host can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from softunicast.core.errors import SoftunicastError, UnknownNameError
from softunicast.strategies.claims import Claims
from softunicast.strategies.placeholder import PlaceholderEarly, PlaceholderLate, PlaceholderRules
from softunicast.strategies.repair import Repair
from softunicast.strategies.reservations import Reservations
from softunicast.strategies.snat import Snat
from softunicast.strategies.strategy import Strategy
from softunicast.strategies.terminate import Terminate

_ALL: Final = (
    *(Claims, Snat, Reservations, Repair),
    *(PlaceholderEarly, PlaceholderLate, PlaceholderRules, Terminate),
)
OURS: Final = Claims.name
STRATEGIES: Final[Mapping[str, type[Strategy]]] = {one.name: one for one in _ALL}


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether this host can run a strategy; `why` and `fix` are None when it can. `offered`: no host can if it is
    not."""

    name: str
    about: str
    offered: bool
    can_run: bool
    why: str | None = None
    fix: str | None = None


def strategy(name: str) -> type[Strategy]:
    """Raises UnknownNameError for a name that is not in the catalogue."""
    if name not in STRATEGIES:
        raise UnknownNameError(f"there is no strategy {name!r}", f"use one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def examine() -> tuple[Answer, ...]:
    """Tries each, in network namespaces that nobody else sees; nothing on the host is touched."""
    return tuple(_answer(one) for one in STRATEGIES.values())


def _answer(one: type[Strategy]) -> Answer:
    try:
        one.attempt()
    except SoftunicastError as error:
        return Answer(one.name, one.about, one.offered, False, error.what, error.fix)
    except OSError as error:
        return Answer(
            one.name,
            one.about,
            one.offered,
            False,
            f"the kernel says: {error.strerror}",
            "see the kernel's options",
        )
    return Answer(one.name, one.about, one.offered, True)
