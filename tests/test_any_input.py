"""Any input gives the exact answer within its error, or one error that names the argument.

Hypothesis throws priors, samplers, shapes, precisions, sizes and things that are not numbers at public entry points. The
models are conjugate, so every answer is known. The default tests try a few cases of each check, `pytest -m slow` many.
"""

import datetime
import decimal
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Beta, Gamma, Independent, MultivariateNormal, Normal, constraints

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import AdaptiveExperiment, TreatmentExperiment, likelihood_posterior
from sbi_bed.policies import CoinFlip, DeepSetsPolicy, RandomPolicy, StaticPolicy, TransformerPolicy
from sbi_bed.simulators import DesignSimulator, PolicySimulator, PowerScaledPrior, rollout, simulate_models
from sbi_bed.utils import pack_context, pack_groups, pack_history, unpack_history

DTYPES = [torch.float32, torch.float64]
SEEDS = st.integers(0, 2**32 - 1)
NUMBERS = st.floats(-100, 100, width=32)
NOT_NUMBERS = ["seven", None, 1j, object(), datetime.date(2026, 1, 1), {"a": 1.0}, {1.0}, np.datetime64("2026-01-01")]
NOT_FINITE = [math.nan, math.inf, -math.inf, np.float32("nan")]


def refused(function, *names):
    """`function()` raises one ValueError or TypeError that says one of `names`."""
    with pytest.raises((ValueError, TypeError)) as caught:
        note(f"not refused: {function()}")
    assert any(name in str(caught.value) for name in names), f"{caught.value} names none of {names}"


# ---- experiments whose posterior is known


def line(dim, dtype, noise_sd=0.5):
    """y ~ N(θ · ξ, σ²), θ ~ N(0, I)."""

    def log_likelihood(theta, design, outcome):
        return Normal((theta * design).sum(-1), noise_sd).log_prob(outcome.squeeze(-1))

    def simulate(theta, design):
        mean = (theta * design).sum(-1, keepdim=True)
        return mean + noise_sd * torch.randn_like(mean)

    prior = MultivariateNormal(torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype))
    box = constraints.interval(-torch.ones(dim, dtype=dtype), torch.ones(dim, dtype=dtype))
    return DesignSimulator(prior, simulate, box, log_likelihood, reparameterized=True)


def exact_line(designs, outcomes, noise_sd=0.5):
    """Mean, sd and log evidence, float64."""
    designs, outcomes = designs.double(), outcomes.double().squeeze(-1)
    covariance = torch.linalg.inv(torch.eye(designs.shape[-1]).double() + designs.T @ designs / noise_sd**2)
    mean = covariance @ designs.T @ outcomes / noise_sd**2
    total = designs @ designs.T + noise_sd**2 * torch.eye(len(designs)).double()
    if not len(designs):
        return mean, covariance.diagonal().sqrt(), 0.0
    together = MultivariateNormal(torch.zeros(len(designs)).double(), total)
    return mean, covariance.diagonal().sqrt(), float(together.log_prob(outcomes))


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
        "sampler": st.sampled_from(["smc", "importance"]),
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
    mean, sd = (torch.as_tensor(part, dtype=torch.float64).reshape(-1) for part in exact[:2])
    posterior = likelihood_posterior(simulator, history, case["sampler"], num_particles=2048, seed=case["seed"])
    draws = posterior.sample((1000,), show_progress_bars=False).double()
    assert draws.shape == (1000, dim)
    # 1,000 draws of particles worth a few hundred: 6 standard errors of 200, and of a share that may be near 0 or 1.
    assert ((draws.mean(0) - mean).abs() < 6 * sd / 200**0.5 + 0.01).all(), (draws.mean(0), mean, sd)
    assert posterior.report.log_evidence == pytest.approx(exact[2], abs=0.35)


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


# ---- packing


def in_container(values, container):
    """The same numbers as another library, or another precision, has them."""
    if container == "pandas":
        pandas = pytest.importorskip("pandas")
        return pandas.Series(values, index=range(7, 7 + len(values)))
    makers = {
        "list": list,
        "tuple": tuple,
        "tensor": torch.tensor,
        "float64": lambda v: np.array(v, dtype=np.float64),
        "float32": lambda v: np.array(v, dtype=np.float32),
        "big-endian": lambda v: np.array(v, dtype=">f8"),
        "objects": lambda v: np.array([decimal.Decimal(each) for each in v], dtype=object),
    }
    return makers[container](values)


containers = st.sampled_from(["list", "tuple", "tensor", "float64", "float32", "big-endian", "objects", "pandas"])
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


# ---- powers of priors


