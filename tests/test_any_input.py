"""Any input gives the exact answer within its error, or one error or warning that names the argument.

Hypothesis throws priors, samplers, shapes, precisions, sizes and things that are not numbers at public entry points. The
models are conjugate, so every answer is known. The default tests try a few cases of each check, `pytest -m slow` many.
"""

import math

import numpy as np
import pytest
import torch
from any_input import (
    CONTAINERS,
    DTYPES,
    NOT_FINITE,
    NOT_NUMBERS,
    NUMBERS,
    SEEDS,
    exact_line,
    few_and_many,
    in_container,
    line,
    listening,
    refused,
)
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Beta, Gamma, Independent, Normal

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import AdaptiveExperiment, likelihood_posterior
from sbi_bed.policies import DeepSetsPolicy, GreedyPolicy, RandomPolicy, StaticPolicy, TransformerPolicy
from sbi_bed.simulators import DesignSimulator, PolicySimulator, rollout
from sbi_bed.utils import pack_context, pack_groups, pack_history, unpack_groups, unpack_history

# ---- experiments whose posterior is known


def counts(kind, dtype):
    """Outcomes that do not depend on the design: coins of a beta share, Poisson counts of a gamma rate, or of one of two."""
    two = torch.tensor(2.0, dtype=dtype)
    prior, law = {
        "beta": (Beta(two, two), lambda theta: Bernoulli(theta)),
        "gamma": (Gamma(two, two), lambda theta: torch.distributions.Poisson(theta)),
        "bernoulli": (Bernoulli(two / 5), lambda theta: Normal(2 * theta, 1.0)),
    }[kind]
    return DesignSimulator(
        Independent(prior.expand((1,)), 1),
        lambda theta, design: law(theta + 0 * design).sample(),
        torch.tensor([[0.0], [1.0]], dtype=dtype),
        lambda theta, design, outcome: law(theta + 0 * design).log_prob(outcome.to(theta)).squeeze(-1),
    )


def exact_counts(kind, y):
    """Mean, sd and log evidence of outcomes (n,), float64."""
    y, n = y.double(), len(y)
    total = float(y.sum())
    if kind == "beta":
        a, b = 2 + total, 2 + n - total
        log_beta = lambda a, b: math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)  # noqa: E731
        return a / (a + b), math.sqrt(a * b / (a + b + 1)) / (a + b), log_beta(a, b) - log_beta(2, 2)
    if kind == "gamma":
        a, b = 2 + total, 2.0 + n
        constant = sum(math.lgamma(float(each) + 1) for each in y)
        return a / b, math.sqrt(a) / b, 2 * math.log(2) - a * math.log(b) + math.lgamma(a) - math.lgamma(2) - constant
    logs = [math.log(p) + float(Normal(2.0 * t, 1.0).log_prob(y).sum()) for t, p in ((0, 0.6), (1, 0.4))]
    log_evidence = float(np.logaddexp(*logs))
    p = math.exp(logs[1] - log_evidence)
    return p, math.sqrt(p * (1 - p)), log_evidence


posterior_cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["line 1", "line 2", "line 3", "beta", "gamma", "bernoulli"]),
        "dtype": st.sampled_from(DTYPES),
        "history_dtype": st.sampled_from(DTYPES),
        "num_trials": st.integers(0, 5),
        "padding": st.integers(0, 2),
        "sampler": st.sampled_from(["smc", "importance", "mcmc"]),
        "seed": SEEDS,
    }
)


