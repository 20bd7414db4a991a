"""The journal of a live experiment: an append-only file in which every answered call is on the disk.

A journal is text, one JSON object a line: first a header that says what the experiment is, then one entry for each
event (a trial, a new policy, a stop). Each line carries the CRC-32 of its entry, so that damage is noticed. A line
without its end is what a crash leaves of a write that was never acknowledged; it is dropped. Numbers are written so
that they read back bit for bit. Weights are `torch.save`d, in base64, and read with `weights_only=True`: no code in a
journal is ever run.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import io
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._version import __version__

try:
    import fcntl
except ImportError:  # no such lock on this system
    fcntl = None

__all__ = [
    "Journal",
    "journal_bytes",
    "plain_to_tensor",
    "plain_to_weights",
    "read_journal",
    "tensor_to_plain",
    "weights_to_plain",
]

_FORMAT, _FORMAT_VERSION = "sbi_bed.experiment", 1
_HEAD, _MIDDLE, _END = b'{"crc32":"', b'","entry":', b"}"
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
_ATOMIC_WRITE = 4096  # a longer line gets its end in a second write, after the first is on the disk


class Journal:
    """A journal open for writing, locked against other processes.

    Use `Journal.create` for a new file and `Journal.open` to go on with one. Where there are no such locks (Windows, some
    network drives) two processes can open one file. The first to append then goes on, the other gets an error: no entry is
    overwritten.

    Attributes:
        path: The file.
        header: What the experiment is, plain data.
        entries: The events that were in the file when it was opened.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.journal"
        >>> journal = Journal.create(path, {"kind": "demonstration"})
        >>> journal.append({"event": "trial", "outcome": 0.1})
        >>> journal.close()
        >>> read_journal(path)[1]
        [{'event': 'trial', 'outcome': 0.1}]
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
        self._tried = b""  # the last line that was to be appended: what a failed write may leave is the start of it
        try:
            self._lock()
            data = self._file.read()
            self.header, self.entries, self._end = _parse(data, self.path)
            self._file.truncate(self._end)
            if data[self._end - 1 : self._end] != b"\n":
                self._write(b"\n")
                self._end += 1
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def create(cls, path: str | Path, header: dict[str, Any]) -> Journal:
        """Start a journal at `path`, which must not exist yet; the file appears with its header or not at all.

        Raises:
            ValueError: If there is a file already, or the header is not plain data.
            OSError: If it cannot be written.
        """
        path = Path(path)
        taken = f"{path} exists already: load it to continue that experiment, or choose another name."
        if path.exists():
            raise ValueError(taken)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(journal_bytes(header, []))
                file.flush()
                os.fsync(file.fileno())
            _publish(temporary, path)
        except FileExistsError:
            raise ValueError(taken) from None
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path)
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Journal:
        """Open the journal at `path` to go on with it; a half-written last line is cut off.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is empty, foreign, damaged, of a newer format, or in use.
        """
        return cls(path)

    def reopen(self) -> None:
        """Open the journal again after `close`, to go on with it.

        Raises:
            ValueError: If it is in use, or another process has written to it since.
        """
        again = Journal(self.path)
        if again._end != self._end:
            again.close()
            raise ValueError(f"another process has written to {self.path} since; load the experiment to go on.")
        self._file = again._file

    def append(self, entry: dict[str, Any]) -> None:
        """Write one entry; it is on the disk when this returns, and the file is as before if this raises.

        Raises:
            ValueError: If the journal is closed, another process has written to it, or the entry is not plain data.
            OSError: If it cannot be written; the call may be repeated.
        """
        line = _encode(entry)
        if self._file.closed:
            raise ValueError(f"the journal {self.path} is closed; load it to go on.")
        self._check_alone()
        self._tried = line
        try:
            if os.fstat(self._file.fileno()).st_nlink == 0:
                raise OSError(errno.ENOENT, "the file was deleted or replaced by another")
            if len(line) > _ATOMIC_WRITE:
                self._write(line[:-1])
                self._write(line[-1:], offset=len(line) - 1)
            else:
                self._write(line)
        except BaseException as err:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            if isinstance(err, OSError):
                message = f"nothing was recorded, because the journal could not be written ({err.strerror or err})"
                raise OSError(err.errno, f"{message}; the call may be repeated", str(self.path)) from err
            raise
        self._end += len(line)

    def close(self) -> None:
        """Close the file and give up its lock. Nothing is lost: every entry is on the disk."""
        self._file.close()

    def _check_alone(self) -> None:
        """Behind our last entry there may be the leftovers of a failed write, but no whole entry of another process."""
        if os.fstat(self._file.fileno()).st_size <= self._end:
            return
        self._file.seek(self._end)
        line = self._file.read().partition(b"\n")[0]
        if not self._tried.startswith(line) and _decode(line) is not None:
            raise ValueError(
                f"another process has written to {self.path}, and nothing was recorded here: end one of the two, and load "
                "the experiment to go on."
            )

    def _write(self, data: bytes, offset: int = 0) -> None:
        self._file.truncate(self._end + offset)  # whatever a failed write has left
        self._file.seek(self._end + offset)
        view = memoryview(data)
        while len(view):
            view = view[self._file.write(view) :]
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{self.path} is in use by a running experiment; end that process, or call close() on the experiment."
            ) from None
        except OSError:  # a file system without locks
            return


