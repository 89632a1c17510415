"""The soak's clients, far end and checks: drives bench/bpf/churn.bpf.c over a row of nodes, and counts.

Two generators on two cores open conversations at a given rate, interleaved, with losses and packets that overtake
each other; the far end answers, resets, strays. Both ends know from the number in each packet what it has to be.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from bench import objects
from bench.lanes import attach_sink
from bench.world import CLIENT, CLIENT_MAC, INTERNET, ONRAMP_MAC, World
from softunicast.kernel.libbpf import check, ffi, load_library
from softunicast.kernel.objects import BpfObject, mount_bpffs
from softunicast.kernel.words import address_word, index_key, mac_bytes

LANES: Final = 2
WINDOW: Final = 256  # conversations under way at once, of a lane
WINDOWS: Final = 8  # in one run: each costs 30 ms, however short
STEPS: Final = 5
SECONDS_MAX: Final = 90.0  # whoever waits for "enough" longer has lost it
FRAME_BYTES: Final = 60
BATCH: Final = 64  # few enough for the rings between the nodes
_LIVE_FRAMES: Final = 2  # BPF_F_TEST_XDP_LIVE_FRAMES
_CONTROL: Final = struct.Struct("<4I2H6s6s")
_TALLY: Final = struct.Struct("<13Q")


@dataclass(frozen=True, slots=True)
class Tally:
    """See bench/bpf/churn.h; the sum over all cores."""

    sent: int
    lost: int
    arrived: int
    replied: int
    strays: int
    strays_here: int
    returned: int
    refused: int
    wrong: int
    bad_checksum: int
    outside: int
    moved: int
    shared: int


class Churn:
    """`run` makes traffic, `tally` says what came of it."""

    def __init__(self, made: BpfObject, world: World) -> None:
        self._object = made
        self._world = world
        self._frame = ffi.from_buffer(bytes(FRAME_BYTES))

    def aim(self, address: IPv4Address, ports: tuple[int, int], hot_every: int) -> None:
        """What must come out: this source, ports from the first to the last. Every `hot_every`th conversation
        goes to one destination."""
        interface = self._world.inside(CLIENT, socket.if_nametoindex, "c0")
        macs = mac_bytes(ONRAMP_MAC), mac_bytes(CLIENT_MAC)
        value = _CONTROL.pack(0, interface, hot_every, address_word(address), *ports, *macs)
        for lane in range(LANES):
            self._object.maps["control"].set(index_key(lane), value)

    def run(self, per_s: int, seconds: float, enough: threading.Event) -> int:
        """Opens conversations at this rate, or as near to it as two cores come, until the time is over and it is
        `enough`. Returns how many."""
        opened = [0] * LANES
        failures: list[BaseException] = []

        def lane(number: int) -> None:
            try:
                opened[number] = self._world.inside(
                    CLIENT, self._lane, number, per_s / LANES, seconds, enough
                )
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=lane, args=(number,)) for number in range(LANES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return sum(opened)

    def _lane(self, number: int, per_s: float, seconds: float, enough: threading.Event) -> int:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
        options = ffi.new("struct bpf_test_run_opts *")
        options.sz = ffi.sizeof("struct bpf_test_run_opts")
        options.data_in, options.data_size_in = self._frame, FRAME_BYTES
        options.repeat, options.flags, options.batch_size = WINDOWS * WINDOW * STEPS, _LIVE_FRAMES, BATCH
        program = self._object.programs[f"lane{number}"]
        start, opened = time.monotonic(), 0
        while (now := time.monotonic() - start) < seconds or (now < SECONDS_MAX and not enough.is_set()):
            due = opened / per_s
            if due > now:
                time.sleep(due - now)
            check(load_library().bpf_prog_test_run_opts(program, options), "making conversations")
            opened += WINDOWS * WINDOW
        return opened

    def tally(self) -> Tally:
        """Since the start."""
        rows = [_TALLY.unpack(value) for value in self._object.maps["tally"].per_cpu(index_key(0))]
        return Tally(*(sum(column) for column in zip(*rows, strict=True)))


@contextmanager
def churn(world: World) -> Iterator[Churn]:
    """Its ends are attached to the outer ends of the row."""
    with ExitStack() as stack:
        made = objects.load("churn")
        stack.callback(made.close)
        mount_bpffs(world.folder / "sinks")
        for program, node, interface in (("far", INTERNET, "i0"), ("near", CLIENT, "c0")):
            world.inside(node, attach_sink, made.programs[program], interface, world)
        yield Churn(made, world)
