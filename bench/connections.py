"""How many new connections per second? wrk with `Connection: close` against nginx, a new TCP flow per request.

Flows of the round before are forgotten first, and the client has more source ports than a round uses: nearly
every connection is a new flow to the path, not one that comes back.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from bench import host, report
from bench.lanes import CPU
from bench.measure import Rounds, rounds
from bench.paths import PATHS
from bench.services import SERVICE, Wire, wires
from bench.world import CLIENT
from softunicast.core.errors import LabError

NAME: Final = "connections"
PEER: Final = "nft"
PORT: Final = 80
SLICES: Final = 31  # all ports of the address: one destination is all there is
OPEN: Final = 64  # connections at a time
FAILED_MAX: Final = 0.001
_NGINX: Final = f"""
daemon off; master_process off; pid {{folder}}/nginx.pid; error_log {{folder}}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_timeout 0;
  client_body_temp_path {{folder}}/body; proxy_temp_path {{folder}}/proxy; fastcgi_temp_path {{folder}}/fastcgi;
  uwsgi_temp_path {{folder}}/uwsgi; scgi_temp_path {{folder}}/scgi;
  server {{ listen {SERVICE}:{PORT} backlog=4096; return 200 "ok\\n"; }}
}}
"""


def run(quick: bool, folder: Path) -> None:
    """Measures, prints, saves."""
    plan = {"rounds": 1, "seconds": 1} if quick else {"rounds": 5, "seconds": 2}
    server = ("nginx", "-p", "{folder}", "-c", "{folder}/nginx.conf", "-e", "{folder}/nginx.log")
    files = {"nginx.conf": _NGINX}
    with host.settings(host.conntrack_sized()), wires(server, PORT, SLICES, files) as all_wires:
        for wire in all_wires.values():
            wire.world.inside(CLIENT, _widen_ports)
        found: dict[str, list[float]] = {name: [] for name in all_wires}
        for number in range(plan["rounds"]):
            report.say(f"connections: round {number + 1}")
            for name, wire in all_wires.items():
                wire.path.flush()
                found[name].append(_per_second(wire, plan["seconds"]))
    rates = {name: rounds(values) for name, values in found.items()}
    _show(rates)
    records = [
        {"path": name, "per_s": rate.as_json(), "ratio_to_nft": rate.ratio(rates[PEER]).as_json()}
        for name, rate in rates.items()
    ]
    report.save(NAME, host.facts(), {**plan, "cpu": CPU, "open": OPEN}, records, folder)


def _per_second(wire: Wire, seconds: int) -> float:
    output = wire.client(
        *("wrk", "-t", "1", "-c", str(OPEN), "-d", f"{seconds}s", "-H", "Connection: close"),
        f"http://{SERVICE}:{PORT}/",
    )
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    done = re.search(r"(\d+) requests in", output)
    errors = sum(
        int(number) for number in re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", output)
    )
    if not rate or not done or errors > FAILED_MAX * int(done[1]):
        raise LabError(f"wrk through {wire.path.title}: {' '.join(output.split())}")
    return float(rate[1])


def _show(rates: dict[str, Rounds]) -> None:
    rows = [
        [PATHS[name].title, rate.text(0), rate.ratio(rates[PEER]).text(2)] for name, rate in rates.items()
    ]
    report.show(
        "New HTTP connections per second, everything on one core", ["path", "per second", "x of nft"], rows
    )


def _widen_ports() -> None:
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("1024 65535\n")
