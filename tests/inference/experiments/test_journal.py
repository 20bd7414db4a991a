"""The journal: nothing acknowledged is lost, and whatever else happens is noticed."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sbi_bed.inference.experiments import journal as module
from sbi_bed.inference.experiments.journal import (
    Journal,
    journal_bytes,
    plain_to_tensor,
    plain_to_weights,
    read_journal,
    tensor_to_plain,
    weights_to_plain,
)

HEADER = {"kind": "test", "text": "ä ξ 'quoted' \" \n"}
ENTRIES = [{"event": "trial", "n": 0, "x": 0.1}, {"event": "policy", "text": "two\nlines"}, {"event": "stop"}]


def make(path: Path, entries=ENTRIES) -> Path:
    journal = Journal.create(path, HEADER)
    for entry in entries:
        journal.append(entry)
    journal.close()
    return path


def test_what_is_appended_is_on_the_disk_and_can_be_continued(tmp_path):
    path = make(tmp_path / "a.journal", ENTRIES[:1])
    again = Journal.open(path)
    assert again.header.items() >= HEADER.items()
    assert again.entries == ENTRIES[:1]
    again.append(ENTRIES[1])
    assert read_journal(path)[1] == ENTRIES[:2]  # read while it is open
    again.append(ENTRIES[2])
    again.close()
    assert path.read_bytes() == journal_bytes(HEADER, ENTRIES)
    assert all(json.loads(line)["entry"] for line in path.read_text().splitlines())  # any JSON tool reads it
    assert os.listdir(tmp_path) == ["a.journal"]


def test_every_append_is_synced(tmp_path, monkeypatch):
    journal = Journal.create(tmp_path / "a", HEADER)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    for entry in (ENTRIES[0], {"weights": "w" * 10_000}):
        journal.append(entry)
        assert synced[-1] == (tmp_path / "a").stat().st_size


def test_truncation_at_every_byte(tmp_path):
    data = make(tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    path = tmp_path / "cut"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        if length < ends[0] - 1:
            with pytest.raises(ValueError, match="cut"):
                Journal.open(path)
            continue
        journal = Journal.open(path)
        acknowledged = sum(end <= length for end in ends[1:])
        assert journal.entries[:acknowledged] == ENTRIES[:acknowledged]
        assert len(journal.entries) - acknowledged == (length + 1 in ends[1:])  # whole but for the newline
        journal.append({"event": "after"})
        journal.close()
        assert read_journal(path)[1] == [*journal.entries, {"event": "after"}]


def test_every_flipped_bit_is_noticed():
    data = journal_bytes(HEADER, ENTRIES)
    unnoticed = []
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            try:
                _, entries, end = module._parse(bytes(flipped), "some/path")
            except ValueError as err:
                assert "some/path" in str(err)
            else:
                assert entries == ENTRIES and end == len(data) - 1
                unnoticed.append(place)
    assert set(unnoticed) == {len(data) - 1}  # the last newline, which carries nothing and is mended


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"time,outcome\n1,2\n", "not a journal"),
        (b"\x80\x02PK\x03\x04" * 20, "not a journal"),
        (b'{"crc32":"00000000","entry":{}}\n', "damaged"),
        (b'{"crc32":"000', "cut short"),
        (module._encode({"format": "another"}), "not a journal"),
        (
            module._encode({"format": "sbi_bed.experiment", "format_version": 99, "version": "9.9"}),
            "sbi_bed 9.9 in format 99",
        ),
    ],
)
def test_foreign_files(tmp_path, content, message):
    path = tmp_path / "foreign"
    path.write_bytes(content)
    for read in (Journal.open, read_journal):
        with pytest.raises(ValueError, match=message) as err:
            read(path)
        assert str(path) in str(err.value)
    assert path.read_bytes() == content


def test_a_damaged_line_is_named(tmp_path):
    path = make(tmp_path / "a")
    path.write_bytes(path.read_bytes().replace(b'"x":0.1', b'"x":0.2'))
    with pytest.raises(ValueError, match="line 2 of 4"):
        Journal.open(path)


def test_missing_file_and_existing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Journal.open(tmp_path / "missing")
    path = make(tmp_path / "a")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        Journal.create(path, HEADER)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("failure", [PermissionError(1, "no links here"), FileExistsError(17, "taken")])
def test_creation_without_links_or_in_a_race(tmp_path, monkeypatch, failure):
    def link(*_):
        raise failure

    monkeypatch.setattr(os, "link", link)
    if isinstance(failure, FileExistsError):
        with pytest.raises(ValueError, match="exists already"):
            Journal.create(tmp_path / "a", HEADER)
        assert os.listdir(tmp_path) == []
    else:
        Journal.create(tmp_path / "a", HEADER).close()
        assert os.listdir(tmp_path) == ["a"]


def test_a_second_user_is_refused(tmp_path):
    path = make(tmp_path / "a")
    journal = Journal.open(path)
    with pytest.raises(ValueError, match="in use"):
        Journal.open(path)
    code = (
        "import fcntl, sys\n"
        "try: fcntl.flock(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: print('refused')"
    )
    answer = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert answer.stdout == "refused\n"
    journal.close()
    Journal.open(path).close()


def test_without_locks_it_still_works(tmp_path, monkeypatch):
    path = make(tmp_path / "a")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    Journal.open(path).close()
    monkeypatch.setattr(module, "fcntl", None)
    Journal.open(path).close()


def test_without_locks_no_process_overwrites_the_entries_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fcntl", None)
    path = make(tmp_path / "a", ENTRIES[:1])
    first, second = Journal.open(path), Journal.open(path)
    first.append(ENTRIES[1])
    for _ in range(2):
        with pytest.raises(ValueError, match="another process has written to"):
            second.append(ENTRIES[2])
    first.append(ENTRIES[2])
    second.close()
    assert read_journal(path)[1] == ENTRIES[:3] == Journal.open(path).entries


class Stuck:
    """A file of which nothing can be cut off while it is stuck."""

    def __init__(self, file):
        self.file, self.stuck = file, False

    def truncate(self, size):
        if self.stuck:
            raise OSError(errno.EIO, "Input/output error")
        return self.file.truncate(size)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("size", [10, 10_000])
def test_a_line_of_ones_own_that_could_not_be_taken_back_is_overwritten(tmp_path, monkeypatch, size):
    journal = Journal.create(tmp_path / "a", HEADER)
    journal._file = Stuck(journal._file)
    before = (tmp_path / "a").read_bytes()

    def fsync(_):
        journal._file.stuck = True
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="nothing was recorded"):
            journal.append({"text": "x" * size})
    assert len((tmp_path / "a").read_bytes()) > len(before) + size
    journal._file.stuck = False
    journal.append(ENTRIES[1])
    assert read_journal(tmp_path / "a")[1] == ENTRIES[1:2]


@pytest.mark.parametrize("size", [10, 10_000])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_is_rolled_back(tmp_path, monkeypatch, size, error):
    path = tmp_path / "a"
    journal = Journal.create(path, HEADER)
    journal.append(ENTRIES[0])
    before = path.read_bytes()

    def fsync(_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(type(error)) as err:
            journal.append({"text": "x" * size})
    if isinstance(error, OSError):
        assert err.value.errno == errno.ENOSPC
        assert "nothing was recorded" in str(err.value) and str(path) in str(err.value)
    assert path.read_bytes() == before
    journal.append(ENTRIES[1])
    assert read_journal(path)[1] == ENTRIES[:2]


def test_a_full_disk(tmp_path):
    """A real limit on the file's size, which cuts the write in the middle of the line."""
    path = tmp_path / "a"
    journal = Journal.create(path, HEADER)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, hard))
        with pytest.raises(OSError, match="may be repeated"):
            journal.append({"text": "x" * 100})
        assert path.read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append({"text": "x" * 100})
    assert read_journal(path)[1] == [{"text": "x" * 100}]


