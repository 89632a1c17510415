"""What would happen to this packet? Answered by the real programs, run on it, with nothing changed.

A second copy of the programs is loaded. It shares the tables (slices, pools, servers) with the running one
and has its own copy of claims and flows, so a new flow claims a port there and not here, and its own
counters, so that what was counted is exactly this packet's story.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from softunicast.core.errors import InputError
from softunicast.kernel.abi import Reason
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.families import IPV4, IPV6, Family
from softunicast.kernel.flows import differences, read_drops, read_traffic
from softunicast.kernel.frames import describe, mac_text
from softunicast.kernel.objects import BpfObject
from softunicast.kernel.reasons import MEANING
from softunicast.kernel.testrun import run_tc, run_xdp
from softunicast.kernel.words import mac_bytes

_COPIED: Final = ("claims", "flows", "clients")
_ROOM: Final = 16  # for what one packet can add to them


@dataclass
class Explanation:
    """`verdict` in a few words, the drop reason if there is one, what each program did, and the last frame."""

    verdict: str = ""
    reason: Reason | None = None
    steps: list[str] = field(default_factory=list)
    packet_in: str = ""
    packet_out: str | None = None

    @property
    def meaning(self) -> str:
        """A sentence for people."""
        return MEANING[self.reason] if self.reason else ""


class _Copy:
    """The programs for a family, on copied claims and flows."""

    def __init__(self, datapath: Datapath, family: Family) -> None:
        self.objects: dict[str, BpfObject] = {}
        self.datapath = datapath
        self.director = datapath.director
        self._family = family
        copied = [family.named(name) for name in _COPIED]
        shared = datapath.table_descriptors()
        # No larger than need be, because all of it is allocated; and full where the original is.
        items = {name: list(datapath.map(name).items()) for name in copied}
        sizes = {name: min(len(items[name]) + _ROOM, datapath.map(name).max_entries) for name in copied}
        try:
            egress = self._load("egress", sizes, shared)
            private = {name: egress.maps[name].fd for name in (*copied, "drops", "traffic")}
            for name in dict.fromkeys((self.director, "director_tc", "guard")):
                self._load(name, {}, shared | private)
            for name in copied:
                egress.maps[name].set_many(items[name])
        except BaseException:
            self.close()
            raise

    def _load(self, name: str, sizes: Mapping[str, int], shared: Mapping[str, int]) -> BpfObject:
        obj = self.objects[name] = BpfObject.load(self._family.named(name), None, sizes, shared)
        return obj

    def program(self, name: str) -> int:
        name = self._family.named(name)
        return next(obj.programs[name] for obj in self.objects.values() if name in obj.programs)

    def dropped(self) -> Reason | None:
        maps = self.objects["egress"].maps
        return next((drop.reason for drop in read_drops(maps["drops"]) if drop.packets), None)

    def counted(self) -> dict[str, int]:
        return read_traffic(self.objects["egress"].maps["traffic"])

    def close(self) -> None:
        for obj in self.objects.values():
            obj.close()


@contextmanager
def _copy(datapath: Datapath, family: Family) -> Iterator[_Copy]:
    copy = _Copy(datapath, family)
    try:
        yield copy
    finally:
        copy.close()


def explain(datapath: Datapath, frame: bytes, interface: str, leaving: bool = False) -> Explanation:
    """`frame` arrives on the on-ramp or the uplink named `interface`; or, `leaving`, a local program sends it."""
    frame = _not_to_be_cut(frame)
    found = Explanation(packet_in=describe(frame))
    if interface != datapath.uplink and interface not in datapath.state.onramps:
        known = ", ".join([datapath.uplink, *sorted(datapath.state.onramps)])
        raise InputError(f"{interface} is neither the uplink nor an on-ramp", f"use one of: {known}")
    with _copy(datapath, IPV6 if frame[12:14] == b"\x86\xdd" else IPV4) as copy:
        if leaving:
            _guard(copy, frame, found)
        elif interface == datapath.uplink:
            _from_uplink(copy, _to_this_server(datapath, frame), found)
        else:
            _from_onramp(copy, frame, interface, found)
        found.reason = copy.dropped()
    return found


def _not_to_be_cut(frame: bytes) -> bytes:
    """The same packet with DF, whole: the programs send the pieces of one that they cut, and nothing may be sent."""
    if frame[12:15] != b"\x08\x00\x45" or len(frame) < 34:
        return frame
    before, after = frame[20:22], (0x4000).to_bytes(2, "big")
    total = (0xFFFF ^ int.from_bytes(frame[24:26], "big")) + (0xFFFF ^ int.from_bytes(before, "big")) + 0x4000
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return frame[:20] + after + frame[22:24] + (0xFFFF ^ total).to_bytes(2, "big") + frame[26:]


def _to_this_server(datapath: Datapath, frame: bytes) -> bytes:
    """The same packet, in a frame that is for this server: what a switch floods is left alone."""
    return mac_bytes(datapath.own_mac) + frame[6:] if datapath.own_mac else frame


def _from_onramp(copy: _Copy, frame: bytes, interface: str, found: Explanation) -> None:
    before = copy.counted()
    result = run_tc(copy.program("egress_out"), frame, socket.if_nametoindex(interface))
    counted = differences(before, copy.counted())
    if result.verdict == "next":
        found.steps.append("egress: for this server itself (or nothing of ours): the kernel stack gets it")
        found.verdict = "passed to this server"
    elif counted.get("icmp_sent"):
        found.steps.append(f"egress: refused; the client gets an ICMP error: {describe(result.frame)}")
        found.verdict, found.packet_out = "refused with ICMP", describe(result.frame)
    elif result.verdict == "drop":
        found.steps.append("egress: dropped")
        found.verdict = "dropped"
    else:
        if "reused" in counted:
            how = "new flow, port taken over from an expired claim"
        elif "new_flow" in counted:
            how = "new flow, a free port claimed (another one when it is sent for real)"
        else:
            how = "flow known"
        found.steps.append(f"egress: {how}: {describe(result.frame)}")
        if mac_text(result.frame) == copy.datapath.own_mac:
            found.steps.append("egress: to a shared address: it comes in again by this server's own uplink")
            _from_uplink(copy, result.frame, found)
        else:
            _guard(copy, result.frame, found)


def _guard(copy: _Copy, frame: bytes, found: Explanation) -> None:
    uplink = copy.datapath.uplink
    result = run_tc(copy.program("guard"), frame, socket.if_nametoindex(uplink), came_by=0)
    if result.verdict == "drop":
        found.steps.append("guard: dropped")
        found.verdict = "dropped by the guard"
        return
    found.steps.append("guard: this server may send it (slice held now, or not a soft-unicast source)")
    found.verdict, found.packet_out = f"sent out of {uplink}", describe(result.frame)


def _from_uplink(copy: _Copy, frame: bytes, found: Explanation) -> None:
    before = copy.counted()
    index, program = socket.if_nametoindex(copy.datapath.uplink), copy.program(copy.director)
    run = run_xdp if copy.director == "director" else run_tc
    result = run(program, frame, index)
    counted = differences(before, copy.counted())
    if copy.director == "director" and result.verdict == "pass" and not counted:
        result = run_tc(copy.program("remote"), frame, index)
        counted = differences(before, copy.counted())
    if "tunnel_out" in counted:
        end = IPv4Address(result.frame[30:34])
        names = [name for name, known in copy.datapath.state.tunnels.items() if known == end]
        found.steps.append(
            f"director: another server's slice: through the tunnel to {', '.join(names)} ({end})"
        )
        found.verdict, found.packet_out = f"steered to {', '.join(names)}", describe(result.frame)
    elif "icmp_sent" in counted:
        found.steps.append(
            f"director: does not fit into the tunnel; ICMP to its sender: {describe(result.frame)}"
        )
        found.verdict, found.packet_out = "refused with ICMP", describe(result.frame)
    elif "steered" in counted:
        mac = mac_text(result.frame)
        names = [name for name, known in copy.datapath.state.servers.items() if known == mac]
        found.steps.append(f"director: another server's slice: sent on to {', '.join(names)} ({mac})")
        found.verdict, found.packet_out = f"steered to {', '.join(names)}", describe(result.frame)
    elif "fast_in" in counted:
        found.steps.append("director: reply of an established flow, given to its client at once")
        found.verdict, found.packet_out = "given to the client", describe(result.frame)
    elif "here" in counted:
        found.steps.append("director: a slice of this server")
        _to_client(copy, frame, found)
    elif result.verdict == "drop":
        found.steps.append("director: dropped")
        found.verdict = "dropped"
    else:
        found.steps.append("director: not a soft-unicast destination, untouched")
        found.verdict = "passed to this server"


def _to_client(copy: _Copy, frame: bytes, found: Explanation) -> None:
    before = copy.counted()
    result = run_tc(copy.program("egress_in"), frame, socket.if_nametoindex(copy.datapath.uplink))
    if "icmp_sent" in differences(before, copy.counted()):
        found.steps.append(f"egress: refused; the sender gets an ICMP error: {describe(result.frame)}")
        found.verdict, found.packet_out = "refused with ICMP", describe(result.frame)
    elif result.verdict == "redirect":
        found.steps.append(f"egress: reply of a flow, given to its client: {describe(result.frame)}")
        found.verdict, found.packet_out = "given to the client", describe(result.frame)
    elif result.verdict == "drop":
        found.steps.append("egress: dropped")
        found.verdict = "dropped"
    else:
        found.steps.append("egress: no flow has this tuple: the kernel stack gets it (a socket, or a reset)")
        found.verdict = "passed to this server"
