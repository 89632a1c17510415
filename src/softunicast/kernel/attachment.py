"""By what a device's packets are taken, XDP or tc: what suits it, unless the operator says otherwise.

Pure but for what the drivers say of themselves (native_xdp.py).
"""

from __future__ import annotations

from softunicast.core.errors import HostError
from softunicast.kernel import links
from softunicast.kernel.native_xdp import have_native_xdp, takes_redirected


def suits_xdp(device: links.Interface) -> bool:
    """XDP is for devices that bring frames from a wire and whose driver runs it; a veth or a TUN brings large packets
    from a local stack, which XDP would force to be cut (no GSO)."""
    return device.kind is None and bool(have_native_xdp(device.name))


def choose_attachment(device: links.Interface, wanted: str, uplink: str) -> str:
    """Of an on-ramp: "tc" or "xdp". HostError when XDP is wanted and the uplink would lose its frames, or the
    device has none."""
    if device.mac is None and not device.bare:
        raise HostError(
            f"{device.name} is neither Ethernet nor plain IP", "use an interface of another kind as on-ramp"
        )
    if device.bare and wanted == "xdp":
        raise HostError(
            f"{device.name} has no Ethernet header, which XDP needs", f'set attach = "tc" for {device.name}'
        )
    if wanted == "tc" or (wanted == "auto" and not suits_xdp(device)):
        return "tc"
    if takes_redirected(uplink):
        return "xdp"
    if wanted == "xdp":
        raise HostError(
            f"{uplink} does not send what XDP redirects to it: {device.name} cannot be attached by XDP",
            f'set attach = "tc" for {device.name}',
        )
    return "tc"
