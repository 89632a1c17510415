"""What an operator is told without asking: the kinds of events, when one is worth a line, and the last of them.

Pure: `now` (unix seconds) is passed in, and whoever calls writes the line. A flood of one kind is one event at once and
then one for each QUIET_S, with a count; memory is bounded by EVENTS_MAX and by the number of kinds and pools.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

EVENTS_MAX: Final = 1000  # kept for whoever asks; the log has all of them
QUIET_S: Final = 10.0  # between two events of one kind about one thing


@dataclass(frozen=True, slots=True)
class Kind:
    """`nat_event`: the natEvent of RFC 8158 that says the same, if one does. `at_once`: never merged."""

    meaning: str
    nat_event: int | None = None
    at_once: bool = True


FLOOD: Final = False
# The names are those of log lines; the API writes them with _ for blanks.
KINDS: Final[Mapping[str, Kind]] = {
    "pool nearly full": Kind("The pool's busiest destination has more than warn_at of the pool's ports.", 18),
    "pool has room again": Kind("The pool's busiest destination is down to warn_clear_at of its ports."),
    "pool full": Kind("A client was refused: no port was free towards its destination.", 12, FLOOD),
    "pool without slices": Kind("A client was refused: the pool has no slice with a live lease.", 3, FLOOD),
    "table nearly full": Kind("The server has more than warn_at of flows_max flows.", 18),
    "table has room again": Kind("The server's flows are down to warn_clear_at of flows_max."),
    "table full": Kind("A client was refused: the server has flows_max flows.", 13, FLOOD),
    "clients full": Kind("A client was refused: the server has clients_max clients.", 13, FLOOD),
    "client limited": Kind("A client was refused by client_limits; the last one is named.", 13, FLOOD),
    "slice acquired": Kind("A lease was taken: the server may use these ports.", 16),
    "slice adopted": Kind("An agent that started found this slice in use, and goes on with it."),
    "slice taken up": Kind("A lease of this server was found in the ledger, and is used.", 16),
    "slice draining": Kind("The slice opens no more flows, and is given back when it has none."),
    "slice released": Kind("A lease was given back.", 17),
    "slice lost": Kind("A lease could not be kept: another server may have these ports.", 17),
    "slice past its deadline": Kind(
        "The kernel has stopped using the slice: its lease was not renewed in time."
    ),
    "pools short of slices": Kind("A pool has fewer slices than it may have: none are free."),
    "agent ready": Kind("The agent has started; adopted: it took over a running data path."),
}


@dataclass(frozen=True, slots=True)
class Event:
    """`number` only grows. `count`: how many times it happened since the last event of its kind and `about`."""

    number: int
    at: float
    kind: str
    count: int
    details: Mapping[str, Any]

    @property
    def nat_event(self) -> int | None:
        return KINDS[self.kind].nat_event


@dataclass
class _Recent:
    """Of one kind about one thing."""

    at: float
    pending: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


class EventBook:
    """The last events. `first` is the number of the first one: larger than any that an agent before can have given,
    so that whoever follows the events does not notice a restart."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._recent: dict[tuple[str, object], _Recent] = {}

    @property
    def last(self) -> int:
        """Number of the latest event; one less than the first when there is none."""
        return self._next - 1

    def note(self, now: float, kind: str, details: Mapping[str, Any], count: int = 1) -> Event | None:
        """Something of a known kind happened. The event that it makes, or None while it is only counted."""
        if KINDS[kind].at_once:
            return self._add(now, kind, count, details)
        recent = self._recent.get((kind, details.get("pool")))
        if recent is not None and 0 <= now - recent.at < QUIET_S:
            recent.pending += count
            recent.details = details
            return None
        pending = recent.pending if recent is not None else 0
        self._recent[kind, details.get("pool")] = _Recent(now)
        return self._add(now, kind, count + pending, details)

    def due(self, now: float) -> Iterator[Event]:
        """Events that were only counted, once their time has come."""
        for (kind, _), recent in self._recent.items():
            if recent.pending and not 0 <= now - recent.at < QUIET_S:
                count, recent.pending, recent.at = recent.pending, 0, now
                yield self._add(now, kind, count, recent.details)

    def since(self, number: int, limit: int) -> list[Event]:
        """Those after `number`, oldest first; of more than `limit` the latest."""
        return [event for event in self._events if event.number > number][-limit:]

    def _add(self, now: float, kind: str, count: int, details: Mapping[str, Any]) -> Event:
        event = Event(self._next, now, kind, count, dict(details))
        self._next += 1
        self._events.append(event)
        return event


def crosses(high: bool, share: float, warn_at: float, clear_at: float) -> bool:
    """Whether a share is high from now on: from `warn_at` on, until it is down to `clear_at`."""
    return share > clear_at if high else share >= warn_at
