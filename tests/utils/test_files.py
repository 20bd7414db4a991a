"""Files are whole or absent, and only ours are read; seeds leave no trace; numbers are checked."""
# ruff: noqa: NPY002 - the global generator of numpy, which simulators of users draw from

import os
import pickle
import random

import numpy as np
import pytest
import torch

from sbi_bed import _version
from sbi_bed.utils import seeded
from sbi_bed.utils.checks import as_finite_tensor, check_count
from sbi_bed.utils.files import load_file, save_file, write_atomically


class Bomb:
    """Unpickling this runs code."""

    def __reduce__(self):
        return (os.system, ("touch /tmp/sbi_bed_bomb_went_off",))


def test_tensors_and_plain_data_come_back(tmp_path):
    content = {
        "weights": {"a": torch.randn(3, dtype=torch.float64)},
        "settings": [1, 2.5, "three", None, True, {"deep": (1, 2)}],
    }
    save_file(tmp_path / "file", "thing", content)
    loaded = load_file(tmp_path / "file", "thing")
    assert (
        torch.equal(loaded["weights"]["a"], content["weights"]["a"]) and loaded["weights"]["a"].dtype == torch.float64
    )
    assert loaded["settings"] == content["settings"]
    assert loaded["version"] == _version.__version__
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"settings": {"link": torch.nn.Tanh}}, r"settings\['link'\].*a type is neither"),
        ({"shapes": [1, (2, np.float64(3))]}, r"shapes\[1\]\[1\].*a float64 is neither"),
        ({"prior": torch.distributions.Normal(0.0, 1.0)}, "prior cannot be saved: a Normal"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, content, where):
    with pytest.raises(TypeError, match=where):
        save_file(tmp_path / "file", "thing", content)
    assert os.listdir(tmp_path) == []


def test_every_truncation_is_one_clear_error(tmp_path):
    save_file(tmp_path / "file", "thing", {"weights": torch.randn(50)})
    data = (tmp_path / "file").read_bytes()
    for length in [*range(0, 40), *range(40, len(data), 37), len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(ValueError, match="truncated or not a file of sbi_bed"):
            load_file(tmp_path / "cut", "thing")


def test_flipped_bits_are_noticed_or_of_no_importance(tmp_path):
    """In the zip file's table of records, too: a bit there makes torch take a record for a folder, and read none of it."""
    path, weights = tmp_path / "file", torch.randn(50)
    save_file(path, "thing", {"weights": weights})
    data, noticed = path.read_bytes(), 0
    for place in range(data.index(b"PK\x01\x02"), len(data)):
        for bit in (0, 4):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                assert torch.equal(load_file(path, "thing")["weights"], weights), (place, bit)
            except ValueError as err:
                noticed += str(path) in str(err)
    assert noticed > 200


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"PK\x03\x04 not a zip", b"\x80\x04garbage", b"a,b\n1,2\n" * 100, bytes(range(256)) * 40]
)
def test_foreign_bytes_are_refused(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match="not a file of sbi_bed"):
        load_file(tmp_path / "file", "thing")


def test_files_of_others_and_other_kinds_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="is not a file of sbi_bed"):
        load_file(tmp_path / "foreign", "thing")
    torch.save(torch.ones(3), tmp_path / "tensor")
    with pytest.raises(ValueError, match="is not a file of sbi_bed"):
        load_file(tmp_path / "tensor", "thing")
    save_file(tmp_path / "other", "other", {})
    with pytest.raises(ValueError, match=r"holds 'sbi_bed.other' of version .*expected 'sbi_bed.thing'"):
        load_file(tmp_path / "other", "thing")
    with pytest.raises(FileNotFoundError):
        load_file(tmp_path / "none", "thing")


def test_no_code_in_a_file_is_run(tmp_path):
    for path, write in [
        ("a", lambda f: torch.save({"format": "sbi_bed.thing", "x": Bomb()}, f)),
        ("b", lambda f: f.write_bytes(pickle.dumps(Bomb()))),
    ]:
        write(tmp_path / path)
        with pytest.raises(ValueError, match="not a file of sbi_bed"):
            load_file(tmp_path / path, "thing")
    assert not os.path.exists("/tmp/sbi_bed_bomb_went_off")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", b"old")

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_seeded_blocks_repeat_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.randn(5)
    with pytest.raises(RuntimeError), seeded(3):
        raise RuntimeError
    with seeded(3):
        second = torch.randn(5)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(4):
        assert not torch.equal(torch.randn(5), first)
    torch.manual_seed(9)
    expected = torch.randn(5)
    torch.manual_seed(9)
    with seeded(None):
        assert torch.equal(torch.randn(5), expected)


def test_seeds_hold_for_numpy_and_python_too():
    np.random.seed(5)
    random.seed(5)
    undisturbed = np.random.normal(), random.random()
    np.random.seed(5)
    random.seed(5)
    with seeded(2**40 + 3):
        first = np.random.normal(size=3).tolist(), random.random()
        with seeded(1):
            np.random.normal()
        rest = np.random.normal()
    with pytest.raises(RuntimeError), seeded(2**40 + 3):
        again = np.random.normal(size=3).tolist(), random.random()
        assert (again, np.random.normal()) == (first, rest)
        raise RuntimeError
    assert (np.random.normal(), random.random()) == undisturbed


def test_numbers_become_tensors():
    assert as_finite_tensor(2, "a").tolist() == [2.0] and as_finite_tensor(2, "a").dtype == torch.float32
    assert as_finite_tensor(np.ones(2), "a").dtype == torch.float64
    assert as_finite_tensor([True, False], "a").tolist() == [1.0, 0.0]
    for tenth in (0.1, [0.1], [torch.tensor(0.1, dtype=torch.float64)], np.array([0.1])):  # not by way of float32
        assert as_finite_tensor(tenth, "a", dtype=torch.float64).tolist() == [0.1]
    assert as_finite_tensor([[1, 2]], "a", last_dim=2).shape == (1, 2)


@pytest.mark.parametrize("value", ["seven", None, [None], [[1.0], [1.0, 2.0]], object()])
def test_what_is_not_numbers_is_a_type_error(value):
    with pytest.raises(TypeError, match="thing must be numbers"):
        as_finite_tensor(value, "thing")


def test_first_bad_number_is_named():
    with pytest.raises(ValueError, match=r"thing must be finite, got nan at index \(1, 0\)"):
        as_finite_tensor([[1.0, 2.0], [float("nan"), float("inf")]], "thing")
    with pytest.raises(ValueError, match=r"thing must be finite, got -inf at index \(0,\)"):
        as_finite_tensor(-float("inf"), "thing")
    with pytest.raises(ValueError, match=r"thing must have 3 values in its last dimension, got shape \(2,\)"):
        as_finite_tensor([1.0, 2.0], "thing", last_dim=3)


def test_counts():
    assert check_count(3, "n") == 3 and type(check_count(np.int64(3), "n")) is int and check_count(3.0, "n") == 3
    assert check_count(0, "n", 0) == 0
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        check_count(0, "n")
    for value in [2.5, True, "3", "three", None, float("nan"), float("inf"), [1]]:
        with pytest.raises(TypeError, match="n must be a whole number"):
            check_count(value, "n")
