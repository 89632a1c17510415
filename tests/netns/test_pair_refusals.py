"""What is wrong is refused: one line on stderr that names the fix, exit code 2 (the input) or 3 (the host), and
nothing has changed, neither on the host nor in the ledger.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.netns.pair_lab import Done, PairLab
from tests.netns.traces import traces

from softunicast.core.ledger import HISTORY_LIMIT_MAX
from softunicast.kernel import namespaces
from softunicast.lab.pair import SHARED
from softunicast.ledger.sqlite import SqliteLedger

# Nobody, yet able to read this installation wherever it is.
NOBODY = (
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search", "--"),
)
PROGRAM = str(Path(sys.executable).parent / "softunicast")
INPUT, HOST = 2, 3


def refused(done: Done, code: int, *says: str) -> None:
    """One line with what is wrong and what to do about it."""
    assert (done.code, done.output) == (code, ""), done
    assert done.complaint.count("\n") == 1, done.complaint
    assert done.complaint.startswith("softunicast: ")
    for text in (*says, "fix: "):
        assert text in done.complaint


def book(lab: PairLab) -> tuple[Any, ...]:
    """What the ledger holds, apart from renewals."""

    async def read() -> tuple[Any, ...]:
        ledger = await SqliteLedger.open(lab.lab.ledger)
        try:
            snapshot, history = await ledger.snapshot(), await ledger.history(None, None, HISTORY_LIMIT_MAX)
        finally:
            await ledger.close()
        leases = [replace(lease, expires_at=0.0) for lease in snapshot.leases]
        return snapshot.blocks, snapshot.addresses, snapshot.servers, leases, history

    return asyncio.run(read())


class TestLedger:
    """Inventories that do not fit, applied to the book of a lab that runs."""

    BLOCK = '[[blocks]]\nprefix = "198.51.100.0/24"\n'
    ADDRESS = (
        '[[addresses]]\naddress = "198.51.100.10"\nsite = "lab"\ntags = {country = "gb", product = "demo"}\n'
    )

    @pytest.fixture(autouse=True)
    def nothing_changes(self, pair_lab: PairLab) -> Iterator[None]:
        before = book(pair_lab)
        yield
        assert book(pair_lab) == before

    @pytest.mark.parametrize(
        ("inventory", "says"),
        [
            pytest.param(BLOCK.replace("/24", "/33"), "198.51.100.0/33", id="prefix too long"),
            pytest.param(BLOCK.replace(".0/24", ".7/24"), "198.51.100.7/24", id="host bits"),
            pytest.param(BLOCK.replace("198.51.100.0/24", "everything"), "everything", id="no prefix"),
            pytest.param(
                BLOCK + '[[blocks]]\nprefix = "198.51.0.0/16"\n', "overlaps", id="overlapping blocks"
            ),
            pytest.param(BLOCK + ADDRESS * 2, "is here twice", id="address twice"),
            pytest.param(ADDRESS, "is in no block", id="address outside"),
            pytest.param(BLOCK + ADDRESS + "slice_ports = 100\n", "slice_ports", id="no power of two"),
            pytest.param(BLOCK + ADDRESS + "slice_ports = 4096\n", "live", id="leases would overlap"),
            pytest.param(BLOCK, "live", id="address with leases removed"),
            pytest.param(BLOCK + ADDRESS + 'colour = "red"\n', "colour", id="unknown key"),
            pytest.param(BLOCK + ADDRESS.replace('"gb"', '"G B"'), "'G B'", id="malformed tag"),
            pytest.param("[[blocks]\n", "line 1", id="no TOML"),
        ],
    )
    def test_inventory(self, pair_lab: PairLab, tmp_path: Path, inventory: str, says: str) -> None:
        file = tmp_path / "inventory.toml"
        file.write_text(inventory)
        ledger = ("--ledger", str(pair_lab.lab.ledger))
        refused(pair_lab.run("server1", PROGRAM, "ledger", "apply", *ledger, str(file)), INPUT, says)


class TestNouns:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ("leases --slice 198.51.100.10:2049-4095", "198.51.100.10:2049-4095"),
            ("leases --slice 198.51.100.10:2048/49", "198.51.100.10:2048/49"),
            ("leases --who 198.51.100.10:70000", "70000"),
            ("leases --history --at 2026-05-01T14:02:07", "zone"),
            ("explain --from eth9 tcp 10.0.0.2:1 203.0.113.1:80", "use one of: uplink, clients"),
            ("explain --from clients tcp 10.0.0.2 203.0.113.1:80", "10.0.0.2"),
            ("flows --protocol sctp", "sctp"),
            ("flows --limit 0", "0"),
            ("sliced", "sliced"),
            ("--socket /nonexistent slices", "/nonexistent"),
        ],
    )
    def test_wrong_questions(self, pair_lab: PairLab, arguments: str, says: str) -> None:
        code = HOST if "nonexistent" in arguments else INPUT
        refused(pair_lab.run("server1", PROGRAM, *arguments.split()), code, says)

    @pytest.mark.parametrize("arguments", ["slices", "leases"])
    def test_nobody_may_not_ask(self, pair_lab: PairLab, arguments: str) -> None:
        refused(pair_lab.run("server1", *NOBODY, PROGRAM, arguments), HOST, "not allowed", "run as root")


@pytest.fixture(scope="module")
def stopped(make_pair: Callable[..., PairLab]) -> PairLab:
    """A lab in which server1's agent was stopped."""
    lab = make_pair()
    lab.end_agents(signal.SIGTERM, "server1")
    return lab


