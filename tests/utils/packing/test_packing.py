"""Packing groups: what goes in comes out, however ragged, and what is not grouped data is refused."""

from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_bed.utils import pack_groups, unpack_groups

NAN = float("nan")


class Table:
    """What a DataFrame has that packing needs: columns, and a column by its name."""

    def __init__(self, **columns):
        self._columns, self.columns = columns, list(columns)

    def __getitem__(self, name):
        return np.asarray(self._columns[name])


@st.composite
def ragged(draw, num_levels=None):
    """Nested lists of (n, F) tensors whose last set on each level has something in it."""
    levels = draw(st.integers(2, 4)) if num_levels is None else num_levels
    width = draw(st.integers(1, 3))
    counter = iter(range(1, 10**6))

    def sets(level, must):
        if level == 1:
            n = draw(st.integers(int(must), 3))
            return torch.tensor([[next(counter) / 7 for _ in range(width)] for _ in range(n)]).reshape(n, width)
        num = draw(st.integers(1, 3))
        return [sets(level - 1, number == num - 1) for number in range(num)]

    return sets(levels, True), levels, width


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


def trimmed(data):
    """Without the sets that come back as padding."""
    if isinstance(data, torch.Tensor):
        return data
    parts = [trimmed(part) for part in data]
    while parts and count(parts[-1]) == 0:
        parts.pop()
    return parts


def count(data):
    return len(data) if isinstance(data, torch.Tensor) else sum(count(part) for part in data)


@settings(max_examples=100, deadline=None)
@given(ragged(), st.integers(0, 2))
def test_ragged_data_come_back_exactly(drawn, extra):
    data, levels, width = drawn
    x = pack_groups(data)
    assert x.ndim == levels + 1 and x.shape[-1] == width + 1
    assert int(x[..., -1].sum()) == count(data)
    assert (x[x[..., -1] == 0] == 0).all()
    assert same(unpack_groups(x) if levels > 1 else x, trimmed(data))
    larger = pack_groups(data, sizes=[size + extra for size in x.shape[:-1]])
    assert same(unpack_groups(larger), trimmed(data))
    assert torch.equal(larger[tuple(slice(size) for size in x.shape)], x)


@settings(max_examples=50, deadline=None)
@given(ragged(), st.randoms(use_true_random=False))
def test_a_mask_takes_away_what_it_says_and_nothing_else(drawn, random):
    data, levels, _ = drawn

    def flags(part):
        if isinstance(part, torch.Tensor):
            return [random.random() < 0.7 for _ in part]
        return [flags(p) for p in part]

    mask = flags(data)
    spoiled = map_sets(lambda part, keep: torch.where(as_column(keep), part, NAN), data, mask)
    x = pack_groups(spoiled, mask=mask, num_levels=levels)
    full = pack_groups(data)
    kept = pack_groups(map_sets(lambda part, keep: as_column(keep).float(), data, mask), num_levels=levels)
    assert torch.equal(x, full * kept[..., :1])


def as_column(keep):
    return torch.tensor(keep, dtype=torch.bool).reshape(-1, 1)


def map_sets(function, data, mask):
    if isinstance(data, torch.Tensor):
        return function(data, mask)
    return [map_sets(function, part, keep) for part, keep in zip(data, mask, strict=True)]


