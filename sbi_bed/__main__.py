"""The command line: `python -m sbi_bed`, or `sbi-bed`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status.

    Wrong input ends in one line on standard error and status 2; Ctrl-C in status 130.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        # The commands import torch and sbi, which takes seconds that --help should not.
        if options.command == "discounting":
            from .commands import discounting

            discounting.run(options)
        else:
            from .commands import location

            location.run(options)
    except (ValueError, TypeError, OSError) as err:
        print(f"sbi-bed: {' '.join(str(err).split())}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, EOFError):
        print("\nsbi-bed: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    common.add_argument(
        "--output",
        type=Path,
        default=Path("sbi_bed_output"),
        help="folder for figure and journal (default: %(default)s)",
    )
    parser = argparse.ArgumentParser(
        prog="sbi-bed",
        parents=[common],
        description="Adaptive experiments from a design policy to an sbi posterior. Without a subcommand: location.",
    )
    commands = parser.add_subparsers(dest="command", metavar="{location,discounting}")
    # Defaults are suppressed here so that options given before the subcommand are not lost.
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--seed", type=int, help="seed of all random numbers")
    shared.add_argument("--output", type=Path, help="folder for figure and journal")
    commands.add_parser(
        "location",
        parents=[shared],
        help="train a policy that finds a hidden source, run it once with a refinement, infer with sbi",
        description="Train a design policy for source location on the CPU, run one adaptive experiment with a Step-DAD "
        "refinement against a hidden source, infer with sbi. Takes at most three minutes on two cores.",
    )
    discounting = commands.add_parser(
        "discounting",
        parents=[shared],
        help="ask the most telling money-now-or-later questions, of recorded answers or of you",
        description="Adaptive delay discounting. With --answers, each question is chosen among those the participant "
        "really answered; with --interactive it is put to the person at the keyboard, who may stop (Ctrl-C) and go on "
        "later with the same command.",
    )
    discounting.add_argument("--answers", type=Path, help="CSV file of recorded choices")
    discounting.add_argument("--participant", help="whose choices of the file to use")
    discounting.add_argument("--interactive", action="store_true", help="ask at the keyboard")
    discounting.add_argument("--questions", type=int, default=15, help="how many questions (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
