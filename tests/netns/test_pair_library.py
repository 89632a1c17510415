"""Programs that use the library, on a server of the lab `pair`: the examples of the documentation, each as it is there,
run by a user without privileges; and what becomes of it when the agent is killed, stopped, or away.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.netns.pair_lab import TIMEOUT_S, Done, PairLab, eventually
from tests.netns.tools import delivered
from tests.netns.tun_program import PYTHON

import softunicast
from softunicast.kernel import namespaces
from softunicast.lab import processes
from softunicast.lab.pair import INTERNET, POOL, SHARED

SERVER = "server1"
PAGE = Path(__file__).resolve().parents[2] / "docs/howto/library.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
NOBODY, DAEMON = 65534, 1
PARTS = ("__init__.py", "pools.py", "aio.py", "wire", "core/__init__.py", "core/errors.py")


def name_of(program: str) -> str:
    imports = re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE)
    by = [name for name in imports if name in ("requests", "httpx", "aiohttp", "asyncio")]
    return "-".join([*dict.fromkeys(by), *re.findall(r"pool\.(\w+)", program)]) or "sockets"


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab], labs_apart: Path) -> PairLab:
    made = make_pair()
    made.end_agents(signal.SIGTERM, SERVER)
    config = made.config(SERVER)
    text = config.read_text()
    assert text.count("[[pools]]") == 1
    config.write_text(text.replace("[[pools]]\n", '[[pools]]\nusers = ["nobody"]\n'))
    made.start_agents(SERVER)
    for folder in (labs_apart, made.lab.directory, made.lab.node_directory(SERVER)):
        folder.chmod(0o711)  # as /run is: everybody comes as far as the socket
    return made


@pytest.fixture(scope="module")
def stage(labs_apart: Path) -> Iterator[Path]:
    """The library, and nothing else, where everybody may read it."""
    folder = labs_apart.parent / f"su-stage-{secrets.token_hex(4)}"
    try:
        for part in PARTS:
            source, target = Path(softunicast.__file__).parent / part, folder / "softunicast" / part
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        yield folder
    finally:
        shutil.rmtree(folder)


def run_as(lab: PairLab, uid: int, stage: Path, program: str, *arguments: str) -> Done:
    """A program with the library alone, by the Python that everybody may run."""
    environment = processes.environment(lab.lab, SERVER) | {"PYTHONPATH": str(stage)}
    inside = partial(
        subprocess.run,
        [PYTHON, "-B", "-c", program, *arguments],
        env=environment,
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    done = namespaces.run_in(lab.lab.namespace(SERVER), inside)
    return Done(done.returncode, done.stdout, done.stderr)


def seen_port(answer: str) -> int:
    """The port that the internet saw, of the shared address."""
    seen = json.loads(answer[answer.index("{") :])
    assert seen["address"] == str(SHARED)
    return int(seen["port"])


def ports_of(lab: PairLab) -> range:
    """Those of the server's slice."""
    [part] = [one["slice"] for one in lab.ask(SERVER, "/v1/slices") if one["here"]]
    first, last = map(int, part.rpartition(":")[2].split("-"))
    return range(first, last + 1)


# -- the examples --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS, ids=name_of)
def test_an_example(lab: PairLab, program: str) -> None:
    """As it is there, but for the pool. It may read files like root, for the packages are wherever this Python has
    them, and nothing else."""
    program = program.replace('{"country": "gb"}', repr(dict(POOL.tags))).replace('"gb"', f'"{POOL.name}"')
    can = "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"
    user = "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"
    answer = lab.good(
        SERVER, "setpriv", *user, *can, sys.executable, "-B", "-c", program, f"http://{INTERNET}/"
    )
    assert seen_port(answer) in ports_of(lab)


def test_there_is_one_for_each_library() -> None:
    assert {name_of(program).split("-")[0] for program in PROGRAMS} == {
        "sockets",
        "asyncio",
        "requests",
        "httpx",
    }
    assert len([program for program in PROGRAMS if "import aiohttp" in program]) == 2


# -- without any privilege -----------------------------------------------------------------------------------

CONNECT = f"""
import softunicast
with softunicast.connect(("{INTERNET}", 80), pool="{POOL.name}", timeout=10) as one:
    one.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(one.makefile().read())
"""


def test_a_user_without_privileges(lab: PairLab, stage: Path) -> None:
    done = run_as(lab, NOBODY, stage, CONNECT)
    assert (done.code, done.complaint) == (0, "")
    assert seen_port(done.output) in ports_of(lab)


def test_a_user_who_may_not(lab: PairLab, stage: Path) -> None:
    done = run_as(lab, DAEMON, stage, CONNECT)
    assert done.code == 1
    assert done.complaint.splitlines()[-1] == (
        "PermissionError: [Errno 13] user 1 may use no pool; fix: see users and groups of [[pools]] in the agent's "
        "configuration"
    )


