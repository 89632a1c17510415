"""A running lab `pair` in the hands of a test: run programs in nodes, ask agents, kill and start them, listen.

Everything is seen from outside, as a person would: real programs in the nodes, the command line, the agents'
sockets, and frames on the wires. Nothing here knows how the data path works.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from scapy.layers.l2 import Ether
from scapy.packet import Packet

from softunicast.core.errors import AgentUnreachableError
from softunicast.core.slices import Slice
from softunicast.kernel import cgroups, namespaces
from softunicast.kernel.agreements import Agreements
from softunicast.lab import agents, processes
from softunicast.lab.pair import ECHO_PORT, INTERNET
from softunicast.lab.state import Lab, Process

TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02
CAPTURE_BUFFER_BYTES: Final = 64 << 20
SENTINEL_AGAIN_S: Final = 1.0
FRAME_BYTES_MAX: Final = 1 << 16
_ETH_P_ALL: Final = 3
_SO_RCVBUFFORCE: Final = 33
_SO_TIMESTAMPNS: Final = 35
_SENTINEL_PORT: Final = 9  # discard: whoever receives it says nothing


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """What `condition` gives once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(POLL_S)
    return found


@contextmanager
def excused(lab: Lab, *nodes: str) -> Iterator[Callable[[], object]]:
    """This process, and those that it starts meanwhile, may use shared addresses on these servers as they like.

    What it gives takes the process out again; the sockets that it has by then are excused to the end.
    """
    root = cgroups.find_root()
    assert root is not None
    before = root / Path("/proc/self/cgroup").read_text().rsplit("::/", 1)[1].strip()
    made = root / f"sutest-{os.getpid()}-excused"
    made.mkdir()
    try:
        with ExitStack() as stack:
            for node in nodes:
                agreements = stack.enter_context(Agreements.open(lab.bpffs / node))
                agreements.excuse(cgroups.number(made))
                stack.callback(agreements.remove, cgroups.number(made))
            (made / "cgroup.procs").write_text(str(os.getpid()))
            leave = partial((before / "cgroup.procs").write_text, str(os.getpid()))
            stack.callback(leave)
            yield leave
    finally:
        made.rmdir()


@dataclass(frozen=True, slots=True)
class Done:
    """A program that ended."""

    code: int
    output: str
    complaint: str


