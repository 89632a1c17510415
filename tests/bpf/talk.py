"""One TCP conversation through the data path, as two honest ends would have it: each packet carries the numbers
that its sender's own come from, unless a test says otherwise.
"""

from __future__ import annotations

from tests.bpf.frames import CLIENT, FROM_WIRE, REMOTE, local_end, tcp
from tests.bpf.world import Ran, World

NUMBERS = 1 << 32
CLIENT_FIRST, PEER_FIRST = 7000, 3000


def length(flags: str, payload: bytes = b"") -> int:
    """How far a segment moves its sender's numbers."""
    return len(payload) + ("S" in flags) + ("F" in flags)


class Conversation:
    """`out` and `back` send one packet with the flags; `client` and `peer` are the ends' next numbers."""

    def __init__(
        self,
        world: World,
        client: str = CLIENT,
        remote: str = REMOTE,
        first: tuple[int, int] = (CLIENT_FIRST, PEER_FIRST),
    ) -> None:
        self.world, self.source, self.remote = world, client, remote
        self.client, self.peer = first
        self._peer_spoke = False
        self.opening = world.out(self._frame_out("S"))
        self.local = local_end(self.opening.frame) if self.opening.outcome else ""

    def established(self) -> Conversation:
        self.back("SA")
        self.out("A")
        return self

    def out(self, flags: str, payload: bytes = b"") -> Ran:
        """The client sends; a SYN begins a new conversation."""
        if "S" in flags:
            self.client += 1000
        ran = self.world.out(self._frame_out(flags, payload))
        assert ran.outcome == "out", ran
        return ran

    def back(self, flags: str, payload: bytes = b"") -> Ran:
        """The peer sends; a SYN after its first packet adds nothing."""
        sequence = self.peer - ("S" in flags and self._peer_spoke)
        self._peer_spoke = True
        ran = self.world.back(self._frame_back(flags, payload, sequence))
        self.peer = (sequence + length(flags, payload)) % NUMBERS
        assert ran.outcome == "in", ran
        return ran

    def forged_out(self, flags: str, sequence: int, payload: bytes = b"", acknowledgement: int = 0) -> Ran:
        """With the client's addresses, and any numbers."""
        frame = tcp(
            self.source,
            self.remote,
            flags,
            payload,
            sequence=sequence % NUMBERS,
            acknowledgement=acknowledgement % NUMBERS,
        )
        return self.world.out(frame)

    def forged_back(self, flags: str, sequence: int, payload: bytes = b"", acknowledgement: int = 0) -> Ran:
        """With the peer's addresses, and any numbers."""
        frame = tcp(
            self.remote,
            self.local,
            flags,
            payload,
            macs=FROM_WIRE,
            sequence=sequence % NUMBERS,
            acknowledgement=acknowledgement % NUMBERS,
        )
        return self.world.back(frame)

    def _frame_out(self, flags: str, payload: bytes = b"") -> bytes:
        sequence, self.client = self.client, (self.client + length(flags, payload)) % NUMBERS
        acknowledgement = self.peer if "A" in flags else 0
        return tcp(
            self.source, self.remote, flags, payload, sequence=sequence, acknowledgement=acknowledgement
        )

    def _frame_back(self, flags: str, payload: bytes, sequence: int) -> bytes:
        acknowledgement = self.client if "A" in flags else 0
        return tcp(
            self.remote,
            self.local,
            flags,
            payload,
            macs=FROM_WIRE,
            sequence=sequence % NUMBERS,
            acknowledgement=acknowledgement,
        )
