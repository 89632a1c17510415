"""`softunicast explain`: what the real programs would do with a packet, without sending it."""

from __future__ import annotations

from typing import Any

import click

from softunicast.cli import client, show
from softunicast.cli.arguments import End, end_or_address
from softunicast.core.errors import InputError


@click.command()
@click.option(
    "--from",
    "interface",
    required=True,
    metavar="INTERFACE",
    help="Where it arrives: an on-ramp or the uplink.",
)
@click.argument("protocol", type=click.Choice(["tcp", "udp", "icmp"]), metavar="tcp|udp|icmp")
@click.argument("source", type=end_or_address, metavar="SOURCE:PORT")
@click.argument("destination", type=end_or_address, metavar="DESTINATION:PORT")
@click.option("--leaving", is_flag=True, help="A program on this server sends it, out of the uplink.")
@click.option("--syn", is_flag=True, help="TCP: opens a connection.")
@click.option("--ack", is_flag=True, help="TCP: in the middle of one; assumed when no flag is given.")
@click.option("--fin", is_flag=True, help="TCP: ends it.")
@click.option("--rst", is_flag=True, help="TCP: breaks it.")
@show.json_option
@click.pass_obj
def command(
    socket: str,
    interface: str,
    protocol: str,
    source: End,
    destination: End,
    leaving: bool,
    syn: bool,
    ack: bool,
    fin: bool,
    rst: bool,
    as_json: bool,
) -> None:
    """What would happen to this packet? Asks the real program.

    Runs the loaded data path on a packet made up from the arguments. Nothing is sent, no port is taken, no
    counter moves. For an ICMP echo the identifier takes the place of the client's port: 10.0.0.2:77.

    \b
    Examples:
      a client of the on-ramp `clients` opens a connection:
        softunicast explain --from clients tcp 10.0.0.2:40000 203.0.113.1:443 --syn
      a reply arrives:
        softunicast explain --from uplink tcp 203.0.113.1:80 198.51.100.10:2049
      a program on this server tries to send from a port of the slice of another:
        softunicast explain --from uplink --leaving udp 198.51.100.10:9017 203.0.113.1:53
    """
    given = {"syn": syn, "ack": ack, "fin": fin, "rst": rst}
    answer = client.post(
        socket,
        "/v1/explain",
        {
            "from": interface,
            "protocol": protocol,
            "source": str(source),
            "destination": str(destination),
            "flags": _flags(protocol, source, destination, [flag for flag in given if given[flag]]),
            "leaving": leaving,
        },
    )
    if as_json:
        show.document(answer)
        return
    click.echo(in_words(answer))


def in_words(answer: dict[str, Any]) -> str:
    """The agent's answer for a person: the packet, what each step did with it, and the verdict."""
    lines = [f"packet   {show.text(answer['packet_in'])}"]
    lines += [f"  {number}. {show.text(step)}" for number, step in enumerate(answer["steps"], 1)]
    verdict = show.text(answer["verdict"])
    lines.append(f"verdict  {verdict}" + (f": {answer['reason']}" if answer["reason"] else ""))
    if answer["meaning"]:
        lines.append(f"         {show.text(answer['meaning'])}")
    if answer["packet_out"]:
        lines.append(f"leaves   {show.text(answer['packet_out'])}")
    return "\n".join(lines)


def _flags(protocol: str, source: End, destination: End, given: list[str]) -> list[str]:
    if protocol != "tcp" and given:
        raise InputError(f"{protocol} has no --{given[0]}", "leave it out, or say tcp")
    for end in (source, destination):
        if protocol != "icmp" and end.port is None:
            raise InputError(f"{end} has no port", f"write it like {end}:40000")
    return given if given or protocol != "tcp" else ["ack"]
