"""What clients do, as programs that print JSON: `python -m softunicast.lab.traffic PROBE ...` inside a node.

    download   many checked downloads at once, with curl
    hold       many connections to one destination, held until standard input closes
    echo       one conversation from a chosen source port
    forge      one packet with a source that this node has no right to (root)

Exit code 0 when all went well, 1 when something did not (the JSON says what), 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import Any, Final

from softunicast.core.errors import SoftunicastError
from softunicast.lab import download, forge, hold, pattern

ECHO_TIMEOUT_S: Final = 5.0
ECHO_COUNT_MAX: Final = 10_000
_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one probe. Returns the exit code."""
    chosen = _parser().parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return 0 if chosen.probe(chosen) else 1
    except SoftunicastError as error:
        sys.stderr.write(f"softunicast.lab.traffic: {error}\n")
        return error.exit_code


def _download(chosen: argparse.Namespace) -> bool:
    result = download.run(
        chosen.url, chosen.count, chosen.bytes, chosen.over_s, chosen.timeout_s, chosen.label
    )
    _print(result)
    return not result["failed"]


def _hold(chosen: argparse.Namespace) -> bool:
    return asyncio.run(hold.run(chosen.destination, chosen.count, chosen.protocol, chosen.timeout_s))


def _echo(chosen: argparse.Namespace) -> bool:
    result: dict[str, Any] = {
        "local": None,
        "count": chosen.count,
        "echoed": 0,
        "ms_max": 0.0,
        "failure": None,
    }
    with socket.socket(socket.AF_INET, _KINDS[chosen.protocol]) as talking:
        talking.settimeout(ECHO_TIMEOUT_S)
        talking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            talking.bind(("", chosen.source_port))
            talking.connect(chosen.destination)
            result["local"] = "{}:{}".format(*talking.getsockname())
            for number in range(chosen.count):
                time.sleep(chosen.delay_s if number else 0.0)
                start = time.monotonic()
                _one_echo(talking)
                result["ms_max"] = max(result["ms_max"], round((time.monotonic() - start) * 1000, 2))
                result["echoed"] += 1
        except (OSError, EOFError) as error:
            result["failure"] = hold.name_of(error) if isinstance(error, OSError) else str(error)
    _print(result)
    return result["failure"] is None


def _one_echo(talking: socket.socket) -> None:
    payload = secrets.token_bytes(hold.PAYLOAD_BYTES)
    talking.sendall(payload)
    answer = b""
    while len(answer) < len(payload):
        piece = talking.recv(len(payload))
        if not piece:
            raise EOFError("closed")
        answer += piece
    if answer != payload:
        raise EOFError("wrong echo")


def _forge(chosen: argparse.Namespace) -> bool:
    forge.send(chosen.source, chosen.destination, chosen.count)
    _print({"source": "{}:{}".format(*chosen.source), "sent": chosen.count})
    return True


def _print(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="softunicast.lab.traffic", description="Probes for labs.")
    probes = parser.add_subparsers(required=True, metavar="PROBE")

    one = _probe(probes, "download", _download, "many checked downloads at once, with curl")
    one.add_argument("--url", required=True, help="the server, as http://203.0.113.1")
    one.add_argument("--count", type=_between(1, download.COUNT_MAX), default=1)
    one.add_argument("--bytes", type=_between(0, pattern.BYTES_MAX), default=1 << 20, help="of each")
    one.add_argument("--over-s", type=float, help="let the server spread them over so many seconds")
    one.add_argument("--timeout-s", type=float, default=60.0)
    one.add_argument("--label", default="traffic", help="shown by the server's /peers")

    one = _probe(probes, "hold", _hold, "connections that are held until standard input closes")
    one.add_argument("--destination", type=_endpoint, required=True, metavar="ADDRESS:PORT")
    one.add_argument("--count", type=_between(1, hold.COUNT_MAX), default=1)
    one.add_argument("--protocol", choices=("tcp", "udp"), default="tcp")
    one.add_argument("--timeout-s", type=float, default=10.0, help="for each connection")

    one = _probe(probes, "echo", _echo, "one conversation from a chosen source port")
    one.add_argument("--source-port", type=_between(0, 65535), required=True)
    one.add_argument("--destination", type=_endpoint, required=True, metavar="ADDRESS:PORT")
    one.add_argument("--count", type=_between(1, ECHO_COUNT_MAX), default=1)
    one.add_argument("--delay-s", type=float, default=0.0, help="between echoes")
    one.add_argument("--protocol", choices=("tcp", "udp"), default="tcp")

    one = _probe(probes, "forge", _forge, "UDP packets with any source (root)")
    one.add_argument("--source", type=_endpoint, required=True, metavar="ADDRESS:PORT")
    one.add_argument("--destination", type=_endpoint, required=True, metavar="ADDRESS:PORT")
    one.add_argument("--count", type=_between(1, forge.COUNT_MAX), default=1)
    return parser


def _probe(
    probes: Any, name: str, run: Callable[[argparse.Namespace], bool], about: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = probes.add_parser(name, help=about, description=about)
    parser.set_defaults(probe=run)
    return parser


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    try:
        return str(IPv4Address(host)), _between(0, 65535)(port)
    except (AddressValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT") from None


def _between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return parse


if __name__ == "__main__":
    sys.exit(main())
