#!/usr/bin/env python3
"""A program without privileges that leaves from a softunicast pool with packets of its own making.

    udp_over_tun.py apps 203.0.113.1:7 hello

asks the agent for the on-ramp `apps`, sends one UDP datagram from the first address that it may use, and prints the
answer and who sent it. It has an IP stack of forty lines: whatever comes that is not its answer is not for it.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import select
import struct
import sys
import time

from softunicast.core.errors import SoftunicastError
from softunicast.onramp import SOCKET_DEFAULT, OpenTun, open_tun

PORT = 40000
TRIES, WAIT_S = 5, 1.0
UDP = 17


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


def datagram(source: bytes, destination: bytes, port: int, payload: bytes) -> bytes:
    """A whole IPv4 packet."""
    length = 8 + len(payload)
    udp = struct.pack("!HHHH", PORT, port, length, 0) + payload
    sum_ = checksum(source + destination + struct.pack("!HH", UDP, length) + udp) or 0xFFFF
    udp = udp[:6] + struct.pack("!H", sum_) + udp[8:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, UDP, 0) + source + destination
    return ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + udp


def answer_in(packet: bytes, source: bytes, remote: bytes) -> bytes | None:
    """The payload, when the packet is a datagram from `remote` to us."""
    header_bytes = (packet[0] & 15) * 4
    if packet[0] >> 4 != 4 or packet[9] != UDP or packet[12:16] != remote or packet[16:20] != source:
        return None
    _, to, length, _ = struct.unpack("!HHHH", packet[header_bytes : header_bytes + 8])
    return packet[header_bytes + 8 : header_bytes + length] if to == PORT else None


def ask(tun: OpenTun, destination: bytes, port: int, text: bytes) -> bytes:
    """Sends until there is an answer."""
    # The first address of the first prefix is the network's own name, the second often the server's.
    first = next(one for one in tun.sources if one.version == 4)
    source = (first.network_address + 2).packed
    for _ in range(TRIES):
        os.write(tun.descriptor, datagram(source, destination, port, text))
        deadline = time.monotonic() + WAIT_S
        while select.select([tun], [], [], max(0, deadline - time.monotonic()))[0]:
            found = answer_in(os.read(tun.descriptor, tun.mtu), source, destination)
            if found is not None:
                return found
    raise SystemExit("no answer")


def main() -> None:
    parser = argparse.ArgumentParser(description="One UDP datagram through a softunicast on-ramp.")
    parser.add_argument("onramp")
    parser.add_argument("remote", help="address:port")
    parser.add_argument("text")
    parser.add_argument("--socket", default=SOCKET_DEFAULT)
    given = parser.parse_args()
    address, _, port = given.remote.rpartition(":")
    try:
        with open_tun(given.onramp, given.socket) as tun:
            found = ask(tun, ipaddress.IPv4Address(address).packed, int(port), given.text.encode())
    except SoftunicastError as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write(f"{address} says {found.decode(errors='replace')!r}\n")


if __name__ == "__main__":
    main()
