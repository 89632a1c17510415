"""Which BPF programs are attached to an interface, asked of the kernel and not of any pin.

For the doctor: pins and processes come and go, this is what packets meet. Acts in the network namespace of the
calling thread. Needs root.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final

from softunicast.core.errors import HostError
from softunicast.kernel.libbpf import check, ffi, load_library
from softunicast.kernel.objects import ATTACH_TCX_EGRESS, ATTACH_TCX_INGRESS

DECLARATIONS: Final = """
struct bpf_prog_query_opts {
    size_t sz; uint32_t query_flags; uint32_t attach_flags; uint32_t *prog_ids; uint32_t prog_cnt;
    uint32_t *prog_attach_flags;
};
int bpf_prog_query_opts(int target, int type, struct bpf_prog_query_opts *opts);
int bpf_xdp_query_id(int ifindex, int flags, uint32_t *prog_id);
int bpf_prog_get_fd_by_id(uint32_t id);
"""
ffi.cdef(DECLARATIONS)

PROGRAMS_MAX: Final = 64  # the kernel's own limit for one tcx hook (BPF_MPROG_MAX)
# struct bpf_prog_info of <linux/bpf.h>: the name is 16 bytes after 64; the kernel fills in only what is asked.
_NAME_OFFSET, _INFO_BYTES = 64, 80

XDP, TCX_INGRESS, TCX_EGRESS = "xdp", "tcx ingress", "tcx egress"


@dataclass(frozen=True, slots=True)
class Attached:
    """One program: its name as the kernel knows it (15 characters at most), and at which hook it is."""

    interface: str
    hook: str
    program: str


def attached(interface: str) -> tuple[Attached, ...]:
    """The programs on the interface's XDP and TCX hooks, in the order in which packets meet them.

    HostError when there is no such interface, KernelError when the kernel refuses to tell.
    """
    try:
        index = socket.if_nametoindex(interface)
    except OSError as error:
        raise HostError(f"there is no interface {interface}", "name one that `ip link` shows") from error
    found = [(XDP, number) for number in _xdp(index, interface)]
    for hook, kind in ((TCX_INGRESS, ATTACH_TCX_INGRESS), (TCX_EGRESS, ATTACH_TCX_EGRESS)):
        found += [(hook, number) for number in _tcx(index, kind, interface)]
    return tuple(Attached(interface, hook, _name(number)) for hook, number in found)


def _xdp(index: int, interface: str) -> list[int]:
    number = ffi.new("uint32_t *")
    check(load_library().bpf_xdp_query_id(index, 0, number), f"asking for the XDP program of {interface}")
    return [number[0]] if number[0] else []


def _tcx(index: int, kind: int, interface: str) -> list[int]:
    numbers = ffi.new("uint32_t[]", PROGRAMS_MAX)
    options = ffi.new("struct bpf_prog_query_opts *", {"prog_ids": numbers, "prog_cnt": PROGRAMS_MAX})
    options.sz = ffi.sizeof(options[0])
    check(
        load_library().bpf_prog_query_opts(index, kind, options),
        f"asking for the TCX programs of {interface}",
    )
    return list(numbers[0 : options.prog_cnt])


def _name(number: int) -> str:
    descriptor = load_library().bpf_prog_get_fd_by_id(number)
    if descriptor < 0:
        return f"#{number}"  # gone since
    info, size = ffi.new("char[]", _INFO_BYTES), ffi.new("uint32_t *", _INFO_BYTES)
    try:
        check(load_library().bpf_obj_get_info_by_fd(descriptor, info, size), f"describing program {number}")
    finally:
        os.close(descriptor)
    return bytes(ffi.string(info + _NAME_OFFSET, _INFO_BYTES - _NAME_OFFSET)).decode(errors="replace")
