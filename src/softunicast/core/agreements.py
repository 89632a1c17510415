"""Which pool the sockets of a program leave from: what the agent tells about its pools, and how one is chosen.

The agent publishes a `Board` as a file, so that programs can be put into an agreement while it is down. Tags choose
a pool here, never addresses: exactly one pool has to carry all of them. Whatever is unknown, or fits several, is
refused by name; nothing falls back to another pool (invariant 10).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Final, Protocol, TypeVar

from softunicast.core.errors import InputError, UnknownNameError

BOARD_FILE: Final = "pools.json"  # in the agent's state directory
BOARD_FORMAT: Final = 1
NAMES_SHOWN_MAX: Final = 10  # enough to spot the typing mistake, few enough for a line


@dataclass(frozen=True, slots=True)
class PoolSign:
    """A pool as programs may ask for it. `dns`: the addresses of its resolvers."""

    name: str
    tags: Mapping[str, str]
    dns: tuple[str, ...] = ()


class Choosable(Protocol):
    """A pool, or the sign of one."""

    @property
    def name(self) -> str: ...
    @property
    def tags(self) -> Mapping[str, str]: ...


Chosen = TypeVar("Chosen", bound=Choosable)


@dataclass(frozen=True, slots=True)
class Board:
    """What the agent publishes. `bpffs`: where the data path is pinned; `cookie`: of the network namespace that it
    works in; `cgroup`: where its hooks are attached, None when they are not, and then `off` says why."""

    server: str
    bpffs: str
    cookie: int
    cgroup: str | None
    off: str | None
    pools: tuple[PoolSign, ...]

    def text(self) -> str:
        """As the file has it."""
        return json.dumps({"format": BOARD_FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def parse(cls, text: str) -> Board:
        """Raises ValueError when this is not such a file."""
        try:
            found = json.loads(text)
            if found["format"] != BOARD_FORMAT:
                raise ValueError(f"format {found['format']}")
            return cls(
                str(found["server"]),
                str(found["bpffs"]),
                int(found["cookie"]),
                None if found["cgroup"] is None else str(found["cgroup"]),
                None if found["off"] is None else str(found["off"]),
                tuple(
                    PoolSign(str(one["name"]), dict(one["tags"]), _addresses(one.get("dns", ())))
                    for one in found["pools"]
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _addresses(texts: Iterable[object]) -> tuple[str, ...]:
    return tuple(str(ip_address(str(text))) for text in texts)


def parse_tags(texts: Iterable[str]) -> dict[str, str]:
    """`country=gb` and so on. Raises InputError."""
    tags: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise InputError(
                f"the tag {text[:40]!r} is not of the form key=value", "write it like country=gb"
            )
        if tags.setdefault(key, value) != value:
            raise InputError(f"the tag {key} is given as {tags[key]} and as {value}", "leave one out")
    return tags


def choose(pools: Iterable[Chosen], name: str | None, tags: Mapping[str, str]) -> Chosen:
    """The pool called `name`, or the one that carries all of `tags` (any tags: the only pool there is).

    UnknownNameError when there is none, InputError when several would do, or a name and tags are given.
    """
    every = tuple(pools)
    if name is not None and tags:
        raise InputError("a pool and tags are given", "choose by name or by tags")
    if name is not None:
        for pool in every:
            if pool.name == name:
                return pool
        raise UnknownNameError(
            f"there is no pool {name[:40]!r}", _known("pools", (one.name for one in every))
        )
    fitting = [pool for pool in every if all(pool.tags.get(key) == value for key, value in tags.items())]
    if not fitting:
        raise _unknown(every, tags)
    if len(fitting) > 1:
        which = _text(tags) if tags else "no tag"
        raise InputError(
            f"{which} fits {len(fitting)} pools",
            f"choose one by name: {_names(one.name for one in fitting)}",
        )
    return fitting[0]


def _unknown(pools: tuple[Choosable, ...], tags: Mapping[str, str]) -> UnknownNameError:
    """Why no pool carries these tags."""
    if not pools:
        return UnknownNameError("the agent has no pools", "give its configuration a [[pools]] section")
    for key, value in tags.items():
        values = {pool.tags[key] for pool in pools if key in pool.tags}
        if not values:
            keys = {key for pool in pools for key in pool.tags}
            return UnknownNameError(f"no pool has a tag {key[:40]!r}", _known("tags", keys))
        if value not in values:
            return UnknownNameError(f"no pool has {_text({key: value})}", _known(f"values of {key}", values))
    return UnknownNameError(
        f"no pool has {_text(tags)} together", _known("pools", (pool.name for pool in pools))
    )


def _text(tags: Mapping[str, str]) -> str:
    return " ".join(f"{key[:40]}={value[:40]}" for key, value in tags.items())


def _known(what: str, names: Iterable[str]) -> str:
    ordered = _names(names)
    return f"known {what}: {ordered}" if ordered else f"there are no {what}"


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:NAMES_SHOWN_MAX]) + (", ..." if len(ordered) > NAMES_SHOWN_MAX else "")