def check_posteriors(case):
    kind, dtype, num = case["kind"], case["dtype"], case["num_trials"]
    torch.manual_seed(case["seed"])
    dim = int(kind[-1]) if kind.startswith("line") else 1
    simulator = line(dim, dtype) if kind.startswith("line") else counts(kind, dtype)
    designs, outcomes = rollout(simulator, RandomPolicy(simulator), simulator.prior.sample((1,)), max(num, 1))
    designs, outcomes = designs[0, :num].to(case["history_dtype"]), outcomes[0, :num].to(case["history_dtype"])
    history = pack_history(designs, outcomes, num + case["padding"])
    exact = exact_line(designs, outcomes) if kind.startswith("line") else exact_counts(kind, outcomes.flatten())
    mean = torch.as_tensor(exact[0], dtype=torch.float64).reshape(-1)
    sd = exact[1].diagonal().sqrt() if kind.startswith("line") else torch.tensor([exact[1]], dtype=torch.float64)
    sampler, build = case["sampler"], {"num_particles": 2048, "seed": case["seed"]}
    if sampler == "mcmc" and kind == "bernoulli":
        return refused(lambda: likelihood_posterior(simulator, history, sampler, **build), "sample_with")
    with listening("num_particles") as warned:
        posterior = likelihood_posterior(simulator, history, sampler, **build)
        draws = posterior.sample((1000,), show_progress_bars=False).double()
    assert draws.shape == (1000, dim)
    if warned:
        return None
    # 1,000 draws worth a few hundred: 6 standard errors of 200, and of a share that may be near 0 or 1.
    assert ((draws.mean(0) - mean).abs() < 6 * sd / 200**0.5 + 0.01).all(), (draws.mean(0), mean, sd)
    assert abs(posterior.log_evidence - exact[2]) < 0.35, (posterior.log_evidence, exact[2])


# ---- simulators, rollouts, policies


shapes = st.lists(st.sampled_from([1, 2, 3]), max_size=2).map(tuple)


def check_simulators(case):
    """θ · ξ without noise: leading dimensions broadcast, last dimensions must fit."""
    torch.manual_seed(case["seed"])
    simulator = line(case["dim"], case["dtype"], noise_sd=0.0 + 1e-30)
    theta = torch.randn(*case["theta_shape"], case["dim"] + case["extra"], dtype=case["dtype"])
    design = 2 * torch.rand(*case["design_shape"], case["dim"], dtype=case["dtype"]) - 1
    try:
        expected_shape = torch.broadcast_shapes(case["theta_shape"], case["design_shape"])
    except RuntimeError:
        expected_shape = None
    if case["extra"] or expected_shape is None:
        refused(lambda: simulator(theta, design), "theta")
        refused(lambda: simulator.log_likelihood(theta, design, design[..., :1]), "theta")
        return
    found = simulator(theta, design)
    assert found.shape == (*expected_shape, 1)
    torch.testing.assert_close(found, (theta * design).sum(-1, keepdim=True))


simulator_cases = st.fixed_dictionaries(
    {
        "dim": st.integers(1, 3),
        "dtype": st.sampled_from(DTYPES),
        "theta_shape": shapes,
        "design_shape": shapes,
        "extra": st.sampled_from([0, 0, 0, 1]),
        "seed": SEEDS,
    }
)


policy_cases = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(["random", "static", "deep sets", "transformer", "callable"]),
        "dim": st.integers(1, 2),
        "dtype": st.sampled_from(DTYPES),
        "horizon": st.integers(1, 4),
        "num": st.integers(1, 5),
        "seed": SEEDS,
    }
)


def build_policy(name, simulator, horizon):
    return {
        "random": lambda: RandomPolicy(simulator),
        "static": lambda: StaticPolicy(simulator, horizon),
        "deep sets": lambda: DeepSetsPolicy(simulator, 8, 4),
        "transformer": lambda: TransformerPolicy(simulator, horizon=horizon, hidden_dim=8, num_layers=1, num_heads=1),
        "callable": lambda: lambda history: torch.full((simulator.design_dim,), 0.25),
    }[name]()


def check_policies(case):
    """Designs lie in the box, outcomes belong to them, and x is the packed history."""
    torch.manual_seed(case["seed"])
    simulator, horizon = line(case["dim"], case["dtype"], noise_sd=1e-30), case["horizon"]
    policy = build_policy(case["policy"], simulator, horizon)
    theta = simulator.prior.sample((case["num"],))
    with torch.no_grad():
        x = PolicySimulator(simulator, policy, horizon)(theta)
    assert x.shape == (case["num"], horizon, case["dim"] + 2) and (x[..., -1] == 1).all()
    designs, outcomes = unpack_history(x, case["dim"])
    assert (designs.abs() <= 1).all()
    expected = (theta.unsqueeze(1) * designs).sum(-1, keepdim=True)
    torch.testing.assert_close(outcomes, expected.to(outcomes), rtol=1e-5, atol=1e-6)


