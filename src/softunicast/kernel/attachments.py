"""Which hook suits a device: XDP or tc. Asked of the device and of its driver, with nothing attached.

Decides and does nothing; the data path attaches. Acts in the network namespace of the calling thread.
"""

from __future__ import annotations

from pathlib import Path

from softunicast.core.errors import HostError
from softunicast.kernel import links
from softunicast.kernel.native_xdp import have_native_xdp, takes_redirected
from softunicast.kernel.objects import BpfObject, attach_xdp


def suits_xdp(device: links.Interface) -> bool:
    """XDP is for devices that bring frames from a wire and whose driver runs it; a veth or a TUN brings large packets
    from a local stack, which XDP would force to be cut (no GSO)."""
    return device.kind is None and bool(have_native_xdp(device.name))


def choose_attachment(device: links.Interface, wanted: str, uplink: str) -> str:
    """Of an on-ramp: "tc" or "xdp". HostError when XDP is wanted and the uplink would lose its frames, or the device
    has none."""
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


def attach_pass(interface: str, pin: Path) -> None:
    """Attaches the XDP program that lets everything pass, and pins it: see bpf/pass.bpf.c."""
    obj = BpfObject.load("pass")
    try:
        attach_xdp(obj.programs["pass"], links.interface(interface).index, pin).close()
    finally:
        obj.close()
