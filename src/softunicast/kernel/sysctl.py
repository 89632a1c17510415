"""Reading and writing the network settings under /proc/sys/net of the caller's network namespace.

A setting is named by its path below /proc/sys ("net/ipv4/conf/eth0.100/forwarding"), because dots are legal
in interface names. Nothing is remembered here: whoever changes a setting notes the original first.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from softunicast.core.errors import HostError, KernelError

ROOT: Final = Path("/proc/sys")


def ipv4_conf(interface: str, key: str) -> str:
    """The name of an interface's setting; `interface` may be "all", "default" or "lo"."""
    return f"net/ipv4/conf/{interface}/{key}"


def ipv6_conf(interface: str, key: str) -> str:
    """The same for IPv6."""
    return f"net/ipv6/conf/{interface}/{key}"


def read(name: str) -> int | None:
    """The value, or None when there is no such setting (the interface is gone)."""
    try:
        return int((ROOT / name).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise KernelError(f"cannot read sysctl {name}: {error}") from error


def read_range(name: str) -> tuple[int, int]:
    """A setting of two numbers, such as net/ipv4/ip_local_port_range."""
    try:
        low, high = (ROOT / name).read_text().split()
        return int(low), int(high)
    except (OSError, ValueError) as error:
        raise KernelError(f"cannot read sysctl {name}: {error}") from error


def write(name: str, value: int | str) -> None:
    """Sets the value. Raises HostError when it is not there or not ours to write, KernelError otherwise."""
    try:
        (ROOT / name).write_text(f"{value}\n")
    except FileNotFoundError as error:
        raise HostError(f"cannot set sysctl {name}={value}: it does not exist") from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise HostError(
                f"cannot set sysctl {name}={value}: {error.strerror}",
                "run as root, with /proc/sys mounted writable",
            ) from error
        raise KernelError(f"cannot set sysctl {name}={value}: {error.strerror}", error.errno or 0) from error