gain_cases = st.fixed_dictionaries(
    {
        "dim": st.integers(1, 3),
        "dtype": st.sampled_from(DTYPES),
        "horizon": st.integers(1, 3),
        "num_rollouts": st.sampled_from([100, 300]),
        "noise_sd": st.sampled_from([0.3, 1.0]),
        "seed": SEEDS,
    }
)


def check_gains(case):
    """½ log det(I + Σ ξ ξᵀ / σ²), between the bounds."""
    torch.manual_seed(case["seed"])
    simulator = line(case["dim"], case["dtype"], case["noise_sd"])
    designs = 2 * torch.rand(case["horizon"], case["dim"]) - 1
    gain = expected_information_gain(
        simulator,
        StaticPolicy(simulator, case["horizon"], designs),
        case["horizon"],
        case["num_rollouts"],
        2000,
        seed=case["seed"] % 2**31,
    )
    precision = torch.eye(case["dim"]).double() + designs.double().T @ designs.double() / case["noise_sd"] ** 2
    exact = 0.5 * float(torch.logdet(precision))
    assert gain.lower - 5 * gain.lower_stderr - 0.02 <= exact <= gain.upper + 5 * gain.upper_stderr + 0.02
    assert gain.upper - gain.lower < 0.3


def check_greedy(case):
    """Among designs ξ, the one with the largest variance of θ · ξ tells most, before and after some trials."""
    torch.manual_seed(case["seed"])
    dim, dtype, num = case["dim"], case["dtype"], case["num_trials"]
    angle = torch.rand(4, dim, dtype=dtype) - 0.5
    candidates = angle / angle.norm(dim=-1, keepdim=True) * torch.tensor([0.2, 0.4, 0.6, 1.5], dtype=dtype)[:, None]
    simulator = line(dim, dtype, designs=candidates)
    if case["bad"] is not None:
        refused(lambda: GreedyPolicy(simulator, candidates=[[case["bad"]] * dim]), "candidates")
    policy = GreedyPolicy(simulator, num_particles=1024, num_inner=1024, num_outer=512, seed=case["seed"] % 1000)
    designs = candidates[torch.randint(4, (num,))]
    outcomes = simulator(torch.randn(dim, dtype=dtype), designs)
    history = pack_history(designs, outcomes, num + case["padding"])
    spoiled = torch.cat([history, torch.ones(1, dim + 2)])
    spoiled[-1, 0] = math.nan
    refused(lambda: policy(spoiled), "history")
    refused(lambda: policy(history[..., 1:]), "history")
    covariance = exact_line(designs, outcomes)[1]
    variance = ((candidates.double() @ covariance) * candidates.double()).sum(-1)
    gains = 0.5 * (1 + variance / 0.25).log()
    chosen = (candidates == policy(history)).all(-1).nonzero()
    assert len(chosen) == 1 and gains[chosen[0, 0]] > gains.max() - 0.15, (gains, chosen)  # nested Monte Carlo


greedy_cases = st.fixed_dictionaries(
    {
        "dim": st.integers(1, 3),
        "dtype": st.sampled_from(DTYPES),
        "num_trials": st.integers(0, 3),
        "padding": st.integers(0, 2),
        "bad": st.one_of(st.none(), st.sampled_from([*NOT_NUMBERS, *NOT_FINITE])),
        "seed": SEEDS,
    }
)


