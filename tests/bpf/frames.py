"""Frames for the packet tables, built by scapy: it computes every checksum and length, so a frame that the data
path made is right when it equals, byte by byte, the one built here from what it should say.

Ends are "address:port"; for ICMP echo the port is the identifier. Defaults: a client's packet on its way out.
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, in6_chksum
from scapy.layers.l2 import ARP, GRE, Dot1Q, Ether
from scapy.packet import Packet, Raw
from tests.bpf import families

CLIENT_MAC = "02:00:00:00:0c:02"
ONRAMP_MAC = "02:00:00:00:0c:01"
ONRAMP2_MAC = "02:00:00:00:0d:01"
UPLINK_MAC = "02:00:00:00:00:01"
NEIGHBOUR_MAC = "02:00:00:00:00:02"
GATEWAY_MAC = "02:00:00:00:00:fe"

Macs = tuple[str, str]  # source, destination
FROM_CLIENT: Macs = (CLIENT_MAC, ONRAMP_MAC)
TO_CLIENT: Macs = (ONRAMP_MAC, CLIENT_MAC)
FROM_WIRE: Macs = (GATEWAY_MAC, UPLINK_MAC)
TO_WIRE: Macs = (UPLINK_MAC, GATEWAY_MAC)

FRAGMENT, FRAGMENT_BYTES = 44, 8  # of IPv6: the header that says so
PRECEDENCE = 0xC0  # of the data path's own ICMP errors: internetwork control

CLIENT = "10.0.0.2:40000"
REMOTE = "203.0.113.1:443"


def end(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address, int(port)


def ethernet(macs: Macs) -> Packet:
    return Ether(src=macs[0], dst=macs[1])


def fitting(payload: bytes) -> bytes:
    """The largest ones are for an IPv4 header; that of IPv6 has 20 bytes more."""
    return payload[:-20] if families.chosen == 6 and len(payload) >= 1440 else payload


def ip(source: str, destination: str, ttl: int = 64, **fields: Any) -> Packet:
    """The header, of the chosen family. What is in `fields` only IPv4 has, but for the protocol, and `frag` and
    `flags` of a fragment."""
    if families.chosen == 6:
        number = fields.pop("proto", None)
        place = {
            name: fields.pop(name)
            for name in ("frag", "flags")
            if fields.get(name) != "DF" and name in fields
        }
        if fields:
            families.ipv4_only(f"{', '.join(fields)} of its header")
        addresses = [families.current(end(text)[0]) for text in (source, destination)]
        known = {} if number is None else {"nh": 58 if number == 1 else number}
        if not place:
            return IPv6(src=addresses[0], dst=addresses[1], hlim=ttl, **known)
        fragment = IPv6ExtHdrFragment(offset=place.get("frag", 0), m=int("flags" in place), id=7, **known)
        return IPv6(src=addresses[0], dst=addresses[1], hlim=ttl) / fragment
    return IP(src=end(source)[0], dst=end(destination)[0], ttl=ttl, id=7, **fields)


def tcp(
    source: str = CLIENT,
    destination: str = REMOTE,
    flags: str = "S",
    payload: bytes = b"",
    ttl: int = 64,
    macs: Macs = FROM_CLIENT,
    options: list[Any] | None = None,
    ip_options: list[Any] | None = None,
    sequence: int = 5,
    acknowledgement: int = 0,
    **fields: Any,
) -> bytes:
    if ip_options:
        fields["options"] = ip_options
    segment = TCP(
        sport=end(source)[1],
        dport=end(destination)[1],
        flags=flags,
        seq=sequence,
        ack=acknowledgement,
        options=options or [],
    )
    return bytes(ethernet(macs) / ip(source, destination, ttl, **fields) / segment / Raw(fitting(payload)))


def udp(
    source: str = CLIENT,
    destination: str = REMOTE,
    payload: bytes = b"question",
    ttl: int = 64,
    macs: Macs = FROM_CLIENT,
    checksum: int | None = None,
    **fields: Any,
) -> bytes:
    datagram = UDP(sport=end(source)[1], dport=end(destination)[1], chksum=checksum)
    return bytes(ethernet(macs) / ip(source, destination, ttl, **fields) / datagram / Raw(fitting(payload)))


def echo(
    source: str = CLIENT,
    destination: str = REMOTE,
    identifier: int = 40000,
    reply: bool = False,
    payload: bytes = b"ping",
    ttl: int = 64,
    macs: Macs = FROM_CLIENT,
    **fields: Any,
) -> bytes:
    message = ICMP(type=0 if reply else 8, id=identifier, seq=3)
    if families.chosen == 6:
        message = (ICMPv6EchoReply if reply else ICMPv6EchoRequest)(id=identifier, seq=3)
    return bytes(ethernet(macs) / ip(source, destination, ttl, **fields) / message / Raw(fitting(payload)))


def packet(
    source: str = CLIENT,
    destination: str = REMOTE,
    content: Packet | None = None,
    macs: Macs = FROM_CLIENT,
    **fields: Any,
) -> bytes:
    """Any other IP packet."""
    return bytes(ethernet(macs) / ip(source, destination, **fields) / (content or Raw(b"x" * 24)))


def gre(source: str = CLIENT, destination: str = REMOTE, macs: Macs = FROM_CLIENT) -> bytes:
    return packet(source, destination, GRE() / IP() / UDP(), macs)


def tagged(frame: bytes, vlan: int = 5) -> bytes:
    """The same frame with an 802.1Q tag."""
    whole = Ether(frame)
    inner = whole.payload
    return bytes(Ether(src=whole.src, dst=whole.dst) / Dot1Q(vlan=vlan) / inner)


def arp(macs: Macs = FROM_CLIENT) -> bytes:
    return bytes(ethernet(macs) / ARP(psrc="10.0.0.2", pdst="198.51.100.10"))


def refusal(
    quoted: bytes, kind: int, code: int, source: str = "10.0.0.1", macs: Macs = TO_CLIENT, transport: int = 8
) -> bytes:
    """The ICMP error that answers the frame `quoted`: its IP header and the first bytes of its transport."""
    if families.chosen == 6:
        inner = quoted[14:][: 40 + transport]
        to = IPv6(quoted[14:]).src
        return error(f"{source}:0", f"{to}:0", inner, (kind, code), macs=macs)
    inner = quoted[14:][: (quoted[14] & 15) * 4 + transport]
    header = IP(src=source, dst=IP(quoted[14:]).src, ttl=64, id=0, tos=PRECEDENCE)
    return bytes(ethernet(macs) / header / ICMP(type=kind, code=code) / Raw(inner))


def error(
    source: str,
    destination: str,
    quoted: bytes,
    kind: tuple[int, int] = (3, 3),
    word: int = 0,
    ttl: int = 64,
    macs: Macs = FROM_WIRE,
    **fields: Any,
) -> bytes:
    """An ICMP error from any router; `quoted` are the bytes it quotes, `word` its second four (MTU, pointer)."""
    message = struct.pack("!BBHI", *families.kind(kind), 0, word) + quoted
    if families.chosen == 6:
        header = ip(source, destination, ttl, **fields, proto=1)
        summed = struct.pack("!H", in6_chksum(58, header, message))
        return bytes(ethernet(macs) / header / Raw(message[:2] + summed + message[4:]))
    checksum = 0xFFFF ^ sum_words(message)
    whole = message[:2] + struct.pack("!H", checksum) + message[4:]
    return bytes(ethernet(macs) / ip(source, destination, ttl, proto=1, **fields) / Raw(whole))


def quoted(frame: bytes, transport: int = 8) -> bytes:
    """What an error quotes of the frame: its IP header and the first bytes of its transport."""
    return frame[14:][: transport + (40 if families.chosen == 6 else (frame[14] & 15) * 4)]


def changed(frame: bytes, at: int, value: bytes) -> bytes:
    """The frame with the bytes at an offset replaced; checksums are left as they are."""
    return frame[:at] + value + frame[at + len(value) :]


def transport_at() -> int:
    """Where the transport header of a frame without IP options begins."""
    return 54 if families.chosen == 6 else 34


def source_of(frame: bytes) -> str:
    """The source address, as tests write it."""
    return ".".join(str(byte) for byte in (frame[34:38] if families.chosen == 6 else frame[26:30]))


def local_end(frame: bytes) -> str:
    """The source of a translated packet: "address:port"; ICMP echo: the identifier."""
    if families.chosen == 6:
        address = families.four(IPv6Address(frame[22:38]))
        number, content = content6(frame)
        return f"{address}:{int.from_bytes(content[4:6] if number == 58 else content[:2], 'big')}"
    found = IP(frame[14:])
    if ICMP in found:
        return f"{found.src}:{found[ICMP].id}"
    return f"{found.src}:{found.payload.sport}"


def sum_words(data: bytes) -> int:
    """The one's complement sum of RFC 1071."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksums_right(frame: bytes) -> tuple[bool, bool]:
    """Of the IPv4 header and of what it carries (TCP, UDP, ICMP; UDP without one counts as right)."""
    if families.chosen == 6:
        number, content = content6(frame)
        return True, sum_words(
            frame[22:54] + len(content).to_bytes(2, "big") + bytes([0, number]) + content
        ) == 0xFFFF
    header_bytes = (frame[14] & 15) * 4
    total = int.from_bytes(frame[16:18], "big")
    header, segment = frame[14 : 14 + header_bytes], frame[14 + header_bytes : 14 + total]
    header_right = sum_words(header) == 0xFFFF
    protocol = header[9]
    if protocol == 1:
        return header_right, sum_words(segment) == 0xFFFF
    if protocol == 17 and segment[6:8] == b"\0\0":
        return header_right, True
    # The pseudo header of UDP carries the length that the UDP header claims.
    length = segment[4:6] if protocol == 17 else len(segment).to_bytes(2, "big")
    covered = segment[: int.from_bytes(length, "big")]
    return header_right, sum_words(header[12:20] + bytes([0, protocol]) + length + covered) == 0xFFFF


