"""Context vectors: their parts, ranges and names; simulations in them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import LinearGaussianData
from sbi.utils import BoxUniform
from scipy import stats

from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import (
    Choice,
    Contexts,
    LocationFinding,
    LogUniform,
    PolicySimulator,
    PowerScaledPrior,
    UniformRange,
    simulate_with_context,
)
from sbi_bed.simulators.sensitivity.contexts import prior_of_context

ALL = {
    "gamma": LogUniform(0.5, 2.0, 2),
    "upper": UniformRange(1.0, 3.0),
    "simulator": Choice(("a", "b", "c"), (1.0, 2.0, 1.0)),
}


def test_parts_are_drawn_from_their_ranges():
    contexts = Contexts(**ALL)
    drawn = contexts.sample((20_000,))
    parts = contexts.split(contexts.check_inside(drawn))
    assert list(parts) == list(ALL) and drawn.shape == (20_000, 6)
    place = parts["gamma"].double().log() / (2 * math.log(2)) + 0.5
    assert stats.kstest(place[:, 0], "uniform").pvalue > 1e-3 and abs(float(torch.corrcoef(place.T)[0, 1])) < 0.03
    assert stats.kstest((parts["upper"].double().flatten() - 1) / 2, "uniform").pvalue > 1e-3
    assert torch.allclose(parts["simulator"].mean(0), torch.tensor([0.25, 0.5, 0.25]), atol=0.016)


def test_names_and_vectors():
    contexts = Contexts(**ALL)
    assert contexts.columns == ["gamma[0]", "gamma[1]", "upper", "simulator=a", "simulator=b", "simulator=c"]
    assert contexts.log_columns == [True, True, False, False, False, False]
    assert contexts.vector(gamma=[0.5, 2.0], upper=2, simulator="c").tolist() == [0.5, 2.0, 2.0, 0.0, 0.0, 1.0]
    again = Contexts.from_description(contexts.description())
    assert again.parts == contexts.parts


@st.composite
def contexts_of_parts(draw):
    """Contexts of any parts, gamma first where there is one."""
    ranges, parts = {LogUniform: st.floats(2**-10, 10, width=32), UniformRange: st.floats(-100, 100, width=32)}, {}
    for name in draw(st.sampled_from([["gamma", "a", "b"], ["a", "gap in name"], ["gamma"], ["b"]])):
        kind = LogUniform if name == "gamma" else draw(st.sampled_from([LogUniform, UniformRange, Choice]))
        if kind is Choice:
            options = draw(st.lists(st.text(max_size=3), min_size=2, max_size=4, unique=True))
            parts[name] = Choice(tuple(options))
        else:
            low = draw(ranges[kind])
            parts[name] = kind(low, low + draw(st.floats(2**-6, 10, width=32)), draw(st.integers(1, 3)))
    return Contexts(**parts)


@given(contexts_of_parts(), st.lists(st.integers(0, 3), max_size=2))
@settings(max_examples=100, deadline=None)
def test_any_contexts(contexts, shape):
    """Draws lie inside. Parts together make the context, from numbers and from names, also after a description."""
    drawn = contexts.sample(shape)
    assert drawn.shape == (*shape, contexts.dim) == (*shape, len(contexts.columns))
    again = Contexts.from_description(contexts.description())
    assert torch.equal(again.check_inside(drawn), drawn) and again.columns == contexts.columns
    parts = contexts.split(drawn)
    assert torch.equal(torch.cat(list(parts.values()), -1), drawn)
    for row in drawn.reshape(-1, contexts.dim)[:2]:
        values = {
            name: kind.options[int(part.argmax())] if isinstance(kind, Choice) else part
            for (name, kind), part in zip(contexts.parts.items(), contexts.split(row).values(), strict=True)
        }
        assert torch.equal(contexts.vector(**values), row)
        for column in range(contexts.dim):
            spoiled = row.clone()
            spoiled[column] += 1000
            with pytest.raises(ValueError, match="lies outside"):
                contexts.check_inside(spoiled)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"gamma": [0.5, 2.1], "upper": 2, "simulator": "a"}, r"gamma\[1\] = 2.1 lies outside .* \[0.5, 2\]"),
        ({"gamma": 1.0, "upper": 0.9, "simulator": "a"}, "upper = 0.9"),
        ({"gamma": 1.0, "upper": math.inf, "simulator": "a"}, "finite"),
        ({"gamma": 1.0, "upper": 2, "simulator": "d"}, "one of .* got 'd'"),
        ({"gamma": 1.0, "upper": 2}, "consists of"),
    ],
)
def test_contexts_outside_training_are_refused(values, match):
    with pytest.raises(ValueError, match=match):
        Contexts(**ALL).vector(**values)


@pytest.mark.parametrize("choice", [[1.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
def test_choices_are_one_hot(choice):
    with pytest.raises(ValueError, match=r"simulator=a.*\(1,\) lies outside"):
        Contexts(**ALL).check_inside([[1.0, 1.0, 2.0, 1.0, 0.0, 0.0], [1.0, 1.0, 2.0, *choice]])


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: Contexts(), ValueError, "at least one part"),
        (lambda: Contexts(gamma=2.0), TypeError, "must be a LogUniform"),
        (lambda: Contexts(upper=UniformRange(0, 1), gamma=LogUniform(0.5, 2)), ValueError, "first part"),
        (lambda: LogUniform(0.0, 2.0), ValueError, "positive"),
        (lambda: UniformRange(2.0, 2.0), ValueError, "low < high"),
        (lambda: Choice(("a",)), ValueError, "two different"),
        (lambda: Choice(("a", "b"), (1.0, 0.0)), ValueError, "positive"),
    ],
)
def test_definitions_that_are_refused(build, error, match):
    with pytest.raises(error, match=match):
        build()


# ---- simulations


def test_theta_is_drawn_from_the_prior_of_its_context():
    model = LinearGaussianData()
    theta, x, context = simulate_with_context(model, model.prior, 20_000, seed=3)
    scaled = (theta * context.sqrt()).double()  # N(0, 1), whatever γ is
    assert stats.kstest(scaled.flatten(), "norm").pvalue > 1e-3
    for column in range(3):
        assert abs(stats.spearmanr(scaled[:, column].abs(), context[:, column]).statistic) < 0.03
    residual = (x - theta @ model.matrix.T).double() / model.noise_sd
    assert stats.kstest(residual.flatten(), "norm").pvalue > 1e-3
    again = simulate_with_context(model, model.prior, 20_000, seed=3)
    assert all(torch.equal(one, other) for one, other in zip((theta, x, context), again, strict=True))


def test_workers_give_the_same_numbers():
    model = LinearGaussianData()
    here = simulate_with_context(model, model.prior, 50, batch_size=20, seed=3)
    there = simulate_with_context(model, model.prior, 50, batch_size=20, seed=3, num_workers=2)
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))


def test_a_choice_selects_the_simulator():
    prior = PowerScaledPrior(BoxUniform(torch.zeros(1), torch.ones(1)))
    contexts = Contexts(gamma=LogUniform(0.5, 2), simulator=Choice(("up", "down")))
    simulators = [lambda theta: theta + 10, lambda theta: theta - 10]
    theta, x, context = simulate_with_context(simulators, prior, 200, contexts, seed=0)
    assert torch.equal(x, theta + 10 * (context[:, 1:2] - context[:, 2:]))
    assert 60 < float(context[:, 1].sum()) < 140

    def one(theta, parts):
        return theta + parts["gamma"] + 10 * parts["simulator"][:, :1]

    theta, x, context = simulate_with_context(one, prior, 200, contexts, seed=0)
    torch.testing.assert_close(x, theta + context[:, :1] + 10 * context[:, 1:2])


class MovedBox:
    """U(0, upper); the context is `upper`."""

    def condition(self, context):
        return BoxUniform(torch.zeros_like(context), context)


def test_priors_of_a_users_own():
    contexts = Contexts(upper=UniformRange(1.0, 3.0))
    theta, _, context = simulate_with_context(lambda theta: theta, MovedBox(), 4000, contexts, seed=0)
    assert stats.kstest((theta / context).double().flatten(), "uniform").pvalue > 1e-3
    same = BoxUniform(torch.zeros(1), torch.ones(1))
    theta, _, context = simulate_with_context(lambda theta: theta, same, 4000, contexts, seed=0)
    assert stats.kstest(theta.double().flatten(), "uniform").pvalue > 1e-3
    assert prior_of_context(same, context) is same


def test_histories_in_contexts():
    simulator = LocationFinding()
    experiment = PolicySimulator(simulator, RandomPolicy(simulator), horizon=4)
    theta, x, context = simulate_with_context(experiment, PowerScaledPrior(simulator.prior), 30, seed=0)
    assert theta.shape == (30, 2) and x.shape == (30, 4, 4) and context.shape == (30, 2)
    assert bool((x[..., -1] == 1).all())


class Unbatched:
    """A prior that ignores the batch of contexts."""

    def condition(self, context):
        return BoxUniform(torch.zeros(1), torch.ones(1))


@pytest.mark.parametrize(
    ("simulator", "prior", "context", "error", "match"),
    [
        (lambda t: t, BoxUniform(torch.zeros(1), torch.ones(1)), None, TypeError, r"without contexts=Contexts\("),
        (lambda t: t, MovedBox(), torch.ones(3), TypeError, "contexts must be Contexts"),
        (lambda t: t, Unbatched(), Contexts(upper=UniformRange(1, 3)), ValueError, "batch shape"),
        (3, MovedBox(), Contexts(upper=UniformRange(1, 3)), TypeError, "callable"),
        ([lambda t: t], MovedBox(), Contexts(upper=UniformRange(1, 3)), ValueError, "one Choice"),
        (lambda t: t[:, 0], MovedBox(), Contexts(upper=UniformRange(1, 3)), ValueError, "must return x"),
        (lambda t: t / 0, MovedBox(), Contexts(upper=UniformRange(1, 3)), ValueError, "x must be finite"),
    ],
)
def test_simulations_that_are_refused(simulator, prior, context, error, match):
    with pytest.raises(error, match=match):
        simulate_with_context(simulator, prior, 10, context)
