"""Units of a real systemd and containers of real engines on a server of the lab `pair`: attached while they run, they
leave from the pool; detached they leave from the host's own address. What the how-to tells to write is what runs here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.netns.bundle import bound, write_bundle, write_root
from tests.netns.machine import Machine, code_of, machine
from tests.netns.pair_lab import PairLab

from softunicast.lab.pair import INTERNET, POOL, SHARED

SERVER = "server1"
OWN = "192.0.2.1"


@pytest.fixture(scope="module")
def host(make_pair: Callable[..., PairLab]) -> Iterator[Machine]:
    with machine(make_pair(), SERVER) as made:
        yield made


@pytest.fixture
def squid(host: Machine) -> Iterator[str]:
    """A unit that runs, and is in no agreement."""
    host.unit("squid.service", f"[Service]\nExecStart={' '.join(host.asker('squid'))}\n")
    host.good("systemctl", "start", "squid")
    assert host.ask("squid")[1] == OWN
    yield "squid"
    host.run("systemctl", "stop", "squid")
    host.run("softunicast", "detach", "--cgroup", "/system.slice/squid.service")
    host.remove_unit("squid")


def attach(host: Machine, cgroup: str) -> str:
    return host.good("softunicast", "attach", "--cgroup", cgroup, "--pool", POOL.name)


def test_a_unit_that_runs_is_attached_and_detached(host: Machine, squid: str) -> None:
    before, _ = host.ask(squid)
    attach(host, host.cgroup_of(squid))
    assert host.ask(squid) == (before, str(SHARED))
    host.good("softunicast", "detach", "--cgroup", host.cgroup_of(squid))
    assert host.ask(squid) == (before, OWN)


def test_a_unit_that_is_restarted_stays_attached(host: Machine, squid: str) -> None:
    """Its cgroup is another one each time."""
    before, _ = host.ask(squid)
    cgroup = host.cgroup_of(squid)
    attach(host, cgroup)
    host.good("systemctl", "stop", squid)
    [row] = host.agreements()
    assert (row["cgroup"], row["by"], row["pool"]) == (f"/sys/fs/cgroup{cgroup}", "attach", POOL.name)
    assert row["processes"] == []
    host.good("systemctl", "start", squid)
    pid, seen = host.ask(squid)
    assert (pid != before, seen) == (True, str(SHARED))
    host.good("systemctl", "stop", squid)
    host.good("softunicast", "detach", "--cgroup", cgroup)
    host.good("systemctl", "start", squid)
    assert host.ask(squid)[1] == OWN
    assert host.agreements() == []


def test_a_unit_of_a_template_stays_attached(host: Machine) -> None:
    """systemd keeps the slice, whose only unit it is."""
    host.unit("squid@.service", f"[Service]\nExecStart={' '.join(host.asker('template'))}\n")
    host.good("systemctl", "start", "squid@one")
    attach(host, host.cgroup_of("squid@one"))
    cgroup = host.cgroup_of("squid@one")
    assert cgroup == "/system.slice/system-squid.slice/squid@one.service"
    host.good("systemctl", "restart", "squid@one")
    assert host.ask("template")[1] == str(SHARED)
    host.good("systemctl", "stop", "squid@one")
    host.good("softunicast", "detach", "--cgroup", cgroup)


def pool_part(host: Machine, unit: str, pool: str = POOL.name, needs: str = "Requires") -> None:
    """What the how-to tells to write with `systemctl edit`."""
    text = code_of("run.md", "ini", "ExecStartPre")
    assert "--pool gb" in text
    text = text.replace("--pool gb", f"--pool {pool}").replace("Requires=", f"{needs}=")
    host.unit(f"{unit}.service.d/pool.conf", text)


def test_a_unit_that_wants_its_agent_goes_on_when_that_dies(host: Machine, squid: str) -> None:
    pool_part(host, squid, needs="Wants")
    host.good("systemctl", "restart", squid)
    before, seen = host.ask(squid)
    assert seen == str(SHARED)
    host.good("systemctl", "kill", "--signal=KILL", "softunicast")
    assert host.ask(squid) == (before, str(SHARED))
    [row] = host.agreements()
    assert (row["cgroup"], row["pool"]) == (f"/sys/fs/cgroup{host.cgroup_of(squid)}", POOL.name)
    assert host.ask(squid) == (before, str(SHARED))


def test_a_unit_with_the_part_of_the_howto_leaves_from_the_pool_after_each_start(
    host: Machine, squid: str
) -> None:
    pool_part(host, squid)
    before, _ = host.ask(squid)
    for _ in range(2):
        host.good("systemctl", "restart", squid)
        pid, seen = host.ask(squid)
        assert (seen, pid != before) == (str(SHARED), True)
        before = pid
    host.unit(f"{squid}.service.d/pool.conf", "")
    host.good("systemctl", "restart", squid)
    assert host.ask(squid)[1] == OWN


def test_a_unit_with_the_part_of_the_howto_starts_with_its_agent(host: Machine, squid: str) -> None:
    """It stops with the agent, and starts it."""
    pool_part(host, squid)
    host.good("systemctl", "restart", squid)
    host.good("systemctl", "stop", "softunicast")
    assert host.run("systemctl", "is-active", squid).output == "inactive\n"
    host.good("systemctl", "start", squid)
    assert host.ask(squid)[1] == str(SHARED)


def test_a_unit_does_not_start_when_attach_is_refused(host: Machine, squid: str) -> None:
    pool_part(host, squid, "nowhere")
    assert host.run("systemctl", "restart", squid).code == 1
    assert host.run("systemctl", "is-active", squid).output == "failed\n"


def test_beside_the_cgroup_programs_of_systemd(host: Machine) -> None:
    """IPAddressDeny= is a program at the unit's cgroup: it and we do our work, each for itself."""
    fence = f"[Service]\nIPAddressDeny=any\nIPAddressAllow={INTERNET}\n"
    host.unit("fenced.service", f"{fence}ExecStart={' '.join(host.asker('fenced'))}\n")
    pool_part(host, "fenced")
    host.good("systemctl", "start", "fenced")
    assert host.ask("fenced")[1] == str(SHARED)
    host.good("systemctl", "stop", "fenced")  # and with it the agreement
    said = host.folder / "said"
    script = f"echo > /dev/udp/{INTERNET}/7 && echo > /dev/udp/192.0.2.254/7"
    host.unit(
        "fenced.service", f"{fence}Type=oneshot\nExecStart=bash -c '{script}'\nStandardError=file:{said}\n"
    )
    assert host.run("systemctl", "start", "fenced").code == 1
    assert said.read_text().count("Operation not permitted") == 1