def test_leftovers_of_a_failed_rollback_are_overwritten(tmp_path):
    path = tmp_path / "a"
    journal = Journal.create(path, HEADER)
    with open(path, "ab") as other:
        other.write(b'{"crc32":"half a line that could not be taken back' * 9)
    journal.append(ENTRIES[0])
    assert read_journal(path)[1] == ENTRIES[:1]


def test_a_deleted_journal_is_noticed(tmp_path):
    journal = Journal.create(tmp_path / "a", HEADER)
    (tmp_path / "a").unlink()
    with pytest.raises(OSError, match="deleted or replaced"):
        journal.append(ENTRIES[0])


def test_closed_journal_and_foreign_data(tmp_path):
    journal = Journal.create(tmp_path / "a", HEADER)
    for entry in ({"x": float("nan")}, {"x": torch.zeros(1)}):
        with pytest.raises(ValueError, match="plain data"):
            journal.append(entry)
    journal.close()
    with pytest.raises(ValueError, match="is closed"):
        journal.append(ENTRIES[0])
    with pytest.raises(ValueError, match="plain data"):
        Journal.create(tmp_path / "b", {"x": object()})
    assert not (tmp_path / "b").exists()


WIDTHS = {torch.float32: 32, torch.float64: 64, torch.float16: 16}


@given(st.data(), st.sampled_from(list(WIDTHS)))
def test_numbers_are_exact(data, dtype):
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=WIDTHS[dtype])
    values = data.draw(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=4))
    tensor = torch.tensor(values, dtype=dtype)
    back = plain_to_tensor(module._decode(module._encode(tensor_to_plain(tensor))[:-1]))
    assert back.dtype == dtype and back.shape == tensor.shape
    assert back.numpy().tobytes() == tensor.numpy().tobytes()  # bit for bit, the sign of zero too


@pytest.mark.parametrize(
    "plain",
    [None, {}, {"dtype": "float32"}, {"dtype": "object", "values": []}, {"dtype": "float32", "values": [[1], [1, 2]]}],
)
def test_what_is_no_tensor(plain):
    with pytest.raises(ValueError, match="expected"):
        plain_to_tensor(plain)


def test_weights_are_exact_and_no_code_is_run(tmp_path):
    weights = torch.nn.Linear(3, 2).state_dict()
    back = plain_to_weights(weights_to_plain(weights))
    assert all(torch.equal(back[name], w) for name, w in weights.items())

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    for text in (weights_to_plain({"bomb": Bomb()}), "no base64!", "AAAA", None, 3):  # pyright: ignore
        with pytest.raises(ValueError, match="weights"):
            plain_to_weights(text)
    assert not (tmp_path / "run").exists()
