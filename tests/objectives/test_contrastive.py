"""The streamed log-sum against plain autograd in float64: values, gradients, weights, chunks."""

import math

import pytest
import torch
from models import LinearGaussian, TinyPolicy
from torch.distributions import constraints

from sbi_bed.objectives import contrastive as module
from sbi_bed.objectives import log_likelihood_of_history, log_sum_likelihood, snmc, spce
from sbi_bed.policies import DeepSetsPolicy, RandomPolicy
from sbi_bed.simulators import ConstantElasticity, DesignSimulator, HyperbolicDiscounting, LocationFinding, rollout

SIMULATORS = {
    "location": lambda: LocationFinding(2),
    "discounting": HyperbolicDiscounting,
    "elasticity": ConstantElasticity,
    "gaussian": lambda: LinearGaussian(2),
}


def plain_log_sum(simulator, contrastive, designs, outcomes, log_weights=None, every_trial=False):
    """log Σ_l w_l p(h | θ_l), tiled to [L, B, T] and left to autograd."""
    by_trial = simulator.log_likelihood(contrastive[:, None, None], designs, outcomes)
    values = by_trial.cumsum(-1) if every_trial else by_trial.sum(-1)
    if log_weights is not None:
        values = values + log_weights.reshape(-1, *([1] * (values.ndim - 1)))
    log_sum = values.logsumexp(0)
    return log_sum.T if every_trial else log_sum


def draw(name, num_contrastive=37, batch=6, horizon=4):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((batch,)).double()
    designs, outcomes = rollout(simulator, RandomPolicy(simulator), theta, horizon)
    return simulator, simulator.prior.sample((num_contrastive,)).double(), designs.double(), outcomes.double()


@pytest.mark.parametrize("chunk_size", [1, 7, 37, 100, None])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("every_trial", [False, True])
@pytest.mark.parametrize("name", SIMULATORS)
def test_stream_equals_plain_autograd(name, every_trial, weighted, chunk_size):
    simulator, contrastive, designs, outcomes = draw(name)
    log_weights = torch.randn(37).double() if weighted else None
    leaves = [designs.requires_grad_()] if simulator.discrete else [designs.requires_grad_(), outcomes.requires_grad_()]
    streamed = log_sum_likelihood(simulator, contrastive, designs, outcomes, log_weights, every_trial, chunk_size)
    plain = plain_log_sum(simulator, contrastive, designs, outcomes, log_weights, every_trial)
    assert streamed.shape == ((4, 6) if every_trial else (6,))
    torch.testing.assert_close(streamed, plain, rtol=1e-12, atol=1e-12)
    slopes = torch.randn(6).double()
    gradients = torch.autograd.grad((slopes * (streamed[-1] if every_trial else streamed)).sum(), leaves)
    expected = torch.autograd.grad((slopes * (plain[-1] if every_trial else plain)).sum(), leaves)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert (reference != 0).any()
        torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-9 * float(reference.abs().max()))


@pytest.mark.parametrize("name", ["location", "discounting"])
def test_stream_is_accurate_in_single_precision(name):
    simulator, contrastive, designs, outcomes = draw(name, num_contrastive=5000)
    exact = plain_log_sum(simulator, contrastive, designs, outcomes)
    single = log_sum_likelihood(simulator, contrastive.float(), designs.float(), outcomes.float(), chunk_size=11)
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)


def test_gradients_of_the_weights_of_a_policy_equal_plain_autograd():
    simulator = LocationFinding()
    policy = DeepSetsPolicy(simulator, 16, 8).double()
    theta, contrastive = simulator.prior.sample((8,)).double(), simulator.prior.sample((50,)).double()
    gradients = []
    for log_sum in (log_sum_likelihood, plain_log_sum):
        torch.manual_seed(1)
        designs, outcomes = rollout(simulator, policy, theta, 3)
        log_likelihood = log_likelihood_of_history(simulator, theta, designs, outcomes).sum(-1)
        bound = spce(log_likelihood, log_sum(simulator, contrastive, designs, outcomes), 50).mean()
        gradients.append(torch.autograd.grad(bound, list(policy.parameters())))
    for streamed, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(streamed, plain, rtol=1e-6, atol=1e-12)


