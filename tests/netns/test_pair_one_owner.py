"""One owner: whatever happens to an agent, two servers never send from one slice (invariant 1).

Root on both servers sends from the same port all the time, past every agent and flow; what comes out of each
server is heard on the router's ports, with the kernel's time of arrival. Only the guards stand in between.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from scapy.layers.inet import UDP
from tests.netns.pair_lab import Capture, PairLab, eventually, excused

from softunicast.core.errors import SliceTakenError
from softunicast.core.leases import Lease
from softunicast.core.slices import Slice
from softunicast.kernel import namespaces
from softunicast.lab.forge import datagram
from softunicast.lab.pair import ECHO_PORT, INTERNET, SERVER_OF, SHARED
from softunicast.ledger.sqlite import SqliteLedger

TTL_S = 6
QUARANTINE_S = 2
MARGIN_S = 0.9  # of the deadline in the kernel before the ledger's, less some ticks
TAP_S = 0.01
SPREAD = 32  # flows that the router's hash surely gives to both servers


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    return make_pair(ttl_s=TTL_S, quarantine_s=QUARANTINE_S)


class Taps:
    """Everything that leaves the two servers with one source port: server -> unix times."""

    def __init__(self, captures: dict[str, Capture], port: int) -> None:
        self.heard: dict[str, list[float]] = {server: [] for server in captures}
        self._captures, self._port = captures, port

    def listen(self) -> dict[str, list[float]]:
        for server, capture in self._captures.items():
            found = (frame for frame in capture.read() if UDP in frame and frame[UDP].sport == self._port)
            self.heard[server] += [float(frame.time) for frame in found]
        return self.heard

    def more(self, server: str) -> bool:
        """Whether something came out of the server since the last look."""
        before = len(self.heard[server])
        return len(self.listen()[server]) > before


@contextmanager
def sending(lab: PairLab, port: int) -> Iterator[Taps]:
    """Root on both servers sends from the port for the length of a with block."""
    stop = threading.Event()
    packet = datagram((str(SHARED), port), (INTERNET, ECHO_PORT), b"tap")
    with (
        excused(lab.lab, "server1", "server2") as leave,
        lab.raw_socket("server1") as one,
        lab.raw_socket("server2") as two,
        lab.capture("router", "s1") as from_one,
        lab.capture("router", "s2") as from_two,
    ):
        leave()  # agents may be started meanwhile

        def send() -> None:
            while not stop.wait(TAP_S):
                for raw in (one, two):
                    raw.sendto(packet, (INTERNET, 0))

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield Taps({"server1": from_one, "server2": from_two}, port)
        finally:
            stop.set()
            thread.join()


def taken_for(lab: PairLab, server: str, wanted: Slice) -> tuple[Lease, Lease, float, float]:
    """Asks the ledger for the slice until it gives it to the server. (lease before, lease after, the ledger's
    and unix time just before it was granted)."""

    async def take() -> tuple[Lease, Lease, float, float]:
        ledger = await SqliteLedger.open(lab.lab.ledger, quarantine_s=0.1)
        try:
            [before] = [lease for lease in (await ledger.snapshot()).leases if lease.slice == wanted]
            deadline = time.monotonic() + 4 * TTL_S
            while time.monotonic() < deadline:
                now, unix = ledger.now(), time.time()
                try:
                    return before, await ledger.acquire(server, wanted, TTL_S), now, unix
                except SliceTakenError:
                    await asyncio.sleep(0.02)
            raise AssertionError(f"{wanted} is never free")
        finally:
            await ledger.close()

    return asyncio.run(take())


def outcome(lab: PairLab, client: str) -> Any:
    """How a new connection of the client ends, and in which time."""
    with lab.held(client, 1) as held:
        return held["connections"][0]


def test_a_frozen_agent_loses_its_slice_and_never_uses_it_again(lab: PairLab) -> None:
    # An agent with more slices than it may have keeps the lowest: the other one is to keep this one.
    old, new = sorted(lab.lab.agents, key=lab.slice_of)
    client = {server: client for client, server in SERVER_OF.items()}[old]
    slice_ = lab.slice_of(old)
    before = lab.drops(old)
    with sending(lab, slice_.port_last) as taps, conversation(lab, client) as talk:
        eventually(lambda: taps.more(old), "the owner sends")
        talk.sendall(b"hello")
        assert talk.recv(100) == b"hello"

        lab.send_agent(old, signal.SIGSTOP)
        try:
            lease, next_lease, granted, granted_unix = taken_for(lab, new, slice_)
            taps.listen()
            assert granted >= lease.expires_at + QUARANTINE_S, "not before expiry and quarantine"
            assert next_lease.epoch > lease.epoch
            # The guard stopped the old owner by itself, and well before the ledger's expiry.
            stopped = taps.heard[old][-1]
            expired_unix = granted_unix - (granted - lease.expires_at)
            assert expired_unix - TTL_S < stopped < expired_unix - MARGIN_S
            # So did egress: the client is told.
            refused = outcome(lab, client)
            assert (refused["outcome"], refused["ms"] < 1000) == ("EHOSTUNREACH", True)
            talk.sendall(b"anybody?")
            knock(lab, slice_.port_first)
            eventually(lambda: taps.more(new), "the new owner sends")
        finally:
            lab.send_agent(old, signal.SIGCONT)

        eventually(lambda: elsewhere(lab, old, slice_), "the old owner has another slice")
        talk.sendall(b"still there?")
        eventually(lambda: lab.drops(old)["guard_foreign"] > before["guard_foreign"], "the loss is known")
        for _ in range(20):
            eventually(lambda: taps.more(new), "the new owner sends on")
    assert taps.heard[old][-1] == stopped
    assert max(taps.heard[old]) < min(taps.heard[new])

    found = lab.drops(old)
    for reason in ("guard_expired", "lease_expired", "no_slice", "guard_foreign"):
        assert found[reason] > before[reason], reason
    lost = [event for event in lab.log(old) if event["event"] == "slice lost"]
    assert [(event["slice"], event["epoch"]) for event in lost] == [(str(slice_), lease.epoch)]
    assert [holder(lab, new, slice_, at) for at in (stopped, taps.heard[new][0])] == [old, new]
    assert holder(lab, new, slice_, expired_unix + QUARANTINE_S / 2) is None
    for name in SERVER_OF:
        assert outcome(lab, name)["outcome"] == "ok"


def holder(lab: PairLab, asked: str, slice_: Slice, at: float) -> str | None:
    """Who had the slice at that unix time, as the ledger tells it later."""
    when = datetime.fromtimestamp(at, UTC).isoformat()
    found = lab.softunicast(asked, "leases", "--who", f"{SHARED}:{slice_.port_last}", "--at", when)
    return None if found is None else str(found["server"])


def elsewhere(lab: PairLab, server: str, slice_: Slice) -> bool:
    """Whether the server holds a slice, and another one."""
    rows = [row for row in lab.ask(server, "/v1/slices") if row["here"]]
    return [row["state"] for row in rows] == ["held"] and rows[0]["slice"] != str(slice_)


@contextmanager
def conversation(lab: PairLab, client: str) -> Iterator[socket.socket]:
    """A TCP conversation of the client that is open already."""
    namespace = lab.lab.namespace(client)
    with namespaces.run_in(namespace, socket.create_connection, (INTERNET, ECHO_PORT), 5.0) as made:
        yield made


def knock(lab: PairLab, port: int) -> None:
    """Packets from internet to a port of the shared address, over both servers."""

    def send() -> None:
        for _ in range(SPREAD):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"knock", (str(SHARED), port))

    namespaces.run_in(lab.lab.namespace("internet"), send)
