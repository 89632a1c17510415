"""A lane: one path in a world of its own, with generators and sinks at both ends; and how its cost is taken.

Cost is the kernel's own time per packet of a run (`duration`), which leaves out the setting up of the run and
the time in which other processes had the core. Several runs make one round's value.
"""

from __future__ import annotations

import os
import socket
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from bench.flood import RANDOM, RISING, Flood, Tally
from bench.paths import Path
from bench.world import (
    CLIENT,
    CLIENT_MAC,
    INTERNET,
    INTERNET_MAC,
    ONRAMP_MAC,
    SERVER,
    UPLINK_MAC,
    World,
    world,
)
from softunicast.core.errors import LabError
from softunicast.kernel.objects import ATTACH_XDP, XDP_NATIVE, Link, mount_bpffs
from softunicast.kernel.words import address_word

OUT, IN, NEW = "out", "in", "new"
LOST_MAX: Final = 0.001  # of the packets of a run; more, and the run is worth nothing
CPU: Final = max(os.sched_getaffinity(0))  # the first one takes most interrupts


@dataclass(frozen=True, slots=True)
class Lane:
    """See the module. `path` None: the lane that drops at once, whose cost is the generator's."""

    world: World
    flood: Flood
    path: Path | None

    def fill(self, flows: int) -> None:
        """One packet of every flow; each must come out right. Notes what the path made of its source."""
        if self.path is None:
            return
        tally = self._run(OUT, flows, RISING, (flows,), record=True)[1]
        if tally.right != flows or tally.bad_checksum:
            raise LabError(f"{self.path.title}: {flows} flows became {tally}", "see `softunicast drops`")

    def cost_ns(self, direction: str, flows: int, runs: int, packets: int) -> float:
        """Nanoseconds per packet, generator included, of `runs` runs of `packets` packets.

        In steady state the runs differ only by what disturbed them: the least disturbed one counts. The table
        of new flows fills from run to run: there it is their median.
        """
        order, total = (RISING, runs * packets) if direction == NEW else (RANDOM, flows)
        costs, tally = self._run(direction, total, order, (packets,) * runs)
        if self.path is not None and tally.right < (1 - LOST_MAX) * runs * packets:
            raise LabError(
                f"{self.path.title}, {direction}, {flows} flows: of {runs * packets} packets {tally}"
            )
        return statistics.median(costs) if direction == NEW else min(costs)

    def flush(self) -> None:
        """No flow is left."""
        if self.path is not None:
            self.path.flush()

    def _run(
        self, direction: str, flows: int, order: int, runs: tuple[int, ...], record: bool = False
    ) -> tuple[list[int], Tally]:
        node = INTERNET if direction == IN else CLIENT
        return self.world.inside(node, self._run_here, direction, flows, order, runs, record)

    def _run_here(
        self, direction: str, flows: int, order: int, runs: tuple[int, ...], record: bool
    ) -> tuple[list[int], Tally]:
        os.sched_setaffinity(0, {CPU})
        local = address_word(self.path.local) if self.path is not None and self.path.local else 0
        interface, macs = (
            ("i0", (UPLINK_MAC, INTERNET_MAC)) if direction == IN else ("c0", (ONRAMP_MAC, CLIENT_MAC))
        )
        self.flood.aim(socket.if_nametoindex(interface), macs, flows, order, local=local, record=record)
        program = "replies" if direction == IN else "requests"
        return [self.flood.run(program, packets) for packets in runs], self.flood.tally()


@contextmanager
def lane(kind: type[Path] | None, flows_max: int) -> Iterator[Lane]:
    """Builds a lane, and removes it."""
    with ExitStack() as stack:
        built = stack.enter_context(world())
        flood = Flood("flood", flows_max)
        stack.callback(flood.close)
        mount_bpffs(built.folder / "sinks")
        path = kind(built) if kind is not None else None
        if path is not None:
            stack.callback(path.close)
            path.set_up()
        # XDP on both far ends; with no path, the packets meet the sinks on the server's own interfaces.
        ends = ((INTERNET, "i0"), (CLIENT, "c0")) if path else ((SERVER, "onramp"), (SERVER, "uplink"))
        for program, (node, interface) in zip(("sink_out", "sink_in"), ends, strict=True):
            built.inside(node, attach_sink, flood.programs[program], interface, built)
        yield Lane(built, flood, path)


def attach_sink(program: int, interface: str, built: World) -> None:
    """Attaches an XDP program to an interface of the thread's namespace."""
    index, pin = socket.if_nametoindex(interface), built.folder / "sinks" / interface
    Link.attach(program, index, ATTACH_XDP, pin, XDP_NATIVE).close()