def check_gain_arguments(case):
    """One bad argument of `expected_information_gain`, or a model that returns NaN."""
    torch.manual_seed(case["seed"])
    simulator, bad = line(1, torch.float32), case["bad"]
    policy = StaticPolicy(simulator, 2, torch.ones(2, 1))
    good = {"horizon": 2, "num_rollouts": 20, "num_contrastive": 20, "seed": 0}
    counted = ("horizon", "num_rollouts", "num_contrastive")
    if case["what"] in counted:
        bad = -1 if bad is None else bad  # None asks for the default
        return refused(
            lambda: expected_information_gain(simulator, policy, **{**good, case["what"]: bad}), case["what"]
        )
    if case["what"] == "history":
        history = [[0.5, 0.5, 1.0], [0.5, math.nan if isinstance(bad, (int, float)) else bad, 1.0]]
        return refused(lambda: expected_information_gain(simulator, policy, **good, history=history), "history")
    if case["what"] == "max_gap":
        bad = -1 if bad is None else bad
        return refused(lambda: expected_information_gain(simulator, policy, **good, max_gap=bad), "max_gap")
    broken = {
        "simulate": lambda theta, design: theta * design * math.nan,
        "log_likelihood": lambda theta, design, outcome: (theta * design * outcome).squeeze(-1) * math.nan,
    }
    parts = {
        "simulate": lambda theta, design: theta * design,
        "log_likelihood": lambda t, d, y: -((y - t * d) ** 2)[..., 0],
    }
    parts[case["what"]] = broken[case["what"]]
    model = DesignSimulator(simulator.prior, parts["simulate"], simulator.design_space, parts["log_likelihood"])
    names = {"simulate": ("outcome",), "log_likelihood": ("likelihood",)}[case["what"]]
    return refused(lambda: expected_information_gain(model, policy, **good), *names)


gain_argument_cases = st.fixed_dictionaries(
    {
        "what": st.sampled_from(
            ["horizon", "num_rollouts", "num_contrastive", "history", "max_gap", "simulate", "log_likelihood"]
        ),
        "bad": st.sampled_from([*NOT_NUMBERS, math.nan, -math.inf, -1, -0.5]),
        "seed": SEEDS,
    }
)


# ---- packing


containers = st.sampled_from(CONTAINERS)
packing_cases = st.fixed_dictionaries(
    {
        "groups": st.lists(st.lists(NUMBERS, min_size=1, max_size=4), min_size=1, max_size=4),
        "container": containers,
        "bad": st.one_of(st.none(), st.sampled_from([*NOT_NUMBERS, *NOT_FINITE, 1e300])),
        "where": st.integers(0, 100),
    }
)


def check_packing(case):
    """Groups, histories and contexts of any container; one value of them may be bad."""
    groups = case["groups"]
    if case["bad"] is not None or case["where"] == 0:
        spoiled = [list(group) for group in groups]
        group = spoiled[case["where"] % len(spoiled)]
        group[case["where"] % len(group)] = case["bad"]
        refused(lambda: pack_groups(spoiled), "data")
        refused(lambda: pack_history([[each] for each in group], [[0.0]] * len(group)), "designs")
        refused(lambda: pack_history([[0.0]] * len(group), [[each] for each in group]), "outcomes")
        refused(lambda: pack_context(torch.zeros(2, 3), group), "context")
        refused(lambda: pack_context([group, group], [0.5]), "x")
        return
    x = pack_groups([in_container(group, case["container"]) for group in groups])
    expected = torch.zeros(len(groups), max(map(len, groups)), 2, dtype=x.dtype)
    for row, group in zip(expected, groups, strict=True):
        row[: len(group), 0], row[: len(group), 1] = torch.tensor(group, dtype=x.dtype), 1.0
    assert torch.equal(x, expected)
    context = in_container(groups[0], case["container"])
    packed = pack_context(torch.zeros(2, 3), context)
    assert torch.equal(packed, torch.tensor([[0.0, 0, 0, *groups[0]]]).expand(2, -1))
    outcomes = np.array([groups[0]]).T
    history = pack_history([np.zeros_like(outcomes)], [outcomes], len(outcomes) + 1)
    assert history[0, :-1, 1].tolist() == groups[0] and history[0, -1].tolist() == [0.0, 0.0, 0.0]


