"""What people do all day from a client: fast transfers, web pages by either version of HTTP, a shell on a machine far
away, and very many names to look up. Every server here is a real one, in the node `internet`, gone with the lab.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.netns.pair_lab import PairLab
from tests.netns.tools import CLIENTS, check_either_server, counted, listening, make_quick

from softunicast.lab import pattern, processes
from softunicast.lab.pair import INTERNET, SERVER_OF

IPERF_PORT, HTTPS_PORT, SSH_PORT, DNS_PORT = 5201, 8443, 2222, 53
SIZE = 20_000_000
QUERIES = 10_000
NEEDED = {
    "iperf3": "iperf3",
    "nghttpd": "nghttp2-server",
    "sshd": "openssh-server",
    "dnsmasq": "dnsmasq-base",
    "dnsperf": "dnsperf",
}
PRIVILEGE_SEPARATION = Path("/run/sshd")  # compiled into sshd, which wants it empty


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"missing: {name}; fix: apt-get install {NEEDED[name]}")
    return found


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    return make_quick(make_pair())


def serve(lab: PairLab, name: str, *arguments: str, protocol: str = "tcp", port: int) -> None:
    """Starts a server in internet; it ends with the lab."""
    processes.start(lab.lab, "internet", name, [program(name), *arguments])
    listening(lab, "internet", protocol, port)


@pytest.fixture(scope="module")
def folder(lab: PairLab) -> Path:
    """Of the servers: with a file to fetch."""
    made = lab.lab.node_directory("internet")
    with (made / "big").open("wb") as file:
        for piece in pattern.pieces(SIZE):
            file.write(piece)
    return made


# -- iperf3 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def iperf(lab: PairLab) -> Callable[..., dict[str, Any]]:
    serve(lab, "iperf3", "-s", port=IPERF_PORT)

    def run(client: str, *how: str) -> dict[str, Any]:
        said = lab.run(client, "iperf3", "-J", "-c", INTERNET, *how)
        found: dict[str, Any] = json.loads(said.output)
        assert "error" not in found, found["error"]
        end: dict[str, Any] = found["end"]
        return end

    return run


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("how", [(), ("-R",), ("--bidir",)], ids=["up", "down", "both ways"])
def test_iperf_tcp(lab: PairLab, iperf: Callable[..., Any], client: str, how: tuple[str, ...]) -> None:
    with counted(lab) as grown:
        end = iperf(client, "-n", "40M", *how)
    ways = ["sum_received", "sum_received_bidir_reverse"][: 1 + (how == ("--bidir",))]
    received = [end[way]["bytes"] for way in ways]
    assert sum(received) >= 10 << 20, "what is still on its way when the sender has sent all is not counted"
    assert min(received) > 1 << 20
    assert grown.reasons() == set()
    owner = grown.traffic[SERVER_OF[client]]
    assert owner["new_flow"] == (3 if how == ("--bidir",) else 2), "one more to talk about it"
    assert owner["in"] == owner["here"] > 100


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("how", [(), ("-R",), ("--bidir",)], ids=["up", "down", "both ways"])
def test_iperf_udp(lab: PairLab, iperf: Callable[..., Any], client: str, how: tuple[str, ...]) -> None:
    """Datagrams that are lost here find no room in a socket of a busy machine: none is dropped on the way."""
    with counted(lab) as grown:
        end = iperf(client, "-u", "-b", "40M", "-t", "1", *how)
    assert end["sum"]["packets"] > 1000
    assert end["sum"]["lost_percent"] < 20
    assert grown.reasons() == set()
    assert max(grown.of("out"), grown.of("in")) >= end["sum"]["packets"]


# -- HTTP/2 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def web(lab: PairLab, folder: Path) -> str:
    """An HTTPS server that speaks HTTP/2 alone; its URL of a file with SIZE bytes."""
    key, certificate = folder / "web.key", folder / "web.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-subj", f"/CN={INTERNET}", "-addext", f"subjectAltName=IP:{INTERNET}")
    lab.good(
        "internet",
        *("openssl", "req", "-x509", *curve, *names, "-days", "2"),
        *("-keyout", str(key), "-out", str(certificate)),
    )
    serve(
        lab,
        "nghttpd",
        "-a",
        INTERNET,
        "-d",
        str(folder),
        str(HTTPS_PORT),
        str(key),
        str(certificate),
        port=HTTPS_PORT,
    )
    return f"https://{INTERNET}:{HTTPS_PORT}/big"


@pytest.mark.parametrize("client", CLIENTS)
def test_curl_by_http_2(lab: PairLab, folder: Path, web: str, client: str) -> None:
    """Its certificate is checked: whoever answers has the server's key."""
    got = lab.lab.node_directory("internet") / f"got-{client}"
    said = lab.good(
        client,
        *("curl", "-sS", "-m20", "--http2", "--cacert", str(folder / "web.pem"), "-o", str(got)),
        *("-w", "%{http_version} %{http_code} %{size_download}", web),
    )
    assert said == f"2 200 {SIZE}"
    assert hashlib.sha256(got.read_bytes()).hexdigest() == pattern.sha256(SIZE)


