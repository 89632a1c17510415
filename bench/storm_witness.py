"""The internet's side of the storm: answers every conversation with what it saw.

`python -m bench.storm_witness DESTINATIONS` answers on TCP and UDP port 4000 of the destinations: the words of a
conversation, the address and the port that it came from. Each line on its standard input is answered with a line of
JSON: what it has seen so far, which source ports are live towards each destination, and whether two live conversations
of UDP ever had one five-tuple: the words of one came before another had said goodbye. Of TCP the kernel would never
show it: storm_watch.py looks for it.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
from collections import Counter
from typing import Any

from bench.storm_worker import LINE_BYTES, PORT, destination

Tuple = tuple[str, int, str]  # source address and port, destination


class Witness:
    """Answers, and counts."""

    def __init__(self, destinations: int) -> None:
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
            "counts": self.counts,
            "shared": self.shared[:10],
            "live": live,
        }
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    Witness(int(sys.argv[1])).serve()
