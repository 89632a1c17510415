"""`python -m bench.storm [--seconds S]`: the storm. Forwarded conversations and sockets of ten processes share one
slice of 256 ports, and open and close as fast as they can: TCP and UDP, to one destination, then to
fifty, while the agent is killed and started again. Then both worlds take what there is, and keep it.

Afterwards: no two live conversations had one five-tuple, no words reached the wrong side, nothing left from a port
outside the slice, and exactly the 256 ports of the slice were in use towards the one destination, of each protocol.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from pyroute2 import IPRoute

from bench.storm_worker import destination
from softunicast.core.errors import SoftunicastError
from softunicast.core.pools import Behaviour, Pool, Timers
from softunicast.core.slices import Slice
from softunicast.kernel import namespaces
from softunicast.lab import agents, build, pair, processes
from softunicast.lab.state import Lab, Process

SLICE_PORTS: Final = 256
SOCKET_WORKERS: Final = 10
FORWARDED_WORKERS: Final = 4
DESTINATIONS: Final = (1, 50)
LAST: Final = DESTINATIONS[-1]  # number of one more, for what is kept: no port rests there from before
DEPENDENT: Final = Behaviour(frozenset(), frozenset())  # or a forwarded UDP port would serve one client alone
TIMERS: Final = Timers(tcp_opening_s=15, tcp_closing_s=3, udp_s=15, icmp_s=2)
HOLD_S: Final = 12.0
FORWARDED_MOST: Final = 8  # conversations that a thread keeps of each protocol: what is left is for sockets
ORDER_TIMEOUT_S: Final = 60.0
SERVER, CLIENT = "server1", "client1"


@dataclass
class Report:
    """`faults` says in words what is not as it must be; empty: all is well."""

    counts: dict[str, Counter[str]]
    witness: dict[str, Any]
    watch: dict[str, Any]
    slice: Slice
    restarts: int
    faults: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Fills `faults`, after those that the workers found."""
        self.faults += self.witness["shared"] + self.watch["shared"]
        if self.watch["lost"]:
            self.faults.append(f"the watch missed {self.watch['lost']} packets: nothing can be said")
        for world, counts in self.counts.items():
            for protocol in ("tcp", "udp"):
                if not counts[f"{protocol} opened"]:
                    self.faults.append(f"{world}: no {protocol} conversation")
                if not counts[f"kept {protocol}"]:
                    self.faults.append(f"{world}: no {protocol} conversation was kept")
        whole = set(range(self.slice.port_first, self.slice.port_first + self.slice.ports))
        for protocol in ("tcp", "udp"):
            ports = self.witness["live"][protocol].get(destination(LAST), [])
            kept = sum(counts[f"kept {protocol}"] for counts in self.counts.values())
            if set(ports) != whole or len(ports) != len(whole) or kept != len(whole):
                self.faults.append(
                    f"{protocol}: {kept} kept, {len(ports)} seen from {len(set(ports) & whole)} ports of the slice"
                    f" and {len(set(ports) - whole)} others, where {len(whole)} ports are; not from"
                    f" {sorted(whole - set(ports))[:20]}"
                )