@pytest.fixture(params=["crun", "runc"])
def engine(host: Machine, request: pytest.FixtureRequest) -> str:
    """The command of an engine for OCI bundles."""
    name = str(request.param)
    if host.run("which", name).code:
        pytest.skip(f"missing: {name}; fix: apt-get install {name}")
    return name


@contextmanager
def container(
    host: Machine, engine: str, own_network: bool, above: str = "/containers"
) -> Iterator[tuple[str, str]]:
    """One that runs: its name, and its cgroup as the how-to finds it."""
    name = f"{engine}-{'own' if own_network else 'host'}"
    bundle = host.folder / name
    write_bundle(bundle, host.folder, f"{above}/{name}", own_network, host.asker(name))
    start = (engine, "run", "--detach", "--bundle", str(bundle), name)
    host.good(
        "sh", "-c", f'"$@" > {bundle}/output 2>&1 || {{ cat {bundle}/output >&2; false; }}', "sh", *start
    )
    try:
        pid = json.loads(host.good(engine, "state", name))["pid"]
        yield name, host.good("sh", "-c", f"cut -d: -f3 /proc/{pid}/cgroup | tail -1").strip()
    finally:
        host.good(engine, "delete", "--force", name)
        shutil.rmtree(bundle)


def test_a_container_with_the_hosts_network(host: Machine, engine: str) -> None:
    with container(host, engine, own_network=False) as (name, cgroup):
        before, seen = host.ask(name)
        assert seen == OWN
        attach(host, cgroup)
        assert host.ask(name) == (before, str(SHARED))
        host.good("softunicast", "detach", "--cgroup", cgroup)
        assert host.ask(name) == (before, OWN)


def test_a_container_with_its_own_network_is_refused(host: Machine, engine: str) -> None:
    with container(host, engine, own_network=True) as (_, cgroup):
        done = host.run("softunicast", "attach", "--cgroup", cgroup, "--pool", POOL.name)
        assert (done.code, done.output) == (2, "")
        assert (
            "has a network of its own: its sockets are not this server's; fix: make the interface"
            in done.complaint
        )


