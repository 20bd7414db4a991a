"""The paired gain of refinement: right on a closed form, zero where nothing is refined."""

import pytest
import torch
from models import LinearGaussian

from sbi_bed.diagnostics import step_dad_information_gain
from sbi_bed.policies import StaticPolicy
from sbi_bed.simulators import LocationFinding

REFINEMENT = {"num_steps": 100, "batch_size": 64, "num_contrastive": 63, "num_particles": 1000, "num_held_out": 1000}


def half_log(value):
    return 0.5 * float(torch.log(torch.tensor(value)))


def test_a_poor_second_design_is_mended():
    """y ~ N(θ ξ, ¼): designs 1 and 0.1 by policy; refinement finds |ξ| = 1. All three gains have closed forms."""
    simulator = LinearGaussian(noise_sd=0.5)
    policy = StaticPolicy(simulator, 2)
    with torch.no_grad():
        policy.free.copy_(torch.tensor([[6.0], [0.2]]))
    first, second = (float(policy.design_space.from_free(u)) for u in policy.free.detach().reshape(2, 1))
    gain = step_dad_information_gain(
        policy,
        simulator,
        2,
        (1,),
        4,
        num_reference=40_000,
        num_rollouts=4000,
        num_shared_rollouts=2000,
        seed=0,
        refine_settings={**REFINEMENT, "learning_rate": 0.1},
        show_progress_bars=False,
    )
    precision = 1 + first**2 / 0.25
    assert abs(gain.shared.lower - half_log(precision)) < 4 * gain.shared.lower_stderr + 0.01
    # Each experiment's gain has a standard error of at most 1 / √4000 = .016 nats from 4000 continuations.
    unrefined = half_log((precision + second**2 / 0.25) / precision)
    refined = half_log((precision + 1 / 0.25) / precision)
    assert (gain.unrefined_samples - unrefined).abs().max() < 0.06
    assert (gain.refined_samples - refined).abs().max() < 0.06 and gain.accepted == 1
    assert abs(gain.difference - (refined - unrefined)) < 0.04


def test_what_is_not_refined_has_exactly_its_twins_gain():
    simulator = LocationFinding()
    policy = StaticPolicy(simulator, 3)
    harmful = {**REFINEMENT, "num_steps": 1, "learning_rate": 1e-12}
    settings = {"num_reference": 5000, "num_rollouts": 200, "num_shared_rollouts": 100, "seed": 0}
    gain = step_dad_information_gain(
        policy, simulator, 3, (1,), 3, refine_settings=harmful, show_progress_bars=False, **settings
    )
    assert gain.accepted == 0 and gain.difference == 0 and gain.noise_samples.max() == 0


def test_two_refinements_run_to_the_end():
    simulator = LocationFinding()
    settings = {"num_reference": 5000, "num_rollouts": 200, "num_shared_rollouts": 100, "seed": 0}
    quick = {**REFINEMENT, "num_steps": 20}
    gain = step_dad_information_gain(
        StaticPolicy(simulator, 4), simulator, 4, (0, 2), 2, refine_settings=quick, show_progress_bars=False, **settings
    )
    assert gain.shared.lower == 0 and torch.isfinite(gain.refined_samples).all()
    assert gain.refined > gain.unrefined - 4 * float(gain.noise_samples.mean())


def test_particles_judge_as_weighted_prior_draws_do():
    simulator = LinearGaussian(noise_sd=0.5)
    policy = StaticPolicy(simulator, 2)
    precision = 1 + float(policy.design_space.from_free(policy.free[0, :1]).detach()) ** 2 / 0.25
    second = float(policy.design_space.from_free(policy.free[0, 1:]).detach())
    settings = {"num_rollouts": 4000, "num_shared_rollouts": 100, "seed": 0, "show_progress_bars": False}
    settings["refine_settings"] = {**REFINEMENT, "num_steps": 1, "learning_rate": 1e-12}
    gain = step_dad_information_gain(policy, simulator, 2, (1,), 3, reference="posterior", **settings)
    expected = half_log((precision + second**2 / 0.25) / precision)
    assert (gain.unrefined_samples - expected).abs().max() < 0.06 and gain.reference_sizes.min() > 1000


def test_a_truth_apart_from_the_model_is_judged_by_the_models_posterior():
    """y = θ ξ + noise of sd 1, believed to be of sd ½: the closed form of E[log p(θ_0 | h) − log p(θ_0)] is negative."""
    model, truth, policy = LinearGaussian(noise_sd=0.5), LinearGaussian(noise_sd=1.0), StaticPolicy(LinearGaussian(), 2)
    with torch.no_grad():
        policy.free.fill_(20.0)  # both designs at the upper end, 1

    def closed_form(num_trials):  # posterior precision q = 1 + 4 n, mean 4 Σ y / q
        q, n = 1 + 4 * num_trials, num_trials
        error = (1 / q) ** 2 + (4 / q) ** 2 * n
        return half_log(q) - 0.5 * q * error + 0.5

    gain = step_dad_information_gain(
        policy,
        model,
        2,
        (1,),
        64,
        truth=truth,
        num_reference=20_000,
        num_rollouts=200,
        num_shared_rollouts=4000,
        seed=0,
        refine_settings={**REFINEMENT, "num_steps": 1, "learning_rate": 1e-12},
        show_progress_bars=False,
    )
    assert abs(gain.shared.lower - closed_form(1)) < 4 * gain.shared.lower_stderr
    later = gain.unrefined_samples
    assert abs(float(later.mean()) - (closed_form(2) - closed_form(1))) < 4 * float(later.std()) / 8
    assert closed_form(1) < -0.3


def test_the_reference_is_checked():
    simulator = LocationFinding()
    with pytest.raises(ValueError, match="reference"):
        step_dad_information_gain(StaticPolicy(simulator, 3), simulator, 3, (1,), 1, reference="posteriori")


def test_workers_change_no_figure():
    simulator = LinearGaussian(noise_sd=0.5)
    policy = StaticPolicy(simulator, 2)
    settings = {"num_reference": 2000, "num_rollouts": 100, "num_shared_rollouts": 50, "seed": 0}
    settings["refine_settings"] = {**REFINEMENT, "num_steps": 5, "num_held_out": 100}
    one, two = (
        step_dad_information_gain(policy, simulator, 2, (1,), 3, show_progress_bars=False, num_workers=num, **settings)
        for num in (1, 2)
    )
    assert torch.equal(one.refined_samples, two.refined_samples) and one.refined == two.refined
    assert torch.equal(one.unrefined_samples, two.unrefined_samples) and len(one.refined_samples.unique()) == 3


@pytest.mark.parametrize("stages", [(), (3,), (2, 1), (-1,)])
def test_stages_are_checked(stages):
    simulator = LocationFinding()
    with pytest.raises(ValueError, match="refine_after"):
        step_dad_information_gain(StaticPolicy(simulator, 3), simulator, 3, stages, 1)
