"""The Neyman rule within strata is that of each stratum alone, and gains where variances differ between strata."""

import pytest
import torch

from sbi_bed.diagnostics import run_treatment_study, treatment_report
from sbi_bed.policies import NonContextualNeyman, StratifiedNeyman, load_policy
from sbi_bed.simulators import TreatmentProblem

SDS = torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 4.0]]).double()


def history_of(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    group, arm = torch.randint(2, (num,), generator=generator), torch.randint(3, (num,), generator=generator)
    other = torch.rand(num, generator=generator, dtype=torch.float64)
    outcome = arm + 5 * group + SDS[group, arm] * torch.randn(num, generator=generator, dtype=torch.float64)
    return torch.stack([other, group.double(), arm.double(), outcome, torch.ones(num).double()], -1)


def test_each_stratum_is_a_trial_of_its_own():
    policy, alone = StratifiedNeyman(2, 2, stratum=1, num_arms=3), NonContextualNeyman(2, num_arms=3)
    history = history_of(80)
    state = policy.read(history)
    for group in (0.0, 1.0):
        x = torch.tensor([0.5, group]).double()
        own = alone.read(history[history[:, 1] == group])
        assert torch.allclose(policy.propensity(state, x), alone.propensity(own, x))
        for first, second in zip(policy.predict(state, x), alone.predict(own, x), strict=True):
            assert torch.allclose(first, second)
    batch = torch.stack([history[:40], history[40:]])
    several = policy.predict(policy.read(batch), torch.rand(5, 2, 2).double().round())[0]
    assert several.shape == (5, 2, 3)
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    together = policy.propensity(policy.read(batch), x)
    for row, part, at in zip(together, batch, x, strict=True):
        assert torch.allclose(row, policy.propensity(policy.read(part), at))


def test_a_new_stratum_starts_from_all_units_and_units_of_outcomes_do_not_matter():
    policy, pooled = StratifiedNeyman(2, 3, stratum=1, num_arms=3), NonContextualNeyman(2, num_arms=3)
    history, x = history_of(60), torch.tensor([0.5, 2.0]).double()
    for first, second in zip(
        policy.predict(policy.read(history), x), pooled.predict(pooled.read(history), x), strict=True
    ):
        assert torch.allclose(first, second)
    scaled = history.clone()
    scaled[:, 3] = 1e4 * scaled[:, 3] + 7e5
    for group in (0.0, 1.0, 2.0):
        at = torch.tensor([0.5, group]).double()
        assert torch.allclose(policy(scaled, at), policy(history, at), atol=1e-6)


def test_strata_with_different_variances_gain():
    def moments(x):
        group = x[..., 0].long()
        return torch.zeros_like(SDS)[group] + x, SDS.square()[group]

    nodes = torch.tensor([[0.0], [1.0]]).double()
    problem = TreatmentProblem(lambda n: torch.randint(2, (n, 1)).double(), moments, nodes)
    policies = {"strata": StratifiedNeyman(1, 2, num_arms=3), "pooled": NonContextualNeyman(1, num_arms=3)}
    found = {
        name: treatment_report(run_treatment_study(problem, policy, 300, 300, seed=0))
        for name, policy in policies.items()
    }
    assert found["strata"].late_regret[0] < 0.25 * found["pooled"].late_regret[0]
    (mean, stderr), regret = found["strata"].efficiency, found["strata"].regret[0]
    assert abs(mean - 1 - regret) < 4.5 * stderr + 0.03  # predictions are running means
    assert abs(found["strata"].coverage[0] - 0.95) < 4.5 * found["strata"].coverage[1] + 0.005


def test_saving_and_what_is_refused(tmp_path):
    policy, history = StratifiedNeyman(2, 2, stratum=1, num_arms=3), history_of(50)
    policy.save(tmp_path / "policy")
    x = torch.tensor([0.5, 1.0]).double()
    assert torch.equal(load_policy(tmp_path / "policy")(history, x), policy(history, x))
    for stratum in (2.0, -1.0, 0.5):
        with pytest.raises(ValueError, match="a stratum must be one of 0 to 1"):
            policy(history, torch.tensor([0.5, stratum]).double())
    with pytest.raises(ValueError, match="stratum must be one of 2 covariates"):
        StratifiedNeyman(2, 2, stratum=2)