@settings(max_examples=50, deadline=None)
@given(ragged(num_levels=3))
def test_a_table_is_packed_as_the_lists_are(drawn):
    """Rows in order of their groups; groups without rows are not in a table."""
    data, _, width = drawn
    rows = [(i, j, *row.tolist()) for i, part in enumerate(data) for j, s in enumerate(part) for row in s]
    names = ["school", "class", *(f"f{k}" for k in range(width))]
    table = Table(**dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    packed = pack_groups(table, group=["school", "class"])
    without_empty = [[s for s in part if len(s)] for part in data if count(part)]
    assert torch.equal(packed, pack_groups(without_empty, num_levels=3))


def test_every_form_of_the_same_data_is_packed_alike():
    lists = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]]
    x = pack_groups(lists)
    assert x.tolist() == [[[1.0, 2.0, 1.0], [3.0, 4.0, 1.0]], [[5.0, 6.0, 1.0], [0.0, 0.0, 0.0]]]
    assert torch.equal(pack_groups([torch.tensor(g) for g in lists]), x)
    assert torch.equal(pack_groups([[torch.tensor(o) for o in g] for g in lists]), x)
    assert torch.equal(pack_groups([np.array(g, dtype=np.float32) for g in lists]), x)
    assert pack_groups([np.array(g) for g in lists]).dtype == torch.float64
    assert torch.equal(pack_groups(np.ones((3, 2, 4))), torch.ones(3, 2, 5).double())
    assert torch.equal(pack_groups([lists, lists[1:]])[0], x)  # several data sets
    table = Table(person=["b", "b", "a"], rt=[1.0, 3.0, 5.0], choice=[2, 4, 6], seen=[1, 1, 1])
    assert torch.equal(pack_groups(table, "person", ["rt", "choice"]), x)
    assert torch.equal(pack_groups(table, ["person"], mask="seen"), x)
    table = Table(person=["b", "a", "b"], rt=[1.0, 5.0, 3.0])
    assert pack_groups(table, "person", "rt").tolist() == [[[1.0, 1.0], [3.0, 1.0]], [[5.0, 1.0], [0.0, 0.0]]]
    assert pack_groups(table, "person", "rt", mask=[True, True, False])[0, 1].tolist() == [0.0, 0.0]


def frame_of(library, columns):
    return pytest.importorskip(library).DataFrame(columns)


