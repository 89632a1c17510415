"""The agents of a lab: their files, their ledger, starting them, and asking them over their sockets.

An agent of a lab is the agent of a real server: the same program, the same configuration file, only with
every path inside the lab's directory.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from softunicast.core.errors import AgentUnreachableError, HostError
from softunicast.core.pools import PROTOCOLS
from softunicast.core.records import Inventory
from softunicast.lab import processes
from softunicast.lab.state import Lab, Process
from softunicast.lab.topology import AgentRole, Topology

READY_TIMEOUT_S: Final = 30.0  # loading programs takes a second; two cores may have other things to do
READY_POLL_S: Final = 0.05
ASK_TIMEOUT_S: Final = 5.0
FLOWS_MAX: Final = (
    65_536  # a lab has a few hundred flows; the agent's default would take memory for a million
)


def inventory_text(inventory: Inventory) -> str:
    """The inventory as the file that `softunicast ledger apply` reads."""
    parts = [f"[[blocks]]\nprefix = {_toml(str(block.prefix))}\n" for block in inventory.blocks]
    parts += [
        "[[addresses]]\n"
        f"address = {_toml(str(address.address))}\n"
        f"site = {_toml(address.site)}\n"
        f"tags = {_table(address.tags)}\n"
        f"slice_ports = {address.slice_ports}\n"
        for address in inventory.addresses
    ]
    return "\n".join(parts)


def config_text(lab: Lab, node: str, role: AgentRole) -> str:
    """The configuration file of one agent."""
    head = f"""[server]
name = {_toml(node)}
site = {_toml(role.site)}

[uplink]
interface = {_toml(role.uplink)}

[ledger]
kind = "sqlite"
path = {_toml(str(lab.ledger))}

[agent]
socket = {_toml(str(lab.socket(node)))}
fd_socket = {_toml(str(lab.fd_socket(node)))}
pool_socket = {_toml(str(lab.pool_socket(node)))}
state_dir = {_toml(str(lab.node_directory(node)))}
bpffs = {_toml(str(lab.bpffs / node))}
ttl_s = {role.ttl_s}
quarantine_s = {role.quarantine_s}

[limits]
flows_max = {FLOWS_MAX}
"""
    pools = [
        f"[[pools]]\nname = {_toml(pool.name)}\ntags = {_table(pool.tags)}\nslices_max = {pool.slices_max}\n"
        f"timers = {_table(asdict(pool.timers))}\n"
        f"mapping = {_table(_by_protocol(pool.behaviour.independent_mapping))}\n"
        f"filtering = {_table(_by_protocol(pool.behaviour.independent_filtering))}\n"
        f"dns = [{', '.join(_toml(str(one)) for one in pool.dns)}]\n"
        for pool in role.pools
    ]
    onramps = [
        f"[[onramps]]\ninterface = {_toml(interface)}\npool = {_toml(pool)}\n"
        for interface, pool in role.onramps.items()
    ]
    return "\n".join([head, *pools, *onramps])


def prepare(lab: Lab, topology: Topology) -> None:
    """Write every agent's configuration and put the inventory into a new ledger."""
    from softunicast.ledger.sqlite import SqliteLedger  # only when there are agents

    (lab.directory / "inventory.toml").write_text(inventory_text(topology.inventory))
    for node in topology.nodes:
        if node.agent is not None:
            config_of(lab, node.name).write_text(config_text(lab, node.name, node.agent))

    async def apply() -> None:
        ledger = await SqliteLedger.open(lab.ledger)
        try:
            await ledger.apply_inventory(topology.inventory)
        finally:
            await ledger.close()

    asyncio.run(apply())


def config_of(lab: Lab, node: str) -> Path:
    return lab.node_directory(node) / "agent.toml"


def start(lab: Lab, node: str) -> Process:
    """Start the node's agent, also again after it was killed. It is ready when `wait_ready` says so."""
    program = shutil.which("softunicast", path=str(Path(sys.executable).parent))
    if program is None:
        raise HostError("softunicast is not installed beside this Python", "pip install . or make setup")
    return processes.start(lab, node, "agent", [program, "agent", "--config", str(config_of(lab, node))])


def wait_ready(lab: Lab, agents: Mapping[str, Process], say: Callable[[str], None]) -> None:
    """Wait until every agent answers and its data path opens flows.

    When one ends or is late, says the end of its log and raises LabError.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    waiting = dict(agents)
    while waiting:
        for node, process in list(waiting.items()):
            if not processes.is_alive(process):
                raise processes.failed(lab, process, "ended before it was ready", say)
            if is_ready(lab, node):
                del waiting[node]
        if waiting and time.monotonic() > deadline:
            raise processes.failed(
                lab, next(iter(waiting.values())), f"opened no flows within {READY_TIMEOUT_S:.0f} s", say
            )
        time.sleep(READY_POLL_S)


def is_ready(lab: Lab, node: str) -> bool:
    """Whether the node's data path opens flows: every pool has a slice in the kernel, and its on-ramps.

    Not /v1/status: a lease may be settled a moment before the kernel is told.
    """
    try:
        pools = ask(lab, node, "/v1/pools")
    except AgentUnreachableError:
        return False
    return bool(pools) and all(pool["slices"] and pool["onramps"] for pool in pools)


def ask(lab: Lab, node: str, path: str) -> Any:
    """GET `path` from the node's agent, decoded. AgentUnreachableError when it does not answer with 200."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(ASK_TIMEOUT_S)
    try:
        connection.sock.connect(str(lab.socket(node)))
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != http.client.OK:
            raise AgentUnreachableError(
                f"the agent of {node} answers {path} with {answer.status}: {body[:200]!r}"
            )
        return json.loads(body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AgentUnreachableError(f"the agent of {node} does not answer {path}: {error}") from error
    finally:
        connection.close()


def _by_protocol(independent: frozenset[str]) -> dict[str, str]:
    return {name: "independent" if name in independent else "dependent" for name in PROTOCOLS}


def _toml(value: str | int) -> str:
    # A JSON string is a TOML basic string for every text without lone surrogates.
    return json.dumps(value)


def _table(entries: Mapping[str, str | int]) -> str:
    return "{ " + ", ".join(f"{_toml(key)} = {_toml(value)}" for key, value in entries.items()) + " }"
