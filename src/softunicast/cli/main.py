"""The command `softunicast`: one noun per file, imported only when it is asked for.

The table below is all this file knows about the nouns, so that `softunicast slices` never pays for the agent's
or the lab's imports, and `softunicast --help` imports none of them. Every error ends here as one line on
stderr with the exit code of its class: 1 failed, 2 the input is wrong, 3 this host cannot, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from softunicast import __version__
from softunicast.core.errors import SoftunicastError

SOCKET_DEFAULT = "/run/softunicast/agent.sock"

# Noun -> its line in `softunicast --help`. softunicast.cli.<noun> holds the click command `command`.
NOUNS = {
    "agent": "Run this server's agent; the other nouns ask it.",
    "slices": "Which server may use which ports, says the kernel.",
    "leases": "The ledger's leases; their history; who had a port, and when.",
    "pools": "This server's pools: tags, addresses, slices, ports in use.",
    "onramps": "Where this server's clients come in.",
    "agreements": "Whose sockets leave from which pool.",
    "servers": "The servers that share addresses, and how to reach them.",
    "flows": "The translated conversations of this server.",
    "drops": "Why packets were dropped: reason, count, the last one.",
    "events": "What the agent has noticed: pools that fill up, limits, leases.",
    "explain": "What would happen to this packet? Asks the real program.",
    "run": "Run a program whose connections leave from a pool.",
    "attach": "The same for a running systemd unit or container.",
    "detach": "Ends that.",
    "doctor": "Can this host do it, is anything set wrong or left over?",
    "strategies": "Ways to share a slice, and which of them this host can run.",
    "ledger": "The book of blocks, addresses, servers and leases.",
    "lab": "Whole networks in namespaces, to try things in.",
}

EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_READER_GONE = 141  # 128 + SIGPIPE: what `softunicast flows | head` gives, as for any other program


class Nouns(click.Group):
    """A click group that imports a command when it is run and not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NOUNS:
            return None
        command = import_module(f"softunicast.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Nouns and verbs"):
            formatter.write_dl(list(NOUNS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _reader_gone()


@click.group(cls=Nouns, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="softunicast", message="%(prog)s %(version)s")
@click.option(
    "--socket",
    envvar="SOFTUNICAST_SOCKET",
    default=SOCKET_DEFAULT,
    show_default=True,
    metavar="PATH",
    help="Where the agent listens. Also: SOFTUNICAST_SOCKET.",
)
@click.pass_context
def cli(ctx: click.Context, socket: str) -> None:
    """Many Linux servers share few public IPv4 addresses, by slices of source ports.

    Nouns look, verbs change. Nouns that print rows take --json.

    \b
    Examples:
      softunicast doctor                    can this host do it?
      softunicast agent --config agent.toml
      softunicast slices                    who owns which ports
      softunicast lab demo                  see it all on one machine
    """
    ctx.obj = socket


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code; never raises for anything a person can cause."""
    try:
        result = cli.main(args=args, prog_name="softunicast", standalone_mode=False)
    except SoftunicastError as error:
        return _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        return _fail(_usage(error), error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except Exception as error:
        # A defect of ours. People get a line; whoever reports it is told how to get the whole story.
        if os.environ.get("SOFTUNICAST_TRACEBACK"):
            raise
        text = f"defect: {type(error).__name__}: {error}"
        return _fail(f"{text}; fix: report it with the output of SOFTUNICAST_TRACEBACK=1", 1)
    # Click hands back the code of ctx.exit(n) as an int; a command that simply ends gives None.
    return result if isinstance(result, int) else 0


def _usage(error: click.UsageError) -> str:
    text = error.format_message().rstrip(".")
    where = error.ctx.command_path if error.ctx is not None else "softunicast"
    return f"{text[:1].lower()}{text[1:]}; fix: see {where} --help"


def _fail(text: str, code: int) -> int:
    line = " ".join(text.split())
    sys.stderr.write(f"softunicast: {line}\n")
    return code


def _reader_gone() -> NoReturn:
    # The interpreter flushes stdout once more at exit: let that go nowhere instead of complaining.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise click.exceptions.Exit(EXIT_READER_GONE)
