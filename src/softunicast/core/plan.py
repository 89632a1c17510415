"""A plan: what to do to make the actual state the wanted one, in an order that is safe to stop anywhere.

Add before remove (invariant 7): nothing is removed while something that replaces it is not there yet, so a
plan cut short leaves too much, never too little. A plan knows keys and values, not what they mean; whoever
applies it does one step after the other and may compute a new plan after any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Action(Enum):
    """What a step does. Declared in the order in which a plan does them."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Step(Generic[K, V]):
    """One thing to do. `value` is the wanted one; for REMOVE it is the one that goes."""

    action: Action
    key: K
    value: V


@dataclass(frozen=True, slots=True)
class Plan(Generic[K, V]):
    """The difference of two mappings. `add` and `change` hold the wanted values, `remove` the actual ones."""

    add: Mapping[K, V]
    change: Mapping[K, V]
    remove: Mapping[K, V]

    def __len__(self) -> int:
        """Number of steps; an empty plan is false: wanted and actual are equal."""
        return len(self.add) + len(self.change) + len(self.remove)

    def steps(self) -> Iterator[Step[K, V]]:
        """Every addition, then every change, then every removal."""
        for action, part in zip(Action, (self.add, self.change, self.remove), strict=True):
            for key, value in part.items():
                yield Step(action, key, value)


def diff(wanted: Mapping[K, V], actual: Mapping[K, V]) -> Plan[K, V]:
    """What turns `actual` into `wanted`. Values are compared with ==; order follows the mappings."""
    return Plan(
        add={key: value for key, value in wanted.items() if key not in actual},
        change={key: value for key, value in wanted.items() if key in actual and actual[key] != value},
        remove={key: value for key, value in actual.items() if key not in wanted},
    )