class Child:
    """A worker or the witness: orders in, JSON out."""

    def __init__(self, lab: Lab, node: str, argv: list[str]) -> None:
        self._child = processes.popen(lab, node, argv, stdin=subprocess.PIPE)

    def order(self, *words: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(" ".join(map(str, words)) + "\n")
        self._child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Of the oldest order. SoftunicastError when it has ended."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SoftunicastError(f"a part of the storm ended with {self._child.wait(5)}", "see its stderr")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        self._child.kill()
        self._child.communicate()


def storm(seconds: float, restart_every_s: float, say: Any = lambda _: None) -> Report:
    """Half of the time to one destination, half to fifty, then the holding. Ends with the judgement."""
    pool = Pool("demo", dict(pair.POOL.tags), timers=TIMERS, behaviour=DEPENDENT)
    with ExitStack() as stack:
        lab = stack.enter_context(
            build.running(pair.pair(slice_ports=SLICE_PORTS, pool=pool), f"storm{os.getpid()}")
        )
        namespaces.run_in(lab.namespace("internet"), add_destinations)
        witness = Child(lab, "internet", [sys.executable, "-m", "bench.storm_witness", str(LAST + 1)])
        watch = Child(lab, SERVER, [sys.executable, "-m", "bench.storm_watch", "uplink"])
        for one in (witness, watch):
            stack.callback(one.end)
            one.answer()
        held = slice_of(lab, SERVER)
        workers = {
            "sockets": [worker(lab, SERVER, held, pool.name) for _ in range(SOCKET_WORKERS)],
            "forwarded": [worker(lab, CLIENT, held) for _ in range(FORWARDED_WORKERS)],
        }
        everyone = [one for some in workers.values() for one in some]
        for one in everyone:
            stack.callback(one.end)
        agent = next(
            process for process in lab.processes if process.node == SERVER and process.name == "agent"
        )
        restarts = 0
        for destinations in DESTINATIONS:
            say(f"{seconds / 2:g} s to {destinations} destinations")
            for one in everyone:
                one.order("storm", seconds / 2, destinations)
            for _ in range(int(seconds / 2 / restart_every_s)):
                time.sleep(restart_every_s / 2)
                agent = restart(lab, agent)
                restarts += 1
            for one in everyone:
                one.answer()
        say(f"holding for {HOLD_S:g} s")
        for world, most in ("forwarded", FORWARDED_MOST), ("sockets", SLICE_PORTS):
            for one in workers[world]:
                one.order("hold", HOLD_S, LAST, most)
        answers = {world: [one.answer() for one in some] for world, some in workers.items()}
        for one in (witness, watch):
            one.order("report")
        report = Report(
            {
                world: sum((Counter(one["counts"]) for one in some), Counter())
                for world, some in answers.items()
            },
            witness.answer(),
            watch.answer(),
            held,
            restarts,
            [fault for some in answers.values() for one in some for fault in one["faults"]],
        )
    report.judge()
    return report


def worker(lab: Lab, node: str, held: Slice, pool: str = "") -> Child:
    """One process of the storm; `pool`: in an agreement for it."""
    run = ["softunicast", "run", "--pool", pool, "--"] if pool else []
    last = held.port_first + held.ports - 1
    arguments = [str(held.port_first), str(last), str(held.address)]
    return Child(lab, node, [*run, sys.executable, "-m", "bench.storm_worker", *arguments])


def restart(lab: Lab, agent: Process) -> Process:
    """As after a crash."""
    os.kill(agent.pid, signal.SIGKILL)
    os.waitpid(agent.pid, 0)
    fresh = agents.start(lab, agent.node)
    agents.wait_ready(lab, {agent.node: fresh}, print)
    return fresh


def slice_of(lab: Lab, node: str) -> Slice:
    [row] = [row for row in agents.ask(lab, node, "/v1/slices") if row["here"] and row["state"] == "held"]
    return Slice.parse(row["slice"])


def add_destinations() -> None:
    """The addresses of the witness; in its namespace."""
    with IPRoute() as netlink:
        [index] = netlink.link_lookup(ifname="eth0")
        for number in range(LAST + 1):
            netlink.addr("add", index=index, address=destination(number), prefixlen=32)


def show(report: Report) -> Iterator[str]:
    yield f"slice {report.slice}; the agent was killed and started {report.restarts} times"
    for world, counts in report.counts.items():
        yield f"{world}: " + ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))
    yield "seen: " + ", ".join(
        f"{count:,} {what}" for what, count in sorted(report.witness["counts"].items())
    )
    yield from (f"note: {reset}" for reset in report.watch["resets"])
    yield from (f"FAULT: {fault}" for fault in report.faults)
    yield "no fault" if not report.faults else f"{len(report.faults)} faults"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the opening and closing (default 60)")
    parser.add_argument(
        "--restart-every", type=float, default=10.0, help="seconds between restarts of the agent"
    )
    options = parser.parse_args()
    report = storm(options.seconds, options.restart_every, lambda line: sys.stderr.write(f"{line}\n"))
    sys.stdout.write("\n".join(show(report)) + "\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
