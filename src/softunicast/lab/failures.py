"""Where the other strategies fail: each failure as a program that makes it happen in a network of its own, and the same
situation under `claims` beside it. `softunicast lab failure NAME` runs one.

A failure is a generator of what was seen, step by step. `passed` of a step means that it went as the step says: the
failure was reproduced, or `claims` did it right. The programs are in failures_snat.py, failures_holders.py and
failures_sockets.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from softunicast.core.errors import UnknownNameError
from softunicast.lab import build, failures_holders, failures_snat, failures_sockets, processes, under_claims
from softunicast.lab.build import Say
from softunicast.lab.stage import Stage, stage
from softunicast.lab.verdict import Check
from softunicast.strategies import catalogue

Program = Callable[[Stage], Iterator[Check]]


@dataclass(frozen=True, slots=True)
class Failure:
    """`of`: the strategies that fail so; `claims`: the same situation under ours.

    `avoided`: what `set_up` or `connect` of the strategy here sees to, so that it only meets those who do it by hand.
    """

    name: str
    of: tuple[str, ...]
    about: str
    program: Program
    claims: Program
    avoided: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """How it went: the failure, and the same situation under `claims`."""

    name: str
    seconds: float
    reproduced: tuple[Check, ...]
    under_claims: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """It failed as described, and `claims` did not."""
        return all(check.passed for check in (*self.reproduced, *self.under_claims))


_HOLDERS: Final = ("repair", "placeholder-early", "placeholder-late", "placeholder-rules")
_PLACEHOLDERS: Final = _HOLDERS[1:]
_LATE: Final = _HOLDERS[2:]

FAILURES: Final = {
    one.name: one
    for one in (
        Failure(
            "full_slice",
            ("snat",),
            "with a slice of N ports the flow N+1 to one destination vanishes without a word",
            failures_snat.full_slice,
            under_claims.full_slice,
        ),
        Failure(
            "silent_rewrite",
            ("snat",),
            "a socket bound in the slice meets a flow: connect() succeeds, getsockname() lies, the port is outside",
            failures_snat.silent_rewrite,
            under_claims.silent_rewrite,
        ),
        Failure(
            "nat_search",
            ("snat",),
            "the search for a port gives up after at most 248 tries, with ports still free",
            failures_snat.nat_search,
            under_claims.nat_search,
        ),
        Failure(
            "stray_rst",
            ("conntrack",),
            "one RST with any sequence number erases the entry that held the port",
            failures_holders.stray_rst,
            under_claims.stray_rst,
        ),
        Failure(
            "failed_connect",
            ("conntrack",),
            "connect() fails and the entry stays: the port is lost until it times out",
            failures_sockets.failed_connect,
            under_claims.failed_connect,
            avoided=True,
        ),
        Failure(
            "repair_bind",
            ("repair",),
            "bind() in repair mode takes a port that a listener has for itself alone",
            failures_sockets.repair_bind,
            under_claims.repair_bind,
        ),
        Failure(
            "early_demux",
            ("placeholder-rules",),
            "the reply to a forwarded flow finds the placeholder first, and the kernel drops it",
            failures_holders.early_demux,
            under_claims.early_demux,
            avoided=True,
        ),
        Failure(
            "fastopen_off",
            _PLACEHOLDERS,
            "without the sysctl a placeholder is an ordinary socket: connect() sends a real SYN",
            failures_sockets.fastopen_off,
            under_claims.fastopen_off,
            avoided=True,
        ),
        Failure(
            "restart",
            _HOLDERS,
            "the holder's process ends: its ports are given to others while its flows live on",
            failures_holders.restart,
            under_claims.restart,
        ),
        Failure(
            "overshadowing",
            _PLACEHOLDERS,
            "UDP has no late binding; two sockets share a 4-tuple by SO_REUSEADDR and the newest takes all",
            failures_sockets.overshadowing,
            under_claims.overshadowing,
        ),
        Failure(
            "bind_hides",
            _LATE,
            "a port that somebody has bound is invisible to connect()'s own search, for every destination",
            failures_sockets.bind_hides,
            under_claims.bind_hides,
        ),
        Failure(
            "range_ignored",
            _LATE,
            "a slice outside ip_local_port_range is ignored without a word: the port is anywhere",
            failures_sockets.range_ignored,
            under_claims.range_ignored,
            avoided=True,
        ),
    )
}


def failure(name: str) -> Failure:
    """Raises UnknownNameError for a name that is not in the list."""
    if name not in FAILURES:
        raise UnknownNameError(f"there is no failure {name!r}", f"use one of {', '.join(FAILURES)}")
    return FAILURES[name]


def run(name: str, say: Say = build.silent) -> Report:
    """Makes the failure happen, and the same under `claims`. HostError when this host cannot run what it needs."""
    chosen = failure(name)
    build.check_root()
    processes.check_program("ip", "iproute2")
    start = time.monotonic()
    for strategy in (chosen.of[0], catalogue.OURS):
        catalogue.strategy(strategy).attempt()
    say(f"{', '.join(chosen.of)}: {chosen.about}")
    reproduced = _run(chosen.program)
    say("the same under claims")
    under_claims = _run(chosen.claims)
    return Report(name, round(time.monotonic() - start, 1), reproduced, under_claims)


def _run(program: Program) -> tuple[Check, ...]:
    with stage() as there:
        return tuple(program(there))
