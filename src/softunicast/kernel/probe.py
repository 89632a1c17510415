"""What this kernel can do, found out by trying it: a cheap system call or two a feature, nothing kept.

Three answers: it has it, it has it not, or it could not be told (no privilege to ask). Attachments are tried
on the loopback of a network namespace that lives only as long as the thread that asks, so no interface of the
host is touched. A kernel version proves nothing (features are ported back, and left out); it is named for
people only: `since`. SOFTUNICAST_PROBE_WITHOUT="tcx,xdp" makes features look absent, for tests.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from softunicast.core.errors import HostError, UnknownNameError
from softunicast.kernel.libbpf import ffi, load_library

WITHOUT_ENV: Final = "SOFTUNICAST_PROBE_WITHOUT"
PERMISSION_FIX: Final = "run as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN"

BTF_VMLINUX = Path("/sys/kernel/btf/vmlinux")
FILESYSTEMS = Path("/proc/filesystems")

DECLARATIONS: Final = """
struct bpf_prog_load_opts {
    size_t sz; int attempts; int expected_attach_type; uint32_t prog_btf_fd; uint32_t prog_flags;
    uint64_t rest[12];
};
int bpf_prog_load(int prog_type, const char *prog_name, const char *license, const void *insns,
                  size_t insn_cnt, const struct bpf_prog_load_opts *opts);
struct bpf_map_create_opts { size_t sz; uint32_t btf[4]; uint32_t map_flags; uint64_t rest[4]; };
int bpf_map_create(int map_type, const char *map_name, uint32_t key_size, uint32_t value_size,
                   uint32_t max_entries, const struct bpf_map_create_opts *opts);
