"""Numbers of any library as tensors: lists, numpy, pandas, polars, and whatever else numpy reads.

One rule for precision. float32 and float64 arrays, columns and tensors keep theirs, also in a list. Python's numbers,
whole numbers, booleans and half precision take torch's default. With `dtype`, all numbers take that.
Dates, text, categories and complex numbers are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_numbers", "check_finite"]

_ADVICE = {
    "M": "dates. Convert them first, such as to days since the first one",
    "m": "durations. Convert them first, such as to seconds with .dt.total_seconds()",
    "c": "complex numbers. Give their real and imaginary parts as two features",
    "U": "text. Convert it to numbers first",
    "S": "text. Convert it to numbers first",
    "T": "text. Convert it to numbers first",
    "V": "records. Give their fields as columns of numbers",
}


def as_numbers(value: Any, name: str, *, missing: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """`value` as a floating-point tensor of the same shape; NaN and infinity stay.

    Args:
        value: Number, nested sequence, tensor, array, or column or frame of pandas or polars.
        name: What to call it in an error.
        missing: Whether None and pandas' NA are NaN; otherwise they are a `TypeError`.
        dtype: Precision of the result; by the rule above if None.

    Raises:
        TypeError: If it holds anything but real numbers, or sequences of different lengths.
        ValueError: If a number is too large for the precision, or tensors in a list differ in shape.

    Example:
        >>> as_numbers([1, True, 0.5], "x")
        tensor([1.0000, 1.0000, 0.5000])
    """
    if isinstance(value, Tensor):
        return _real(value, name, dtype)
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, Tensor) for part in value):
        if len({part.shape for part in value}) > 1:
            raise ValueError(f"{name} must be of one shape, got {[tuple(part.shape) for part in value]}.")
        return torch.stack([_real(part, name, dtype) for part in value])
    array = _array(value, name, missing)
    keeps_precision = not isinstance(value, (int, float)) and (
        not isinstance(value, (list, tuple)) or any(getattr(part, "ndim", 0) for part in value)
    )
    is_single = array.dtype.kind == "f" and array.dtype.itemsize == 4
    is_double = array.dtype.kind == "f" and array.dtype.itemsize >= 8
    tensor = torch.from_numpy(np.array(array, dtype=np.float32 if is_single else np.float64))
    if dtype is not None or not (keeps_precision and (is_single or is_double)):
        tensor = tensor.to(dtype or torch.get_default_dtype())
    if tensor.dtype == torch.float32 and not is_single:
        lost = torch.isinf(tensor).numpy() & np.isfinite(array.astype(np.float64))
        if lost.any():
            raise ValueError(f"{name} must fit into float32, got {array[lost].flat[0]}: give it in larger units.")
    return tensor


def check_finite(tensor: Tensor, name: str) -> Tensor:
    """Return `tensor` if all of it is finite; a `ValueError` with the first bad index otherwise."""
    finite = torch.isfinite(tensor)
    if not finite.all():
        index = tuple(finite.logical_not().nonzero()[0].tolist())
        raise ValueError(f"{name} must be finite, got {tensor[index].item()} at index {index}.")
    return tensor


def _real(tensor: Tensor, name: str, dtype: torch.dtype | None) -> Tensor:
    """A tensor in the precision of the rule, or the one asked for."""
    if tensor.is_complex():
        raise TypeError(f"{name} must be numbers, got {_ADVICE['c']}.")
    if dtype is None and tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.to(dtype or torch.get_default_dtype())


def _array(value: Any, name: str, missing: bool) -> np.ndarray:
    """An array of real numbers."""
    wanted = "numbers (a tensor, an array or a sequence)"
    if isinstance(value, (Mapping, set, frozenset)):
        raise TypeError(f"{name} must be {wanted}, got a {type(value).__name__}: give its values as a list.")
    if type(getattr(value, "dtype", None)).__name__ in ("CategoricalDtype", "Categorical", "Enum"):
        raise TypeError(
            f"{name} must be numbers, got categories. Convert them first, such as to one 0-or-1 column each."
        )
    if isinstance(value, np.ma.MaskedArray):
        return np.ma.filled(value.astype(float), np.nan)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as err:  # numpy's ValueError: sequences of different lengths
        raise TypeError(f"{name} must be {wanted}, got {value!r}.") from err
    if array.dtype.kind == "O":
        return _from_objects(array, name, missing)
    if array.dtype.kind in _ADVICE:
        raise TypeError(f"{name} must be {wanted}, got {_ADVICE[array.dtype.kind]}.")
    return array


def _from_objects(array: np.ndarray, name: str, missing: bool) -> np.ndarray:
    """Numbers that numpy holds as Python objects, such as columns with missing values or of decimals."""
    numbers = np.empty(array.shape)
    for index, each in np.ndenumerate(array):
        if missing and (each is None or type(each).__name__ in ("NAType", "NaTType")):
            numbers[index] = np.nan
            continue
        try:
            if isinstance(each, (str, bytes, np.datetime64, np.timedelta64)):
                raise TypeError
            numbers[index] = float(each)
        except OverflowError as err:
            raise ValueError(f"{name} must fit into float64, got {each!r}.") from err
        except (TypeError, ValueError) as err:
            raise TypeError(f"{name} must be numbers, got {each!r}: convert it first.") from err
    return numbers
