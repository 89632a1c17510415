"""What a lab looks like now: its nodes, their processes, their agents. Looks only; changes nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from softunicast.core.errors import AgentUnreachableError, UnknownNameError
from softunicast.kernel import namespaces
from softunicast.lab import agents, processes, state
from softunicast.lab.state import Lab


def summaries() -> list[dict[str, Any]]:
    """Every lab of this host as a row."""
    rows = []
    for lab_id in state.known():
        with suppress(UnknownNameError):  # taken down while we look
            rows.append(summary(state.load(lab_id)))
    return rows


def summary(lab: Lab) -> dict[str, Any]:
    """One lab as a row."""
    return {
        "lab": lab.id,
        "topology": lab.topology,
        "condition": condition(lab),
        "created_at": lab.created_at,
        "nodes": list(lab.nodes),
        "agents": list(lab.agents),
        "directory": str(lab.directory),
    }


def condition(lab: Lab) -> str:
    """`up`; `busy`: being built or taken down now; `broken`: its builder was killed, or a part is gone."""
    if state.is_locked(lab):
        return "busy"
    whole = lab.ready and all(namespaces.inode(name) is not None for name in lab.nodes.values())
    return "up" if whole else "broken"


def nodes(lab: Lab) -> list[dict[str, Any]]:
    """One row for each node. `processes` are all that run in it; `agent` is None where the lab runs none."""
    return [_node(lab, node, namespace) for node, namespace in lab.nodes.items()]


def _node(lab: Lab, node: str, namespace: str) -> dict[str, Any]:
    inode = namespaces.inode(namespace)
    pids = processes.inside(frozenset((inode,))) if inode is not None else ()
    names = {process.pid: process.name for process in lab.processes if processes.is_alive(process)}
    return {
        "node": node,
        "namespace": namespace,
        "exists": inode is not None,
        "processes": [{"pid": pid, "name": names.get(pid) or processes.command_name(pid)} for pid in pids],
        "agent": _agent(lab, node) if node in lab.agents else None,
        "directory": str(lab.node_directory(node)),
    }


def _agent(lab: Lab, node: str) -> dict[str, Any]:
    socket = str(lab.socket(node))
    try:
        answer = agents.ask(lab, node, "/v1/status")
    except AgentUnreachableError as error:
        return {"socket": socket, "answers": False, "problem": str(error)}
    return {"socket": socket, "answers": True, "pid": answer["pid"], "leases_held": answer["leases_held"]}
