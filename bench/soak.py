"""`python -m bench.soak [--seconds S] [--rate N]`: the soak. Conversations by the tens of thousands a second, most
of them ended, some reset, some left open, with losses, strays and packets that overtake each other, against small
and usual slices, by both attachments. No benchmark: what is looked at is what is left, and what went where.

Afterwards, for each run: every packet that a client sent left, went to the server itself or was dropped for a
reason, and nothing was counted twice; the same inward; no packet came to somebody else; no two conversations had
one five-tuple; and once all timers have run out, one sweep leaves no claim, no flow and no client.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address
from pathlib import Path
from threading import Event
from typing import Final

from bench.churn import Tally, churn
from bench.world import SERVER, UPLINK_MAC, World, world
from softunicast.core.config import Limits
from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.errors import SoftunicastError
from softunicast.core.pools import Behaviour, ClientLimits, Timers
from softunicast.core.slices import Slice
from softunicast.kernel import sysctl
from softunicast.kernel.datapath import Datapath

ADDRESS: Final = IPv4Address("198.51.100.10")
ATTACHMENTS: Final = ("tc", "xdp")
HOT_EVERY: Final = {64: 32, 2048: 16}  # by slice: often enough that its ports run out towards one destination
TIMERS: Final = Timers(tcp_opening_s=3, tcp_established_s=3, tcp_closing_s=3, udp_s=2, icmp_s=2)
SWEEP_EVERY_S: Final = 0.5
EMPTY_WITHIN_S: Final = 30.0
WIRE_LOSS_MAX: Final = 0.25
FLOWS_MAX: Final = 1 << 19
REFUSALS_OUT: Final = {"no_flow", "slice_full"}  # what clients run into here, and nothing else
REFUSALS_IN: Final = {"no_owner"}


@dataclass
class Report:
    """One run. `faults` says in words what is not as it must be; empty: all is well."""

    attachment: str
    slice_ports: int
    seconds: float
    opened: int
    traffic: dict[str, int]
    drops: dict[str, int]
    tally: Tally
    entered: dict[str, int]  # packets that came out of the wire, by interface of the server
    freed: int = 0
    left: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Fills `faults`. Between the nodes the rings of the links may overflow on a busy machine, so a packet that was
        sent need not have arrived: what enters and leaves the server is exact, and what the wire lost is little."""
        tally, traffic, drops = self.tally, self.traffic, self.drops
        refused, nobody = sum(drops.get(name, 0) for name in REFUSALS_OUT), drops.get("no_owner", 0)
        out = traffic["out"] + traffic["to_host"] + refused
        self._same("into the on-ramp", self.entered["onramp"], "out + dropped + to_host", out)
        self._same("into the uplink", self.entered["uplink"], "here + no_owner", traffic["here"] + nobody)
        self._carried("clients to server", tally.sent, self.entered["onramp"])
        self._carried("server to internet", traffic["out"], tally.arrived)
        self._carried("internet to server", tally.replied, self.entered["uplink"])
        self._carried("server to clients", traffic["in"], tally.returned)
        self._carried("ICMP errors to clients", traffic["icmp_sent"], tally.refused)
        self._same("slice_full", drops.get("slice_full", 0), "ICMP errors sent", traffic["icmp_sent"])
        to_stack = traffic["here"] - traffic["in"]
        if not 0 <= to_stack <= tally.strays_here:
            self.faults.append(f"{to_stack} went up to the stack, of {tally.strays_here} strays at most")
        if nobody > tally.strays - tally.strays_here:
            self.faults.append(
                f"{nobody} were nobody's, of {tally.strays - tally.strays_here} strays at most"
            )
        self._same("new flows", traffic["new_flow"], "freed + taken over", self.freed + traffic["reused"])
        for name in ("wrong", "bad_checksum", "outside", "moved", "shared"):
            self._same(name, getattr(tally, name), "none", 0)
        for name, entries in self.left.items():
            self._same(f"{name} left", entries, "none", 0)
        if others := drops.keys() - REFUSALS_OUT - REFUSALS_IN:
            self.faults.append(f"dropped for other reasons: { {name: drops[name] for name in others} }")

    def _same(self, one: str, is_one: int, other: str, is_other: int) -> None:
        if is_one != is_other:
            self.faults.append(f"{one} {is_one} != {other} {is_other}")

    def _carried(self, way: str, sent: int, got: int) -> None:
        """None appeared from nowhere, few were lost."""
        if not sent * (1 - WIRE_LOSS_MAX) <= got <= sent:
            self.faults.append(f"{way}: {sent} sent, {got} got")


def soak(attachment: str, slice_ports: int, per_s: int, seconds: float, upgrades: int = 0) -> Report:
    """One run in a world of its own; it goes on until the programs have been replaced so many times. Ends with the
    judgement."""
    with (
        world(queues=2) as built,
        churn(built) as made,
        closing(Server(built, attachment, slice_ports)) as server,
    ):
        ports = slice_of(slice_ports)
        made.aim(ADDRESS, (ports.port_first, ports.port_first + ports.ports - 1), HOT_EVERY[slice_ports])
        start = time.monotonic()
        opened = server.work_during(lambda upgraded: made.run(per_s, seconds, upgraded), upgrades)
        took_s = time.monotonic() - start
        left = server.until_empty()
        report = Report(
            attachment,
            slice_ports,
            took_s,
            opened,
            server.datapath.traffic(),
            {drop.reason.name.lower(): drop.packets for drop in server.datapath.drops() if drop.packets},
            made.tally(),
            {name: built.inside(SERVER, entered, name) for name in ("onramp", "uplink")},
            server.freed,
            left,
        )
    report.judge()
    return report


