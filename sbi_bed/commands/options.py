"""What may stand on the command line. Nothing here imports torch, so wrong options are refused at once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from .._version import __version__

__all__ = ["DELAYED", "DELAYS", "IMMEDIATE", "parse"]

# Amounts and delays of the questions that --interactive chooses among: a delayed 100 in whole currency units.
IMMEDIATE = (5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98)
DELAYED = 100
DELAYS = (1, 2, 4, 7, 14, 30, 60, 120, 180, 365, 730, 1460, 3650)

_LARGEST_SEED = 2**63 - 1  # torch's generators take no larger one


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options by name; `seed` and `questions` are None where they were not given.

    Raises:
        SystemExit: After --help and --version (status 0), and for options that there are not (status 2).
        ValueError: If a value is out of its range, or the options do not go together.
        OSError: If there is no file of answers, or the output cannot be written.
    """
    options = _parser().parse_args(arguments)
    if options.seed is not None and not 0 <= options.seed <= _LARGEST_SEED:
        raise ValueError(f"--seed must be from 0 to 2^63 - 1, got {options.seed}.")
    if options.command == "discounting":
        _check_discounting(options)
    _check_writable(options.output)
    return options


def _check_discounting(options: argparse.Namespace) -> None:
    if options.interactive == (options.answers is not None):
        raise ValueError("give either --answers CSV --participant N, or --interactive.")
    if options.questions is not None and options.questions < 1:
        raise ValueError(f"--questions must be at least 1, got {options.questions}.")
    most = len(IMMEDIATE) * len(DELAYS)
    if options.interactive and (options.questions or 0) > most:
        raise ValueError(f"--questions must be at most {most}, as many as there are, got {options.questions}.")
    if options.answers is not None:
        if options.participant is None:
            raise ValueError("--answers needs --participant, whose choices to use.")
        if not options.answers.exists():
            raise FileNotFoundError(f"there is no file {options.answers}.")
    if options.participant is not None and not options.participant.strip():
        raise ValueError("--participant is empty: give the name as it stands in the file, or any for --interactive.")


def _check_writable(folder: Path) -> None:
    """Refuse an output folder before anything takes time; it is made later, when there is something to write."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"--output {folder} cannot be written: {there} is a file. Give another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"--output {folder} cannot be written: {there} is read-only. Give another folder.")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sbi-bed",
        description="Adaptive experiments from a design policy to an sbi posterior. Without a subcommand: location.",
    )
    parser.add_argument("--version", action="version", version=f"sbi-bed {__version__}")
    _add_shared(parser)
    # Defaults are suppressed in subcommands, so that options given before them are not lost.
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    _add_shared(shared)
    parser.set_defaults(output=Path("sbi_bed_output"), seed=None)
    commands = parser.add_subparsers(dest="command", metavar="{location,discounting}")
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
    discounting.add_argument("--answers", type=_path, help="CSV file of recorded choices")
    discounting.add_argument("--participant", help="whose choices of the file to use, or who is at the keyboard")
    discounting.add_argument("--interactive", action="store_true", help="ask at the keyboard")
    discounting.add_argument("--questions", type=int, help="how many questions (default: 15)")
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="seed of all random numbers (default: 0)")
    parser.add_argument(
        "--output", type=_path, help="folder for figure, posterior and journal (default: sbi_bed_output)"
    )
