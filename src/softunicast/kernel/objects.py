"""Loading BPF objects, and what is pinned of them: maps, programs, links.

An object's maps are pinned by name in one folder of a bpffs and shared by all objects that name them; what
is pinned already is used again, so a restarted agent finds its tables and flows as they were. Attachments
are bpf_links, pinned too: they outlive the process, and a new program takes a link over atomically.
Everything acts in the network namespace of the calling thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from softunicast.core.errors import HostError, KernelError
from softunicast.kernel.libbpf import check, ffi, kernel_error, load_library
from softunicast.kernel.maps import Map

OBJECTS: Final = Path(__file__).parent / "bpf"

ATTACH_XDP: Final = 37
ATTACH_TCX_INGRESS: Final = 46
ATTACH_TCX_EGRESS: Final = 47
XDP_GENERIC, XDP_NATIVE = 1 << 1, 1 << 2
TCX_FIRST: Final = 1 << 3  # BPF_F_BEFORE, and nothing named: before all others

_LOG_BYTES: Final = 1 << 20
_BPFFS_MAGIC: Final = 0xCAFE4A11
_BPFFS_USUAL: Final = Path("/sys/fs/bpf")
_PER_CPU_TYPES: Final = {5, 6, 10, 21}


def map_of_fd(fd: int, name: str) -> Map:
    """Describes the map behind a descriptor (struct bpf_map_info)."""
    info = ffi.new("uint32_t[]", 64)
    size = ffi.new("uint32_t *", 256)
    check(load_library().bpf_obj_get_info_by_fd(fd, info, size), f"describing map {name}")
    kind, _, key_bytes, value_bytes, max_entries = info[0:5]
    cpus = load_library().libbpf_num_possible_cpus() if kind in _PER_CPU_TYPES else 0
    return Map(name, fd, key_bytes, value_bytes, max_entries, cpus)


class BpfObject:
    """A loaded object: `maps` and `programs` (descriptors) by name. Close it when done; pins stay.

    What libbpf knew of it is freed once it is loaded: megabytes, and for every object a descriptor of every map.
    """

    def __init__(self, handle: Any, name: str) -> None:
        self._handle = handle
        self._descriptors: list[int] = []
        self.name = name
        self.maps: dict[str, Map] = {}
        self.programs: dict[str, int] = {}

    @classmethod
    def load(
        cls,
        name: str,
        pins: Path | None = None,
        sizes: Mapping[str, int] | None = None,
        shared: Mapping[str, int] | None = None,
        known: Mapping[str, Map] | None = None,
    ) -> Self:
        """Loads `bpf/NAME.bpf.o` of this package.

        `pins`: folder in a bpffs where maps are found or pinned; none: private maps. `sizes`: entries by map
        name, for maps that are created now. `shared`: descriptors of maps to use instead of new ones. `known`: those
        of the pinned maps that the caller has open already, and keeps open for as long.
        Raises KernelError with the telling line of the verifier.
        """
        handle = open_object(name)
        made = cls(handle, name)
        try:
            made._load(pins, sizes or {}, shared or {})
            made._take_over(known or {})
        except BaseException:
            made.close()
            raise
        return made

    def _load(self, pins: Path | None, sizes: Mapping[str, int], shared: Mapping[str, int]) -> None:
        library, logs = load_library(), {}
        for handle in self._each(library.bpf_object__next_map):
            name = ffi.string(library.bpf_map__name(handle)).decode()
            if name.startswith("."):
                continue
            if name in sizes:
                check(library.bpf_map__set_max_entries(handle, sizes[name]), f"sizing map {name}")
            if name in shared:
                check(library.bpf_map__reuse_fd(handle, shared[name]), f"sharing map {name}")
            elif pins is not None:
                pin = str(pins / name).encode()
                check(library.bpf_map__set_pin_path(handle, pin), f"pinning map {name}")
        for handle in self._each(library.bpf_object__next_program):
            name = ffi.string(library.bpf_program__name(handle)).decode()
            logs[name] = ffi.new("char[]", _LOG_BYTES)
            library.bpf_program__set_log_buf(handle, logs[name], _LOG_BYTES)
        result = library.bpf_object__load(self._handle)
        if result < 0:
            raise _load_error(self.name, -result, logs)

    def _take_over(self, known: Mapping[str, Map]) -> None:
        """The descriptors that are needed, from libbpf, which is done with the object then."""
        library = load_library()
        for handle in self._each(library.bpf_object__next_map):
            name = ffi.string(library.bpf_map__name(handle)).decode()
            self.maps[name] = known.get(name) or map_of_fd(self._own(library.bpf_map__fd(handle)), name)
        for handle in self._each(library.bpf_object__next_program):
            name = ffi.string(library.bpf_program__name(handle)).decode()
            self.programs[name] = self._own(library.bpf_program__fd(handle))
        library.bpf_object__close(self._handle)
        self._handle = None

    def _own(self, descriptor: int) -> int:
        try:
            made = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError as error:
            raise kernel_error(error.errno or 0, f"loading {self.name}") from error
        self._descriptors.append(made)
        return made

    def _each(self, following: Any) -> list[Any]:
        found, handle = [], following(self._handle, ffi.NULL)
        while handle != ffi.NULL:
            found.append(handle)
            handle = following(self._handle, handle)
        return found

    def close(self) -> None:
        """Lets go of maps and programs; what is pinned or attached stays in the kernel."""
        if self._handle is not None:
            load_library().bpf_object__close(self._handle)
            self._handle = None
        while self._descriptors:
            os.close(self._descriptors.pop())


def open_object(name: str) -> Any:
    """The file bpf/NAME.bpf.o of this package, read and not loaded. Close the handle when done."""
    path = OBJECTS / f"{name}.bpf.o"
    if not path.exists():
        raise HostError(f"loading {path.name}: the BPF objects are not built", "make setup")
    handle = load_library().bpf_object__open_file(str(path).encode(), ffi.NULL)
    if handle == ffi.NULL:
        raise kernel_error(ffi.errno, f"opening {path.name}")
    return handle


def _load_error(name: str, code: int, logs: Mapping[str, Any]) -> KernelError:
    """The verifier's last word: the line before its statistics, of the program that has one."""
    for program, log in logs.items():
        lines = [line for line in ffi.string(log).decode(errors="replace").splitlines() if line]
        lines = [line for line in lines if not line.startswith(("processed ", "-- "))]
        if lines:  # not a matter of privilege, although the verifier says EACCES, too
            return KernelError(
                f"loading {name}: the kernel refused {program}: {lines[-1]} ({errno.errorcode.get(code, code)})",
                code,
                "see what `softunicast doctor` finds; if nothing, report this with the output of `uname -r`",
            )
    return kernel_error(code, f"loading {name}")


