"""A small network for one experiment: a client, a server with no agent, the internet; and sockets in each.

    client .2 -- 10.0.0.0/24 -- .1 server .254 -- 203.0.113.0/24 -- .1 internet

Sockets belong to the network namespace in which they were made, so one thread can hold all ends of a conversation in
its hands: an experiment reads like the story it tells. Everything goes when the `with` block ends.
"""

from __future__ import annotations

import errno
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from secrets import token_hex
from typing import Final, ParamSpec, TypeVar

from softunicast.core.errors import LabError
from softunicast.core.records import Inventory
from softunicast.core.slices import Slice
from softunicast.kernel import namespaces
from softunicast.lab import build
from softunicast.lab.state import Lab
from softunicast.lab.topology import Link, Node, Port, Topology
from softunicast.strategies.strategy import Endpoint, Place, Strategy

CLIENT, SERVER, INTERNET = "client", "server", "internet"
CLIENT_ADDRESS: Final = IPv4Address("10.0.0.2")
INTERNET_ADDRESS: Final = IPv4Address("203.0.113.1")
SHARED: Final = IPv4Address("198.51.100.10")
REMOTE: Final[Endpoint] = (INTERNET_ADDRESS, 443)
REMOTE_TEXT: Final = (str(REMOTE[0]), REMOTE[1])  # as sockets want it
NOWHERE: Final[Endpoint] = (IPv4Address("192.0.2.99"), 443)  # no route leads there
UPLINK, ONRAMP = "uplink", "clients"
PORT_FIRST: Final = 2048
PORTS: Final = 4  # of the slice, where it does not matter
ARRIVES_S: Final = 2.0  # what is on its way is there in a fraction of it
ABSENT_S: Final = 0.3  # so long is waited for what must not come
CONTROL_TIMEOUT_S: Final = 10.0

_P = ParamSpec("_P")
_T = TypeVar("_T")

TOPOLOGY: Final = Topology(
    name="stage",
    about="one server between a client and the internet, for experiments",
    nodes=(
        Node(CLIENT, "behind the server", routes=("default via 10.0.0.1",)),
        Node(SERVER, "what the experiment is about", sysctls={"net/ipv4/ip_forward": 1}),
        Node(INTERNET, str(INTERNET_ADDRESS), routes=("198.51.100.0/24 via 203.0.113.254",)),
    ),
    links=(
        Link(Port(CLIENT, "eth0", f"{CLIENT_ADDRESS}/24"), Port(SERVER, ONRAMP, "10.0.0.1/24")),
        Link(Port(SERVER, UPLINK, "203.0.113.254/24"), Port(INTERNET, "eth0", f"{INTERNET_ADDRESS}/24")),
    ),
    inventory=Inventory(blocks=(), addresses=()),
)


@dataclass(frozen=True, slots=True)
class Stage:
    """What an experiment has in its hands."""

    lab: Lab
    _undo: ExitStack

    def inside(self, node: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Calls a function in a node, in a thread that ends with it."""
        return namespaces.run_in(self.lab.namespace(node), function, *args, **kwargs)

    def run(self, node: str, command: str) -> str:
        """Runs a command in a node; what it printed. LabError when it fails."""
        done = self.inside(node, _run, command)
        if done.returncode:
            raise LabError(f"`{command}` failed in {node}: {' '.join(done.stderr.split())}")
        return done.stdout

    def place(self, ports: int, port_first: int = PORT_FIRST) -> Place:
        """A slice of so many ports on the server."""
        network = IPv4Network("10.0.0.0/24")
        folder = self.lab.directory / "bpf"
        folder.mkdir(exist_ok=True)
        return Place(Slice.of(SHARED, port_first, ports), UPLINK, ONRAMP, network, CLIENT_ADDRESS, folder)

    @contextmanager
    def strategy(self, kind: type[Strategy], ports: int = PORTS) -> Iterator[Strategy]:
        """One set up on the server. Its methods act in the calling thread's namespace: call them with `inside`."""
        made = kind(self.place(ports))
        self.inside(SERVER, made.set_up)
        try:
            yield made
        finally:
            self.inside(SERVER, made.tear_down)

    def open(self, node: str, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket in a node, closed at the end."""
        made = self.inside(node, socket.socket, socket.AF_INET, kind, protocol)
        self._undo.callback(made.close)
        made.settimeout(ARRIVES_S)
        return made

    def listener(self, port: int = REMOTE[1], kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A server on the internet."""
        made = self.open(INTERNET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((str(INTERNET_ADDRESS), port))
        if kind == socket.SOCK_STREAM:
            made.listen(4096)
        return made

    def client(self, port: int = 0, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of the client, bound to a port."""
        made = self.open(CLIENT, kind)
        made.bind((str(CLIENT_ADDRESS), port))
        return made

    def keep(self, made: socket.socket) -> socket.socket:
        """Closes a socket at the end that was made elsewhere."""
        self._undo.callback(made.close)
        return made


@contextmanager
def stage() -> Iterator[Stage]:
    """Builds the network under a name of its own, and removes it."""
    name = f"stage-{token_hex(4)}"
    with build.running(TOPOLOGY, name, agents=False) as lab, ExitStack() as undo:
        yield Stage(lab, undo)


def connected(
    there: Stage, count: int, timeout_s: float, first: int = 40_000
) -> tuple[list[str], list[socket.socket]]:
    """Clients one after the other: how each fared, and the sockets of those that got through."""
    outcomes, open_ = [], []
    for number in range(count):
        made = there.client(first + number)
        made.settimeout(timeout_s)
        outcomes.append(outcome(partial(made.connect, REMOTE_TEXT)))
        if outcomes[-1] == "ok":
            open_.append(made)
    return outcomes, open_


def bound(there: Stage, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket of the server on a port of the shared address."""
    made = there.open(SERVER, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((str(SHARED), port))
    return made


def accepted(listener: socket.socket) -> tuple[socket.socket, Endpoint]:
    """The next connection, and whom the internet sees. LabError when none comes."""
    try:
        made, (address, port) = listener.accept()
    except TimeoutError as error:
        raise LabError("no connection arrived at the internet") from error
    made.settimeout(ARRIVES_S)
    return made, (IPv4Address(address), port)


def outcome(attempt: Callable[[], object]) -> str:
    """How it went, in the words of a program that tried: `ok`, or the name of the error."""
    try:
        attempt()
    except TimeoutError:
        return "timed out"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


def arrives(receiver: socket.socket, within_s: float = ARRIVES_S) -> bool:
    """Whether something is there to be read, in this time."""
    return bool(select.select([receiver], [], [], within_s)[0])


def endpoint(made: socket.socket) -> Endpoint:
    """What getsockname() says."""
    address, port = made.getsockname()[:2]
    return IPv4Address(address), port


def text(end: Endpoint) -> str:
    """`198.51.100.10:2048`."""
    return f"{end[0]}:{end[1]}"


def _run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command.split(), check=False, capture_output=True, text=True, timeout=CONTROL_TIMEOUT_S
    )
