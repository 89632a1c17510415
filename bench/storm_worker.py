"""One process of the storm: conversations opened and closed as fast as it can, from several threads.

`python -m bench.storm_worker FIRST LAST ADDRESS` reads orders from its standard input, one a line, and answers each
with one line of JSON: `storm SECONDS DESTINATIONS` opens and closes; `hold SECONDS WHERE MOST` opens conversations to
one destination for so long, refused or not, and keeps them, up to so many a thread; `end` closes everything. It is an
ordinary program: whether its packets are forwarded or its sockets are in an agreement, it does not know.

Every conversation has a name of its own, which it sends, and which the other side (storm_witness.py) must send back
along with the port that it saw; the port must lie in FIRST to LAST of ADDRESS.
"""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from typing import Final

THREADS: Final = 3
PORT: Final = 4000
ANSWER_S: Final = 10.0
UDP_TRIES: Final = 5
PAUSE_S: Final = 0.002  # after a refusal
HELD_S: Final = 0.02  # a conversation lasts so long at most
LINE_BYTES: Final = 256


def destination(number: int) -> str:
    """The addresses of the internet's witness."""
    return f"203.0.113.{101 + number}"


class Worker:
    """See the module. `counts`: what came of the conversations; `faults`: what must not be, in words."""

    def __init__(self, first: int, last: int, address: str) -> None:
        self._ports = range(first, last + 1)
        self._address = address
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.kept: list[socket.socket] = []

    def storm(self, thread: int, seconds: float, destinations: int) -> None:
        """Opens and closes until the time is over."""
        draw, until, number = random.Random(f"{os.getpid()}.{thread}"), time.monotonic() + seconds, 0
        while time.monotonic() < until:
            number += 1
            protocol = draw.choice(("tcp", "udp"))
            name = f"{os.getpid()}.{thread}.{number}.{protocol}.{draw.getrandbits(64):x}"
            opened = self._open(name, protocol, destination(draw.randrange(destinations)))
            if opened is None:
                time.sleep(PAUSE_S * draw.random())
                continue
            time.sleep(HELD_S * draw.random() ** 4)
            self._close(opened, name, protocol, draw.random() < 0.5)

    def hold(self, thread: int, seconds: float, where: int, most: int) -> None:
        """Opens and keeps until the time is over; at most so many of each protocol."""
        until, number, kept = time.monotonic() + seconds, 0, Counter[str]()
        while time.monotonic() < until:
            for protocol in ("tcp", "udp"):
                if kept[protocol] >= most:
                    time.sleep(PAUSE_S * 5)
                    continue
                number += 1
                opened = self._open(
                    f"{os.getpid()}.{thread}.{number}.{protocol}.kept", protocol, destination(where)
                )
                if opened is None:
                    time.sleep(PAUSE_S * 5)
                else:
                    kept[protocol] += 1
                    with self._lock:
                        self.counts[f"kept {protocol}"] += 1
                        self.kept.append(opened)

    def _open(self, name: str, protocol: str, address: str) -> socket.socket | None:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        made.settimeout(ANSWER_S)
        try:
            made.connect((address, PORT))
            answer = self._ask(made, protocol, name)
        except OSError as error:
            self._count(f"{protocol} {(error.errno and os.strerror(error.errno)) or 'timed out'}")
            made.close()
            return None
        self._check(made, name, answer)
        self._count(f"{protocol} opened")
        return made

    def _ask(self, made: socket.socket, protocol: str, words: str) -> str:
        if protocol == "tcp":
            made.sendall(words.encode() + b"\n")
            found = b""
            while not found.endswith(b"\n"):
                part = made.recv(LINE_BYTES)
                if not part:
                    raise OSError(errno.ECONNABORTED, "closed by the other side, without a reset")
                found += part
            return found.decode()
        made.settimeout(ANSWER_S / UDP_TRIES)
        for _ in range(UDP_TRIES - 1):  # on a full ring a datagram may be lost
            made.send(words.encode())
            try:
                return made.recv(LINE_BYTES).decode()
            except TimeoutError:
                continue
        made.send(words.encode())
        return made.recv(LINE_BYTES).decode()

    def _check(self, made: socket.socket, name: str, answer: str) -> None:
        """Is it the answer to this, and did it leave from where it must?"""
        got, address, port = (*answer.split(), "", "")[:3]
        if got != name:
            self._fault(f"{name} was answered {answer!r}")
        elif address != self._address or int(port) not in self._ports:
            self._fault(f"{name} left from {address}:{port}")
        local = made.getsockname()
        if local[0] == self._address and local[1] != int(port or 0):
            self._fault(f"{name} says that it leaves from {local[1]}, and left from {port}")

    def _close(self, made: socket.socket, name: str, protocol: str, abruptly: bool) -> None:
        try:
            if protocol == "udp":
                self._ask(made, protocol, f"bye {name}")
            elif abruptly:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError as error:
            self._count(f"{protocol} at its end: {(error.errno and os.strerror(error.errno)) or 'timed out'}")
        made.close()

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _fault(self, what: str) -> None:
        with self._lock:
            self.faults.append(what)


def main(argv: list[str]) -> None:
    """Obeys until the input ends."""
    worker = Worker(int(argv[0]), int(argv[1]), argv[2])
    for line in sys.stdin:
        order, *numbers = line.split()
        if order == "end":
            for made in worker.kept:
                made.close()
            break
        arguments = (float(numbers[0]), *map(int, numbers[1:]))
        threads = [
            threading.Thread(target=getattr(worker, order), args=(number, *arguments))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.stdout.write(json.dumps({"counts": worker.counts, "faults": worker.faults[:10]}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
