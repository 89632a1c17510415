"""Building a lab from its topology, and removing it. The only place where a lab touches the host.

`up` writes down what there will be before it makes any of it, and undoes everything when it fails or is
interrupted. `down` trusts only that record and what the kernel says lives in the lab's own namespaces, so it
does the same work after a clean `up`, after one that was killed at any point, and when run twice.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from softunicast.core.errors import HostError, InputError, LabError, SoftunicastError
from softunicast.kernel import cgroup_tree, cgroups, interruptions, namespaces, offload, sysctl
from softunicast.lab import agents as lab_agents
from softunicast.lab import processes, state
from softunicast.lab.state import Lab, Process
from softunicast.lab.topology import BASE_SYSCTLS, Node, Port, Program, Topology, commands

IP_TIMEOUT_S: Final = (
    20.0  # one batch of `ip`: milliseconds, unless the kernel is busy removing other namespaces
)
PROGRAM_TIMEOUT_S: Final = 15.0
CONNECT_TIMEOUT_S: Final = 1.0

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Say nothing: for callers that have nobody to tell."""


def up(topology: Topology, lab_id: str | None = None, *, agents: bool = True, say: Say = silent) -> Lab:
    """Build a lab and wait until it works. `agents` False: a lab without softunicast, for experiments.

    Raises InputError when the id is taken, HostError when this host cannot have labs, LabError when a part
    does not come up. After any error or interruption nothing of it is left.
    """
    lab = _planned(topology, lab_id or topology.name, agents)
    check_root()
    processes.check_program("ip", "iproute2")
    if agents:
        from softunicast.kernel import probe  # loads libbpf: only when there are agents

        probe.require()
    taken = [name for name in lab.nodes.values() if namespaces.path(name).exists()]
    if taken and not lab.directory.exists():
        raise InputError(f"there is a network namespace {taken[0]} already", "give the lab another --id")
    with interruptions.all_alike(), ExitStack() as claim:
        with interruptions.deferred():
            claim.enter_context(state.claimed(lab))
            claim.push(partial(_undo, lab))
        return _build(lab, topology, say)


def down(lab_id: str) -> None:
    """Remove a lab: processes, mounts, namespaces, directory. UnknownNameError when there is none."""
    check_root()
    with state.locked(lab_id) as lab, interruptions.deferred():
        if lab is not None:
            _remove(lab_id)


def down_all() -> tuple[str, ...]:
    """Remove every lab of this host and what killed builders left. Returns the ids. LabError: what stays."""
    check_root()
    removed, problems = [], []
    for lab_id in state.known():
        try:
            down(lab_id)
            removed.append(lab_id)
        except SoftunicastError as error:
            problems.append(str(error))
    state.sweep()
    if problems:
        raise LabError("; ".join(problems))
    return tuple(removed)


@contextmanager
def running(
    topology: Topology, lab_id: str, *, agents: bool = True, keep: bool = False, say: Say = silent
) -> Iterator[Lab]:
    """A lab for the length of a with block. `keep`: only an error or interruption in the block removes it."""
    with interruptions.all_alike():
        lab = up(topology, lab_id, agents=agents, say=say)
        try:
            yield lab
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                with interruptions.deferred():
                    down(lab_id)


def check_root() -> None:
    """Raises HostError when this process may not make network namespaces."""
    if os.geteuid() != 0:
        raise HostError(
            "labs are made of namespaces and mounts, which needs root", "sudo softunicast lab ..."
        )


def _planned(topology: Topology, lab_id: str, agents: bool) -> Lab:
    state.check_id(lab_id)
    return Lab(
        id=lab_id,
        topology=topology.name,
        created_at=time.time(),
        boot_id=state.boot_id(),
        builder=os.getpid(),
        nodes={node.name: f"sulab-{lab_id}-{node.name}" for node in topology.nodes},
        agents=tuple(node.name for node in topology.nodes if node.agent is not None) if agents else (),
    )


