"""What a data path holds in the kernel: ids of programs, maps and links, pins, attachments."""

from __future__ import annotations

import errno
import time
from pathlib import Path

from cffi import FFI
from pyroute2 import IPRoute
from tests.bpf.world import ATTACH, LIMITS, ME, UPLINK, state

from softunicast.kernel.datapath import Datapath
from softunicast.kernel.libbpf import ffi, load_library


def opened(mount: Path, uplink: str = UPLINK) -> Datapath:
    return Datapath.open(mount, uplink, ME, LIMITS, {**ATTACH, uplink: "xdp"})


def running(mount: Path) -> Datapath:
    datapath = opened(mount)
    datapath.apply(state())
    return datapath


def number_of(fd: int) -> int:
    """The kernel's id of a program, map or link: the second word of its description."""
    info, size = ffi.new("uint32_t[]", 64), ffi.new("uint32_t *", 256)
    assert load_library().bpf_obj_get_info_by_fd(fd, info, size) == 0
    return int(info[1])


Numbers = dict[str, set[int]]


def numbers(datapath: Datapath) -> Numbers:
    """Everything in the kernel that this data path holds."""
    programs = {fd for obj in datapath._objects.values() for fd in obj.programs.values()}
    return {
        "prog": {number_of(fd) for fd in programs},
        "map": {number_of(table.fd) for table in datapath._maps.values()},
        "link": {number_of(link.fd) for link in datapath._links.values()},
    }


_BY_NUMBER = FFI()
_BY_NUMBER.cdef("""
int bpf_prog_get_next_id(uint32_t start, uint32_t *next);
int bpf_map_get_next_id(uint32_t start, uint32_t *next);
int bpf_link_get_next_id(uint32_t start, uint32_t *next);
""")
_LIBRARY = _BY_NUMBER.dlopen("libbpf.so.1")


def exists(kind: str, number: int) -> bool:
    """Asked without opening it: to open and close a program array while the kernel empties it would make it stay."""
    following = _BY_NUMBER.new("uint32_t *")
    if getattr(_LIBRARY, f"bpf_{kind}_get_next_id")(number - 1, following) == 0:
        return bool(following[0] == number)
    assert _BY_NUMBER.errno == errno.ENOENT
    return False


def left_of(wanted: Numbers) -> Numbers:
    """Those that are still in the kernel."""
    return {kind: {number for number in found if exists(kind, number)} for kind, found in wanted.items()}


def wait_until_gone(wanted: Numbers) -> None:
    """The kernel frees them a moment after the last descriptor is closed."""
    deadline = time.monotonic() + 10
    while any((left := left_of(wanted)).values()):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def pins(mount: Path) -> set[str]:
    """But for what the kernel itself puts into every bpffs."""
    return {str(pin.relative_to(mount)) for pin in mount.rglob("*") if not pin.name.endswith(".debug")}


def has_xdp(interface: str) -> bool:
    with IPRoute() as netlink:
        (link,) = netlink.get_links(ifname=interface)
        return bool(link.get_attr("IFLA_XDP").get_attr("IFLA_XDP_ATTACHED"))
