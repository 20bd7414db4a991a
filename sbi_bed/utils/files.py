"""One way to save: a single file of weights and plain data, written whole or not at all, read without running code."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from .._version import __version__

__all__ = ["load_file", "save_file", "write_atomically"]


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never half of one."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_file(path: str | Path, kind: str, content: dict[str, Any]) -> None:
    """Save tensors and plain data (numbers, strings, lists, dicts) as a file of this `kind`."""
    buffer = io.BytesIO()
    torch.save({"format": f"sbi_bed.{kind}", "version": __version__, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_file(path: str | Path, kind: str) -> dict[str, Any]:
    """Load what `save_file` wrote. Reads with `weights_only=True`: no code in the file is ever run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, or not one that this package wrote, or of another kind.
    """
    data = Path(path).read_bytes()
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as err:  # foreign bytes make the reader fail in any way
        raise ValueError(f"{path} cannot be read: it is truncated or not a file of sbi_bed.") from err
    if not isinstance(content, dict) or not str(content.get("format", "")).startswith("sbi_bed."):
        raise ValueError(f"{path} is not a file of sbi_bed.")
    if content["format"] != f"sbi_bed.{kind}":
        raise ValueError(
            f"{path} holds '{content['format']}' of version {content.get('version')}, expected 'sbi_bed.{kind}'."
        )
    return content