def _build(lab: Lab, topology: Topology, say: Say) -> Lab:
    say(f"making {len(topology.nodes)} network namespaces and {len(topology.links)} links")
    for node in topology.nodes:
        lab.node_directory(node.name).mkdir()
        namespaces.create(lab.namespace(node.name))
        namespaces.run_in(lab.namespace(node.name), _set_sysctls, node)
    for name, lines in commands(topology, lab.namespace):
        _ip(lab, name, lines)
    for link in topology.links:
        for port in link.ends:
            if not port.tx_checksum:
                namespaces.run_in(lab.namespace(port.node), offload.set_tx_checksum, port.interface, False)
    for node in topology.nodes:
        for program in node.programs:
            lab = _start_program(lab, node, program, say)
    if lab.agents:
        lab = _start_agents(lab, topology, say)
    lab = replace(lab, ready=True)
    state.save(lab)
    return lab


def _undo(lab: Lab, kind: type[BaseException] | None, *_: object) -> None:
    if kind is not None:
        with interruptions.deferred():
            _remove(lab.id)


def _set_sysctls(node: Node) -> None:
    for key, value in {**BASE_SYSCTLS, **node.sysctls}.items():
        sysctl.write(key, value)


def _ip(lab: Lab, node: str, lines: tuple[str, ...]) -> None:
    try:
        done = namespaces.run_in(lab.namespace(node), _ip_batch, "\n".join(lines))
    except subprocess.TimeoutExpired as error:
        raise LabError(f"cannot wire node {node}: ip did not end within {IP_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise LabError(f"cannot wire node {node}: ip says: {' '.join(done.stderr.split())}")


def _ip_batch(lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "-batch", "-"], check=False, input=lines, text=True, capture_output=True, timeout=IP_TIMEOUT_S
    )


def _start_program(lab: Lab, node: Node, program: Program, say: Say) -> Lab:
    say(f"starting {program.name} in {node.name}")
    process = processes.start(lab, node.name, program.name, [sys.executable, "-m", program.module])
    lab = _recorded(lab, process)

    def ready() -> bool:
        if not processes.is_alive(process):
            raise processes.failed(lab, process, "ended before it was ready", say)
        return namespaces.run_in(lab.namespace(node.name), _accepts, program.ready_port)

    if not processes.wait_until(ready, PROGRAM_TIMEOUT_S):
        late = f"took no connection on port {program.ready_port} within {PROGRAM_TIMEOUT_S:.0f} s"
        raise processes.failed(lab, process, late, say)
    return lab


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _start_agents(lab: Lab, topology: Topology, say: Say) -> Lab:
    say(f"starting agents in {', '.join(lab.agents)}")
    lab.bpffs.mkdir(mode=0o700)
    namespaces.mount("bpf", "bpf", lab.bpffs)
    for link in topology.links:
        for port in link.ends:
            if port.xdp_pass:
                namespaces.run_in(lab.namespace(port.node), _attach_pass, lab, port)
    lab_agents.prepare(lab, topology)
    started: dict[str, Process] = {}
    for node in lab.agents:
        (lab.bpffs / node).mkdir(exist_ok=True)
        started[node] = lab_agents.start(lab, node)
        lab = _recorded(lab, started[node])
    lab_agents.wait_ready(lab, started, say)
    return lab


def _attach_pass(lab: Lab, port: Port) -> None:
    from softunicast.kernel import passing  # loads libbpf: only when there are agents

    directory = lab.bpffs / port.node
    directory.mkdir(exist_ok=True)
    passing.attach_pass(port.interface, directory / f"pass-{port.interface}")


def _recorded(lab: Lab, process: Process) -> Lab:
    lab = lab.with_process(process)
    state.save(lab)
    return lab


def _remove(lab_id: str) -> None:
    """Remove all of a lab whose lock is held: its record names it, the kernel says what of it there is."""
    lab = state.load(lab_id)
    if lab.boot_id == state.boot_id():
        for process in lab.processes:
            processes.end(process)
    alive = (namespaces.inode(name) for name in lab.nodes.values())
    processes.end_all_inside(frozenset(number for number in alive if number is not None))
    if (cgroup := cgroups.find_root()) is not None:
        cgroup_tree.remove_empty(cgroup)  # of `softunicast run`: the agents that would have are gone
    for target in namespaces.mounts_under(lab.directory):
        namespaces.unmount(target)
    for name in lab.nodes.values():
        namespaces.delete(name)
    state.forget(lab)
