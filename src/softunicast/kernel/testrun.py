"""Running a program on a packet that never was on a wire (BPF_PROG_TEST_RUN): frame in, verdict and frame out. And
programs that run on no packet at all.

The kernel executes the very program that handles traffic, helpers included (routing, socket lookup), as if
the frame had arrived on, or was leaving by, an interface of the calling thread's network namespace.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from softunicast.core.errors import InputError
from softunicast.kernel import abi
from softunicast.kernel.libbpf import check, ffi, load_library

XDP_VERDICTS: Final = {0: "aborted", 1: "drop", 2: "pass", 3: "tx", 4: "redirect"}
TC_VERDICTS: Final = {-1: "next", 0: "ok", 2: "drop", 7: "redirect"}

_FRAME_MAX: Final = 1500 + 14
_OUT_BYTES: Final = 4096
_SKB_BYTES: Final = 192
# Offsets in struct __sk_buff: ifindex (ingress_ifindex lies before it), gso_segs and gso_size.
_SKB_INTERFACE: Final = 40
_SKB_SEGMENTS: Final = 164
_SKB_SEGMENT_BYTES: Final = 176


@dataclass(frozen=True, slots=True)
class Result:
    """`verdict` in words; `frame` as the program left it; `nanoseconds` per run."""

    verdict: str
    frame: bytes
    nanoseconds: int


def run_xdp(program: int, frame: bytes, interface: int, repeat: int = 1) -> Result:
    """`frame` arrives on `interface` (its number). The device must have XDP attached."""
    context = struct.pack("<6I", 0, len(frame), 0, interface, 0, 0)
    options, out = _run(program, frame, context, repeat)
    return Result(XDP_VERDICTS[options.retval], out, options.duration)


def run_tc(
    program: int,
    frame: bytes,
    interface: int,
    repeat: int = 1,
    segment_bytes: int | None = None,
    came_by: int | None = None,
) -> Result:
    """`frame` arrives on, or leaves by, `interface` (its number), at a tc hook.

    `segment_bytes`: it is a buffer that will be cut into segments with so much payload. `came_by`: the interface that
    it arrived on, 0 when a program of this host sent it; by default `interface`.
    """
    context = bytearray(_SKB_BYTES)
    came_by = interface if came_by is None else came_by
    struct.pack_into("<2I", context, _SKB_INTERFACE - 4, came_by, interface)
    if segment_bytes is not None:
        struct.pack_into("<I", context, _SKB_SEGMENTS, -(-len(frame) // segment_bytes))
        struct.pack_into("<I", context, _SKB_SEGMENT_BYTES, segment_bytes)
    options, out = _run(program, frame, bytes(context), repeat)
    verdict = int(ffi.cast("int32_t", options.retval))
    return Result(TC_VERDICTS[verdict], out, options.duration)


def run_syscall(program: int, context: bytes, doing: str) -> bytes:
    """A program that no packet runs; returns its context as it left it."""
    memory = ffi.new("char[]", context)  # written back to
    options = ffi.new("struct bpf_test_run_opts *")
    options.sz = ffi.sizeof("struct bpf_test_run_opts")
    options.ctx_in, options.ctx_size_in = memory, len(context)
    check(load_library().bpf_prog_test_run_opts(program, options), doing)
    return bytes(ffi.buffer(memory))[: len(context)]


def run_sweep(program: int) -> abi.Sweep:
    """Frees expired claims: what bpf/sweep.bpf.c says of it."""
    return abi.Sweep.unpack(run_syscall(program, bytes(abi.SWEEP_BYTES), "sweeping expired claims"))


def _run(program: int, frame: bytes, context: bytes, repeat: int) -> tuple[Any, bytes]:
    if not 14 <= len(frame) <= _FRAME_MAX:
        raise InputError(f"a frame of {len(frame)} bytes cannot be run", f"use 14 to {_FRAME_MAX} bytes")
    out = ffi.new("char[]", _OUT_BYTES)
    data, context_in = ffi.from_buffer(frame), ffi.from_buffer(context)
    options = ffi.new("struct bpf_test_run_opts *")
    options.sz = ffi.sizeof("struct bpf_test_run_opts")
    options.data_in, options.data_size_in = data, len(frame)
    options.data_out, options.data_size_out = out, _OUT_BYTES
    options.ctx_in, options.ctx_size_in = context_in, len(context)
    options.repeat = repeat
    check(load_library().bpf_prog_test_run_opts(program, options), "running a program on a packet")
    return options, bytes(ffi.buffer(out)[: options.data_size_out])
