"""`softunicast run`: a program whose sockets leave from a pool.

This process becomes the program: it moves into a new cgroup that has an agreement, and executes it. There is no
parent beside it, so that its exit code, signals and terminal are its own; what remains of the cgroup is tidied up by
the agent, or by the next `run`. Whatever is refused is refused before the program starts.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Final, NoReturn

import click

from softunicast.cli import choice, show
from softunicast.core.errors import NoProgramError, NotExecutableError
from softunicast.kernel import lookups

SHELL: Final = b"/bin/sh"


@click.command(context_settings={"allow_interspersed_args": False})
@choice.pool_options
@choice.state_dir_option
@click.argument("program", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- CMD...")
@click.pass_obj
def command(
    socket: str, pool: str | None, tags: tuple[str, ...], state_dir: Path | None, program: tuple[str, ...]
) -> None:
    """Run a program whose connections leave from a pool.

    So do those of its children. What the pool cannot carry fails with an ordinary socket error; nothing leaves by
    another address. The program keeps environment, files, terminal and signals; the exit code is its own. Works
    while the agent is down. Needs root.

    \b
    Examples:
      softunicast run --pool gb -- curl https://example.org/
      softunicast run --tag country=gb --tag product=proxy -- setpriv --reuid nobody --clear-groups ./crawler
    """
    argv = [os.fsencode(part) for part in (program[1:] if program[0] == "--" else program)]
    if not argv or not argv[0]:
        raise click.UsageError("which program?", click.get_current_context())
    board = choice.read_board(socket, state_dir)
    chosen = choice.chosen_pool(board, pool, tags)
    agreements = choice.open_agreements(board, chosen)
    cgroup = agreements.join(chosen.name)
    try:
        for what in lookups.outside(chosen.name, chosen.dns):
            show.remark(f"softunicast: note: {what}")
        become(argv)
    finally:  # not reached when it worked
        agreements.leave(cgroup)


def become(argv: list[bytes]) -> NoReturn:
    """Executes the program in place of this one, as it would have been started without us.

    Raises NoProgramError or NotExecutableError.
    """
    surroundings = _environment()
    # The interpreter ignores these, and that would be inherited; a shell starts programs with the default.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    name = os.fsdecode(argv[0])
    try:
        _execute(argv, surroundings)
    except OSError as error:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NoProgramError(f"there is no program {name!r}", "check the name and PATH") from error
        raise NotExecutableError(f"cannot run {name!r}: {error.strerror}", "check what it is") from error
    raise AssertionError


def _execute(argv: list[bytes], surroundings: dict[bytes, bytes]) -> None:
    """execvp(3), also with its way to run a script that does not say by what."""
    paths = [b""] if b"/" in argv[0] else surroundings.get(b"PATH", os.defpath.encode()).split(b":")
    refused: OSError | None = None
    for folder in paths:
        path = os.path.join(folder, argv[0])  # noqa: PTH118
        try:
            os.execve(path, argv, surroundings)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                os.execve(SHELL, [b"sh", path, *argv[1:]], surroundings)
            if refused is None or refused.errno in (errno.ENOENT, errno.ENOTDIR):
                refused = error
    assert refused is not None
    raise refused


def _environment() -> dict[bytes, bytes]:
    """As this process was given it: the interpreter may have set LC_CTYPE in its own."""
    given = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(part.split(b"=", 1) for part in given if b"=" in part)