class PairLab:
    """See the module. Agents started here belong to the lab: taking it down ends them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._agents = {process.node: process for process in lab.processes if process.name == "agent"}

    # -- programs --------------------------------------------------------------------------------------------

    def run(self, node: str, *argv: str, env: dict[str, str] | None = None) -> Done:
        """Run a program in the node to its end."""

        def inside() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                argv,
                check=False,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                env={**processes.environment(self.lab, node), **(env or {})},
            )

        done = namespaces.run_in(self.lab.namespace(node), inside)
        return Done(done.returncode, done.stdout, done.stderr)

    def good(self, node: str, *argv: str) -> str:
        """The output of a program that has to succeed."""
        done = self.run(node, *argv)
        assert done.code == 0, f"{' '.join(argv)} in {node}: {done}"
        return done.output

    def softunicast(self, node: str, *argv: str) -> Any:
        """What the command prints with --json."""
        return json.loads(self.good(node, "softunicast", *argv, "--json"))

    def probe(self, node: str, *arguments: str, stdin: int | None = None) -> subprocess.Popen[str]:
        """Start a probe of softunicast.lab.traffic; `answer` waits for it."""
        return processes.probe(self.lab, node, arguments, stdin=stdin)

    def download(self, client: str, *options: str) -> subprocess.Popen[str]:
        return self.probe(client, "download", "--url", f"http://{INTERNET}", "--label", client, *options)

    @contextmanager
    def held(
        self, client: str, count: int, protocol: str = "tcp", remote: str = INTERNET
    ) -> Iterator[dict[str, Any]]:
        """Conversations that are open for the length of a with block, and what their opening said. On the way
        out each one has to be alive still, unless it never was."""
        child = self.probe(
            client,
            *("hold", "--protocol", protocol, "--count", str(count)),
            *("--destination", f"{remote}:{ECHO_PORT}"),
            stdin=subprocess.PIPE,
        )
        with child:
            try:
                assert child.stdout is not None
                opened = json.loads(child.stdout.readline())
                yield opened
                output, _ = child.communicate("", timeout=TIMEOUT_S)
                assert json.loads(output)["outcomes"] == opened["outcomes"]
            finally:
                child.kill()

    # -- agents ----------------------------------------------------------------------------------------------

    def ask(self, server: str, path: str) -> Any:
        return agents.ask(self.lab, server, path)

    def answers(self, server: str) -> bool:
        with suppress(AgentUnreachableError):
            self.ask(server, "/v1/status")
            return True
        return False

    def agent(self, server: str) -> Process:
        return self._agents[server]

    def send_agent(self, server: str, number: signal.Signals) -> None:
        os.kill(self._agents[server].pid, number)

    def end_agents(self, number: signal.Signals, *servers: str) -> None:
        """Send the signal to these agents, or to all, and wait for their ends."""
        ending = [self._agents[server] for server in servers or self.lab.agents]
        for process in ending:
            os.kill(process.pid, number)
        for process in ending:
            eventually(partial(_reaped, process.pid), f"{process} ends")

    def start_agents(self, *servers: str) -> None:
        """Start these agents, or all, and wait until they work."""
        started = {server: agents.start(self.lab, server) for server in servers or self.lab.agents}
        self._agents |= started
        agents.wait_ready(self.lab, started, print)

    def config(self, server: str) -> Path:
        return agents.config_of(self.lab, server)

    def log(self, server: str) -> list[dict[str, Any]]:
        """What the agents of the server logged, as events."""
        text = processes.log_of(self.lab, server, "agent").read_text()
        return [json.loads(line) for line in text.splitlines()]

    # -- what it says ----------------------------------------------------------------------------------------

    def slice_of(self, server: str) -> Slice:
        """The one slice that the server holds."""
        [row] = [row for row in self.ask(server, "/v1/slices") if row["here"] and row["state"] == "held"]
        return Slice.parse(row["slice"])

    def drops(self, server: str) -> dict[str, int]:
        """Packets by reason."""
        return {row["reason"]: row["packets"] for row in self.ask(server, "/v1/drops")}

    def last_drop(self, server: str, reason: str) -> dict[str, Any]:
        """The sample of a reason that has one."""
        [last] = [row["last"] for row in self.ask(server, "/v1/drops") if row["reason"] == reason]
        assert isinstance(last, dict), f"{reason} never happened on {server}"
        return last

    def flows(self, server: str) -> set[tuple[str, str, str, str]]:
        """(protocol, client, local, remote) of every live flow."""
        listed = self.ask(server, "/v1/flows?limit=100000")["flows"]
        return {(flow["protocol"], flow["client"], flow["local"], flow["remote"]) for flow in listed}

    # -- wires -----------------------------------------------------------------------------------------------

    def packet_socket(self, node: str, interface: str) -> socket.socket:
        """A raw socket on the interface of the node: what is read from it was on the wire."""
        return namespaces.run_in(self.lab.namespace(node), _packet_socket, interface)

    def raw_socket(self, node: str) -> socket.socket:
        """Sends whole IPv4 packets from the node, as root can."""
        return namespaces.run_in(self.lab.namespace(node), _raw_socket)

    def capture(self, node: str, interface: str) -> Capture:
        return Capture(self.packet_socket(node, interface))

    def passed(self, server: str, capture: Capture) -> list[Packet]:
        """What the capture heard until everything that the server sent so far has passed it."""
        port = int.from_bytes(os.urandom(2)) | 1024

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind(("", port))
                sender.sendto(b"sentinel", (INTERNET, _SENTINEL_PORT))

        heard: list[Packet] = []
        sent_at = -SENTINEL_AGAIN_S

        def arrived() -> bool:
            nonlocal sent_at
            if time.monotonic() > sent_at + SENTINEL_AGAIN_S:  # the first may be lost, too
                namespaces.run_in(self.lab.namespace(server), send)
                sent_at = time.monotonic()
            heard.extend(capture.read())
            return any(frame.haslayer("UDP") and frame["UDP"].sport == port for frame in heard)

        eventually(arrived, f"the sentinel of {server} is heard")
        return heard


class Capture:
    """Frames as they arrive on one interface, in order. `time` of a frame is when the kernel got it, unix time."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, CAPTURE_BUFFER_BYTES)
        listening.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        listening.setblocking(False)

    def read(self) -> list[Packet]:
        """What came in since the last time. Frames that this node sent are not among it."""
        frames: list[Packet] = []
        while True:
            try:
                data, notes, _, (_, _, kind, _, _) = self._socket.recvmsg(FRAME_BYTES_MAX, 128)
            except BlockingIOError:
                return frames
            if kind != socket.PACKET_OUTGOING:
                frames.append(Ether(data))
                [seconds, nanoseconds] = struct.unpack("qq", notes[0][2])
                frames[-1].time = seconds + nanoseconds / 1e9

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reaped(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def _packet_socket(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    made.bind((interface, _ETH_P_ALL))
    return made


def _raw_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
