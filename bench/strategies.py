"""What does a new flow cost under each strategy, and is it right?

A client's SYNs, each the first packet of a new flow, through a server that runs the strategy, everything on one
core: what has to be done for the flow beforehand (`forward`) and the packet's whole way. Then sockets of the
server's own that begin to connect. Then every failure of softunicast.lab.failures, so that the table says which
strategies are right on this very host, and not what somebody once wrote.
"""

from __future__ import annotations

import gc
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

from bench import host, report
from bench.lanes import CPU
from bench.measure import Rounds, rounds
from bench.world import CLIENT, CLIENT_MAC, INTERNET, ONRAMP_MAC, SERVER, world
from softunicast.core.errors import LabError
from softunicast.core.slices import Slice
from softunicast.kernel.nft import Nft
from softunicast.kernel.words import mac_bytes
from softunicast.lab import failures, forge
from softunicast.strategies.catalogue import OURS, STRATEGIES
from softunicast.strategies.claims import FLOWS_MAX, Claims
from softunicast.strategies.placeholder import Holder
from softunicast.strategies.strategy import Endpoint, Place, Strategy, begun
from softunicast.strategies.terminate import Terminate

NAME: Final = "strategies"
PLAIN: Final = (
    "plain"  # forwarding without any strategy: what the loop and the packet's way cost by themselves
)
PEER: Final = "snat"
SHARED: Final = IPv4Address("198.51.100.10")
CLIENT_ADDRESS: Final = IPv4Address("10.0.0.2")
PORTS: Final = 2048
DESTINATIONS: Final = 16
CHUNK: Final = 100  # flows: a few milliseconds at most
LOST_MAX: Final = 0.001
SETTLE_S: Final = 1.0
STILL_S: Final = 0.1
STILL_BYTES: Final = 1 << 15
_NICE: Final = -20
_COUNTER: Final = "bench"
_OFFERED: Final = {name: kind for name, kind in STRATEGIES.items() if kind is not Terminate}


@dataclass(frozen=True, slots=True)
class Taken:
    """One round of one strategy. Seconds and bytes of a flow; `lock_s`: what the placeholder alone takes of it, None
    where there is none."""

    flow_s: float
    flow_bytes: float
    lock_s: float | None
    socket_s: float


def run(quick: bool, folder: Path) -> None:
    """Measures, prints, saves."""
    plan = {"rounds": 1, "flows": 200} if quick else {"rounds": 5, "flows": 2000}
    found: dict[str, list[Taken]] = {name: [] for name in (PLAIN, *_OFFERED)}
    for number in range(plan["rounds"]):
        report.say(f"strategies: round {number + 1}")
        for name in found:
            found[name].append(_measure(_OFFERED.get(name), plan["flows"]))
    report.say("strategies: the failures")
    fails = _failures(plan["rounds"] > 1)
    records = [_record(name, found, fails) for name in _OFFERED] + [_not_offered(Terminate)]
    _show(records)
    how = {**plan, "cpu": CPU, "ports": PORTS, "destinations": DESTINATIONS}
    report.save(NAME, host.facts(), how, records, folder)


# -- one round -----------------------------------------------------------------------------------------------


