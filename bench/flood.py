"""Drives the generators and sinks of bench/bpf: makes packets by the million on one core, counts what arrived.

A run is one system call that makes, sends and forwards its packets entirely inside the kernel, in the calling
thread: with one batch in flight at a time everything up to the far end's XDP drop happens before the next batch.
So time over packets is the cost of the whole path on one core, and the same generator into a path that drops at
once gives what to subtract.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from bench import objects
from softunicast.kernel.libbpf import check, ffi, load_library
from softunicast.kernel.words import index_key, mac_bytes

FRAME_BYTES: Final = 60
BATCH: Final = 64  # a NAPI poll's worth
RISING, RANDOM = 0, 1
_LIVE_FRAMES: Final = 2  # BPF_F_TEST_XDP_LIVE_FRAMES
_CONTROL: Final = struct.Struct("<6I6s6s")
_TALLY: Final = struct.Struct("<3Q")


@dataclass(frozen=True, slots=True)
class Tally:
    """Packets at the sink: as they should be, otherwise, and (while recording) with a wrong checksum."""

    right: int
    wrong: int
    bad_checksum: int


class Flood:
    """One object of generators and sinks, `flood` with its memory of what the path made of each flow."""

    def __init__(self, name: str, flows_max: int) -> None:
        self._object = objects.load(name, {"mapping": flows_max})
        self._frame = ffi.from_buffer(bytes(FRAME_BYTES))
        self.programs = self._object.programs
        self.maps = self._object.maps

    def close(self) -> None:
        """Lets go of programs and maps."""
        self._object.close()

    def aim(
        self,
        interface: int,
        macs: tuple[str, str],
        flows: int,
        order: int,
        *,
        first: int = 0,
        local: int = 0,
        record: bool = False,
    ) -> None:
        """What the next runs make: `macs` are (to, from), `local` the translated source (network order)."""
        to, source = (mac_bytes(mac) for mac in macs)
        value = _CONTROL.pack(first, flows, order, interface, local, int(record), to, source)
        self._object.maps["control"].set(index_key(0), value)
        self._object.maps["tally"].set(index_key(0), bytes(_TALLY.size))

    def run(self, program: str, packets: int) -> int:
        """Makes `packets` packets here and now, in the thread's namespace. Returns nanoseconds per packet."""
        options = ffi.new("struct bpf_test_run_opts *")
        options.sz = ffi.sizeof("struct bpf_test_run_opts")
        options.data_in, options.data_size_in = self._frame, FRAME_BYTES
        options.repeat, options.flags, options.batch_size = packets, _LIVE_FRAMES, BATCH
        check(
            load_library().bpf_prog_test_run_opts(self.programs[program], options),
            f"generating {packets} packets",
        )
        return int(options.duration)

    def tally(self) -> Tally:
        """What the sink saw since `aim`."""
        return Tally(*_TALLY.unpack(self._object.maps["tally"].get(index_key(0)) or bytes(_TALLY.size)))
