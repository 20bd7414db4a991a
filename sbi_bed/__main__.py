"""The command line: `python -m sbi_bed`, or `sbi-bed`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .commands.options import parse

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status.

    Wrong input ends in one line on standard error and status 2; Ctrl-C in status 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without "±" gets "?", not an error after minutes of training
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        options = parse(arguments)
        # The commands import torch and sbi, which takes seconds that --help and usage errors should not.
        if options.command == "discounting":
            from .commands import discounting

            discounting.run(options)
        else:
            from .commands import location

            location.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # who read the output, `head` perhaps, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the flush at exit can write
        return 1
    except (ValueError, TypeError, OSError) as err:
        print(f"sbi-bed: {_in_words(err)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, EOFError):
        print("\nsbi-bed: interrupted", file=sys.stderr)
        return 130
    return 0


def _in_words(err: Exception) -> str:
    """One line; errors of the system without their number."""
    text = str(err)
    if isinstance(err, OSError) and err.strerror and err.filename:
        text = f"{err.filename} cannot be read or written: {err.strerror[:1].lower()}{err.strerror[1:]}."
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