def with_ip(frame: bytes, **fields: Any) -> bytes:
    """The same frame with other fields in the (first) IP header, and its checksum."""
    if families.chosen == 6:
        return _with_ipv6(frame, **fields)
    whole = Ether(frame)
    for name, value in (fields | {"chksum": None}).items():
        setattr(whole[IP], name, value)
    return bytes(whole)


def content6(frame: bytes) -> tuple[int, bytes]:
    """Of IPv6, perhaps with a fragment header: the protocol, and what follows the headers."""
    at, number, behind = 54, frame[20], 54 + int.from_bytes(frame[18:20], "big")
    if number == FRAGMENT:
        at, number = at + FRAGMENT_BYTES, frame[at]
    return number, frame[at:behind]


def _with_ipv6(
    frame: bytes,
    ttl: int | None = None,
    id: int | None = None,
    frag: int | None = None,
    flags: str | None = None,
    **fields: Any,
) -> bytes:
    """What IPv4 has in its header for fragments is in one of its own: of a whole packet, if there was none."""
    if fields:
        families.ipv4_only(f"{', '.join(fields)} of its header")
    made = bytearray(frame)
    if ttl is not None:
        made[21] = ttl
    if (id, frag, flags) == (None, None, None):
        return bytes(made)
    if made[20] != FRAGMENT:
        made[54:54] = bytes([made[20], 0, 0, 0, 0, 0, 0, 7])
        made[20] = FRAGMENT
        made[18:20] = (int.from_bytes(made[18:20], "big") + FRAGMENT_BYTES).to_bytes(2, "big")
    if id is not None:
        made[58:62] = id.to_bytes(4, "big")
    place = int.from_bytes(made[56:58], "big")
    place = place if frag is None else frag << 3 | place & 7
    place = place if flags is None else place & ~1 | int(flags == "MF")
    made[56:58] = place.to_bytes(2, "big")
    return bytes(made)
