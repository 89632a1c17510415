"""Programs that were never changed, under `softunicast run` on a server: everything that they send leaves from the
server's slice; without it, everything leaves from the server's own address. Looked at from the internet.

Programs that are large to install (Node, Chromium) are part of it where they are there: `make programs` sees to that.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Packet
from tests.netns.pair_lab import PairLab
from tests.netns.tools import listening, make_quick

from softunicast.lab import processes
from softunicast.lab.pair import INTERNET, POOL, SHARED

SERVER, OWN_ADDRESS = "server1", "192.0.2.1"
FILES_PORT, HTTPS_PORT, SSH_PORT, DNS_PORT, SENTINEL_PORT = 8000, 8443, 2222, 53, 9
PRIVILEGE_SEPARATION = Path("/run/sshd")  # compiled into sshd, which wants it empty
URL, FILES = f"http://{INTERNET}/", f"http://{INTERNET}:{FILES_PORT}"
FETCH = f"fetch('{URL}').then(r => r.text()).then(console.log)"
APT = ("Dir::State", "Dir::Cache", "Dir::Etc::sourceparts", "Dir::Etc::trustedparts")

# Name -> (Debian package, command). FOLDER is one of its own.
PROGRAMS = {
    "curl": ("curl", ["curl", "-sSf", "-m20", URL]),
    "wget": ("wget", ["wget", "-qO-", "-T10", "-t1", URL]),
    "git": ("git", ["git", "clone", "-q", f"{FILES}/origin.git", "FOLDER/clone"]),
    "ssh": ("openssh-client", ["ssh", "SSH", "true"]),
    "dig": ("bind9-dnsutils", ["dig", "+short", "+time=3", f"@{INTERNET}", "a.lab.example"]),
    "dig by TCP": ("bind9-dnsutils", ["dig", "+short", "+tcp", f"@{INTERNET}", "a.lab.example"]),
    "ping": ("iputils-ping", ["ping", "-nc2", "-i0.2", "-W20", INTERNET]),
    "a large ping": ("iputils-ping", ["ping", "-nc2", "-i0.2", "-W20", "-s4000", INTERNET]),
    "traceroute": ("traceroute", ["traceroute", "-n", "-q1", "-w3", INTERNET]),
    "traceroute by ICMP": ("traceroute", ["traceroute", "-nI", "-q1", "-w3", INTERNET]),
    "apt-get": ("apt", ["apt-get", "APT", "-qq", "update"]),
    "a static program in Go": ("certinfo", ["certinfo", "-insecure", f"{INTERNET}:{HTTPS_PORT}"]),
    "Node": ("nodejs", ["node", "-e", FETCH]),
    "Chromium": (
        "chromium",
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--user-data-dir=FOLDER",
            "--dump-dom",
            URL,
        ],
    ),
}


@dataclass(frozen=True)
class Internet:
    """The lab, its servers running, and what the commands above stand for."""

    lab: PairLab
    folder: Path
    ssh: tuple[str, ...]

    def command(self, name: str) -> list[str]:
        """One of PROGRAMS, ready to run; skips when it is not installed."""
        package, command = PROGRAMS[name]
        if shutil.which(command[0]) is None:
            pytest.skip(f"missing: {command[0]}; fix: apt-get install {package}")
        mine = self.folder / name.replace(" ", "-")
        shutil.rmtree(mine, ignore_errors=True)
        mine.mkdir()
        apt = [f"-o{option}={mine}" for option in APT]
        words: list[str] = []
        for word in command:
            words += {"SSH": [*self.ssh], "APT": [*apt, f"-oDir::Etc::sourcelist={self._sources(mine)}"]}.get(
                word, [word.replace("FOLDER", str(mine))]
            )
        return words

    def _sources(self, folder: Path) -> Path:
        (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (folder / "sources.list").write_text(f"deb [trusted=yes] {FILES}/apt ./\n")
        return folder / "sources.list"

    def sources(self, run: Callable[[], Any]) -> set[tuple[str, int]]:
        """Addresses and ports (identifiers) from which the server sent something while `run` did."""
        with self.lab.capture("internet", "eth0") as capture:
            run()
            heard = self.lab.passed(SERVER, capture)
        return {found for frame in heard if (found := _source(frame)) is not None}


def _source(frame: Packet) -> tuple[str, int] | None:
    if IP not in frame or frame[IP].frag or (UDP in frame and frame[UDP].dport == SENTINEL_PORT):
        return None
    if ICMP in frame:
        return str(frame[IP].src), int(frame[ICMP].id)
    return str(frame[IP].src), int(frame[IP].payload.sport)


@pytest.fixture(scope="module")
def internet(make_pair: Callable[..., PairLab]) -> Iterator[Internet]:
    lab = make_quick(make_pair())
    folder = lab.lab.node_directory("internet")
    made = not PRIVILEGE_SEPARATION.exists()
    PRIVILEGE_SEPARATION.mkdir(exist_ok=True)
    try:
        _files(lab, folder)
        serve(lab, "files", FILES_PORT, "python3", "-m", "http.server", "-d", str(folder), str(FILES_PORT))
        serve(lab, "web", HTTPS_PORT, *_tls(lab, folder))
        serve(lab, "sshd", SSH_PORT, *_sshd(lab, folder))
        serve(
            lab,
            *("names", DNS_PORT, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv"),
            *("--no-hosts", "--address=/lab.example/192.0.2.77", f"--listen-address={INTERNET}"),
            *("--bind-interfaces", "--user=root", "--pid-file="),
        )
        known = f"UserKnownHostsFile={folder / 'known'}"
        options = ("-F", "none", "-o", "BatchMode=yes", "-o", known, "-i", str(folder / "user_key"))
        yield Internet(lab, folder, (*options, "-p", str(SSH_PORT), f"root@{INTERNET}"))
    finally:
        if made:
            PRIVILEGE_SEPARATION.rmdir()


def serve(lab: PairLab, name: str, port: int, *command: str) -> None:
    """Starts a server in internet; it ends with the lab."""
    program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip(f"missing: {command[0]}")
    processes.start(lab.lab, "internet", name, [program, *command[1:]])
    listening(lab, "internet", "tcp", port)


def _files(lab: PairLab, folder: Path) -> None:
    """A repository of git and one of apt, as plain files."""
    (folder / "apt").mkdir()
    (folder / "apt" / "Packages").write_text("")
    lab.good("internet", "git", "init", "-q", "--bare", str(folder / "origin.git"))
    lab.good("internet", "git", "-C", str(folder / "origin.git"), "update-server-info")


def _tls(lab: PairLab, folder: Path) -> tuple[str, ...]:
    key, certificate = folder / "web.key", folder / "web.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-subj", f"/CN={INTERNET}", "-addext", f"subjectAltName=IP:{INTERNET}", "-days", "2")
    lab.good(
        "internet", "openssl", "req", "-x509", *curve, *names, "-keyout", str(key), "-out", str(certificate)
    )
    return ("nghttpd", "-a", INTERNET, "-d", str(folder), str(HTTPS_PORT), str(key), str(certificate))


def _sshd(lab: PairLab, folder: Path) -> tuple[str, ...]:
    for name in ("host_key", "user_key"):
        lab.good("internet", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    (folder / "known").write_text(f"[{INTERNET}]:{SSH_PORT} {(folder / 'host_key.pub').read_text()}")
    settings = {
        "Port": SSH_PORT,
        "ListenAddress": INTERNET,
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "user_key.pub",
        "AuthenticationMethods": "publickey",
        "PermitRootLogin": "prohibit-password",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        "PermitTTY": "no",
    }
    config = folder / "sshd_config"
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    return ("sshd", "-D", "-e", "-f", str(config))


@pytest.mark.parametrize("name", PROGRAMS)
def test_everything_leaves_from_the_slice(internet: Internet, name: str) -> None:
    held = internet.lab.slice_of(SERVER)
    command = internet.command(name)
    sources = internet.sources(
        lambda: internet.lab.good(SERVER, "softunicast", "run", "--pool", POOL.name, "--", *command)
    )
    assert {address for address, _ in sources} == {str(SHARED)}
    assert {port for _, port in sources} <= set(range(held.port_first, held.port_first + held.ports))


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_it_everything_leaves_from_the_own_address(internet: Internet, name: str) -> None:
    sources = internet.sources(lambda: internet.lab.good(SERVER, *internet.command(name)))
    assert {address for address, _ in sources} == {OWN_ADDRESS}
