"""`softunicast flows`: the live conversations in this server's table of claims."""

from __future__ import annotations

import click

from softunicast.cli import client, show
from softunicast.cli.arguments import End, end_or_address

LIMIT_DEFAULT = 50
LIMIT_MAX = 1_000_000

COLUMNS: list[show.Column] = [
    ("PROTOCOL", lambda row: row["protocol"]),
    ("ON-RAMP", lambda row: row["onramp"]),
    ("CLIENT", lambda row: row["client"]),
    ("LOCAL", lambda row: row["local"]),
    ("REMOTE", lambda row: row["remote"]),
    ("STATE", lambda row: row["state"]),
    ("EXPIRES IN", lambda row: show.span(row["expires_in_s"])),
]


@click.command()
@click.option(
    "--limit",
    type=click.IntRange(1, LIMIT_MAX),
    default=LIMIT_DEFAULT,
    show_default=True,
    help="Show at most so many.",
)
@click.option("--client", "client_end", type=end_or_address, metavar="END", help="Only flows of this client.")
@click.option("--local", type=end_or_address, metavar="END", help="Only flows that use this shared address.")
@click.option("--remote", type=end_or_address, metavar="END", help="Only flows to this destination.")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "icmp"]), help="Only flows of this protocol.")
@show.json_option
@click.pass_obj
def command(
    socket: str,
    limit: int,
    client_end: End | None,
    local: End | None,
    remote: End | None,
    protocol: str | None,
    as_json: bool,
) -> None:
    """The translated conversations of this server.

    CLIENT is what the client used, LOCAL the shared address and the port chosen for it, REMOTE the other end.
    For ICMP echo the identifier stands in place of the port. An END is an address, with or without a port.

    \b
    Examples:
      softunicast flows
      softunicast flows --client 10.0.0.2 --protocol tcp
      softunicast flows --local 198.51.100.10:2049 --json
    """
    asked = {"limit": limit, "client": client_end, "local": local, "remote": remote, "protocol": protocol}
    answer = client.get(socket, "/v1/flows", asked)
    if as_json:
        show.document(answer)
        return
    show.rows(answer["flows"], COLUMNS, as_json=False, empty="no flows")
    left_out = answer["total"] - answer["shown"]
    if left_out > 0:
        show.remark(f"{answer['shown']} of {answer['total']} flows; {left_out} left out, see --limit")
