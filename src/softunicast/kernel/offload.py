"""Transmit checksum offload of an interface, through the ethtool ioctl.

A veth whose offload is on sends packets with partial checksums and trusts the peer to know. A packet that XDP
sends on, or redirects, carries that half-done checksum to the wire and is lost: labs switch the offload off where
such packets start. Acts in the network namespace of the calling thread.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

from softunicast.core.errors import KernelError

_SIOCETHTOOL = 0x8946
_ETHTOOL_GTXCSUM = 0x16
_ETHTOOL_STXCSUM = 0x17
_IFREQ_SIZE = 40  # struct ifreq on 64-bit Linux
_NAME_BYTES_MAX = 15


def tx_checksum(interface: str) -> bool:
    """Whether the interface leaves transmit checksums to somebody further on."""
    return bool(_ethtool(interface, _ETHTOOL_GTXCSUM, 0))


def set_tx_checksum(interface: str, enabled: bool) -> None:
    """Switch it. The kernel switches segmentation offload off together with it. KernelError when refused."""
    _ethtool(interface, _ETHTOOL_STXCSUM, int(enabled))


def _ethtool(interface: str, command: int, value: int) -> int:
    name = interface.encode()
    if not 0 < len(name) <= _NAME_BYTES_MAX:
        raise KernelError(f"cannot switch checksum offload of {interface!r}: not the name of an interface")
    request = array.array("I", (command, value))  # struct ethtool_value; its address goes into struct ifreq
    address, _ = request.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        try:
            fcntl.ioctl(anything, _SIOCETHTOOL, struct.pack("16sP", name, address).ljust(_IFREQ_SIZE, b"\0"))
        except OSError as error:
            raise KernelError(
                f"cannot switch checksum offload of {interface}: {error.strerror}", error.errno or 0
            ) from error
    return request[1]