class Link:
    """A pinned attachment of a program to a network device."""

    def __init__(self, fd: int, pin: Path) -> None:
        self.fd = fd
        self.pin = pin

    @classmethod
    def attach(cls, program: int, ifindex: int, kind: int, pin: Path, flags: int = 0) -> Self:
        """Attaches and pins; where the pin exists, its link gets the new program without a gap."""
        library = load_library()
        existing = library.bpf_obj_get(str(pin).encode())
        if existing >= 0:
            if library.bpf_link_update(existing, program, ffi.NULL) == 0:
                return cls(existing, pin)
            os.close(existing)  # its device is gone: the link is an empty shell
            pin.unlink()
        options = ffi.new("struct bpf_link_create_opts *")
        options.sz, options.flags = ffi.sizeof("struct bpf_link_create_opts"), flags
        fd = check(
            library.bpf_link_create(program, ifindex, kind, options),
            f"attaching {pin.name}",
            "see what is attached with: bpftool net; another XDP program must be removed first",
        )
        try:
            check(library.bpf_obj_pin(fd, str(pin).encode()), f"pinning {pin}")
        except KernelError:
            os.close(fd)  # which detaches: it holds nothing else
            raise
        return cls(fd, pin)

    @classmethod
    def attach_anew(cls, program: int, kind: int, pin: Path) -> Self:
        """To what is no device and whose links take no other program: the new one is there before the old one goes."""
        fresh = pin.with_name(f"{pin.name}-new")
        fresh.unlink(missing_ok=True)  # somebody ended between two steps
        made = cls.attach(program, 0, kind, fresh)
        try:
            return cls(made.fd, fresh.rename(pin))
        except OSError as error:
            made.remove()
            raise kernel_error(error.errno or 0, f"pinning {pin}") from error

    def close(self) -> None:
        """Lets go of the descriptor; the pin keeps the attachment."""
        os.close(self.fd)

    def remove(self) -> None:
        """Detaches and unpins."""
        self.pin.unlink(missing_ok=True)
        load_library().bpf_link_detach(self.fd)
        os.close(self.fd)


def attach_xdp(program: int, ifindex: int, pin: Path) -> Link:
    """XDP in the driver where it can, else the slower generic form that every device has."""
    try:
        return Link.attach(program, ifindex, ATTACH_XDP, pin, XDP_NATIVE)
    except KernelError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return Link.attach(program, ifindex, ATTACH_XDP, pin, XDP_GENERIC)


def have_bpffs(path: Path) -> bool:
    """Whether `path` lies in a bpffs."""
    found = subprocess.run(["stat", "-f", "-c", "%t", path], capture_output=True, text=True, check=False)
    return found.returncode == 0 and int(found.stdout, 16) == _BPFFS_MAGIC


def mount_bpffs(path: Path) -> None:
    """Makes `path` the root of a bpffs, unless it lies in one already. /sys/fs/bpf, where only a bpffs can have
    folders, is mounted itself when nothing is there."""
    if _BPFFS_USUAL in path.parents and not have_bpffs(_BPFFS_USUAL):
        mount_bpffs(_BPFFS_USUAL)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"making the folder {path}: {error.strerror}", "name another one in [agent] bpffs"
        ) from error
    if have_bpffs(path):
        return
    done = subprocess.run(["mount", "-t", "bpf", "bpf", path], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"mounting a bpffs on {path}: {done.stderr.strip()}", "run as root")