def read_journal(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and entries of the journal at `path`, which is neither locked nor changed; it may be in use.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, foreign, damaged, or of a newer format.
    """
    header, entries, _ = _parse(Path(path).read_bytes(), path)
    return header, entries


def journal_bytes(header: dict[str, Any], entries: list[dict[str, Any]]) -> bytes:
    """The content of a whole journal."""
    head = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "version": __version__, **header}
    return b"".join(_encode(entry) for entry in (head, *entries))


def tensor_to_plain(value: Tensor) -> dict[str, Any]:
    """A finite floating-point tensor as plain data, exact."""
    return {"dtype": str(value.dtype).removeprefix("torch."), "values": value.tolist()}


def plain_to_tensor(plain: Any) -> Tensor:
    """Undo `tensor_to_plain`; a `ValueError` if it is not one."""
    if not isinstance(plain, dict) or plain.get("dtype") not in _DTYPES or "values" not in plain:
        raise ValueError(f"expected a tensor as dtype and values, got {str(plain)[:80]}.")
    try:
        return torch.tensor(plain["values"], dtype=_DTYPES[plain["dtype"]])
    except (TypeError, ValueError, RuntimeError) as err:
        raise ValueError(f"expected numbers in equally long rows, got {str(plain['values'])[:80]}.") from err


def weights_to_plain(weights: dict[str, Tensor]) -> str:
    """A state_dict as text."""
    buffer = io.BytesIO()
    torch.save({name: w.detach().cpu() if isinstance(w, Tensor) else w for name, w in weights.items()}, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def plain_to_weights(text: Any) -> dict[str, Tensor]:
    """Undo `weights_to_plain`, reading with `weights_only=True`; a `ValueError` if it is not one."""
    try:
        return torch.load(io.BytesIO(base64.b64decode(text, validate=True)), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError, binascii.Error) as err:
        raise ValueError("the weights of the policy cannot be read.") from err


def _encode(entry: dict[str, Any]) -> bytes:
    try:
        body = json.dumps(entry, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as err:
        raise ValueError(f"a journal holds plain data (finite numbers, strings, lists, dicts): {err}.") from err
    return b"%b%08x%b%b%b\n" % (_HEAD, zlib.crc32(body), _MIDDLE, body, _END)


def _decode(line: bytes) -> dict[str, Any] | None:
    """The entry of a line without its newline; None if the line is not whole."""
    start = len(_HEAD) + 8 + len(_MIDDLE)
    body = line[start : -len(_END)]
    if line != b"%b%08x%b%b%b" % (_HEAD, zlib.crc32(body), _MIDDLE, body, _END):
        return None
    try:
        entry = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _parse(data: bytes, path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Header, entries, and the length of the part of `data` that holds them."""
    if not data:
        raise ValueError(f"{path} is empty: not a journal of sbi_bed.")
    *lines, tail = data.split(b"\n")
    entries = [_decode(line) for line in lines]
    end = len(data) - len(tail)
    for whole in (tail, tail[:-1]):  # an entry that lacks only its newline, or has another byte there
        if whole and (last := _decode(whole)) is not None:
            entries.append(last)
            end += len(whole)
            break
    if not entries or entries[0] is None:
        ours = data.startswith(_HEAD[: len(data)])
        reason = "its header is cut short or damaged" if ours else "it is not a journal of sbi_bed"
        raise ValueError(f"{path} cannot be read: {reason}.")
    header, events = entries[0], entries[1:]
    if header.get("format") != _FORMAT:
        raise ValueError(f"{path} cannot be read: it is not a journal of sbi_bed.")
    if header.get("format_version") != _FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by sbi_bed {header.get('version')} in format {header.get('format_version')}; "
            f"this version, {__version__}, reads format {_FORMAT_VERSION}."
        )
    if None in events:
        raise ValueError(
            f"{path} is damaged in line {events.index(None) + 2} of {len(events) + 1}: its checksum does not fit. "
            "Restore it from a copy; the lines before are sound."
        )
    return header, events, end  # pyright: ignore[reportReturnType]


def _publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name; `FileExistsError` if another has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(temporary, path)


def _sync_directory(path: Path) -> None:
    """Make a new name of a file last, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