@pytest.mark.parametrize("client", CLIENTS)
def test_many_streams_of_one_connection(lab: PairLab, folder: Path, web: str, client: str) -> None:
    """Thirty requests at once go over one conversation, over thirty with HTTP/1.1."""
    with counted(lab) as grown:
        said = lab.good(
            client,
            *(
                "curl",
                "-sS",
                "-m20",
                "--http2",
                "--cacert",
                str(folder / "web.pem"),
                "-Z",
                "--parallel-max",
                "30",
            ),
            *(
                "-o",
                "/dev/null",
                "-w",
                "%{http_code} %{http_version}\n",
                web.replace("big", "web.pem?[1-30]"),
            ),
        )
    assert said.splitlines() == ["200 2"] * 30
    assert grown.of("new_flow") < 30
    assert grown.reasons() == set()
    with counted(lab) as grown:
        said = lab.good(
            client,
            *("curl", "-sS", "-m20", "--http1.1", "-Z", "--parallel-max", "30", "--parallel-immediate"),
            *(
                "-o",
                "/dev/null",
                "-w",
                "%{http_code} %{http_version}\n",
                f"http://{INTERNET}/bytes/[10001-10030]",
            ),
        )
    assert said.splitlines() == ["200 1.1"] * 30
    assert grown.of("new_flow") > 20
    assert grown.reasons() == set()


# -- ssh ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ssh(lab: PairLab, folder: Path) -> Iterator[tuple[str, ...]]:
    """A server with keys and settings of its own, and the command that reaches it from a client."""
    made = not PRIVILEGE_SEPARATION.exists()
    PRIVILEGE_SEPARATION.mkdir(exist_ok=True)
    try:
        for name in ("host_key", "user_key"):
            lab.good("internet", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        host = (folder / "host_key.pub").read_text()
        (folder / "known").write_text(f"[{INTERNET}]:{SSH_PORT} {host}")
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
            "PermitTTY": "no",  # a terminal would be entered into the host's book of who is logged in
        }
        config = folder / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        serve(lab, "sshd", "-D", "-e", "-f", str(config), port=SSH_PORT)
        known = f"UserKnownHostsFile={folder / 'known'}"
        options = ("-F", "none", "-o", "BatchMode=yes", "-o", known, "-i", str(folder / "user_key"))
        yield ("ssh", *options, "-p", str(SSH_PORT), f"root@{INTERNET}")
    finally:
        if made:
            PRIVILEGE_SEPARATION.rmdir()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_shell_that_is_talked_to(lab: PairLab, ssh: tuple[str, ...], client: str) -> None:
    """Line by line: each answer is there before the next question."""
    shell = processes.popen(lab.lab, client, [*ssh, "sh"], stdin=subprocess.PIPE)
    with shell:
        try:
            assert shell.stdin is not None
            assert shell.stdout is not None
            for number in range(50):
                shell.stdin.write(f"echo {number} squared is $(({number} * {number}))\n")
                shell.stdin.flush()
                assert shell.stdout.readline() == f"{number} squared is {number * number}\n"
            shell.stdin.write("echo $SSH_CONNECTION; exit 7\n")
            shell.stdin.flush()
            address, port, *_ = shell.stdout.readline().split()
            assert shell.wait(10) == 7
        finally:
            shell.kill()
    held = lab.slice_of(SERVER_OF[client])
    assert address == str(held.address)
    assert held.port_first <= int(port) < held.port_first + held.ports


@pytest.mark.parametrize("client", CLIENTS)
def test_20_mb_over_ssh_each_way(lab: PairLab, folder: Path, ssh: tuple[str, ...], client: str) -> None:
    big, command = folder / "big", " ".join(ssh)
    down = lab.good(client, "sh", "-c", f"{command} cat {big} | sha256sum")
    up = lab.good(client, "sh", "-c", f"{command} sha256sum < {big}")
    assert down.split()[0] == up.split()[0] == pattern.sha256(SIZE)


# -- DNS ---------------------------------------------------------------------------------------------------


def storm(
    lab: PairLab, folder: Path, client: str, *how: str, queries: int = QUERIES
) -> subprocess.Popen[str]:
    """Different names, at most 50 unanswered at a time."""
    names = folder / f"names-{client}"
    names.write_text("".join(f"n{number}.{client}.lab.example A\n" for number in range(queries)))
    options = ("-s", INTERNET, "-d", str(names), "-n", "1", "-q", "50", "-t", "3", *how)
    return processes.popen(lab.lab, client, [program("dnsperf"), *options])


def test_a_storm_of_queries(lab: PairLab, folder: Path) -> None:
    """From both clients at once. Nothing is dropped; what is asked is answered, by way of either server."""
    serve(
        lab,
        "dnsmasq",
        *("--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--cache-size=0"),
        *("--address=/lab.example/192.0.2.77", f"--listen-address={INTERNET}", "--bind-interfaces"),
        *("--user=root", "--pid-file="),
        protocol="udp",
        port=DNS_PORT,
    )
    with counted(lab) as grown:
        asking = {client: storm(lab, folder, client, "-c", "200") for client in CLIENTS}
        said = {client: child.communicate(timeout=60)[0] for client, child in asking.items()}
    for text in said.values():
        completed = re.search(r"Queries completed: +(\d+)", text)
        assert completed, text
        assert int(completed[1]) > QUERIES * 0.99, "a socket may have no room for one now and then"
        assert f"NOERROR {completed[1]} (100.00%)" in text
    assert grown.reasons() == set()
    assert grown.of("new_flow") >= 400
    assert grown.of("out") >= 2 * QUERIES * 0.99
    for client in CLIENTS:
        check_either_server(grown, client)


def test_names_asked_over_tcp(lab: PairLab, folder: Path) -> None:
    """By ten connections, of which the server answers a hundred questions each."""
    with counted(lab) as grown:
        asking = storm(lab, folder, "client1", "-m", "tcp", "-c", "10", queries=900)
        said, _ = asking.communicate(timeout=60)
    assert re.search(r"Queries completed: +900 \(100.00%\)", said), said
    assert grown.reasons() == set()
    assert grown.of("new_flow") == 10
