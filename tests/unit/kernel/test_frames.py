"""Frames for questions, held against scapy's reading of them, and described as people write them."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from softunicast.core.errors import InputError
from softunicast.kernel.frames import End, build, describe

ENDS = {
    4: (End.parse("10.0.0.2:40000"), End.parse("203.0.113.1:443")),
    6: (End.parse("[fd00::2]:40000"), End.parse("[2001:db8::1]:443")),
}


@pytest.mark.parametrize("version", ENDS)
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
def test_right_by_every_checksum(version: int, protocol: str) -> None:
    """scapy computes lengths and checksums anew: nothing changes."""
    frame = build(protocol, *ENDS[version], flags=("syn",) if protocol == "tcp" else ())
    whole = Ether(frame)
    assert (IP if version == 4 else IPv6) in whole
    layer = whole.payload
    while layer and not isinstance(layer, Raw):
        for name in ("chksum", "cksum", "len", "plen"):
            if name in layer.fields:
                delattr(layer, name)
        layer = layer.payload
    assert bytes(whole) == frame


@pytest.mark.parametrize(
    ("protocol", "version", "said"),
    [
        ("tcp", 4, "tcp 10.0.0.2:40000 > 203.0.113.1:443 [syn], hop limit 9"),
        ("tcp", 6, "tcp [fd00::2]:40000 > [2001:db8::1]:443 [syn], hop limit 9"),
        ("udp", 6, "udp [fd00::2]:40000 > [2001:db8::1]:443, hop limit 9"),
        ("icmp", 4, "icmp echo request id 40000 10.0.0.2 > 203.0.113.1, hop limit 9"),
        ("icmp", 6, "icmp echo request id 40000 fd00::2 > 2001:db8::1, hop limit 9"),
    ],
)
def test_described(protocol: str, version: int, said: str) -> None:
    frame = build(protocol, *ENDS[version], ("syn",) if protocol == "tcp" else (), 9)
    assert describe(frame) == said
    for length in range(14, len(frame)):
        assert describe(frame[:length])


@pytest.mark.parametrize(
    ("kind", "code", "said"), [(1, 1, "administratively prohibited"), (2, 0, "packet too big")]
)
def test_errors_of_icmpv6(kind: int, code: int, said: str) -> None:
    header = IPv6(src="2001:db8::1", dst="fd00::2", nh=58)
    frame = bytes(Ether() / header / Raw(bytes([kind, code]) + bytes(6)))
    assert describe(frame).startswith(f"icmp {said} 2001:db8::1 > fd00::2")


def test_behind_extension_headers() -> None:
    inner = IPv6(build("udp", *ENDS[6])[14:])
    frame = bytes(Ether() / IPv6(src=inner.src, dst=inner.dst) / IPv6ExtHdrDestOpt() / inner.payload)
    assert describe(frame) == "udp [fd00::2]:40000 > [2001:db8::1]:443, hop limit 64"


def test_two_families_are_refused() -> None:
    with pytest.raises(InputError, match="not of one family"):
        build("udp", ENDS[4][0], ENDS[6][1])
    with pytest.raises(InputError, match="has no port"):
        End.parse("2001:db8::1")