int unshare(int flags);
"""
ffi.cdef(DECLARATIONS)

# <linux/bpf.h>: program, map and attach types, flags.
_SCHED_CLS, _XDP, _SOCK, _RAW_TRACEPOINT, _SOCK_ADDR, _SYSCALL = 3, 6, 9, 17, 18, 31
_HASH, _PERCPU_ARRAY, _LPM_TRIE = 1, 6, 11
_ATTACH_XDP, _ATTACH_TCX_INGRESS = 37, 46
_BIND, _CONNECT, _SENDMSG, _RELEASE = (8, 9), (10, 11), (14, 15), (34,)  # hooks of cgroups, IPv4 and IPv6
_RECVMSG, _GETPEERNAME = (19, 20), (29, 30)
_NO_PREALLOC = 1
_XDP_HAS_FRAGS = 1 << 5

_XDP_GENERIC = 2  # <linux/if_link.h> XDP_FLAGS_SKB_MODE: the one mode that loopback has
_CLONE_NEWNET = 0x40000000
_NO_DESCRIPTOR = -1
_LOOPBACK = 1  # its index in every network namespace
_REFUSED = (errno.EPERM, errno.EACCES)
_ENOTSUPP = 524  # kernel-internal, yet some attach calls hand it out
# What a kernel answers that does not know the thing. Any other error (no memory, no descriptors) tells nothing.
_UNKNOWN_TO_KERNEL = (errno.EINVAL, errno.E2BIG, errno.ENOSYS, errno.EOPNOTSUPP, _ENOTSUPP)

_RETURN = bytes.fromhex("b7000000020000009500000000000000")  # r0 = 2; exit
_ALLOW = bytes.fromhex(
    "b7000000010000009500000000000000"
)  # r0 = 1; exit: all that hooks of cgroups may return
_INSTRUCTION_BYTES = 8
_FRAME = bytes(64)  # an Ethernet frame to nowhere, for a test run


@dataclass(frozen=True, slots=True)
class Feature:
    """One answer. `have` is None when it could not be told; `since` is the first kernel that can have it;
    `required`: the data path cannot do without."""

    name: str
    have: bool | None
    since: str
    needed_for: str
    fix: str
    required: bool


@dataclass(frozen=True, slots=True)
class _Probe:
    """`ask` may raise OSError: the error number says whether that means "have not" or "could not tell"."""

    since: str
    needed_for: str
    ask: Callable[[], bool | None]
    option: str = "CONFIG_BPF_SYSCALL"
    required: bool = True


def features(names: Iterable[str] | None = None) -> tuple[Feature, ...]:
    """Asks the kernel about these features, or about all.

    UnknownNameError for a name that is not in the table; HostError when libbpf is missing. Without the
    privilege to load programs most answers are None.
    """
    asked = tuple(_PROBES) if names is None else tuple(names)
    absent = [name.strip() for name in os.environ.get(WITHOUT_ENV, "").split(",") if name.strip()]
    for name in (*asked, *absent):
        if name not in _PROBES:
            raise UnknownNameError(f"no kernel feature {name!r}", f"name some of: {', '.join(_PROBES)}")
    permitted = may_load()
    return tuple(_answer(name, name in absent, permitted) for name in asked)


def require(names: Iterable[str] | None = None) -> None:
    """Raises one HostError that names every missing feature, since when kernels have it, and the fix.

    Without `names`: everything the data path needs. A feature that could not be told passes, the real attempt
    will tell; but no privilege to load programs at all is an error, and so is a missing libbpf.
    """
    asked = names if names is not None else [name for name, probe in _PROBES.items() if probe.required]
    missing = [feature for feature in features(asked) if feature.have is False]
    if missing:
        listed = ", ".join(f"{one.name} (since {one.since}, for {one.needed_for})" for one in missing)
        newest = max(missing, key=lambda one: [int(part) for part in one.since.split(".")])
        raise HostError(f"this kernel, {os.uname().release}, lacks {listed}", newest.fix)
    if not may_load():
        raise HostError("not allowed to load BPF programs", PERMISSION_FIX)


def may_load() -> bool:
    """Whether this process may load such programs as egress and the guard. HostError without libbpf."""
    try:
        with _loaded(_SCHED_CLS):
            return True
    except OSError as error:
        return error.errno not in _REFUSED


def _answer(name: str, hidden: bool, permitted: bool) -> Feature:
    probe = _PROBES[name]
    have = False if hidden else _ask(probe.ask, permitted)
    fix = f"boot Linux {probe.since} or newer, built with {probe.option}"
    return Feature(name, have, probe.since, probe.needed_for, fix, probe.required)


def _ask(ask: Callable[[], bool | None], permitted: bool) -> bool | None:
    try:
        return ask() if permitted or ask in _ANYBODY else None
    except OSError as error:
        return False if error.errno in _UNKNOWN_TO_KERNEL else None


# -- the questions -------------------------------------------------------------------------------------------


def _have_btf() -> bool:
    return BTF_VMLINUX.exists()


def _have_filesystem(name: str) -> Callable[[], bool]:
    return lambda: name in FILESYSTEMS.read_text().split()


def _have_helper(kind: int, number: int) -> Callable[[], bool | None]:
    return lambda: _told(load_library().libbpf_probe_bpf_helper(kind, number, ffi.NULL))


def _have_map(kind: int) -> Callable[[], bool | None]:
    return lambda: _told(load_library().libbpf_probe_bpf_map_type(kind, ffi.NULL))


def _have_syscall_programs() -> bool | None:
    return _told(load_library().libbpf_probe_bpf_prog_type(_SYSCALL, ffi.NULL))


def _have_hash_without_prealloc() -> bool:
    options = ffi.new("struct bpf_map_create_opts *", {"map_flags": _NO_PREALLOC})
    options.sz = ffi.sizeof(options[0])
    os.close(_checked(load_library().bpf_map_create(_HASH, ffi.NULL, 4, 4, 1, options)))
    return True


def _have_xdp() -> bool | None:
    with _loaded(_XDP) as program:
        return _attaches(program, _ATTACH_XDP, _XDP_GENERIC)


def _have_xdp_frags() -> bool:
    with _loaded(_XDP, _XDP_HAS_FRAGS):
        return True


def _have_tcx() -> bool | None:
    with _loaded(_SCHED_CLS) as program:
        return _attaches(program, _ATTACH_TCX_INGRESS, 0)


def _have_test_run() -> bool:
    data = ffi.from_buffer(_FRAME)
    options = ffi.new(
        "struct bpf_test_run_opts *", {"data_in": data, "data_size_in": len(_FRAME), "repeat": 1}
    )
    options.sz = ffi.sizeof(options[0])
    with _loaded(_XDP) as program:
        _checked(load_library().bpf_prog_test_run_opts(program, options))
    return True


def _have_cgroup_hook(kind: int, attach_types: tuple[int, ...]) -> Callable[[], bool]:
    def attempt() -> bool:
        for attach_type in attach_types:
            with _loaded(kind, attach_type=attach_type, code=_ALLOW) as program:
                # To no cgroup at all: a kernel that knows such links gets as far as looking for it.
                link = load_library().bpf_link_create(program, _NO_DESCRIPTOR, attach_type, ffi.NULL)
                if -link != errno.EBADF and ffi.errno != errno.EBADF:
                    _checked(link)
        return True

    return attempt


def _have_tracepoint(name: str) -> Callable[[], bool]:
    """As programs that read the kernel's structs find it."""
    return lambda: f"\0btf_trace_{name}\0".encode() in BTF_VMLINUX.read_bytes()


