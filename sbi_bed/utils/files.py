"""One way to save: a single file of weights and plain data, written whole or not at all, read without running code."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .._version import __version__

__all__ = ["load_file", "load_weights", "rebuilding", "save_file", "write_atomically"]

_PLAIN = (bool, bytes, complex, float, int, str, torch.device, torch.dtype, type(None))
_FOLDER = 0x10  # attribute of a zip record: torch reads no bytes of a folder, and leaves in memory what was there


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
    """Save tensors and plain data (numbers, strings, lists, dicts) as a file of this `kind`.

    Raises:
        TypeError: If there is anything else in it, which `load_file` would refuse.
    """
    for name, value in content.items():
        _check_plain(value, name)
    buffer = io.BytesIO()
    torch.save({"format": f"sbi_bed.{kind}", "version": __version__, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_file(path: str | Path, kind: str) -> dict[str, Any]:
    """Load what `save_file` wrote. Reads with `weights_only=True`: no code in the file is ever run.

    Every record of the file carries a CRC-32, which torch writes and does not look at; it is compared here.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or damaged, or not one that this package wrote, or of another kind.
    """
    data = Path(path).read_bytes()
    try:
        damaged = _damaged_record(data)
    except Exception as err:  # foreign bytes make the reader fail in any way
        raise ValueError(f"{path} cannot be read: it is truncated or not a file of sbi_bed.") from err
    if damaged is not None:
        raise ValueError(f"{path} is damaged: the checksum of '{damaged}' does not fit. Restore it from a copy.")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as err:  # what is no file of torch, or would run code
        raise ValueError(f"{path} cannot be read: it is truncated or not a file of sbi_bed.") from err
    if not isinstance(content, dict) or not str(content.get("format", "")).startswith("sbi_bed."):
        raise ValueError(f"{path} is not a file of sbi_bed.")
    if content["format"] != f"sbi_bed.{kind}":
        raise ValueError(
            f"{path} holds '{content['format']}' of version {content.get('version')}, expected 'sbi_bed.{kind}'."
        )
    return content


def _check_plain(value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            _check_plain(each, f"{name}[{key!r}]")
    elif type(value) in (list, tuple, set, torch.Size):
        for index, each in enumerate(value):
            _check_plain(each, f"{name}[{index}]")
    elif not (isinstance(value, torch.Tensor) or type(value) in _PLAIN):
        raise TypeError(f"{name} cannot be saved: a {type(value).__name__} is neither a tensor nor plain data.")


def load_weights(net: torch.nn.Module, weights: dict[str, torch.Tensor], embedding_net: torch.nn.Module | None) -> None:
    """Give a net its saved weights, in place; `embedding_net` is what the user has given for its rebuilding, if anything.

    Raises:
        ValueError: If they do not fit, saying whose fault that is.
    """
    try:
        net.load_state_dict(weights)
    except RuntimeError as err:
        if embedding_net is not None:
            raise ValueError(f"the saved weights do not fit embedding_net: {err}") from err
        raise ValueError(
            "the saved weights do not fit the net that this version of sbi_bed builds: another version, whose nets read "
            "other features, wrote the file. Train the net again, or load the file with that version."
        ) from err


@contextlib.contextmanager
def rebuilding(path: str | Path) -> Iterator[None]:
    """Around what is built from a file's content: that which makes no sense is one `ValueError` that names the file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as err:
        if isinstance(err, ValueError) and str(path) in str(err):
            raise
        reason = f"it lacks {err}." if isinstance(err, KeyError) else str(err)
        raise ValueError(f"{path} cannot be loaded: {reason}") from err


def _damaged_record(data: bytes) -> str | None:
    """Name of the first record of a zip file whose checksum does not fit, None if all are sound.

    Raises:
        Exception: If it is no zip file, or not one like torch's, whose records are not compressed.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        records = file.infolist()
        packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        if packed or sum(record.file_size for record in records) > len(data):  # so that none can swell without bound
            raise ValueError("it is packed.")
        folders = [record.filename for record in records if record.external_attr & _FOLDER]
        return folders[0] if folders else file.testzip()
