"""What does an interface's driver do for XDP? Asked of the kernel's `netdev` family, with nothing attached.

Attaching a program to find out would make many drivers reset their queues. The names and numbers are those of
<linux/netdev.h> (kernel 6.3). Acts in the network namespace of the calling thread.
"""

from __future__ import annotations

import socket
from typing import Final

from pyroute2.netlink import NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

_DEV_GET: Final = 1  # NETDEV_CMD_DEV_GET
_ACT_BASIC: Final = 1  # NETDEV_XDP_ACT_BASIC: pass, drop, transmit
_ACT_NDO_XMIT: Final = 4  # NETDEV_XDP_ACT_NDO_XMIT: sends frames that are redirected to it


class _Device(genlmsg):  # type: ignore[misc]
    """A device as the family describes it, as far as we read."""

    prefix = "NETDEV_A_DEV_"
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "hex"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


def have_native_xdp(interface: str) -> bool | None:
    """Does it run XDP programs itself? None when it could not be told."""
    features = _features(interface)
    return None if features is None else bool(features & _ACT_BASIC)


def takes_redirected(interface: str) -> bool:
    """Do frames that XDP redirects to it arrive, as it is now? Drivers say so once they have a program themselves; a
    veth when its peer has one, or GRO. Otherwise such frames are lost without a word, so "could not be told" is no."""
    return bool((_features(interface) or 0) & _ACT_NDO_XMIT)


def _features(interface: str) -> int | None:
    """None when it could not be told: no such interface, or a kernel without the family."""
    try:
        index = socket.if_nametoindex(interface)
        with GenericNetlinkSocket() as netlink:
            netlink.bind("netdev", _Device)
            question = _Device()
            question["cmd"], question["version"] = _DEV_GET, 1
            question["attrs"] = [("NETDEV_A_DEV_IFINDEX", index)]
            answers = netlink.nlm_request(question, msg_type=netlink.prid, msg_flags=NLM_F_REQUEST)
            features = next(iter(answers)).get_attr("NETDEV_A_DEV_XDP_FEATURES")
    except (OSError, NetlinkError, StopIteration):
        return None
    return None if features is None else int(features)