def test_it_imports_nothing_but_the_standard_library(stage: Path) -> None:
    """Of this package neither more than its own parts; and asyncio only for aio."""
    program = "import sys, softunicast; softunicast.Pool; print(*sorted(sys.modules)); import softunicast.aio; print(1)"
    done = subprocess.run(
        [PYTHON, "-S", "-c", program],
        env={"PYTHONPATH": str(stage)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout.splitlines()[0].split()
    known = sys.stdlib_module_names
    others = {name for name in loaded if name.split(".")[0] not in known and not name.startswith("_")}
    assert others == {
        *("softunicast", "softunicast.pools", "softunicast.core", "softunicast.core.errors"),
        *("softunicast.wire", "softunicast.wire.lending", "softunicast.wire.messages"),
    }
    assert "asyncio" not in loaded


# -- sockets -------------------------------------------------------------------------------------------------


@pytest.fixture
def inside(lab: PairLab) -> Iterator[PairLab]:
    """This process is on the server, as root."""
    from pyroute2 import netns

    netns.pushns(lab.lab.namespace(SERVER))
    try:
        yield lab
    finally:
        netns.popns()


def pool_of(lab: PairLab) -> softunicast.Pool:
    return softunicast.Pool(tags=dict(POOL.tags), agent=str(lab.lab.pool_socket(SERVER)))


def answered(connection: socket.socket) -> str:
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    with connection.makefile() as answer:
        return answer.read()


def test_a_socket_of_another_namespace(lab: PairLab) -> None:
    with pool_of(lab) as pool, pytest.raises(OSError, match="of another network namespace") as caught:
        pool.socket()
    assert caught.value.errno == errno.EXDEV


def test_many_connections_to_one_server(inside: PairLab) -> None:
    with pool_of(inside) as pool:
        connections = [pool.connect((INTERNET, 80), timeout=10) for _ in range(50)]
        ports = {seen_port(answered(one)) for one in connections}
        assert len(ports & set(ports_of(inside))) == 50
        for one in connections:
            one.close()


def test_a_datagram(inside: PairLab) -> None:
    with pool_of(inside) as pool, pool.connect((INTERNET, 7), protocol="udp", timeout=10) as one:
        delivered(one, one, b"hello")
        assert one.getsockname()[0] == str(SHARED)


def test_nobody_listens_there(inside: PairLab) -> None:
    with pool_of(inside) as pool, pytest.raises(ConnectionRefusedError):
        pool.connect((INTERNET, 9), timeout=10)


# -- leases and the life of the agent ------------------------------------------------------------------------


def bound(lease: softunicast.Lease) -> socket.socket:
    made = socket.socket()
    try:
        made.bind((lease.address, lease.port))
    except BaseException:
        made.close()
        raise
    return made


def test_a_lease_and_its_end(inside: PairLab) -> None:
    with pool_of(inside) as pool:
        lease = pool.lease()
        with bound(lease) as one:
            one.connect((INTERNET, 80))
            assert seen_port(answered(one)) == lease.port
        lease.release()
        with pytest.raises(PermissionError):
            bound(lease)


def test_the_agent_is_stopped(inside: PairLab) -> None:
    """What is leased ends with it; the next one gives anew."""
    with pool_of(inside) as pool:
        lease = pool.lease()
        inside.end_agents(signal.SIGTERM, SERVER)
        assert not lease.held
        with pytest.raises(softunicast.core.errors.AgentUnreachableError, match="no agent answers"):
            pool.lease()
        inside.start_agents(SERVER)
        with pool.lease() as again, bound(again) as one:
            one.connect((INTERNET, 80))
            assert seen_port(answered(one)) == again.port


def test_the_agent_is_killed(inside: PairLab) -> None:
    """What is connected goes on; what is leased is the user's until it ends by itself; nobody else gets it."""
    with pool_of(inside) as pool:
        lease = pool.lease()
        connection = pool.connect((INTERNET, 80), timeout=10)
        inside.end_agents(signal.SIGKILL, SERVER)
        assert not lease.held
        with bound(lease) as one:
            one.connect((INTERNET, 80))
            assert seen_port(answered(one)) == lease.port
        answered(connection)
        connection.close()
        inside.start_agents(SERVER)
        assert eventually(lambda: pool.lease().held, "the next agent gives")


def test_nothing_of_a_lease_is_left(inside: PairLab) -> None:
    """When its program dies."""
    before = mappings(inside)  # of the agent that was killed, perhaps
    child = os.fork()
    if child == 0:
        try:
            lease = pool_of(inside).lease()
            signal.pause()
            lease.release()
        finally:
            os._exit(1)
    eventually(lambda: mappings(inside) - before, "it has leased")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    eventually(lambda: not mappings(inside) - before, "given back")


def mappings(lab: PairLab) -> set[str]:
    """Ports of TCP that are somebody's towards everybody."""
    found = lab.ask(SERVER, "/v1/flows")["flows"]
    return {one["local"] for one in found if one["remote"] == "any" and one["protocol"] == "tcp"}
