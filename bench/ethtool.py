"""Generic receive offload of an interface, through the ethtool ioctl. Acts in the caller's network namespace."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from typing import Final

_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_SGRO: Final = 0x2C
_IFREQ_BYTES: Final = 40  # struct ifreq on 64-bit Linux


def set_gro(interface: str, enabled: bool) -> None:
    """Switches it; OSError when the kernel refuses."""
    value = array.array(
        "I", (_ETHTOOL_SGRO, int(enabled))
    )  # struct ethtool_value; its address goes into struct ifreq
    request = struct.pack("16sP", interface.encode(), value.buffer_info()[0]).ljust(_IFREQ_BYTES, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        fcntl.ioctl(anything, _SIOCETHTOOL, request)
