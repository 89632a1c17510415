"""The main job on one machine: lab `pair`, real traffic, and whether everything was as it should be.

`gather` makes traffic and notes what clients, servers and internet say about it; `judge` (in verdict.py) is a
pure function of those notes, so what counts as success is a table of rules that is tested without a lab.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from softunicast.core.errors import LabError
from softunicast.core.slices import Slice
from softunicast.lab import agents, build, pair, peers, processes
from softunicast.lab.build import Say
from softunicast.lab.state import Lab
from softunicast.lab.verdict import Check, Facts, Forged, judge

DOWNLOADS: Final = 200
DOWNLOAD_BYTES: Final = 1 << 20
# The one that both clients use at once; below the kernel's own choices, which the downloads have just used.
SOURCE_PORT: Final = 9000
ECHOES: Final = 50
ECHO_DELAY_S: Final = 0.01  # the conversations last long enough to overlap
FORGED: Final = 3
PROBE_TIMEOUT_S: Final = 60.0
DROP_TIMEOUT_S: Final = 3.0

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Report:
    """How the demo went. `lab`: its id, still up if it was to be kept."""

    lab: str
    seconds: float
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def run(keep: bool, say: Say) -> Report:
    """Build the lab, make traffic, judge, and remove the lab unless it is to be kept. An error always removes it."""
    start = time.monotonic()
    build.check_root()
    processes.check_program("curl", "curl")
    lab_id = f"demo-{secrets.token_hex(2)}"
    with build.running(pair.pair(), lab_id, keep=keep, say=say) as lab:
        checks = judge(gather(lab, say))
    return Report(lab_id, round(time.monotonic() - start, 1), checks)


def gather(lab: Lab, say: Say) -> Facts:
    """Make the traffic and note what was seen. Takes some seconds."""
    slices = {server: _slices(lab, server) for server in lab.agents}

    say(f"{DOWNLOADS} downloads of {DOWNLOAD_BYTES >> 20} MB by each client, all at once")
    before = {server: agents.ask(lab, server, "/v1/traffic") for server in lab.agents}
    peers.forget(lab)
    downloads = _at_once(lab, {client: (client, _download(client)) for client in pair.SERVER_OF})
    download_peers = tuple(peers.seen(lab))
    after = {server: agents.ask(lab, server, "/v1/traffic") for server in lab.agents}

    say(f"both clients talk from {pair.CLIENT}:{SOURCE_PORT} to {pair.INTERNET}:{pair.ECHO_PORT} at once")
    peers.forget(lab)
    talks = {
        (client, protocol): (client, _echo(protocol))
        for client in pair.SERVER_OF
        for protocol in ("tcp", "udp")
    }
    echoes = _at_once(lab, talks)
    echo_peers = tuple(peers.seen(lab))

    return Facts(
        server_of=pair.SERVER_OF,
        slices=slices,
        downloads=downloads,
        download_peers=download_peers,
        here={server: after[server]["here"] - before[server]["here"] for server in lab.agents},
        steered={server: after[server]["steered"] - before[server]["steered"] for server in lab.agents},
        source=f"{pair.CLIENT}:{SOURCE_PORT}",
        echoes=echoes,
        echo_peers=echo_peers,
        forged=_forge(lab, "server1", slices["server2"][0], say),
    )


def _slices(lab: Lab, server: str) -> tuple[Slice, ...]:
    held = (row for row in agents.ask(lab, server, "/v1/leases") if row["state"] in ("held", "draining"))
    return tuple(sorted(Slice.parse(row["slice"]) for row in held if row["server"] == server))


def _download(label: str) -> list[str]:
    origin = f"http://{pair.INTERNET}:{pair.HTTP_PORT}"
    return [
        "download",
        "--url",
        origin,
        "--count",
        str(DOWNLOADS),
        "--bytes",
        str(DOWNLOAD_BYTES),
        "--label",
        label,
    ]


def _echo(protocol: str) -> list[str]:
    return [
        *("echo", "--protocol", protocol, "--source-port", str(SOURCE_PORT)),
        *("--destination", f"{pair.INTERNET}:{pair.ECHO_PORT}"),
        *("--count", str(ECHOES), "--delay-s", str(ECHO_DELAY_S)),
    ]


def _at_once(lab: Lab, probes: Mapping[_Key, tuple[str, list[str]]]) -> dict[_Key, Any]:
    """Run (node, probe) pairs side by side; what each printed, decoded."""
    running = {key: processes.probe(lab, node, probe) for key, (node, probe) in probes.items()}
    try:
        return {
            key: json.loads(child.communicate(timeout=PROBE_TIMEOUT_S)[0]) for key, child in running.items()
        }
    except subprocess.TimeoutExpired as error:
        raise LabError(f"a probe did not end within {PROBE_TIMEOUT_S:.0f} s") from error
    except ValueError as error:
        raise LabError("a probe ended without a result") from error
    finally:
        for child in running.values():
            child.kill()
            child.wait()


def _forge(lab: Lab, server: str, foreign: Slice, say: Say) -> Forged:
    """Packets from `server` with a source in a slice of its neighbour: are they dropped, under which name?"""
    source = f"{foreign.address}:{foreign.port_last}"
    say(f"root on {server} forges packets from {source}")
    before = _dropped(lab, server)
    peers.forget(lab)
    probe = [
        "forge",
        "--source",
        source,
        "--destination",
        f"{pair.INTERNET}:{pair.ECHO_PORT}",
        "--count",
        str(FORGED),
    ]
    _at_once(lab, {server: (server, probe)})

    found: list[dict[str, Any]] = []

    def named() -> bool:
        rows = agents.ask(lab, server, "/v1/drops")
        found[:] = [row for row in rows if row["last"] is not None and row["last"]["source"] == source]
        return bool(found)

    processes.wait_until(named, DROP_TIMEOUT_S)
    arrived = any(f"{peer.address}:{peer.port}" == source for peer in peers.seen(lab))
    if not found:
        return Forged(source, FORGED, 0, None, None, arrived)
    reason = found[0]["reason"]
    dropped = found[0]["packets"] - before.get(reason, 0)
    return Forged(source, FORGED, dropped, reason, found[0]["meaning"], arrived)


def _dropped(lab: Lab, server: str) -> dict[str, int]:
    return {row["reason"]: row["packets"] for row in agents.ask(lab, server, "/v1/drops")}
