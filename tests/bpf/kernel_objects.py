"""What a data path holds in the kernel: ids of programs, maps and links, pins, attachments."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from pyroute2 import IPRoute
from tests.bpf.world import LIMITS, ME, UPLINK, state

from softunicast.kernel.datapath import Datapath
from softunicast.kernel.libbpf import ffi, load_library


def opened(mount: Path, uplink: str = UPLINK) -> Datapath:
    return Datapath.open(mount, uplink, ME, LIMITS)


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


def alive() -> Numbers:
    """Everything that is in the kernel."""
    found = {}
    for kind in ("prog", "map", "link"):
        done = subprocess.run(["bpftool", "-j", kind, "list"], check=True, capture_output=True)
        found[kind] = {item["id"] for item in json.loads(done.stdout)}
    return found


def wait_until_gone(wanted: Numbers) -> None:
    """The kernel frees them a moment after the last descriptor is closed."""
    deadline = time.monotonic() + 5
    while left := {kind: wanted[kind] & found for kind, found in alive().items() if wanted[kind] & found}:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def pins(mount: Path) -> set[str]:
    """But for what the kernel itself puts into every bpffs."""
    return {str(pin.relative_to(mount)) for pin in mount.rglob("*") if not pin.name.endswith(".debug")}


def has_xdp(interface: str) -> bool:
    with IPRoute() as netlink:
        (link,) = netlink.get_links(ifname=interface)
        return bool(link.get_attr("IFLA_XDP").get_attr("IFLA_XDP_ATTACHED"))
