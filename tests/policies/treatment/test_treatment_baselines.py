"""Baselines of treatment assignment: running moments are exact, the oracle is the oracle, a saved coin is the same coin."""

import pytest
import torch

from sbi_bed.policies import CoinFlip, NonContextualNeyman, OracleNeyman, TreatmentPolicy, load_policy
from sbi_bed.policies.treatment.baselines import predictor_for
from sbi_bed.simulators.treatment.problem import linear_benchmark
from sbi_bed.simulators.treatment.stream import TreatmentStream


def units(*shape, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    arm = torch.randint(2, (*shape,), generator=generator).double()
    outcome = 100 + (1 + 2 * arm) * torch.randn(*shape, generator=generator, dtype=torch.float64)
    covariates = torch.rand(*shape, d, generator=generator, dtype=torch.float64)
    return covariates, arm, outcome


def read(policy, covariates, arm, outcome):
    state = policy.initial_state(arm.shape[:-1])
    for x, a, y in zip(covariates.unbind(-2), arm.unbind(-1), outcome.unbind(-1), strict=True):
        state = policy.update(state, x, a, y)
    return state


def test_running_moments_are_those_of_the_arms():
    covariates, arm, outcome = units(3, 60)
    policy = NonContextualNeyman(2)
    state = read(policy, covariates, arm, outcome)
    mean, log_variance = policy.predict(state, covariates[:, 0])
    for i in range(3):
        parts = [outcome[i][arm[i] == a] for a in range(2)]
        squares = [float(part.var() * (len(part) - 1)) for part in parts]
        pooled = sum(squares) / 58
        for a, part in enumerate(parts):
            assert float(mean[i, a]) == pytest.approx(float(part.mean()))
            expected = (squares[a] + 4 * pooled) / (len(part) - 1 + 4)
            assert float(log_variance[i, a].exp()) == pytest.approx(expected)
    propensity = policy.propensity(state, covariates[:, 0])
    assert torch.allclose(propensity, torch.sigmoid((log_variance[:, 1] - log_variance[:, 0]) / 2))


def test_the_rule_has_no_scale_and_no_order():
    covariates, arm, outcome = units(40)
    policy, x = NonContextualNeyman(2), torch.zeros(2)
    first = policy.propensity(read(policy, covariates, arm, outcome), x)
    scaled = policy.propensity(read(policy, covariates, arm, 1e-3 * outcome - 7), x)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = policy.propensity(read(policy, covariates[order], arm[order], outcome[order]), x)
    assert torch.allclose(first, scaled) and torch.allclose(first, shuffled) and 0.55 < float(first) < 0.8


def test_it_starts_even_and_stays_clipped():
    policy, x = NonContextualNeyman(2, clip=0.2), torch.zeros(5, 2)
    state = policy.initial_state()
    assert torch.equal(policy.propensity(state, x), torch.full((5,), 0.5).double())
    assert policy.predict(state, x)[0].eq(0).all()
    state = policy.update(state, x[0], torch.tensor(1.0), torch.tensor(9.0))
    assert policy.predict(state, x)[0].eq(9).all()  # an arm not yet seen has the other's mean
    for i in range(200):
        state = policy.update(state, x[0], torch.tensor(i % 2), torch.tensor(float(i % 2) * (-1.0) ** (i // 2)))
    assert policy.propensity(state, x).tolist() == [0.8] * 5


def test_constant_outcomes_are_no_trouble():
    policy = NonContextualNeyman(0)
    state = read(policy, torch.zeros(30, 0), (torch.arange(30) % 2).double(), torch.ones(30))
    assert float(policy.propensity(state, torch.zeros(0))) == pytest.approx(0.5)


def test_the_oracle_knows():
    problems = TreatmentStream(1.5).sample(6, seed=0)
    policy, x = OracleNeyman(problems, clip=0.001), torch.rand(6, 1, dtype=torch.float64)
    assert torch.allclose(policy.propensity(None, x), problems.oracle(x.unsqueeze(-2)).squeeze(-1))
    mean, variance = problems.moments(x.unsqueeze(-2))
    predicted, log_variance = policy.predict(None, x)
    assert torch.allclose(predicted, mean.squeeze(-2)) and torch.allclose(log_variance.exp(), variance.squeeze(-2))
    five = OracleNeyman(linear_benchmark())
    assert torch.allclose(five.propensity(None, torch.zeros(3, 5)), torch.tensor(8 / 11))


def test_saved_and_loaded(tmp_path):
    for policy in (CoinFlip(2, 0.3, clip=0.1), NonContextualNeyman(2, clip=0.1)):
        policy.save(tmp_path / "policy.pt")
        loaded = load_policy(tmp_path / "policy.pt")
        assert type(loaded) is type(policy) and loaded.config == policy.config
        covariates, arm, outcome = units(30)
        results = [p.propensity(read(p, covariates, arm, outcome), torch.zeros(2)) for p in (policy, loaded)]
        assert torch.equal(*results)
    assert float(CoinFlip(2, 0.3).propensity(None, torch.zeros(2, dtype=torch.float64))) == 0.3
    with pytest.raises(ValueError, match="cannot be saved"):
        OracleNeyman(linear_benchmark()).save(tmp_path / "oracle.pt")


def test_errors():
    with pytest.raises(ValueError, match=r"probability must be within \[0.05, 0.95\], got 1"):
        CoinFlip(1, 1.0)
    with pytest.raises(ValueError, match="clip must lie between 0 and 1/2"):
        NonContextualNeyman(1, clip=0.5)


def test_who_predicts():
    class Silent(TreatmentPolicy):
        has_predictions = False

    policy, silent, other = NonContextualNeyman(2), Silent(2), CoinFlip(2)
    assert predictor_for(policy) is policy and predictor_for(policy, other) is other
    assert isinstance(predictor_for(silent), CoinFlip)
    for wrong in (silent, CoinFlip(3)):
        with pytest.raises(ValueError, match="nuisance must predict outcomes from 2 covariates"):
            predictor_for(policy, wrong)