class Server:
    """The middle of the row, with the data path as an agent would set it up, and what an agent does meanwhile."""

    def __init__(self, built: World, attachment: str, slice_ports: int) -> None:
        self._built = built
        self._folder = built.folder / "bpf"
        self._attachment = attachment
        self.freed = 0
        # Strays end here, as on a server with an agent.
        built.inside(SERVER, sysctl.write, "net/ipv4/conf/uplink/forwarding", 0)
        self.datapath = self._built.inside(SERVER, self._open)
        built.inside(SERVER, self.datapath.apply, state(slice_ports))

    def _open(self) -> Datapath:
        attach = {"onramp": self._attachment, "uplink": self._attachment}
        return Datapath.open(self._folder, "uplink", "soak", Limits(flows_max=FLOWS_MAX), attach)

    def close(self) -> None:
        """Removes it."""
        self._built.inside(SERVER, self.datapath.remove)

    def upgrade(self) -> None:
        """Another process takes over: every program is replaced, under traffic."""
        before, self.datapath = self.datapath, self._built.inside(SERVER, self._open)
        before.close()

    def work_during(self, work: Callable[[Event], int], upgrades: int) -> int:
        """Sweeps while `work` goes on in a thread, and first upgrades so often; `work` hears when that is done."""
        upgraded = Event()
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work, upgraded)
            try:
                for _ in range(upgrades):
                    self.upgrade()
                    self._sweep()
            finally:
                upgraded.set()
            while not wait([working], SWEEP_EVERY_S).done:
                self._sweep()
            return working.result()

    def until_empty(self) -> dict[str, int]:
        """How many entries stay in what packets made, once all timers have run out."""
        deadline = time.monotonic() + EMPTY_WITHIN_S
        while self._sweep() and time.monotonic() < deadline:
            time.sleep(SWEEP_EVERY_S)
        return {
            name: sum(1 for _ in self.datapath.map(name).items()) for name in ("claims", "flows", "clients")
        }

    def _sweep(self) -> int:
        freed, live = self.datapath.sweep()
        self.freed += freed
        return live


def entered(interface: str) -> int:
    """Packets that the interface of this namespace has received."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    [counts] = [line.partition(":")[2].split() for line in lines if line.strip().startswith(f"{interface}:")]
    return int(counts[1])


def slice_of(ports: int) -> Slice:
    """The one slice that the server has."""
    return Slice.of(ADDRESS, 2 * ports if ports > 1024 else 8192, ports)


def state(slice_ports: int) -> KernelState:
    """One slice, short timers, every client counted."""
    held = slice_of(slice_ports)
    owner = SlotOwner("soak", 1, time.monotonic_ns() + 86_400 * 1_000_000_000)
    limits = ClientLimits(flows_max=1_000_000, new_per_s=1_000_000)
    return KernelState(
        blocks=frozenset({Slice.parse("198.51.100.0/24")}),
        addresses={ADDRESS: AddressTable(slice_ports, {held.port_first // slice_ports: owner})},
        servers={"soak": UPLINK_MAC},
        pools={"soak": PoolSlices(TIMERS, (held,), Behaviour(frozenset(), frozenset()), limits)},
        onramps={"onramp": "soak"},
    )


def show(report: Report) -> None:
    """What an operator wants to read."""
    traffic, tally = report.traffic, report.tally
    rate = f"{report.opened} conversations in {report.seconds:.0f} s, {report.opened / report.seconds:.0f}/s"
    parts = (
        f"{report.attachment:4}{report.slice_ports:5} ports: {rate}",
        f"{tally.sent} packets out ({traffic['fast_out']} by XDP), {tally.replied} back",
        f"{tally.lost} lost, {tally.strays} strays, {traffic['reused']} claims taken over, dropped {report.drops}",
    )
    say("; ".join(parts))
    for fault in report.faults:
        say(f"  FAULT: {fault}")
    if report.faults:
        say(f"  traffic {traffic}")
        say("  counted " + ", ".join(f"{item.name} {getattr(tally, item.name)}" for item in fields(tally)))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="See bench/soak.py.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the four runs (default 60)")
    parser.add_argument("--rate", type=int, default=20_000, help="conversations per second (default 20000)")
    arguments = parser.parse_args()
    bad = False
    try:
        for attachment in ATTACHMENTS:
            for slice_ports in HOT_EVERY:
                report = soak(attachment, slice_ports, arguments.rate, arguments.seconds)
                show(report)
                bad |= bool(report.faults)
    except SoftunicastError as error:
        sys.stderr.write(f"soak: {error}\n")
        return error.exit_code
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