def check_powers(case):
    """log p_γ(a) − log p_γ(b) = Σ_k γ_k (log p_k(a_k) − log p_k(b_k))."""
    torch.manual_seed(case["seed"])
    location, scale = torch.randn(2, dtype=torch.float64), torch.rand(2, dtype=torch.float64) + 0.5
    base = {
        "normal": Normal(location, scale),
        "gamma": Gamma(1 + scale, scale),
        "beta": Beta(1 + scale, 1.5 + scale),
        "laplace": torch.distributions.Laplace(location, scale),
        "exponential": torch.distributions.Exponential(scale),
    }[case["family"]]
    prior = PowerScaledPrior(Independent(base, 1))
    if case["bad"] is not None:
        refused(lambda: prior.condition(case["bad"]), "gamma")
        return
    gamma = torch.tensor(case["gamma"], dtype=torch.float64)
    powered = prior.condition(gamma)
    first, second = base.sample(), base.sample()
    found = powered.log_prob(first) - powered.log_prob(second)
    exact = (gamma * (base.log_prob(first) - base.log_prob(second))).sum()
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


power_cases = st.fixed_dictionaries(
    {
        "family": st.sampled_from(["normal", "gamma", "beta", "laplace", "exponential"]),
        "gamma": st.lists(st.floats(0.6, 3.0), min_size=2, max_size=2),
        "bad": st.one_of(
            st.none(),
            st.sampled_from([*NOT_NUMBERS[:-1], *NOT_FINITE, 0.0, -1.0, [1.0, 1.0, 1.0], [1.0, -2.0], []]),
        ),
        "seed": SEEDS,
    }
)


# ---- simulations of models


def check_models(case):
    """Shares of models, and data of each model at its places; a model that returns something else is refused."""
    value, shape = 1.5, (case["groups"], case["observations"])

    def model(num):
        x = torch.cat([torch.full((num, *shape, 1), value), torch.ones(num, *shape, 1)], -1)
        return {
            "fine": x,
            "double": x.double(),
            "too many": torch.cat([x, x]),
            "nan": x * math.nan,
            "text": "data",
            "half a mask": x * torch.tensor([1.0, 0.5]),
        }[case["returns"]]

    run = lambda: simulate_models([model, model], case["num"], batch_size=7, seed=case["seed"])  # noqa: E731
    if case["returns"] not in ("fine", "double"):
        refused(run, "model", "x")
        return
    index, x = run()
    assert index.shape == (case["num"],) and set(index.tolist()) <= {0, 1}
    assert x.shape == (case["num"], *shape, 2) and (x[..., 0] == value).all() and x.dtype == torch.float32


model_cases = st.fixed_dictionaries(
    {
        "groups": st.integers(1, 3),
        "observations": st.integers(1, 3),
        "num": st.integers(1, 20),
        "returns": st.sampled_from(["fine", "double", "too many", "nan", "text"]),
        "seed": st.integers(0, 2**31),
    }
)


# ---- live experiments


def check_live_runs(case):
    """A bad outcome is refused and leaves no trace; good ones, of any container, give the exact posterior."""
    torch.manual_seed(case["seed"])
    simulator = line(1, torch.float32)
    run = AdaptiveExperiment(StaticPolicy(simulator, 3, torch.ones(3, 1)), simulator, 3)
    trial = TreatmentExperiment(CoinFlip(1), seed=case["seed"] % 2**31)
    for outcome in case["outcomes"]:
        run.next_design()
        refused(lambda: run.record(case["bad"]), "outcome")
        run.record(in_container([outcome], case["container"]))
        refused(lambda: trial.assign([case["bad"]]), "covariates")
        arm, propensity = trial.assign(in_container([outcome], case["container"]))
        assert arm in (0, 1) and propensity == 0.5
        refused(lambda: trial.update(case["bad"]), "outcome")
        trial.update(outcome)
    num = len(case["outcomes"])
    assert run.history[:, -1].tolist() == [1.0] * num + [0.0] * (3 - num)
    assert run.history[:num, 1].tolist() == pytest.approx(case["outcomes"])
    mean, sd, _ = exact_line(*unpack_history(run.history, 1))
    draws = run.posterior().sample((1000,)).double()
    assert abs(float(draws.mean() - mean)) < 6 * float(sd) / 200**0.5


live_cases = st.fixed_dictionaries(
    {
        "outcomes": st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=3),
        "container": containers,
        "bad": st.sampled_from([*NOT_NUMBERS, *NOT_FINITE]),
        "seed": SEEDS,
    }
)


# ---- the tests

CHECKS = {  # check: cases, number in the default tests, number in the slow ones
    check_posteriors: (posterior_cases, 12, 120),
    check_simulators: (simulator_cases, 30, 150),
    check_policies: (policy_cases, 15, 100),
    check_gains: (gain_cases, 5, 40),
    check_packing: (packing_cases, 40, 300),
    check_powers: (power_cases, 20, 150),
    check_models: (model_cases, 10, 60),
    check_live_runs: (live_cases, 8, 60),
}


def run_cases(check, num):
    """Run a check on `num` cases; on failure hypothesis prints the smallest case it found."""

    @settings(
        max_examples=num,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(CHECKS[check][0])
    def each(case):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(case)

    each()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_a_few_cases(check):
    run_cases(check, CHECKS[check][1])


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_many_cases(check):
    run_cases(check, CHECKS[check][2])
