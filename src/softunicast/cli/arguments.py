"""What people type on the command line beyond plain words: ends of a conversation, points in time.

Functions for click's `type=`. Each checks what it is given, so that a slip is answered at once and by its name,
with no agent asked. They raise InputError: one line and exit code 2, like everything a person gets wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from softunicast.core.endpoints import endpoint_text, parse_endpoint
from softunicast.core.errors import InputError
from softunicast.core.slices import IPAddress


@dataclass(frozen=True, slots=True)
class End:
    """One end of a conversation; `port` is None when only the address matters."""

    address: IPAddress
    port: int | None

    def __str__(self) -> str:
        return endpoint_text(self.address, self.port)


def end(text: str) -> End:
    """`10.0.0.2:40000`, `[2001:db8::2]:40000`."""
    found = end_or_address(text)
    if found.port is None:
        raise InputError(f"{text} has no port", f"write it like {endpoint_text(found.address, 40000)}")
    return found


def end_or_address(text: str) -> End:
    """The same, or the address alone."""
    return End(*parse_endpoint(text))


def instant(text: str) -> float:
    """ISO 8601 with its zone, as unix time. Without one the answer might be about somebody else: refused."""
    example = "2026-05-01T14:02:07Z"
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not a time", f"write it like {example}") from error
    if found.tzinfo is None:
        raise InputError(f"the time {text} has no zone", f"write it like {example}, or end it with +02:00")
    return found.timestamp()