def test_a_container_in_a_cgroup_that_is_attached(host: Machine, engine: str) -> None:
    """From its beginning, as each container that is made there."""
    host.good("mkdir", "/sys/fs/cgroup/crawlers")
    attach(host, "/crawlers")
    with container(host, engine, own_network=False, above="/crawlers") as (name, _):
        assert host.ask(name)[1] == str(SHARED)
    host.good("softunicast", "detach", "--cgroup", "/crawlers")
    host.good("rmdir", "/sys/fs/cgroup/crawlers")


def test_a_container_that_is_made_in_the_place_of_another(host: Machine, engine: str) -> None:
    with container(host, engine, own_network=False) as (_, cgroup):
        attach(host, cgroup)
    with container(host, engine, own_network=False) as (name, again):
        assert again == cgroup
        assert host.ask(name)[1] == str(SHARED)
        host.good("softunicast", "detach", "--cgroup", cgroup)


def test_a_container_with_its_own_network_that_comes_later(host: Machine) -> None:
    """In a cgroup that is attached: refused when it connects, whatever it is in."""
    unit = f"[Service]\nExecStart=unshare --net {' '.join(host.asker('later'))}\n"
    host.unit("later.service", unit)
    pool_part(host, "later")
    host.good("systemctl", "start", "later")
    before = host.lab.drops(SERVER).get("namespace", 0)
    assert host.ask("later")[1] == "Operation not permitted"
    assert host.lab.drops(SERVER)["namespace"] == before + 1
    host.good("systemctl", "stop", "later")


PODMAN = ("podman", "--cgroup-manager=cgroupfs", "--events-backend=none", "--storage-driver=vfs")
# For containers with a cgroup of their own: crun wants CAP_SYS_RESOURCE for their rules on devices, which machines for
# tests may lack, and runc the controller of pids for the usual limit.
RUNC, NO_LIMIT = ("--runtime=runc",), "--pids-limit=0"


@contextmanager
def of_podman(
    host: Machine, name: str, *options: str, of: tuple[str, ...] = RUNC, under: tuple[str, ...] = ()
) -> Iterator[str]:
    """A container of podman that runs; gives its cgroup."""
    if host.run("which", "podman").code:
        pytest.skip("missing: podman; fix: apt-get install podman runc")
    root = write_root(host.folder / name, host.folder)
    binds = [word for place, how in bound(host.folder) for word in ("--volume", f"{place}:{place}:{how}")]
    named = (f"--name={name}", *options, *binds, "--rootfs", str(root))
    start = (*under, *PODMAN, *of, "run", "--detach", *named)
    host.good(*start, *host.asker(name))
    try:
        pid = host.good(*PODMAN, "inspect", "-f", "{{.State.Pid}}", name).strip()
        yield host.good("sh", "-c", f"cut -d: -f3 /proc/{pid}/cgroup | tail -1").strip()
    finally:
        host.good(*PODMAN, "rm", "--force", "--time=0", name)
        shutil.rmtree(host.folder / name)


def test_a_container_of_podman(host: Machine) -> None:
    """Attached while it runs, it stays so when podman starts it again."""
    with of_podman(host, "pod", "--network=host", NO_LIMIT) as cgroup:
        before, seen = host.ask("pod")
        assert seen == OWN
        attach(host, cgroup)
        assert host.ask("pod") == (before, str(SHARED))
        host.good(*PODMAN, "restart", "--time=0", "pod")
        assert host.ask("pod")[1] == str(SHARED)
        host.good("softunicast", "detach", "--cgroup", cgroup)
        assert host.ask("pod")[1] == OWN


def test_a_container_of_podman_under_run(host: Machine) -> None:
    run = ("softunicast", "run", "--pool", POOL.name, "--")
    with of_podman(host, "run", "--network=host", "--cgroups=disabled", of=(), under=run):
        assert host.ask("run")[1] == str(SHARED)


def test_a_container_of_podman_with_its_own_network_is_refused(host: Machine) -> None:
    with of_podman(host, "own", "--network=none", NO_LIMIT) as cgroup:
        done = host.run("softunicast", "attach", "--cgroup", cgroup, "--pool", POOL.name)
        assert (done.code, "has a network of its own" in done.complaint) == (2, True)
