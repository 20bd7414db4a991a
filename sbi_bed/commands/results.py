"""What a command leaves in its output folder: a figure and the posterior, beside the experiment's journal."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from torch import Tensor

from ..utils.files import write_atomically

__all__ = ["as_file_name", "save_results"]

_LONGEST = 120  # file systems take 255 bytes, endings included


def as_file_name(name: str) -> str:
    """A name of any characters and length as part of a file's name; different names stay different."""
    text = quote(name, safe="", errors="surrogateescape")
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}~{zlib.crc32(text.encode()):08x}"


def save_results(stem: Path, figure: Any, experiment: Any, draws: dict[str, Tensor]) -> None:
    """Write `stem`.png, .csv (posterior draws by column) and .npz (draws, designs and outcomes), and print their names.

    Args:
        stem: Path without an ending.
        figure: Matplotlib's figure; it is closed.
        experiment: The `AdaptiveExperiment`.
        draws: Posterior draws (N,) of each parameter, by a name with its unit.
    """
    import matplotlib.pyplot as plt

    columns: dict[str, Any] = {name: values.numpy() for name, values in draws.items()}
    files: dict[str, io.BytesIO] = {ending: io.BytesIO() for ending in ("png", "csv", "npz")}
    figure.savefig(files["png"], dpi=130, format="png")
    plt.close(figure)
    np.savetxt(files["csv"], np.stack([*columns.values()], -1), "%.8g", ",", header=",".join(columns), comments="")
    np.savez(files["npz"], designs=experiment.designs.numpy(), outcomes=experiment.outcomes.numpy(), **columns)
    for ending, data in files.items():
        write_atomically(f"{stem}.{ending}", data.getvalue())
    print(f"\nFigure: {stem}.png\nPosterior draws: {stem}.csv, {stem}.npz\nJournal: {stem}.jsonl")