_RESTARTED: Final = "units that stay attached when they are restarted"

_PROBES: Final[dict[str, _Probe]] = {
    "btf": _Probe("5.4", "programs that fit this kernel's structures", _have_btf, "CONFIG_DEBUG_INFO_BTF"),
    "bpffs": _Probe("4.4", "a data path that outlives the agent", _have_filesystem("bpf")),
    "xdp": _Probe("5.9", "the director on network cards", _have_xdp, "CONFIG_NET"),
    "xdp-frags": _Probe("5.18", "the director on uplinks with large packets", _have_xdp_frags),
    "tcx": _Probe("6.6", "egress and the guard", _have_tcx, "CONFIG_NET_XGRESS"),
    "syscall-programs": _Probe("5.14", "freeing expired claims", _have_syscall_programs),
    "test-run": _Probe("4.12", "`softunicast explain`", _have_test_run, "CONFIG_NET"),
    "lpm-trie": _Probe("4.11", "the table of blocks", _have_map(_LPM_TRIE)),
    "percpu-array": _Probe("4.6", "counting drops", _have_map(_PERCPU_ARRAY)),
    "hash-without-prealloc": _Probe("4.6", "the tables of flows and claims", _have_hash_without_prealloc),
    "bpf_loop": _Probe("5.17", "the search for a free port", _have_helper(_SCHED_CLS, 181)),
    "bpf_for_each_map_elem": _Probe("5.13", "freeing expired claims", _have_helper(_SCHED_CLS, 164)),
    "bpf_fib_lookup": _Probe("4.18", "finding the next hop", _have_helper(_SCHED_CLS, 69), "CONFIG_INET"),
    "bpf_redirect_neigh": _Probe(
        "5.10", "sending to a next hop not met yet", _have_helper(_SCHED_CLS, 152), "CONFIG_INET"
    ),
    "bpf_ktime_get_coarse_ns": _Probe("5.11", "deadlines and timers", _have_helper(_SCHED_CLS, 160)),
    "bpf_check_mtu": _Probe("5.12", "replies too large for an on-ramp", _have_helper(_SCHED_CLS, 163)),
    "bpf_clone_redirect": _Probe("4.2", "fragments", _have_helper(_SCHED_CLS, 13)),
    "bpf_skb_change_tail": _Probe("4.9", "ICMP errors to clients", _have_helper(_SCHED_CLS, 38)),
    "bpf_skb_change_head": _Probe("4.10", "on-ramps without Ethernet", _have_helper(_SCHED_CLS, 43)),
    "bpf_skb_adjust_room": _Probe("4.13", "ICMP errors to clients", _have_helper(_SCHED_CLS, 50)),
    "bpf_skc_lookup_tcp": _Probe(
        "5.2", "leaving the ports of sockets alone", _have_helper(_SCHED_CLS, 99), "CONFIG_INET"
    ),
    "bpf_sk_lookup_udp": _Probe(
        "4.20", "leaving the ports of sockets alone", _have_helper(_SCHED_CLS, 85), "CONFIG_INET"
    ),
    "bpf_xdp_adjust_head": _Probe("4.10", "tunnels to servers behind a router", _have_helper(_XDP, 44)),
    "bpf_xdp_get_buff_len": _Probe("5.18", "the director", _have_helper(_XDP, 188)),
    "bpf_sk_fullsock": _Probe("5.1", "telling whose a packet of this host is", _have_helper(_SCHED_CLS, 95)),
    "bpf_sk_storage_get": _Probe(
        "5.2", "telling whose a packet of this host is", _have_helper(_SCHED_CLS, 107), "CONFIG_INET"
    ),
    "bpf_skb_cgroup_id": _Probe(
        "4.18", "telling whose a packet of this host is", _have_helper(_SCHED_CLS, 79), "CONFIG_CGROUPS"
    ),
    "bpf_skb_ancestor_cgroup_id": _Probe(
        "4.19", "telling whose a packet of this host is", _have_helper(_SCHED_CLS, 83), "CONFIG_CGROUPS"
    ),
    **{
        f"bpf_{name}": _Probe(
            since, "egress of sockets", _have_helper(_SOCK_ADDR, number), "CONFIG_CGROUP_BPF", required=False
        )
        for name, number, since in (
            ("get_current_uid_gid", 15, "5.8"),
            ("get_current_cgroup_id", 80, "4.18"),
            ("get_current_ancestor_cgroup_id", 123, "5.7"),
            ("get_netns_cookie", 122, "5.7"),
            ("get_socket_cookie", 46, "4.12"),
            ("bind", 64, "4.17"),
            ("setsockopt", 49, "4.13"),
            ("set_retval", 187, "5.18"),
            ("skc_to_tcp_timewait_sock", 138, "5.9"),
        )
    },
    "cgroup2": _Probe(
        "4.5", "egress of sockets", _have_filesystem("cgroup2"), "CONFIG_CGROUPS", required=False
    ),
    "cgroup-connect": _Probe(
        "5.7",
        "egress of sockets",
        _have_cgroup_hook(_SOCK_ADDR, _CONNECT),
        "CONFIG_CGROUP_BPF",
        required=False,
    ),
    "cgroup-sendmsg": _Probe(
        "5.7",
        "errors that unconnected UDP sockets see at once",
        _have_cgroup_hook(_SOCK_ADDR, _SENDMSG),
        "CONFIG_CGROUP_BPF",
        required=False,
    ),
    "cgroup-recvmsg": _Probe(
        "5.7",
        "lookups on loopback",
        _have_cgroup_hook(_SOCK_ADDR, _RECVMSG),
        "CONFIG_CGROUP_BPF",
        required=False,
    ),
    "cgroup-getpeername": _Probe(
        "5.8",
        "lookups on loopback",
        _have_cgroup_hook(_SOCK_ADDR, _GETPEERNAME),
        "CONFIG_CGROUP_BPF",
        required=False,
    ),
    "cgroup-bind": _Probe(
        "5.7",
        "sockets that choose their ports",
        _have_cgroup_hook(_SOCK_ADDR, _BIND),
        "CONFIG_CGROUP_BPF",
        required=False,
    ),
    "cgroup-release": _Probe(
        "5.9", "egress of sockets", _have_cgroup_hook(_SOCK, _RELEASE), "CONFIG_CGROUP_BPF", required=False
    ),
    "bpf_probe_read_kernel_str": _Probe(
        "5.5", _RESTARTED, _have_helper(_RAW_TRACEPOINT, 115), "CONFIG_BPF_EVENTS", required=False
    ),
    "cgroup-mkdir": _Probe(
        "5.19",
        _RESTARTED,
        _have_tracepoint("cgroup_mkdir"),
        "CONFIG_BPF_EVENTS",
        required=False,
    ),
}

