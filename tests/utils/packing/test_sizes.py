"""The range of sizes that a net was trained on: what leaves it is named, once; what it was trained on never is."""

import copy
import io
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_bed.neural_nets.embedding_nets.vary_sizes import random_sizes
from sbi_bed.utils.packing.sizes import TrainedRange, sizes_of_mask, watch_sizes


def mask_of(sizes, observations=12):
    """One data set with groups of these sizes, (1, groups, observations)."""
    return (torch.arange(observations) < torch.tensor(sizes)[:, None]).unsqueeze(0)


def warned(trained, mask):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained.eval()(mask)
    return [str(w.message) for w in caught]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=3), min_size=1, max_size=4
    )
)
def test_sizes_are_counted_at_each_level(data):
    """Against counting in plain Python, three levels deep: subgroups of groups of data sets."""
    mask = torch.zeros(len(data), 3, 3, 5)
    for b, groups in enumerate(data):
        for g, subgroups in enumerate(groups):
            for s, size in enumerate(subgroups):
                mask[b, g, s, torch.randperm(5)[:size]] = 1
    (groups, subgroups, observations), missing = sizes_of_mask(mask)
    for b, each in enumerate(data):
        counts = [[size for size in sub if size] for sub in each]
        assert int(groups[b]) == sum(bool(sub) for sub in counts)
        assert sorted(subgroups[b].tolist())[-len(each) :] == sorted(len(sub) for sub in counts)
        assert int(observations[b].sum()) == sum(map(sum, counts))
        room = int(groups[b]) * max(map(len, counts)) * max((max(sub, default=0) for sub in counts), default=0)
        assert float(missing[b]) == pytest.approx(1 - sum(map(sum, counts)) / max(room, 1))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([12] * 8, []),
        ([12] * 7, ["groups: 7, trained on 8"]),
        ([12] * 9, ["groups: 9, trained on 8"]),
        ([11] * 8, ["observations per group: 11, trained on 12"]),
        ([12] * 7 + [1], ["observations per group: 1 to 12, trained on 12", "share missing: 0.11, trained on 0"]),
    ],
)
def test_fixed_sizes_of_training_are_left_by_any_other(sizes, said):
    trained = TrainedRange(2)
    trained.learn(torch.ones(100, 8, 12))
    messages = warned(trained, mask_of(sizes))
    assert len(messages) == (len(said) > 0) and all(part in messages[0] for part in said)
    assert bool(trained.is_outside(mask_of(sizes)).item()) == (len(said) > 0)


def simulated(kind, num):
    """Masks (num, 8, 20) of designs that vary in different ways."""
    mask = torch.ones(num, 8, 20)
    if kind == "uniform sizes":
        mask *= torch.arange(8)[:, None] < torch.randint(3, 9, (num, 1, 1))
        mask *= torch.arange(20) < torch.randint(5, 21, (num, 1, 1))
    elif kind == "missing at random":
        mask *= torch.rand(mask.shape) > 0.3
    elif kind == "any sizes":
        mask = random_sizes(mask > 0).float()
    return mask


@pytest.mark.parametrize("kind", ["fixed", "uniform sizes", "missing at random", "any sizes"])
def test_new_data_of_the_same_kind_are_within_the_range(kind):
    """20,000 data sets by the design of 2,000 of training, for which the smallest size is often a rare one."""
    trained = TrainedRange(2)
    trained.learn(simulated(kind, 2000))
    assert not trained.is_outside(simulated(kind, 20_000)).any()


def test_a_hard_edge_is_no_tail():
    trained = TrainedRange(2)
    trained.learn(simulated("uniform sizes", 2000))
    assert trained.low[:2].tolist() == [3, 5] and trained.high[:2].tolist() == [8, 20]
    assert "groups: 2, trained on 3 to 8" in warned(trained, mask_of([10] * 2))[0]
    assert "observations per group: 4, trained on 5 to 20" in warned(trained, mask_of([4] * 5))[0]
    trained.learn(simulated("missing at random", 2000))
    assert warned(trained, mask_of([1] * 8))  # a tail ends somewhere


def test_training_widens_the_range_and_a_net_without_training_warns_of_nothing():
    trained = TrainedRange(1, ("trials",))
    assert warned(trained, torch.ones(3, 7)) == []
    for size in (4, 9, 6):
        trained.train()(torch.ones(5, size))
    assert trained.low[0] == 4 and trained.high[0] == 9
    assert (
        warned(trained, torch.ones(2, 5)) == []
        and "trials: 10, trained on 4 to 9" in warned(trained, torch.ones(2, 10))[0]
    )


def test_it_is_saved_with_the_weights_and_older_files_know_nothing():
    trained = TrainedRange(2)
    trained.learn(torch.ones(100, 8, 12))
    buffer = io.BytesIO()
    torch.save(trained.state_dict(), buffer)
    twin = TrainedRange(2)
    twin.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert warned(twin, mask_of([5] * 8)) == warned(trained, mask_of([5] * 8)) != []
    assert warned(copy.deepcopy(trained).double(), mask_of([12] * 8)) == []
    old = TrainedRange(2)
    old.load_state_dict({})
    assert warned(old, mask_of([5] * 8)) == []


def test_one_warning_for_all_that_is_read_in_a_block():
    first, second = TrainedRange(2).eval(), TrainedRange(2).eval()
    for trained in (first, second):
        trained.learn(torch.ones(100, 8, 12))
    with pytest.warns(RuntimeWarning) as caught, watch_sizes():
        first(mask_of([5] * 8)), second(mask_of([3] * 8))
        with watch_sizes():
            first(mask_of([7] * 8))
        with watch_sizes(warn=False) as unheard:
            first(mask_of([1] * 8))
    assert len(caught) == 1 and "observations per group: 3 to 7, trained on 12" in str(caught[0].message)
    assert caught[0].filename == __file__ and unheard.data_sets_outside(1).tolist() == [True]


@pytest.mark.parametrize("shape", [(9,), (4, 6), (3, 4, 5)])
def test_random_sizes_reach_from_one_to_all_and_take_nothing_that_was_not_there(shape):
    full = torch.rand(4000, *shape) < 0.9
    full.view(4000, -1)[:, 0] = True
    mask = random_sizes(full)
    assert bool((mask <= full).all()) and bool(mask.flatten(1).any(1).all())
    same = (mask == full).flatten(1).all(1).double().mean()
    assert same > 0.25 - 5 * (0.25 * 0.75 / 4000) ** 0.5  # a quarter stays as it is, and some by chance
    sizes, _ = sizes_of_mask(mask)
    for size, most in zip(sizes, shape, strict=True):
        assert set(size[size > 0].tolist()) == set(range(1, most + 1))
    if len(shape) == 1:
        return
    one_short = (sizes[-1].flatten(1).amax(1) == shape[-1]) & ((sizes[-1] == 1).flatten(1).any(1))
    assert one_short.any()  # a group of one beside a large one