def test_only_what_needs_a_gradient_gets_one():
    simulator, contrastive, designs, outcomes = draw("gaussian")
    assert not log_sum_likelihood(simulator, contrastive, designs, outcomes).requires_grad
    outcomes.requires_grad_()
    (gradient,) = torch.autograd.grad(log_sum_likelihood(simulator, contrastive, designs, outcomes).sum(), outcomes)
    (expected,) = torch.autograd.grad(plain_log_sum(simulator, contrastive, designs, outcomes).sum(), outcomes)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("offset", [-1e4, -800.0, 800.0])
def test_very_small_and_large_likelihoods_do_not_underflow(offset):
    base = LinearGaussian()
    shifted = DesignSimulator(
        base.prior,
        base.simulate,
        constraints.real,
        lambda t, d, y: base.log_likelihood(t, d, y) + offset,
        reparameterized=True,
    )
    theta = base.prior.sample((4,)).double()
    designs, outcomes = (x.detach() for x in rollout(base, TinyPolicy(base).double(), theta, 2))
    contrastive = base.prior.sample((30,)).double()
    designs.requires_grad_()
    shifted_sum, plain = (log_sum_likelihood(s, contrastive, designs, outcomes, chunk_size=4) for s in (shifted, base))
    torch.testing.assert_close(shifted_sum - 2 * offset, plain, rtol=1e-9, atol=1e-9)
    a, b = (torch.autograd.grad(x.sum(), designs)[0] for x in (shifted_sum, plain))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_contrastive_samples_that_exclude_the_data_count_for_nothing():
    """A likelihood of zero (log −inf) for some θ, or for all: no NaN, and the bound is then log(L + 1)."""
    simulator = DesignSimulator(
        LinearGaussian().prior,
        lambda t, d: t + d,
        constraints.real,
        lambda t, d, y: torch.where(t > 0, -(y - t - d).square(), -torch.inf).squeeze(-1),
        reparameterized=True,
    )
    designs, outcomes = torch.zeros(3, 2, 1).double().requires_grad_(), torch.ones(3, 2, 1).double()
    some = torch.tensor([[-1.0], [0.5], [2.0], [-3.0]]).double()
    for chunk_size in (1, 4):
        log_sum = log_sum_likelihood(simulator, some, designs, outcomes, chunk_size=chunk_size)
        torch.testing.assert_close(log_sum, torch.logsumexp(torch.tensor([-0.5, -2.0]).double(), 0).expand(3))
        assert torch.isfinite(torch.autograd.grad(log_sum.sum(), designs)[0]).all()
    none = log_sum_likelihood(simulator, some[[0, 3]], designs, outcomes)
    assert (none == -torch.inf).all()
    log_likelihood = torch.zeros(3).double()
    bound = spce(log_likelihood, none, 2)
    torch.testing.assert_close(bound, torch.full((3,), math.log(3)).double())
    assert (torch.autograd.grad(bound.sum(), designs)[0] == 0).all()


def test_bounds_are_what_they_say():
    log_likelihood, others = torch.randn(5).double(), torch.randn(9, 5).double()
    log_sum = others.logsumexp(0)
    lower = log_likelihood - (torch.cat([log_likelihood[None], others]).exp().mean(0)).log()
    upper = log_likelihood - others.exp().mean(0).log()
    torch.testing.assert_close(spce(log_likelihood, log_sum, 9), lower)
    torch.testing.assert_close(snmc(log_likelihood, log_sum, 9), upper)
    assert (spce(torch.tensor(1e3), torch.tensor(-1e3), 9) <= math.log(10) + 1e-6).all()


def test_likelihood_of_each_trial():
    simulator = LinearGaussian(2)
    theta, designs, outcomes = torch.randn(3, 2), torch.rand(3, 4, 2), torch.randn(3, 4, 1)
    value = log_likelihood_of_history(simulator, theta, designs, outcomes)
    for b in range(3):
        for t in range(4):
            torch.testing.assert_close(value[b, t], simulator.log_likelihood(theta[b], designs[b, t], outcomes[b, t]))


