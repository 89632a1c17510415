"""Established flows as XDP sees them: a server whose on-ramps it is attached to, a flow and its packets, and what it
means that one is passed on.

`fast` is a client's packet in XDP, `out` the same at tc; `director` and `back` are a reply in XDP and at tc.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bpf import frames
from tests.bpf.frames import CLIENT, FROM_CLIENT, FROM_WIRE, REMOTE, TO_CLIENT, TO_WIRE, echo, end, tcp, udp
from tests.bpf.talk import Conversation
from tests.bpf.world import ATTACH, LIMITS, ME, ONRAMP, UPLINK, World, make_server, state

from softunicast.kernel.datapath import Datapath
from softunicast.kernel.passing import attach_pass

FAST_OUT, FAST_IN = {"out": 1, "fast_out": 1}, {"here": 1, "in": 1, "fast_in": 1}
HOP_NS = 1 << 62
PROTOCOLS = ("tcp", "udp", "icmp")
PEERS = {UPLINK: "upp", ONRAMP: "clp"}


@contextmanager
def attached(folder: Path, attach: Mapping[str, str], *taking: str) -> Iterator[World]:
    """A server whose on-ramps are attached so. These devices take frames from XDP: a veth does while its peer has a
    program, or GRO."""
    with make_server(folder) as mount:
        datapath = Datapath.open(mount, UPLINK, ME, LIMITS, {**ATTACH, **attach})
        try:
            for device in taking:
                attach_pass(PEERS[device], mount / f"pass-{device}")
            datapath.apply(state())
            yield World(datapath)
        finally:
            datapath.remove()


@dataclass
class Flow:
    """An established flow and its packets, outside and inside."""

    protocol: str
    local: str

    def sent(
        self, ttl: int = 64, size: int = 100, flags: str = "PA", macs: frames.Macs = FROM_CLIENT
    ) -> bytes:
        return self._packet(CLIENT, REMOTE, False, ttl, size, flags, macs)

    def left(self, ttl: int = 63, size: int = 100, flags: str = "PA") -> bytes:
        return self._packet(self.local, REMOTE, False, ttl, size, flags, TO_WIRE)

    def arrived(self, ttl: int = 64, size: int = 100, flags: str = "PA") -> bytes:
        return self._packet(REMOTE, self.local, True, ttl, size, flags, FROM_WIRE)

    def given(self, ttl: int = 63, size: int = 100, flags: str = "PA") -> bytes:
        return self._packet(REMOTE, CLIENT, True, ttl, size, flags, TO_CLIENT)

    def _packet(
        self, source: str, to: str, reply: bool, ttl: int, size: int, flags: str, macs: frames.Macs
    ) -> bytes:
        data = bytes(range(256)) * 6
        if self.protocol == "tcp":
            return tcp(source, to, flags, data[: size - 40], ttl, macs)
        if self.protocol == "udp":
            return udp(source, to, data[: size - 28], ttl, macs)
        return echo(source, to, end(to if reply else source)[1], reply, data[: size - 28], ttl, macs)


def established(world: World, protocol: str) -> Flow:
    """Its next hop stays known, however slowly the test goes on."""
    if protocol == "tcp":
        local = Conversation(world).established().local
    else:
        local = frames.local_end(world.out(udp() if protocol == "udp" else echo()).frame)
    world.change_flows(hop_ns=HOP_NS)
    return Flow(protocol, local)


def check_passed(world: World, frame: bytes, onramp: str = ONRAMP) -> None:
    """A client's packet goes on to tc as it came."""
    claims, flows = world.claims(), world.flows()
    ran = world.fast(frame, onramp)
    assert (ran.verdict, ran.counted, ran.frame) == ("pass", {}, frame)
    assert (world.claims(), world.flows()) == (claims, flows)


def check_passed_in(world: World, frame: bytes) -> None:
    """A reply goes on to tc as it came."""
    claims, flows = world.claims(), world.flows()
    ran = world.director(frame)
    assert (ran.verdict, dict(ran.counted), ran.frame) == ("pass", {"here": 1}, frame)
    assert (world.claims(), world.flows()) == (claims, flows)
