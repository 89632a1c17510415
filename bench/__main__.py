"""`python -m bench [--quick] [--out FOLDER] [QUESTION ...]`: runs the named questions, or all of them."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench import document, host, report
from softunicast.core.errors import HostError, InputError, SoftunicastError

QUESTIONS: Final = ("packets", "programs", "director", "iperf", "connections", "connect", "strategies")


def main() -> int:
    """Returns the exit code; errors are one line, as everywhere."""
    arguments = _arguments()
    try:
        if os.geteuid() != 0:
            raise HostError(
                "benchmarks make network namespaces and load BPF programs, which needs root",
                "sudo make bench",
            )
        unknown = set(arguments.questions) - set(QUESTIONS)
        if unknown:
            raise InputError(f"there is no question {min(unknown)}", f"name some of {', '.join(QUESTIONS)}")
        with host.alone():
            for name in arguments.questions or QUESTIONS:
                importlib.import_module(f"bench.{name}").run(arguments.quick, arguments.out)
            if arguments.out == report.RESULTS:
                document.write()
    except SoftunicastError as error:
        sys.stderr.write(f"bench: {error}\n")
        return error.exit_code
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("questions", nargs="*", help=f"of {', '.join(QUESTIONS)}; default: all")
    parser.add_argument(
        "--quick", action="store_true", help="prove that everything runs; the numbers mean nothing"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the JSON (default: bench/results; --quick: a new one)"
    )
    arguments = parser.parse_args()
    if arguments.out is None:
        arguments.out = (
            Path(tempfile.mkdtemp(prefix="softunicast-bench-")) if arguments.quick else report.RESULTS
        )
    return arguments


if __name__ == "__main__":
    sys.exit(main())
