"""The XDP program that lets everything pass. At the far end of a veth it makes redirected frames arrive."""

from __future__ import annotations

from pathlib import Path

from softunicast.kernel import links
from softunicast.kernel.objects import BpfObject, attach_xdp


def attach_pass(interface: str, pin: Path) -> None:
    """Attaches the XDP program that lets everything pass, and pins it: see bpf/pass.bpf.c."""
    obj = BpfObject.load("pass")
    try:
        attach_xdp(obj.programs["pass"], links.interface(interface).index, pin).close()
    finally:
        obj.close()
