"""The internet's side of the storm: answers every conversation with what it saw, and sees whether two live ones ever
have one five-tuple.

`python -m bench.storm_witness DESTINATIONS INTERFACE` answers on TCP and UDP port 4000 of the destinations: the words
of a conversation, the address and the port that it came from. Each line on its standard input is answered with a line
of JSON: what it has seen so far, and which source ports are live towards each destination.

Two live conversations show in TCP as a SYN of another first sequence number on a tuple whose conversation has seen
neither an RST nor both FINs: looked for in the packets themselves, because the kernel would never show it to a
program. In UDP: as the words of another conversation before the first has said goodbye.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import socket
import struct
import sys
import threading
from collections import Counter
from typing import Any, Final

from bench.storm_worker import LINE_BYTES, PORT, destination

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

    def packet(self, frame: bytes, outgoing: bool) -> None:
        """What one packet with SYN, FIN or RST says."""
        source, target = socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
        source_port, target_port, sequence = struct.unpack_from("!HHI", frame, 34)
        flags = frame[47]
        key = (target, target_port, source) if outgoing else (source, source_port, target)
        if PORT not in (source_port, target_port):
            return
        known = self._live.get(key)
        if flags & _RST:
            self._live.pop(key, None)
        elif flags & _SYN:
            if outgoing:
                return
            if known is not None and known[0] != sequence:
                self.shared.append(f"tcp {key}: began again while it was live")
            if known is None or known[0] != sequence:
                self.begun += 1
                self._live[key] = (sequence, 0)
        elif known is not None:
            fins = known[1] | (2 if outgoing else 1)
            if fins == 3:
                del self._live[key]
            else:
                self._live[key] = (known[0], fins)


class Witness:
    """Answers, and counts."""

    def __init__(self, destinations: int, interface: str) -> None:
        self._watch = Watch(interface)
        self._selector = selectors.DefaultSelector()
        self._live: dict[tuple[str, Tuple], str] = {}
        self.counts: Counter[str] = Counter()
        self.shared: list[str] = []
        listener = socket.create_server(("0.0.0.0", PORT), backlog=4096)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        for number in range(destinations):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((destination(number), PORT))
            made.setblocking(False)
            self._selector.register(made, selectors.EVENT_READ, self._datagrams)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._report)

    def serve(self) -> None:
        """Until the input ends."""
        sys.stdout.write("{}\n")
        sys.stdout.flush()
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        try:
            while True:
                made, peer = listener.accept()
                made.setblocking(False)
                tuple_ = (*peer, made.getsockname()[0])
                self.counts["tcp"] += 1
                self._live["tcp", tuple_] = ""
                self._selector.register(
                    made, selectors.EVENT_READ, lambda it, at=tuple_: self._stream(it, at)
                )
        except OSError:
            return

    def _stream(self, made: socket.socket, tuple_: Tuple) -> None:
        try:
            words = made.recv(LINE_BYTES)
            if words:
                made.sendall(f"{words.decode().strip()} {tuple_[0]} {tuple_[1]}\n".encode())
                return
        except BlockingIOError:
            return
        except OSError:
            self.counts["tcp reset"] += 1
        self._selector.unregister(made)
        made.close()
        self._live.pop(("tcp", tuple_), None)

    def _datagrams(self, made: socket.socket) -> None:
        here = made.getsockname()[0]
        try:
            while True:
                words, peer = made.recvfrom(LINE_BYTES)
                self._datagram(made, words.decode(), (*peer, here))
        except BlockingIOError:
            return

    def _datagram(self, made: socket.socket, words: str, tuple_: Tuple) -> None:
        goodbye, name = words.startswith("bye "), words.removeprefix("bye ")
        known = self._live.get(("udp", tuple_))
        if known is not None and known != name:
            self.shared.append(f"udp {tuple_}: {name} while {known} was live")
        if known is None and not goodbye:
            self.counts["udp"] += 1
        if goodbye:
            self._live.pop(("udp", tuple_), None)
        else:
            self._live["udp", tuple_] = name
        made.sendto(f"{name} {tuple_[0]} {tuple_[1]}".encode(), tuple_[:2])

    def _report(self, _: Any) -> None:
        if not os.read(sys.stdin.fileno(), LINE_BYTES):
            sys.exit()
        live: dict[str, dict[str, list[int]]] = {"tcp": {}, "udp": {}}
        for protocol, (_, port, here) in self._live:
            live[protocol].setdefault(here, []).append(port)
        report = {
            "counts": {**self.counts, "tcp begun": self._watch.begun},
            "shared": (self._watch.shared + self.shared)[:10],
            "lost": self._watch.lost(),
            "live": live,
        }
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    Witness(int(sys.argv[1]), sys.argv[2]).serve()