@pytest.fixture
def unchanged(stopped: PairLab) -> Iterator[PairLab]:
    before = world(stopped)
    yield stopped
    assert world(stopped) == before


def world(lab: PairLab) -> dict[str, Any]:
    """Everything that an agent may change on its host, and the ledger."""

    def settings() -> dict[str, str]:
        files = Path("/proc/sys/net/ipv4/conf").glob("*/*")
        return {str(file): file.read_text() for file in files if os.access(file, os.R_OK)}

    return {
        "settings": namespaces.run_in(lab.lab.namespace("server1"), settings),
        "addresses": lab.good("server1", "ip", "-4", "-o", "address"),  # IPv6 settles by itself
        "links": lab.good("server1", "ip", "-d", "link"),
        "qdiscs": lab.good("server1", "tc", "qdisc"),
        "programs": json.loads(lab.good("server1", "bpftool", "-j", "net")),
        "files": sorted(str(path) for path in lab.lab.directory.rglob("*")),
        "ledger": book(lab),
    }


class TestAgent:
    """An agent that must not start."""

    def start(self, lab: PairLab, *before: str, **env: str) -> Done:
        config = str(lab.config("server1"))
        return lab.run("server1", *before, PROGRAM, "agent", "--config", config, env=env)

    def test_three_errors_are_told_at_once(self, unchanged: PairLab, tmp_path: Path) -> None:
        text = unchanged.config("server1").read_text()
        wrong = (
            text.replace('site = "lab"', 'site = "The Lab"')
            .replace("ttl_s = 300", "ttl_s = -1")
            .replace("[uplink]\ninterface", "[uplink]\ninterfaces")
        )
        file = tmp_path / "agent.toml"
        file.write_text(wrong)
        done = unchanged.run("server1", PROGRAM, "agent", "--config", str(file))
        refused(done, INPUT, "The Lab", "ttl_s", "did you mean interface?")
        for what in ("The Lab", "ttl_s = -1", "interfaces"):
            assert f"line {wrong[: wrong.index(what)].count(chr(10)) + 1}: " in done.complaint
        assert done.complaint.count("fix: ") >= 3

    def test_unknown_tag(self, unchanged: PairLab, tmp_path: Path) -> None:
        file = tmp_path / "agent.toml"
        text = unchanged.config("server1").read_text()
        file.write_text(text.replace('"country" = "gb"', '"country" = "xx"'))
        done = unchanged.run("server1", PROGRAM, "agent", "--config", str(file))
        refused(done, INPUT, "country=xx", "gb")

    def test_missing_libbpf(self, unchanged: PairLab) -> None:
        done = self.start(unchanged, SOFTUNICAST_LIBBPF="/nonexistent")
        refused(done, HOST, "/nonexistent", "apt-get install libbpf1")

    @pytest.mark.parametrize("feature", ["tcx", "xdp", "bpffs", "bpf_loop"])
    def test_missing_feature(self, unchanged: PairLab, feature: str) -> None:
        done = self.start(unchanged, SOFTUNICAST_PROBE_WITHOUT=feature)
        refused(done, HOST, feature, "boot Linux")

    def test_several_missing_features_are_told_at_once(self, unchanged: PairLab) -> None:
        done = self.start(unchanged, SOFTUNICAST_PROBE_WITHOUT="tcx,xdp")
        refused(done, HOST, "xdp", "tcx", "boot Linux 6.6")

    def test_nobody(self, unchanged: PairLab) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:  # pytest's directories are root's
            file.write(unchanged.config("server1").read_text())
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            done = unchanged.run("server1", *NOBODY, PROGRAM, "agent", "--config", file.name)
        refused(done, HOST, "CAP_NET_ADMIN", "run it as root")

    def test_root_without_capabilities(self, unchanged: PairLab) -> None:
        done = self.start(unchanged, "setpriv", "--bounding-set", "-bpf,-sys_admin", "--")
        refused(done, HOST, "CAP_BPF", "run it as root")


class TestLab:
    """`lab` on a host that cannot have one."""

    def run(self, *argv: str, **env: str) -> Done:
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, timeout=60, env={**os.environ, **env}
        )
        return Done(done.returncode, done.stdout, done.stderr)

    @pytest.fixture
    def lab_id(self, pair_lab: PairLab) -> Iterator[str]:
        lab_id = f"{pair_lab.lab.id}x"
        yield lab_id
        assert traces(lab_id) == []

    def test_missing_libbpf(self, lab_id: str) -> None:
        done = self.run(PROGRAM, "lab", "up", "pair", "--id", lab_id, SOFTUNICAST_LIBBPF="/nonexistent")
        refused(done, HOST, "/nonexistent", "apt-get install libbpf1")

    def test_missing_feature(self, lab_id: str) -> None:
        done = self.run(PROGRAM, "lab", "up", "pair", "--id", lab_id, SOFTUNICAST_PROBE_WITHOUT="tcx")
        refused(done, HOST, "tcx", "boot Linux 6.6")

    @pytest.mark.parametrize("arguments", ["up pair --id", "down", "status", "exec client1 --"])
    def test_nobody(self, lab_id: str, arguments: str) -> None:
        refused(self.run(*NOBODY, PROGRAM, "lab", *arguments.split(), lab_id), HOST, "needs root")


def test_the_lab_was_not_disturbed(pair_lab: PairLab) -> None:
    answer = json.loads(pair_lab.good("client1", "curl", "-s", "-m", "20", "http://203.0.113.1/"))
    assert answer["address"] == str(SHARED)
