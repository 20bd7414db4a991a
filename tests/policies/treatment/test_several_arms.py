"""Policies for more than two arms: they agree with the closed form, with relabelled arms, and with two arms."""

import pytest
import torch

from sbi_bed.inference import ImitationTrainer
from sbi_bed.policies import (
    CoinFlip,
    ExperimenterTransformer,
    MixtureOfExperimenters,
    NeymanTeacher,
    NonContextualNeyman,
    load_policy,
)
from sbi_bed.simulators import TreatmentStream

SDS = torch.tensor([3.0, 1.0, 0.5, 1.0], dtype=torch.float64)


def history_of(num, seed=0, d=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(num, d, generator=generator, dtype=torch.float64)
    arm = torch.randint(4, (num,), generator=generator)
    outcome = arm + SDS[arm] * torch.randn(num, generator=generator, dtype=torch.float64)
    return torch.cat([x, torch.stack([arm.double(), outcome, torch.ones(num).double()], -1)], -1)


POLICIES = {
    "teacher": lambda **options: NeymanTeacher(1, num_arms=4, **options),
    "variances": lambda **options: NonContextualNeyman(1, num_arms=4, **options),
    "mixture": lambda **options: MixtureOfExperimenters(
        [NeymanTeacher(1, smoothness=a, num_arms=4, **options) for a in (0.5, 4.0)]
    ),
}


@pytest.mark.parametrize("kind", ["teacher", "variances"])
def test_shares_approach_the_best_ones(kind):
    best = torch.tensor([3**0.5, 1, 1, 1], dtype=torch.float64) * SDS
    history = history_of(1500)
    shares = POLICIES[kind]()(history[None], torch.full((1, 1), 0.5).double())[0]
    counts = torch.bincount(history[:, 1].long())
    error = (2 / counts).sum().sqrt() * 1.5  # of the log of a share, a few functions a curve
    assert torch.allclose(shares.sum(), torch.ones(()).double())
    assert ((shares / (best / best.sum())).log().abs() < 4.5 * error).all()


@pytest.mark.parametrize("kind", POLICIES)
def test_step_by_step_is_all_at_once_and_treatments_can_be_relabelled(kind):
    policy, history, x = (
        POLICIES[kind](burn_in=5, refit_every=1) if kind != "variances" else POLICIES[kind](),
        history_of(40),
        torch.tensor([0.3]).double(),
    )
    state = policy.initial_state()
    for unit in history:
        state = policy.update(state, unit[:1], unit[1], unit[2])
    whole = policy(history, x)
    assert torch.allclose(policy.propensity(state, x), whole, atol=1e-9)
    along = policy.along(history, torch.tensor([20, 39]))
    assert torch.allclose(along.propensity[0], policy(history[:20], history[20, :1]), atol=1e-9)
    assert along.propensity.shape == (2, 4) and along.mean.shape == (2, 4)
    other = history.clone()
    other[:, 1] = torch.tensor([0.0, 3.0, 1.0, 2.0]).double()[history[:, 1].long()]  # arms 1, 2, 3 become 3, 1, 2
    assert torch.allclose(policy(other, x)[[0, 3, 1, 2]], whole, atol=1e-9)


def test_a_third_arm_that_nobody_gets_leaves_the_beliefs_about_the_others():
    history = history_of(60)
    history[:, 1] = history[:, 1] % 2
    x = torch.tensor([0.4]).double()
    two, three = (NeymanTeacher(1, num_arms=k, outcome_centre=0.0, outcome_scale=1.0) for k in (2, 3))
    for first, second in zip(two.predict(two.read(history), x), three.predict(three.read(history), x), strict=True):
        assert torch.allclose(first, second[:2])


def test_binary_outcomes_of_three_arms():
    history = history_of(1500)
    generator, rates = torch.Generator().manual_seed(1), torch.tensor([0.5, 0.03, 0.5, 0.5]).double()
    history[:, 2] = (torch.rand(1500, generator=generator) < rates[history[:, 1].long()]).double()
    shares = NeymanTeacher(1, num_arms=4, outcome_space="binary")(history, torch.tensor([0.5]).double())
    sd = (rates * (1 - rates)).sqrt()
    best = torch.tensor([3**0.5, 1, 1, 1]).double() * sd
    assert (shares - best / best.sum()).abs().max() < 0.05


def test_coin_saving_and_what_is_refused(tmp_path):
    coin = CoinFlip(1, probability=[0.5, 0.25, 0.25], num_arms=3)
    assert coin.propensity(coin.initial_state(), torch.zeros(2, 1)).tolist() == [[0.5, 0.25, 0.25]] * 2
    history, x = history_of(60), torch.tensor([0.3]).double()
    for policy in [build() for build in POLICIES.values()]:
        policy.save(tmp_path / "policy")
        again = load_policy(tmp_path / "policy")
        assert again.num_arms == 4 and torch.equal(again(history, x), policy(history, x))
    with pytest.raises(ValueError, match=r"3 numbers of at least 0\.05 that sum to 1"):
        CoinFlip(1, probability=[0.5, 0.5, 0.5], num_arms=3)
    with pytest.raises(ValueError, match="clip must lie between 0 and 1/4"):
        NonContextualNeyman(1, clip=0.3, num_arms=4)
    with pytest.raises(ValueError, match="rule 'posterior' is for two arms"):
        NeymanTeacher(1, rule="posterior", num_arms=3)
    with pytest.raises(ValueError, match="the arm of a unit must be 0 or 1 or 2, got 3"):
        NeymanTeacher(1, num_arms=3)(history, x)
    with pytest.raises(ValueError, match="must be 0 or 1, got"):
        ExperimenterTransformer(1)(history, x)
    with pytest.raises(ValueError, match="experts must have the same arms"):
        MixtureOfExperimenters([NeymanTeacher(1), NeymanTeacher(1, num_arms=3)])
    with pytest.raises(ValueError, match="students learn to assign two arms"):
        ImitationTrainer(TreatmentStream(1.5), NeymanTeacher(1, num_arms=3), show_progress_bars=False)