def check_shapes_of_packing(case):
    """Ragged sets of any depth come back as they went in; what does not fit is refused."""
    torch.manual_seed(case["seed"])
    dtype, width = case["dtype"], case["width"]

    def sets(levels, widths):
        if levels == 0:
            return torch.randn(int(torch.randint(1, 4, ())), widths(), dtype=dtype)
        return [sets(levels - 1, widths) for _ in range(int(torch.randint(1, 4, ())))]

    def flat(data):
        return [data] if isinstance(data, torch.Tensor) else [each for part in data for each in flat(part)]

    data = sets(case["levels"], lambda: width)
    x = pack_groups(data)
    assert x.dtype == dtype and x.ndim == case["levels"] + 2
    for given, found in zip(flat(data), flat(unpack_groups(x)), strict=True):
        assert torch.equal(given, found)
    assert float(x[..., -1].sum()) == sum(len(each) for each in flat(data))
    numbers = iter(range(1, 1000))
    uneven = [sets(case["levels"], lambda: next(numbers)), sets(case["levels"], lambda: next(numbers))]
    refused(lambda: pack_groups(uneven), "features", "shape")
    refused(lambda: pack_groups([]), "data", "observations")
    lengths = [int(torch.randint(1, 4, ())) for _ in range(3)]
    designs, outcomes = ([torch.randn(n, d, dtype=dtype) for n in lengths] for d in (width, 1))
    history = pack_history(designs, outcomes, 4)
    assert history.dtype == dtype and history[..., -1].sum(-1).tolist() == lengths
    for given, found in zip(designs, history, strict=True):
        assert torch.equal(found[: len(given), :width], given) and not found[len(given) :].any()
    refused(lambda: pack_history(designs, outcomes, max(lengths) - 1), "horizon")
    refused(lambda: pack_history(designs, outcomes[1:], 4), "designs")
    refused(lambda: pack_history(designs[0], torch.randn(lengths[0] + 1, 1), 9), "designs")


packing_shape_cases = st.fixed_dictionaries(
    {
        "levels": st.integers(1, 3),
        "width": st.integers(1, 3),
        "dtype": st.sampled_from(DTYPES),
        "seed": SEEDS,
    }
)


# ---- live experiments


def check_live_runs(case):
    """A bad outcome is refused and leaves no trace; good ones, of any container, give the exact posterior."""
    torch.manual_seed(case["seed"])
    simulator = line(1, torch.float32)
    run = AdaptiveExperiment(StaticPolicy(simulator, 3, torch.ones(3, 1)), simulator, 3)
    for outcome in case["outcomes"]:
        run.next_design()
        refused(lambda: run.record(case["bad"]), "outcome")
        run.record(in_container([outcome], case["container"]))
    num = len(case["outcomes"])
    assert run.history[:, -1].tolist() == [1.0] * num + [0.0] * (3 - num)
    assert run.history[:num, 1].tolist() == pytest.approx(case["outcomes"])
    mean, covariance, _ = exact_line(*unpack_history(run.history, 1))
    with listening("num_particles") as warned:
        draws = run.posterior().sample((1000,)).double()
    assert warned or abs(float(draws.mean() - mean)) < 6 * float(covariance) ** 0.5 / 200**0.5


live_cases = st.fixed_dictionaries(
    {
        "outcomes": st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=3),
        "container": containers,
        "bad": st.sampled_from([*NOT_NUMBERS, *NOT_FINITE]),
        "seed": SEEDS,
    }
)


# ---- the tests

test_a_few_cases, test_many_cases = few_and_many(
    {  # check: cases, number in the default tests, number in the slow ones
        check_posteriors: (posterior_cases, 12, 120),
        check_simulators: (simulator_cases, 30, 150),
        check_policies: (policy_cases, 15, 100),
        check_greedy: (greedy_cases, 10, 60),
        check_gains: (gain_cases, 5, 40),
        check_gain_arguments: (gain_argument_cases, 30, 100),
        check_packing: (packing_cases, 40, 300),
        check_shapes_of_packing: (packing_shape_cases, 15, 100),
        check_live_runs: (live_cases, 8, 60),
    }
)
