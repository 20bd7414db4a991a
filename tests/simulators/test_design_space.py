"""Design spaces: free coordinates reach the space and nothing outside it, and come back."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import constraints

from sbi_bed.simulators import DesignSpace
from sbi_bed.simulators.design_space import as_design_space

SPACES = {
    "interval": lambda: DesignSpace(constraints.interval(torch.tensor([0.0, -5.0]), torch.tensor([1.0, 100.0]))),
    "interval of numbers": lambda: DesignSpace(constraints.interval(-2.0, 3.0), dim=3),
    "positive": lambda: DesignSpace(
        constraints.positive, dim=2, loc=torch.tensor([4.0, 0.0]), scale=torch.tensor([1.5, 1.0])
    ),
    "above 2": lambda: DesignSpace(constraints.greater_than(2.0)),
    "real": lambda: DesignSpace(constraints.real, loc=3.0, scale=2.0),
    "real vector": lambda: DesignSpace(constraints.real_vector, dim=3),
    "independent": lambda: DesignSpace(constraints.independent(constraints.interval(torch.zeros(2), torch.ones(2)), 1)),
    "cat": lambda: DesignSpace(
        constraints.cat(
            [constraints.interval(0.0, 100.0), constraints.positive, constraints.real], dim=-1, lengths=[1, 2, 1]
        )
    ),
    "simplex": lambda: DesignSpace(constraints.simplex, dim=3),
}


@pytest.mark.parametrize("name", SPACES)
def test_free_coordinates_map_into_the_space_and_back(name):
    space = SPACES[name]()
    free = 1.5 * torch.randn(200, space.free_dim, dtype=torch.float64)
    design = space.from_free(free)
    assert design.shape == (200, space.dim) and design.dtype == torch.float64
    assert space.contains(design).all()
    assert torch.equal(space.check(design), design)
    back = space.standardize(design)
    assert back.shape == (200, space.num_features)
    # Where the bijection bends, u saturates softly at ±6.
    expected = free if name.startswith("real") else 6 * torch.tanh(free / 6)
    torch.testing.assert_close(back, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SPACES)
def test_extreme_free_coordinates_stay_inside_in_float32_and_keep_a_gradient(name):
    space = SPACES[name]()
    free = torch.tensor([-50.0, -5.0, 0.0, 5.0, 50.0]).unsqueeze(-1).repeat(1, space.free_dim).requires_grad_()
    design = space.from_free(free)
    assert torch.isfinite(design).all() and space.contains(design).all()
    (gradient,) = torch.autograd.grad(design[..., 0].sum(), free)
    assert torch.isfinite(gradient).all()
    assert (gradient[1:4].abs().sum(-1) > 0).all()
    assert torch.isfinite(space.standardize(design)).all()


@given(
    low=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=3),
    width=st.floats(2**-6, 1e4, width=32),
    free=st.floats(-100, 100, width=32),
)
@settings(max_examples=100, deadline=None)
def test_any_interval_holds_whatever_a_policy_says(low, width, free):
    low = torch.tensor(low)
    space = DesignSpace(constraints.interval(low, low + width))
    design = space.from_free(torch.full((len(low),), free))
    assert space.contains(design) and torch.equal(space.check(design), design)
    assert torch.isfinite(space.standardize(design)).all()
    assert space.contains(space.sample((20,))).all()
    for outside in (low - width, low + 2 * width):
        assert not space.contains(outside)


@pytest.mark.parametrize("name", SPACES)
def test_samples_lie_inside(name):
    space = SPACES[name]()
    designs = space.sample((50, 4))
    assert designs.shape == (50, 4, space.dim) and space.contains(designs).all()
    assert space.sample().shape == (space.dim,)


def test_samples_between_bounds_are_uniform():
    designs = SPACES["interval"]().sample((20_000,)).double()
    low, high = torch.tensor([0.0, -5.0]), torch.tensor([1.0, 100.0])
    unit = (designs - low) / (high - low)
    torch.testing.assert_close(
        unit.mean(0), torch.full((2,), 0.5, dtype=torch.float64), atol=4 * (1 / 12 / 20_000) ** 0.5, rtol=0
    )
    torch.testing.assert_close(
        unit.var(0), torch.full((2,), 1 / 12, dtype=torch.float64), atol=4 * (1 / 180 / 20_000) ** 0.5, rtol=0
    )


def test_bounds_are_inside_and_beyond_is_not():
    space = SPACES["interval"]()
    assert space.contains(torch.tensor([[0.0, 100.0], [1.0, -5.0], [0.5, 100.1], [-0.1, 0.0]])).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert SPACES["positive"]().contains(torch.tensor([[1.0, 2.0], [1.0, 0.0]])).tolist() == [True, False]
    mixed = torch.tensor([[50.0, 1.0, 1.0, -9.0], [101.0, 1.0, 1.0, 0.0], [50.0, -1.0, 1.0, 0.0]])
    assert SPACES["cat"]().contains(mixed).tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"design \[0.5, 200.0\] lies outside the design space"):
        space.check(torch.tensor([[0.5, 0.0], [0.5, 200.0]]))
    with pytest.raises(ValueError, match=r"design \[0.5, 200.0\] lies outside"):
        space.check([0.5, 200.0])
    with pytest.raises(ValueError, match="design must have 2 values"):
        space.check([0.5])
    with pytest.raises(ValueError, match="design must be finite, got nan"):
        space.check([0.5, float("nan")])
    with pytest.raises(TypeError, match="design must be numbers"):
        space.check("here")


CANDIDATES = torch.tensor([[0.0, 10.0], [1.0, 20.0], [2.0, 50.0]])


def test_candidates_are_the_whole_space():
    space = as_design_space(CANDIDATES)
    assert (space.dim, space.free_dim, space.num_features) == (2, 3, 2)
    assert space.contains(CANDIDATES).all()
    assert space.contains(torch.tensor([[0.0, 20.0], [0.5, 15.0]])).tolist() == [False, False]
    assert space.check([1.0, 20.0]).tolist() == [1.0, 20.0]
    with pytest.raises(ValueError, match="3 candidates"):
        space.check([1.0, 10.0])
    scores = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.1, 0.0]])
    assert torch.equal(space.from_free(scores), CANDIDATES[:2])
    standard = space.standardize(CANDIDATES)
    torch.testing.assert_close(standard.mean(0), torch.zeros(2))
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(2))
    drawn = space.sample((3000,))
    counts = torch.stack([(drawn == candidate).all(-1).sum() for candidate in CANDIDATES])
    assert counts.sum() == 3000 and (counts - 1000).abs().max() < 4 * (3000 * 2 / 9) ** 0.5


def test_choice_among_candidates_passes_the_softmax_gradient_straight_through():
    space = as_design_space(CANDIDATES.double())
    scores = torch.tensor([0.3, 1.2, -0.5], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, -0.7], dtype=torch.float64)
    design = space.from_free(scores)
    assert torch.equal(design.detach(), CANDIDATES[1].double())
    (gradient,) = torch.autograd.grad(design @ weights, scores)
    (expected,) = torch.autograd.grad(space.parts[0].scores(scores).softmax(-1) @ CANDIDATES.double() @ weights, scores)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().min() > 0


def test_a_chosen_candidate_is_exactly_that_candidate_with_or_without_gradient():
    # An offset much larger than the spread: rounding of "chosen + soft − soft" would leave the set.
    space = as_design_space(torch.tensor([[1000.0], [1000.01], [1000.03]]))
    scores = torch.randn(50, 3, requires_grad=True)
    assert space.contains(space.from_free(scores)).all()
    assert torch.equal(space.from_free(scores).detach(), space.from_free(scores.detach()))


def test_candidates_match_across_precisions_and_constant_columns():
    space = as_design_space([[0.1, 0.7], [0.1, 0.9]])
    assert space.contains(torch.tensor([0.1, 0.7], dtype=torch.float64))
    assert space.check(np.array([[0.1, 0.9]])).shape == (1, 2)
    assert not space.contains(torch.tensor([0.2, 0.7]))
    assert space.standardize(torch.tensor([0.1, 0.9]))[0].abs() < 1e-6
    assert as_design_space([[5.0]]).contains(torch.tensor([5.0], dtype=torch.float64))


def test_a_copy_behaves_as_the_original():
    for name in SPACES:
        space = SPACES[name]()
        free = 3 * torch.randn(5, space.free_dim)
        assert torch.equal(copy.deepcopy(space).from_free(free), space.from_free(free))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: DesignSpace(), ValueError, "either a constraint or candidates"),
        (lambda: DesignSpace(constraints.real, candidates=[[1.0]]), ValueError, "either a constraint or candidates"),
        (lambda: DesignSpace(candidates=[1.0, 2.0]), ValueError, r"candidates must have shape \(N, D\)"),
        (lambda: DesignSpace(candidates=torch.zeros(0, 2)), ValueError, "with N > 0"),
        (lambda: DesignSpace(candidates=[[1.0], [float("nan")]]), ValueError, "candidates must be finite"),
        (lambda: as_design_space("box"), TypeError, "candidates must be numbers"),
        (lambda: DesignSpace("box"), TypeError, "must be one of torch.distributions.constraints"),
        (
            lambda: DesignSpace(constraints.nonnegative_integer),
            ValueError,
            "no bijection onto .*candidates",
        ),
        (lambda: DesignSpace(constraints.real, names=("a", "b")), ValueError, "need as many names"),
        (
            lambda: DesignSpace(constraints.interval(torch.zeros(2), torch.ones(2)), dim=3),
            ValueError,
            "does not describe 3 design values",
        ),
        (lambda: DesignSpace(constraints.interval(1.0, 0.0)), ValueError, "lower bounds lie below upper"),
        (lambda: DesignSpace(constraints.real, loc=torch.zeros(2)), ValueError, "must agree"),
        (lambda: DesignSpace(constraints.simplex), ValueError, "does not describe 1 design values"),
    ],
)
def test_what_is_no_space_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_names():
    assert SPACES["interval"]().names == ("design_1", "design_2")
    assert DesignSpace(constraints.real, names=("dose",)).names == ("dose",)
    assert as_design_space(constraints.real).dim == 1
    space = SPACES["real"]()
    assert as_design_space(space) is space


# ---- spaces that depend on the history


def dose_steps(history):
    """Next doses of two drugs: from 0 up to one more than the last."""
    last = history[..., -1, :2] if history.shape[-2] else history.new_zeros(*history.shape[:-2], 2)
    return constraints.interval(torch.zeros_like(last), last + 1)


def stepping_space(given=dose_steps, **options):
    return DesignSpace(constraints.interval(torch.zeros(2), torch.full((2,), 10.0)), given=given, **options)


HISTORIES = torch.tensor([[[1.0, 2.0, 0.5, 1.0]], [[3.0, 0.0, 0.5, 1.0]], [[8.0, 9.0, 0.5, 1.0]]])


def test_ordinary_spaces_are_the_same_after_any_history():
    space = SPACES["interval"]()
    assert space.given(HISTORIES) is space and not space.depends_on_history
    assert stepping_space().depends_on_history and not stepping_space().given(HISTORIES).depends_on_history


def test_the_space_given_a_history_has_its_bounds():
    space = stepping_space(loc=0.5, scale=2.0)
    now = space.given(HISTORIES)
    low, high = now.from_free(torch.full((3, 2), -50.0)), now.from_free(torch.full((3, 2), 50.0))
    torch.testing.assert_close(low, torch.zeros(3, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(high, HISTORIES[:, 0, :2] + 1, atol=1e-3, rtol=0)
    free = torch.randn(3, 2, dtype=torch.float64)
    unit = torch.sigmoid(0.5 + 2 * 6 * torch.tanh(free / 6))
    torch.testing.assert_close(now.from_free(free), unit * (HISTORIES[:, 0, :2].double() + 1))
    assert now.contains(torch.tensor([2.0, 1.5])).tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"design \[5.0, 1.0\] lies outside"):
        space.given(HISTORIES[0]).check([5.0, 1.0])
    assert space.check([5.0, 1.0]).tolist() == [5.0, 1.0]
    assert space.given(torch.zeros(0, 4)).from_free(torch.full((2,), 50.0)) == pytest.approx([1.0, 1.0], abs=1e-3)


def test_random_designs_are_uniform_between_the_bounds_of_each_history():
    histories = HISTORIES.repeat(7000, 1, 1)
    designs = stepping_space().given(histories).sample((21_000,))
    share = designs / (histories[:, 0, :2] + 1)
    for history in range(3):
        for drug in range(2):
            assert stats.kstest(share[history::3, drug].numpy(), "uniform").pvalue > 1e-3


def test_bounds_pass_on_their_gradient():
    history = HISTORIES.double().requires_grad_()
    free = torch.zeros(3, 2, dtype=torch.float64)
    design = stepping_space().given(history).from_free(free)
    (gradient,) = torch.autograd.grad(design.sum(), history)
    torch.testing.assert_close(gradient[:, 0, :2], torch.full((3, 2), 0.5, dtype=torch.float64))


def test_gradients_are_taken_to_the_free_coordinates_of_the_present_space():
    now = stepping_space(loc=0.5, scale=2.0).given(HISTORIES.double())
    free = 0.1 * torch.randn(3, 2, dtype=torch.float64)  # far from where coordinates saturate
    design, gradient = now.from_free(free), torch.randn(3, 2, dtype=torch.float64)
    unit = design / (HISTORIES[:, 0, :2] + 1)
    expected = gradient * (HISTORIES[:, 0, :2] + 1) * unit * (1 - unit) * 2
    torch.testing.assert_close(now.free_gradient(design, gradient), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "given must be a callable history -> constraint, or None, got 3"),
        (lambda history: history, TypeError, "constraint must be one of torch.distributions.constraints"),
        (
            lambda history: constraints.interval(torch.zeros(3), torch.ones(3)),
            ValueError,
            r"given= returned bounds of shape \(3,\) for a history \(3, 1, 4\); expected \(3, 2\)",
        ),
        (lambda history: constraints.greater_than(history[..., :2]), ValueError, r"bounds of shape \(3, 1, 2\)"),
    ],
)
def test_what_cannot_limit_a_design_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        stepping_space(given).given(HISTORIES)


def test_candidates_do_not_depend_on_the_history():
    with pytest.raises(ValueError, match="a finite set of candidates cannot depend on the history"):
        DesignSpace(candidates=[[1.0], [2.0]], given=dose_steps)


# ---- parts of several kinds


def trial_space():
    return DesignSpace.of_parts(
        dose=constraints.interval(0.0, 10.0),
        drug=["placebo", "A", "B"],
        time=constraints.integer_interval(1, 24),
        level=[0.5, 1.0, 4.0],
    )


def test_parts_map_free_coordinates_into_the_space_and_designs_to_features_and_back():
    space = trial_space()
    assert (space.dim, space.num_features, space.free_dim) == (4, 1 + 3 + 1 + 1, 1 + 3 + 24 + 3)
    design = space.from_free(2 * torch.randn(500, space.free_dim))
    assert torch.equal(space.check(design), design)
    assert torch.equal(design[:, 1:3], design[:, 1:3].round()) and len(design[:, 2].unique()) > 12
    torch.testing.assert_close(space.from_features(space.standardize(design)), design, atol=1e-4, rtol=0)
    one_hot = space.standardize(design)[:, 1:4]
    assert torch.equal(one_hot.argmax(-1).float(), design[:, 1]) and torch.equal(one_hot.sum(-1), torch.ones(500))
    drawn = space.sample((20_000,))
    assert space.contains(drawn).all()
    counts = torch.bincount(drawn[:, 2].long(), minlength=25)[1:]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_whole_numbers_in_torch_constraints_are_parts_of_their_own():
    several = DesignSpace(constraints.integer_interval(torch.tensor([0, 10]), torch.tensor([3, 12])))
    assert several.dim == 2 and several.contains(torch.tensor([[3.0, 10.0], [4.0, 10.0], [1.5, 11.0]])).tolist() == [
        True,
        False,
        False,
    ]
    mixed = DesignSpace(
        constraints.cat(
            [constraints.interval(0.0, 1.0), constraints.integer_interval(1, 5), constraints.boolean], -1, [2, 1, 1]
        ),
        loc=torch.tensor([1.0, -1.0, 0.0, 0.0]),
    )
    centre = mixed.from_free(torch.zeros(mixed.free_dim))
    torch.testing.assert_close(centre[:2], torch.sigmoid(torch.tensor([1.0, -1.0])))
    assert mixed.contains(mixed.sample((100,))).all()
    decades, few = DesignSpace(constraints.integer_interval(1, 300)), DesignSpace(constraints.integer_interval(1, 9))
    places = decades.standardize(torch.tensor([[1.0], [10.0], [100.0]])).flatten().diff()
    torch.testing.assert_close(places[0], places[1])  # in logs
    assert few.standardize(torch.tensor([[1.0], [2.0], [3.0]])).flatten().diff().diff().abs() < 1e-6
    assert not decades.contains(torch.tensor([1.01]))
    design, slope = torch.tensor([100.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    step = decades.standardize(design + 1e-3) - decades.standardize(design)
    torch.testing.assert_close(decades.free_gradient(design, slope), 1e-3 / step, rtol=1e-4, atol=0)
    assert DesignSpace(constraints.integer_interval(1, 300)).candidates.flatten().tolist() == list(range(1, 301))


def test_choices_are_drawn_by_their_scores_while_a_policy_is_trained():
    space = trial_space()
    free, record = torch.randn(space.free_dim, dtype=torch.float64, requires_grad=True), []
    designs = space.recording(record).from_free(free.expand(40_000, -1))
    assert space.contains(designs).all()
    probabilities = (free[1:4].detach()).softmax(-1)
    counts = torch.bincount(designs[:, 1].long(), minlength=3)
    assert stats.chisquare(counts.numpy(), 40_000 * probabilities.numpy()).pvalue > 1e-3
    scores = [part.scores(own) for part, own in zip(space.parts[1:], free[1:].split([3, 24, 3]), strict=True)]
    places = [designs[:, 1].long(), designs[:, 2].long() - 1, (designs[:, 3:] > torch.tensor([0.7, 2.0])).sum(-1)]
    expected = sum(s.log_softmax(-1)[place] for s, place in zip(scores, places, strict=True))
    torch.testing.assert_close(record[0], expected)
    # E[∇ log π] = 0, and what is continuous keeps its own derivative.
    (gradient,) = torch.autograd.grad(record[0].mean(), free, retain_graph=True)
    assert gradient.norm() < 6 / 200
    (gradient,) = torch.autograd.grad(designs[:, 0].mean(), free)
    assert gradient[0] > 0 and not gradient[1:].any()


def test_neighbours_differ_in_one_choice_and_keep_the_rest():
    space = trial_space()
    design = space.sample((50,))
    others = space.neighbours(design)
    assert space.contains(others).all()
    changed = (others != design.unsqueeze(-2)).sum(-1)
    assert (changed == 1).float().mean() > 0.9 and changed.max() == 1  # a random row may be the design's own
    assert torch.equal(others[:, :2, 1].sort(-1).values, torch.stack([torch.tensor([i for i in range(3) if i != d])
        for d in design[:, 1]]).float())  # fmt: skip
    free = space.continuous_free(design) + 1
    moved = space.with_continuous(design, free)
    assert torch.equal(moved[:, 1:], design[:, 1:]) and (moved[:, 0] > design[:, 0]).all()


def test_a_design_in_words_and_what_is_wrong_with_one():
    space = trial_space()
    assert space.describe([2.5, 2, 7, 4]) == {"dose": 2.5, "drug": "B", "time": 7, "level": 4.0}
    assert space.names == ("dose", "drug", "time", "level") and space.labels == {"drug": ("placebo", "A", "B")}
    for design, message in [
        ([2.5, 3, 7, 4], r"drug must be 0 = placebo, 1 = A, 2 = B, got 3.0"),
        ([2.5, 0.5, 7, 4], r"drug must be 0 = placebo"),
        ([2.5, 1, 7.5, 4], r"time must be a whole number from 1 to 24, got 7.5"),
        ([2.5, 1, 25, 4], r"time must be a whole number from 1 to 24, got 25.0"),
        ([11, 1, 7, 4], r"dose must be Interval\(lower_bound=0.0, upper_bound=10.0\), got 11.0"),
        ([1, 1, 7, 2], r"level must be 3 candidates, got 2.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            space.check(design)
    for build, message in [
        (lambda: DesignSpace.of_parts(), "needs parts"),
        (lambda: DesignSpace.of_parts(drug=["A", "A"]), "categories of drug must differ"),
        (lambda: DesignSpace.of_parts(drug=[1.0, float("nan")]), "drug must be finite"),
        (lambda: DesignSpace.of_parts(dose=stepping_space()), "depends on the history cannot be a part"),
        (lambda: DesignSpace(constraints.integer_interval(5, 2)), "whole numbers from 5 to 2 are none"),
        (lambda: DesignSpace(constraints.integer_interval(0, 10**6)), "too long.*round it in the simulator"),
        (lambda: DesignSpace(constraints.integer_interval(0, 3), given=dose_steps), "whole numbers cannot depend"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()


def test_a_space_repeated_is_that_of_designs_chosen_together():
    space = trial_space().repeated(2)
    assert space.dim == 8 and space.names[:5] == ("dose_1", "drug_1", "time_1", "level_1", "dose_2")
    assert space.contains(space.sample((20,))).all()
    assert not space.contains(torch.tensor([2.5, 1, 7, 4, 2.5, 1, 7.5, 4]))


# ---- linear constraints


def mixture_space(**options):
    """Two doses in [0, 4] × [0, 20] with dose 1 / 4 + dose 2 / 20 ≤ 1 and dose 2 ≥ 2 · dose 1."""
    return DesignSpace(
        constraints.interval(torch.zeros(2), torch.tensor([4.0, 20.0])),
        linear=([[0.25, 0.05], [2.0, -1.0]], [1.0, 0.0]),
        **options,
    )


def test_linear_constraints_hold_for_whatever_a_policy_says_and_come_back():
    space = mixture_space()
    free = 3 * torch.randn(2000, 2, dtype=torch.float64)
    design = space.from_free(free)
    assert space.contains(design).all() and space.contains(design.float()).all()
    torch.testing.assert_close(space.standardize(design), 6 * torch.tanh(free / 6), atol=1e-6, rtol=1e-6)
    assert space.contains(space.from_free(torch.randn(100, 2) * 100)).all()
    jacobian = torch.autograd.functional.jacobian(space.from_free, free[0])
    step = torch.tensor([1e-6, 2e-6], dtype=torch.float64)
    torch.testing.assert_close(
        jacobian @ step, space.from_free(free[0] + step) - space.from_free(free[0]), rtol=1e-4, atol=1e-12
    )
    centre = space.from_free(torch.zeros(2, requires_grad=True))
    assert torch.isfinite(torch.autograd.grad(centre.sum(), centre)[0]).all() and space.contains(centre)
    # Near every side: rays reach the border of the polytope.
    around = torch.linspace(0, 2 * torch.pi, 400, dtype=torch.float64)
    far = space.from_free(1e3 * torch.stack([around.cos(), around.sin()], -1))
    slack = torch.stack([1 - 0.25 * far[:, 0] - 0.05 * far[:, 1], (far[:, 1] - 2 * far[:, 0]) / 20, far[:, 0] / 4])
    assert (slack.amin(0) < 0.01).all() and (slack.amin(1) < 0.01).all()


@pytest.mark.parametrize("thin", [False, True])
def test_samples_under_linear_constraints_are_uniform(thin):
    if thin:  # |ξ_1 − ξ_2| ≤ 1e-4 and ξ_1 + ξ_2 ≤ 1: rejection finds none, and the place along the strip is uniform
        space = DesignSpace(
            constraints.interval(torch.zeros(2), torch.ones(2)),
            linear=([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]], [1e-4, 1e-4, 1.0]),
        )
        share = 2 * space.sample((4000,))[:, 0]
    else:  # the triangle with corners (0, 0), (0, 20) and (4/3, 40/3): its width falls linearly from dose 1 = 0
        space = mixture_space()
        designs = space.sample((4000,))
        assert space.contains(designs).all()
        share = 1 - (1 - designs[:, 0] / (20 / 7)).square()  # sides meet where 20 − 5 ξ = 2 ξ
    assert stats.kstest(share.double().numpy(), "uniform").pvalue > 1e-3


def test_linear_constraints_that_make_no_sense_are_refused():
    box = constraints.interval(torch.zeros(2), torch.ones(2))
    for build, message in [
        (lambda: DesignSpace(box, linear=([[1.0, 1.0]], [-1.0])), "leave no room between the bounds"),
        (lambda: DesignSpace(box, linear=([[1.0, 1.0], [-1.0, -1.0]], [1.0, -1.0])), "leave no room"),
        (lambda: DesignSpace(box, linear=([[1.0]], [1.0])), "must have 2 columns"),
        (lambda: DesignSpace(box, linear=([[1.0, 1.0]], [1.0, 2.0])), r"b of shape \(R,\)"),
        (lambda: DesignSpace(box, linear=[[1.0, 1.0]]), "pair"),
        (lambda: DesignSpace(constraints.real, linear=([[1.0]], [1.0])), "linear= limits an interval"),
        (lambda: DesignSpace(candidates=[[1.0]], linear=([[1.0]], [1.0])), "leave out the candidates"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
    with pytest.raises(ValueError, match=r"row 0 of A ξ ≤ b is 1.25 ≤ 1, which is false"):
        mixture_space().check([2.0, 15.0])
    with pytest.raises(ValueError, match="lies outside"):
        mixture_space().check([-1.0, 15.0])