def test_no_intermediate_grows_with_the_number_of_contrastive_samples():
    """The likelihood is never asked for more than a cache-sized block, whatever L."""
    largest = {}
    base = LinearGaussian()

    for num_contrastive in (2_000, 200_000):

        def log_likelihood(theta, design, outcome, num_contrastive=num_contrastive):
            value = base.log_likelihood(theta, design, outcome)
            largest[num_contrastive] = max(largest.get(num_contrastive, 0), value.numel())
            return value

        simulator = DesignSimulator(base.prior, base.simulate, constraints.real, log_likelihood, reparameterized=True)
        designs = torch.rand(16, 10, 1, requires_grad=True)
        log_sum_likelihood(
            simulator, base.prior.sample((num_contrastive,)), designs, torch.randn(16, 10, 1)
        ).sum().backward()
    assert largest[200_000] == largest[2_000] <= module._CHUNK_ELEMENTS


@pytest.mark.parametrize("chunk_size", [7, None])
@pytest.mark.parametrize("every_trial", [False, True])
@pytest.mark.parametrize("name", ["location", "elasticity"])
def test_samples_of_each_history_equal_plain_autograd(name, every_trial, chunk_size):
    simulator, _, designs, outcomes = draw(name)
    contrastive = simulator.prior.sample((37 * 6,)).double().unflatten(0, (37, 6))
    log_weights = torch.randn(37, 6).double()
    leaves = [designs.requires_grad_(), outcomes.requires_grad_()]
    streamed = log_sum_likelihood(simulator, contrastive, designs, outcomes, log_weights, every_trial, chunk_size)
    by_trial = simulator.log_likelihood(contrastive.unsqueeze(2), designs, outcomes)
    values = by_trial.cumsum(-1) if every_trial else by_trial.sum(-1)
    plain = (values + (log_weights.unsqueeze(-1) if every_trial else log_weights)).logsumexp(0)
    plain = plain.T if every_trial else plain
    torch.testing.assert_close(streamed, plain, rtol=1e-12, atol=1e-12)
    last = (lambda value: value[-1].sum()) if every_trial else (lambda value: value.sum())
    for one, other in zip(
        torch.autograd.grad(last(streamed), leaves), torch.autograd.grad(last(plain), leaves), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9 * float(other.abs().max()))


@pytest.mark.parametrize("every_trial", [False, True])
@pytest.mark.parametrize("name", ["location", "discounting"])
def test_compiled_equals_eager(name, every_trial):
    simulator, contrastive, designs, outcomes = draw(name)
    leaves = [designs.requires_grad_()] if simulator.discrete else [designs.requires_grad_(), outcomes.requires_grad_()]
    log_weights = torch.randn(37).double()
    results = []
    for compile in (False, True):
        value = log_sum_likelihood(simulator, contrastive, designs, outcomes, log_weights, every_trial, 10, compile)
        results.append([value, *torch.autograd.grad((value[-1] if every_trial else value).sum(), leaves)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-9 * float(eager.detach().abs().max()))


def test_without_a_compiler_there_is_one_warning_and_the_same_numbers(monkeypatch):
    def no_compiler(function, **options):
        def fail(*arguments):
            raise RuntimeError("no compiler was found")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    module._compiled.cache_clear()
    simulator, contrastive, designs, outcomes = draw("gaussian")
    expected = log_sum_likelihood(simulator, contrastive, designs, outcomes)
    try:
        with pytest.warns(UserWarning, match="compile=True is ignored.*no compiler was found") as caught:
            values = [log_sum_likelihood(simulator, contrastive, designs, outcomes, compile=True) for _ in range(2)]
        assert len(caught) == 1
    finally:
        module._compiled.cache_clear()
    for value in values:
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_errors_of_a_likelihood_are_its_own_also_when_compiled():
    base = LinearGaussian()

    def broken(theta, design, outcome):
        raise ZeroDivisionError("a mistake in the model")

    simulator = DesignSimulator(base.prior, base.simulate, constraints.real, broken)
    with pytest.raises(ZeroDivisionError, match="a mistake in the model"):
        log_sum_likelihood(simulator, base.prior.sample((4,)), torch.zeros(2, 1, 1), torch.zeros(2, 1, 1), compile=True)
