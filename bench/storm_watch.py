"""Sees whether two live TCP conversations ever leave with one five-tuple: a SYN of another first sequence number on a
tuple whose conversation has seen neither an RST nor both FINs.

`python -m bench.storm_watch INTERFACE` looks at the packets on the uplink of the server, because there they are in the
order in which they were made: further on, an RST and the next SYN that left by different processors may change places.
Also says which live conversations the far end reset: softunicast sends no RST to anybody.
Each line on its standard input is answered with a line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import sys
import threading
from typing import Final

from bench.storm_worker import PORT

_ETH_P_IP, _ETH_P_ALL = 0x0800, 3
_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_BUFFER_BYTES: Final = 64 << 20
# TCP over IPv4 without options, with SYN, FIN or RST: (code, jump if true, jump if false, operand).
_FILTER: Final = (
    (0x28, 0, 0, 12),
    (0x15, 0, 5, _ETH_P_IP),
    (0x30, 0, 0, 23),
    (0x15, 0, 3, socket.IPPROTO_TCP),
    (0x30, 0, 0, 47),
    (0x45, 0, 1, _FIN | _SYN | _RST),
    (0x06, 0, 0, 64),
    (0x06, 0, 0, 0),
)

Tuple = tuple[str, int, str]  # source address and port, destination


class Watch:
    """Reads the packets of an interface in a thread: which TCP conversations are live, by the tuple."""

    def __init__(self, interface: str) -> None:
        self.shared: list[str] = []
        self.begun = 0
        self.resets: list[str] = []
        self._live: dict[
            Tuple, tuple[int, int]
        ] = {}  # first sequence number, FINs: 1 from the source, 2 to it
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        code = b"".join(struct.pack("HBBI", *one) for one in _FILTER)
        kept = ctypes.create_string_buffer(code)
        program = struct.pack("HxxxxxxQ", len(_FILTER), ctypes.addressof(kept))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._socket.bind((interface, _ETH_P_ALL))
        threading.Thread(target=self._read, daemon=True).start()

    def lost(self) -> int:
        """Packets for which there was no room, since the last time."""
        return int(struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1])

    def _read(self) -> None:
        while True:
            frame, (_, _, direction, *_) = self._socket.recvfrom(64)
            self.packet(frame, direction == socket.PACKET_OUTGOING)

    def packet(self, frame: bytes, sent: bool) -> None:
        """What one packet with SYN, FIN or RST says; `sent`: not received."""
        source, target = socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
        source_port, target_port, sequence = struct.unpack_from("!HHI", frame, 34)
        flags = frame[47]
        key = (source, source_port, target) if sent else (target, target_port, source)
        if PORT not in (source_port, target_port):
            return
        known = self._live.get(key)
        if flags & _RST:
            if known is not None and not sent:
                self.resets.append(f"tcp {key}, begun with {known[0]}: reset by the far end, {sequence}")
            self._live.pop(key, None)
        elif flags & _SYN:
            if not sent:
                return
            if known is not None and known[0] != sequence:
                self.shared.append(f"tcp {key}: began again while it was live")
            if known is None or known[0] != sequence:
                self.begun += 1
                self._live[key] = (sequence, 0)
        elif known is not None:
            fins = known[1] | (1 if sent else 2)
            if fins == 3:
                del self._live[key]
            else:
                self._live[key] = (known[0], fins)


def main(interface: str) -> None:
    """Until the input ends."""
    watch = Watch(interface)
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        report = {
            "begun": watch.begun,
            "shared": watch.shared[:10],
            "resets": watch.resets[:10],
            "lost": watch.lost(),
        }
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