FOR_SOCKETS: Final = tuple(name for name, probe in _PROBES.items() if not probe.required)

# Questions that need no privilege.
_ANYBODY: Final = frozenset(_PROBES[name].ask for name in ("btf", "bpffs", "cgroup2", "cgroup-mkdir"))


# -- asking --------------------------------------------------------------------------------------------------


@contextmanager
def _loaded(kind: int, flags: int = 0, attach_type: int = 0, code: bytes = _RETURN) -> Iterator[int]:
    """The descriptor of a program that does nothing. Raises OSError when the kernel does not take it."""
    options = ffi.new(
        "struct bpf_prog_load_opts *", {"prog_flags": flags, "expected_attach_type": attach_type}
    )
    options.sz = ffi.sizeof(options[0])
    count = len(code) // _INSTRUCTION_BYTES
    program = _checked(load_library().bpf_prog_load(kind, ffi.NULL, b"GPL", code, count, options))
    try:
        yield program
    finally:
        os.close(program)


def _attaches(program: int, attach_type: int, flags: int) -> bool | None:
    """Whether a link to loopback can be made, in a network namespace nobody else sees."""
    options = ffi.new("struct bpf_link_create_opts *", {"flags": flags})
    options.sz = ffi.sizeof(options[0])

    def attempt() -> bool | None:
        if ffi.dlopen(None).unshare(_CLONE_NEWNET) < 0:
            return None  # says nothing about attaching
        os.close(_checked(load_library().bpf_link_create(program, _LOOPBACK, attach_type, options)))
        return True

    return _in_thread(attempt)


def _in_thread(attempt: Callable[[], bool | None]) -> bool | None:
    """Runs it in a thread of its own: a network namespace belongs to a thread and ends with the last one."""
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append(attempt())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=call, name="probe")
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    assert outcome[0] is None or isinstance(outcome[0], bool)
    return outcome[0]


def _told(answer: int) -> bool | None:
    return None if answer < 0 else bool(answer)


def _checked(result: int) -> int:
    """Libbpf hands back the negative error number; libc hands back -1 and sets errno (EPERM is 1: the same)."""
    if result < 0:
        number = -result if result < -1 else ffi.errno
        raise OSError(number, os.strerror(number))
    return result