def _measure(kind: type[Strategy] | None, flows: int) -> Taken:
    with world() as built, ExitStack() as stack:
        place = Place(
            Slice.of(SHARED, PORTS, PORTS),
            *("uplink", "onramp", IPv4Network("10.0.0.0/8"), CLIENT_ADDRESS, built.folder / "bpf"),
        )
        place.folder.mkdir()
        strategy = kind(place) if kind else None
        if strategy:
            stack.callback(lambda: built.inside(SERVER, strategy.tear_down))
            built.inside(SERVER, strategy.set_up)
        counted = built.inside(INTERNET, _count, strategy is not None)
        sender = built.inside(CLIENT, _sender)
        stack.callback(sender.close)
        taken = built.inside(SERVER, _flows_here, strategy, sender, flows)
        arrived = counted()
        if arrived < (1 - LOST_MAX) * flows:
            raise LabError(
                f"{kind.name if kind else PLAIN}: {arrived} of {flows} SYNs arrived as they should"
            )
        lock_s = None
        if isinstance(strategy, Holder):
            lock_s = built.inside(SERVER, _locks_here, strategy, min(flows, PORTS // 2))
        socket_s = built.inside(SERVER, _sockets_here, strategy, min(flows, PORTS // 2))
    return Taken(*taken, lock_s, socket_s)


def _flows_here(strategy: Strategy | None, sender: socket.socket, flows: int) -> tuple[float, float]:
    _settle_thread()
    ends = [_ends(number) for number in range(flows)]
    frames = [_syn(*each) for each in ends]
    gc.collect()
    before = _settled_bytes()

    def one(number: int) -> None:
        if strategy is not None:
            strategy.forward(*ends[number])
        sender.send(frames[number])

    flow_s = _each_s(one, flows)
    if isinstance(strategy, Claims):  # its tables have all their memory from the start
        tables = strategy.datapath.memory_bytes()
        return flow_s, (tables["flows"] + tables["claims"]) / FLOWS_MAX
    return flow_s, (_slab_bytes() - before) / flows


def _locks_here(strategy: Holder, count: int) -> float:
    return _sockets_s(strategy.hold, count)


def _sockets_here(strategy: Strategy | None, count: int) -> float:
    return _sockets_s(partial(strategy.connect, timeout_s=0) if strategy else _plain_connect, count)


def _sockets_s(make: Callable[[Endpoint], socket.socket], count: int) -> float:
    """Seconds that one of so many sockets takes, all held at once."""
    _settle_thread()
    made: list[socket.socket] = []
    remotes = [_ends(number)[1] for number in range(count)]
    try:
        return _each_s(lambda number: made.append(make(remotes[number])), count)
    finally:
        for each in made:
            each.close()


def _each_s(work: Callable[[int], object], count: int) -> float:
    """Seconds of one of so many: the median over chunks of them, as another program may have the core meanwhile."""
    took = []
    for first in range(0, count, CHUNK):
        numbers = range(first, min(first + CHUNK, count))
        start = time.perf_counter()
        for number in numbers:
            work(number)
        took.append((time.perf_counter() - start) / len(numbers))
    return statistics.median(took)


def _settle_thread() -> None:
    os.sched_setaffinity(0, {CPU})
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # of this thread


def _plain_connect(remote: Endpoint) -> socket.socket:
    return begun(socket.socket(socket.AF_INET, socket.SOCK_STREAM), remote, 0)


def _ends(number: int) -> tuple[Endpoint, Endpoint]:
    remote = IPv4Address(int(IPv4Address("198.18.0.1")) + number % DESTINATIONS), 443
    return (CLIENT_ADDRESS, 10_000 + number), remote


def _syn(client: Endpoint, remote: Endpoint) -> bytes:
    packet = forge.syn((str(client[0]), client[1]), (str(remote[0]), remote[1]))
    return mac_bytes(ONRAMP_MAC) + mac_bytes(CLIENT_MAC) + struct.pack("!H", 0x0800) + packet


def _sender() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    made.bind(("c0", 0))
    return made


def _count(translated: bool) -> Callable[[], int]:
    """Drops what arrives, and counts what has the source that it must have."""
    nft = Nft()
    source = (
        f"ip saddr {SHARED} tcp sport {PORTS}-{2 * PORTS - 1}" if translated else f"ip saddr {CLIENT_ADDRESS}"
    )
    nft.run(
        f"table netdev {_COUNTER} {{ counter right {{ }}\nchain in {{ type filter hook ingress device i0 priority 0;\n"
        f"{source} tcp flags syn counter name right\nip protocol tcp drop\n}}; }}"
    )

    def read() -> int:
        words = nft.run(f"list counter netdev {_COUNTER} right").split()
        nft.close()
        return int(words[words.index("packets") + 1])

    return read


def _settled_bytes() -> int:
    """The same, once the kernel has freed what the world before this one had, which it does when it likes."""
    deadline, last = time.monotonic() + SETTLE_S, 0
    while abs((now := _slab_bytes()) - last) > STILL_BYTES and time.monotonic() < deadline:
        last = now
        time.sleep(STILL_S)
    return now


def _slab_bytes() -> int:
    """What the kernel's objects take. The host's, so other programs are in it: the median of the rounds counts."""
    lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    return sum(int(line.split()[1]) * int(line.split()[3]) for line in lines)


# -- what is right -------------------------------------------------------------------------------------------


def _failures(really: bool) -> Mapping[str, list[str]]:
    """What went wrong under each strategy, by the names of the failures; or what would, if not `really`."""
    found: dict[str, list[str]] = {name: [] for name in _OFFERED}
    for name, one in failures.FAILURES.items():
        seen = failures.run(name) if really else failures.Report(name, 0, (), ())
        if all(check.passed for check in seen.reproduced):
            for strategy in one.of:
                found[strategy].append(name)
        if not all(check.passed for check in seen.under_claims):
            found[OURS].append(name)
    return found


def _record(name: str, found: Mapping[str, list[Taken]], fails: Mapping[str, list[str]]) -> dict[str, Any]:
    kind = _OFFERED[name]

    def seconds(of: str) -> Rounds:
        return rounds([taken.flow_s for taken in found[of]])

    def sockets(of: str) -> Rounds:
        return rounds([1 / taken.socket_s for taken in found[of]])

    per_s = Rounds(tuple(1 / value for value in seconds(name).values))
    peer_per_s = Rounds(tuple(1 / value for value in seconds(PEER).values))
    added = Rounds(tuple(value * 1e6 for value in seconds(name).less(seconds(PLAIN)).values))
    return {
        "strategy": name,
        "offered": True,
        "flows_per_s": per_s.as_json(),
        "ratio_to_snat": per_s.ratio(peer_per_s).as_json(),
        "added_us": added.as_json(),
        "lock_us": rounds([taken.lock_s * 1e6 for taken in found[name] if taken.lock_s]).as_json()
        if issubclass(kind, Holder)
        else None,
        "bytes": rounds([taken.flow_bytes for taken in found[name]]).as_json(),
        "sockets_per_s": sockets(name).as_json(),
        "sockets_ratio_to_plain": sockets(name).ratio(sockets(PLAIN)).as_json(),
        **_facts(kind),
        "fails": [one for one in fails[name] if not failures.FAILURES[one].avoided],
        "avoided": [one for one in fails[name] if failures.FAILURES[one].avoided],
    }


def _not_offered(kind: type[Strategy]) -> dict[str, Any]:
    return {"strategy": kind.name, "offered": False, **_facts(kind), "fails": [], "avoided": []}


def _facts(kind: type[Strategy]) -> dict[str, Any]:
    return {"protocols": list(kind.protocols), "ipv6": kind.ipv6, "restart": kind.restart}


def _show(records: list[dict[str, Any]]) -> None:
    columns = [
        "strategy",
        "right",
        "flows/s",
        "x of snat",
        "us added",
        "us lock",
        "bytes",
        "sockets/s",
        "fails",
    ]
    rows = [
        [
            record["strategy"],
            "no" if record["fails"] else "yes",
            f"{record['flows_per_s']['median']:,.0f}",
            f"{record['ratio_to_snat']['median']:.2f}",
            f"{record['added_us']['median']:.1f}",
            f"{record['lock_us']['median']:.1f}" if record["lock_us"] else "-",
            f"{record['bytes']['median']:,.0f}",
            f"{record['sockets_per_s']['median']:,.0f}",
            ", ".join(record["fails"]) or "-",
        ]
        for record in records
        if record["offered"]
    ]
    report.show("New flows under each strategy, one core", columns, rows)
