"""Three nodes in a row, each a network namespace: client -- server -- internet. The server is what is measured.

    client   c0 10.0.0.2/24           (clients 10.1.0.0/16 are behind it)
    server   onramp 10.0.0.1/24, uplink 192.0.2.1/24, forwards, default route to the internet node
    internet i0 192.0.2.254/24        (destinations 198.18.0.0/15 are behind it)

Names are unique to the process, nothing appears in the host's own namespace, and everything goes when the
`with` block ends. Neighbours are permanent and IPv6 is off, so that nothing moves but the packets of the test.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from bench.ethtool import set_gro
from softunicast.core.errors import LabError
from softunicast.kernel import namespaces, sysctl

CLIENT, SERVER, INTERNET = "client", "server", "internet"
CLIENT_MAC, ONRAMP_MAC = "02:00:00:00:01:02", "02:00:00:00:01:01"
UPLINK_MAC, INTERNET_MAC = "02:00:00:00:02:01", "02:00:00:00:02:fe"
COMMAND_TIMEOUT_S: Final = 30.0

_P = ParamSpec("_P")
_T = TypeVar("_T")
_numbers = itertools.count(1)

_WIRING: Final = {
    CLIENT: (
        f"link add name c0 address {CLIENT_MAC} type veth peer name onramp address {ONRAMP_MAC} netns {{server}}",
        "addr add 10.0.0.2/24 dev c0",
        "link set dev lo up",
        "link set dev c0 up",
        "route add default via 10.0.0.1",
        f"neigh replace 10.0.0.1 lladdr {ONRAMP_MAC} dev c0 nud permanent",
    ),
    INTERNET: (
        f"link add name i0 address {INTERNET_MAC} type veth peer name uplink address {UPLINK_MAC} netns {{server}}",
        "addr add 192.0.2.254/24 dev i0",
        "link set dev lo up",
        "link set dev i0 up",
        "route add default via 192.0.2.1",
        f"neigh replace 192.0.2.1 lladdr {UPLINK_MAC} dev i0 nud permanent",
    ),
    SERVER: (
        "addr add 10.0.0.1/24 dev onramp",
        "addr add 192.0.2.1/24 dev uplink",
        "link set dev lo up",
        "link set dev onramp up",
        "link set dev uplink up",
        f"neigh replace 10.0.0.2 lladdr {CLIENT_MAC} dev onramp nud permanent",
        f"neigh replace 192.0.2.254 lladdr {INTERNET_MAC} dev uplink nud permanent",
        "route add default via 192.0.2.254",
        "route add 10.1.0.0/16 via 10.0.0.2",
    ),
}
_SYSCTLS: Final = {
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv6/conf/all/disable_ipv6": 1,
    "net/ipv6/conf/default/disable_ipv6": 1,
}


@dataclass(frozen=True, slots=True)
class World:
    """One built row of nodes. `folder` is private to it: bpffs mounts, configuration files."""

    name: str
    folder: Path

    def namespace(self, node: str) -> str:
        """The network namespace of a node."""
        return f"{self.name}-{node}"

    def inside(self, node: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Calls a function in a node, in a thread that ends with it."""
        return namespaces.run_in(self.namespace(node), function, *args, **kwargs)

    def run(self, node: str, command: str, stdin: str = "") -> str:
        """Runs a command in a node and returns what it printed; LabError with its words when it fails."""
        done = self.inside(node, _run, command, stdin)
        if done.returncode:
            raise LabError(f"`{command}` failed in {node}: {' '.join(done.stderr.split())}")
        return done.stdout


@contextmanager
def world(queues: int = 1) -> Iterator[World]:
    """Builds the row, and removes it. With several `queues` each link works on so many cores at once."""
    name = f"subench-{os.getpid()}-{next(_numbers)}"
    made = World(name, Path("/run") / name)
    nodes = (CLIENT, SERVER, INTERNET)
    try:
        made.folder.mkdir(mode=0o700)
        for node in nodes:
            namespaces.create(made.namespace(node))
            made.inside(node, _set_sysctls, {**_SYSCTLS, "net/ipv4/ip_forward": int(node == SERVER)})
        for node in (CLIENT, INTERNET, SERVER):
            lines = "\n".join(_WIRING[node]).replace("{server}", made.namespace(SERVER))
            several = f"numtxqueues {queues} numrxqueues {queues}"
            lines = lines.replace(" type veth", f" {several} type veth").replace(
                " netns ", f" {several} netns "
            )
            made.run(node, "ip -batch -", lines)
        for node, interface in ((CLIENT, "c0"), (SERVER, "onramp"), (SERVER, "uplink"), (INTERNET, "i0")):
            made.inside(node, set_gro, interface, True)  # as on a network card; and veth needs it for NAPI
        yield made
    finally:
        for target in namespaces.mounts_under(made.folder):
            namespaces.unmount(target)
        for node in nodes:
            namespaces.delete(made.namespace(node))
        shutil.rmtree(made.folder, ignore_errors=True)


def _set_sysctls(values: dict[str, int]) -> None:
    for name, value in values.items():
        sysctl.write(name, value)


def _run(command: str, stdin: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command.split(), check=False, input=stdin, text=True, capture_output=True, timeout=COMMAND_TIMEOUT_S
    )