LIBRARIES = ["pandas", "polars"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_real_tables_are_packed(library):
    table = frame_of(library, {"person": ["b", "a", "b"], "rt": [1.0, 5.0, 3.0]})
    assert pack_groups(table, "person").tolist() == [[[1.0, 1.0], [3.0, 1.0]], [[5.0, 1.0], [0.0, 0.0]]]


@pytest.mark.parametrize("library", LIBRARIES)
def test_lists_of_columns_and_of_tables_are_groups(library):
    table = frame_of(library, {"rt": [1.0, 3.0, 5.0], "choice": [2, 4, 6], "seen": [1, 1, 0]})
    first, second = table[1:], table[:1]  # in pandas the labels of the first start at 1
    x = [[[3.0, 4.0, 1.0], [0.0, 0.0, 0.0]], [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0]]]
    assert pack_groups([first, second], features=["rt", "choice"], mask="seen").tolist() == x
    assert pack_groups([first, second[["choice", "seen", "rt"]]], mask="seen").tolist() == x  # by name
    both = pack_groups([[first, second], [second]], features="rt", mask=[[[1, 0], [1]], [[1]]])
    assert both[0].tolist() == [[[3.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]] and both.shape == (2, 2, 2, 2)
    numbers = pack_groups([first["rt"], second["rt"]], mask=[first["seen"], second["seen"]])
    assert numbers.tolist() == [[[3.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]]
    data_sets = pack_groups([table, table[2:]], "seen", "rt")  # 0 and 1 in each data set
    assert data_sets[..., 0].tolist() == [[[1.0, 3.0], [5.0, 0.0]], [[5.0, 0.0], [0.0, 0.0]]]
    with pytest.raises(ValueError, match=r"same columns, .* at index \(1,\); or say with features="):
        pack_groups([table, table[["rt", "seen"]]])
    with pytest.raises(ValueError, match=r"got a table at index \(1, 0\)"):
        pack_groups([table, [table]])
    with pytest.raises(ValueError, match=r"none for the table at index \(1,\)"):
        pack_groups([table, table], mask=[[1, 1, 1]])


def test_every_column_of_pandas_is_numbers_or_refused():
    pandas = pytest.importorskip("pandas")
    dates = pandas.to_datetime(["2026-01-01", "2026-01-02"])
    person = {"person": ["a", "a"]}
    numbers = {
        "nullable whole numbers": pandas.array([1, 0], dtype="Int64"),
        "whole numbers": np.array([1, 0], dtype=np.uint8),
        "booleans": [True, False],
        "nullable booleans": pandas.array([True, False], dtype="boolean"),
        "half precision": np.array([1, 0], dtype=np.float16),
        "objects": np.array([1, 0.0], dtype=object),
        "decimals": [Decimal(1), Decimal(0)],
    }
    for what, column in numbers.items():
        for y in (column, pandas.Series(column, index=[5, 3])):
            x = pack_groups(
                pandas.DataFrame({**person, "y": np.asarray(y) if isinstance(y, pandas.Series) else y}), "person"
            )
            assert x.tolist() == [[[1.0, 1.0], [0.0, 1.0]]] and x.dtype == torch.float32, what
        assert pack_groups([pandas.Series(column, index=[5, 3])])[..., 0].tolist() == [[1.0, 0.0]], what
    refused = {
        "dates": dates,
        "dates of a place": dates.tz_localize("Europe/Berlin"),
        "days": dates.to_period("D"),
        "durations": dates - dates[0],
        "text": ["1", "2"],
        "text of objects": np.array(["1", 2.0], dtype=object),
        "categories": pandas.Categorical([1, 2]),
        "complex numbers": [1j, 2.0],
    }
    for what, column in refused.items():
        with pytest.raises(TypeError, match=r"column 'y' must be numbers"):
            print(what, pack_groups(pandas.DataFrame({**person, "y": column}), "person"))
        with pytest.raises(TypeError, match=r"data must be numbers"):
            print(what, pack_groups([pandas.Series(column, index=[5, 3])]))


def test_missing_values_of_pandas_need_a_mask():
    pandas = pytest.importorskip("pandas")
    for missing, dtype in [(pandas.NA, "Int64"), (None, object), (NAN, float), (pandas.NA, "boolean")]:
        table = pandas.DataFrame(
            {"person": [1, 1], "y": pandas.array([1, missing], dtype=dtype), "seen": [True, False]}
        )
        with pytest.raises(ValueError, match="column 'y' must be finite, got nan in row 1; say with mask="):
            pack_groups(table, "person", "y")
        assert pack_groups(table, "person", mask="seen").tolist() == [[[1.0, 1.0], [0.0, 0.0]]]
        with pytest.raises(ValueError, match=r"data must be finite, got nan at index \(0, 1\)"):
            pack_groups([table["y"]])
    for missing in (pandas.NaT, pandas.NA, None):
        with pytest.raises(ValueError, match="column 'person' must say a group in each row"):
            pack_groups(pandas.DataFrame({"person": [missing, missing], "y": [1.0, 2.0]}), "person")
    masked = np.ma.array([[1.0, 2.0]], mask=[[False, True]])
    with pytest.raises(ValueError, match=r"data must be finite, got nan at index \(0, 1\)"):
        pack_groups(masked)


def test_other_containers_of_numbers():
    pandas = pytest.importorskip("pandas")
    x = pack_groups([[1.0, 2.0], [3.0]])
    assert torch.equal(pack_groups(pandas.Series([[1.0, 2.0], [3.0]], index=["b", "a"])), x)
    assert torch.equal(pack_groups(((1, 2), (3,)), mask=((1, 1), np.array([True]))), x)
    assert torch.equal(pack_groups(np.array([[1.0, 2.0], [3.0]], dtype=object)), x)
    assert torch.equal(pack_groups([np.array([1, 2], dtype=">i4"), np.array([3])]), x)
    assert pack_groups([[-0.0]])[..., 0].signbit().all()
    for data in ({"a": [1.0, 2.0]}, [{1.0, 2.0}], [{"rt": 1.0}]):
        with pytest.raises(TypeError, match="give its values as a list"):
            pack_groups(data)


@pytest.mark.parametrize("value", [1e300, -(10**39), np.float64(3.5e38)])
def test_numbers_that_the_precision_cannot_hold_are_refused(value):
    with pytest.raises(ValueError, match=r"data at index \(0,\) must fit into float32, got .*e\+"):
        pack_groups([[float(value), 1.0]])
    with pytest.raises(ValueError, match=r"column 'y' must fit into torch\.float32"):
        pack_groups(Table(a=[1, 1], y=[0.0, float(value)]), "a")
    assert pack_groups([np.array([float(value)])]).double()[0, 0, 0] == float(value)


def test_two_levels_of_nesting_are_groups_of_numbers():
    assert pack_groups([[1, 2], [3]]).tolist() == [[[1.0, 1.0], [2.0, 1.0]], [[3.0, 1.0], [0.0, 0.0]]]
    three = [[[1.0, 2.0], [3.0]], [[4.0]]]  # data sets of groups of numbers: as features they would be ragged
    assert torch.equal(pack_groups(three, num_levels=3)[0], pack_groups(three[0]))


def test_empty_groups_are_kept_between_others():
    x = pack_groups([[], [[1.0, 2.0]], []])
    assert x.shape == (3, 1, 3) and x[..., -1].sum(-1).tolist() == [0.0, 1.0, 0.0]
    assert [part.shape for part in unpack_groups(x)] == [(0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ([[[1.0], [NAN]]], {}, r"data must be finite, got nan at index \(0, 1, 0\); say with mask="),
        ([[1.0], [2.0, float("inf")]], {}, r"data must be finite, got inf at index \(1, 1\)"),
        ([[[1.0, 2.0], [3.0]]], {}, r"one number of features, got \[1, 2\] at index \(0,\); .* give num_levels=3"),
        ([[[1.0, 2.0]], [[3.0]]], {}, r"one number of features, got \[1, 2\]"),
        ([[[1.0]], [3.0]], {}, r"equally deep everywhere, got shape \(1,\) at index \(1,\)"),
        ([[[1.0], 3.0]], {}, r"equally deep everywhere, got \[\[1.0\], 3.0\] at index \(0,\)"),
        ([[[[1.0]]], [3.0]], {}, r"equally deep everywhere, got 3.0 at index \(1, 0\)"),
        ([1.0, 2.0], {}, "nested at least two deep, got depth 1"),
        ([[1.0]], {"num_levels": 4}, "nested 2 deep cannot have 4 levels"),
        ([[], []], {}, "and there is none"),
        ([[1.0, 2.0]], {"mask": [[1]]}, r"mask must be 0 or 1 for each of 2 observations at index \(0,\)"),
        ([[1.0, 2.0]], {"mask": [[1, 0.5]]}, "mask must be 0 or 1"),
        ([[[[1.0]], [[2.0]]]], {"mask": [[[1]]]}, r"nested as data: it does not have 2 entries at index \(0,\)"),
        ([[1.0, 2.0]], {"sizes": (1, 1)}, r"up to \(1, 2\) elements do not fit into sizes \(1, 1\)"),
        ([[1.0, 2.0]], {"sizes": (1,)}, r"sizes must be one for each of 2 levels"),
        ([[1.0, 2.0]], {"group": "person"}, "they need a table with columns"),
        (Table(a=[1], y=[1.0]), {}, "group= must name the columns"),
        (Table(a=[1], y=[1.0]), {"group": "b"}, "there is no column 'b', only 'a', 'y'"),
        (Table(a=[1], y=[1.0]), {"group": "a", "features": ["z"]}, "there is no column 'z'"),
        (
            Table(a=[1.0, NAN], y=[1.0, 2.0]),
            {"group": "a"},
            "column 'a' must say a group in each row, got nan in row 1",
        ),
        (Table(a=[1, 1], y=[1.0, NAN]), {"group": "a"}, "column 'y' must be finite, got nan in row 1; say with mask="),
        (Table(a=[1, 1]), {"group": "a"}, "columns that are not groups"),
        (Table(a=[1], y=[1.0]), {"group": "a", "mask": [1, 1]}, "mask must be 0 or 1 for each of 1 observations"),
    ],
)
def test_what_cannot_be_packed_is_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        pack_groups(data, **settings)


@pytest.mark.parametrize(
    ("data", "settings"), [([["a", "b"]], {}), (Table(a=[1], y=["red"]), {"group": "a"}), ([[None]], {})]
)
def test_what_is_not_numbers_is_a_type_error(data, settings):
    with pytest.raises(TypeError, match="must be numbers"):
        pack_groups(data, **settings)


def test_what_is_not_packed_is_not_unpacked():
    with pytest.raises(ValueError, match=r"must have shape \(\.\.\., groups, observations, features \+ 1\)"):
        unpack_groups(torch.ones(2, 3))
    with pytest.raises(ValueError, match="must be 0 or 1"):
        unpack_groups(torch.full((2, 3, 2), 0.5))
    with pytest.raises(ValueError, match=r"x must be finite, got nan at index \(0, 0, 0\)"):
        unpack_groups(torch.full((2, 3, 2), NAN))


def test_tables_that_are_grouped_already_are_refused():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match="give the table itself, and the names of these columns as group="):
        pack_groups(pandas.DataFrame({"g": [1, 1, 2], "y": [1.0, 2.0, 3.0]}).groupby("g"))
