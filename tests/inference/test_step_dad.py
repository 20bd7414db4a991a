"""Refinement in mid-experiment: it helps where it should, is undone where it does not, and survives a crash."""

import pytest
import torch
from models import LinearGaussian

from sbi_bed.inference import DAD, StepDAD, refine_policy
from sbi_bed.policies import DeepSetsPolicy, RandomPolicy, StaticPolicy
from sbi_bed.simulators import LocationFinding, rollout
from sbi_bed.utils import pack_history

QUICK = {
    "num_steps": 40,
    "batch_size": 64,
    "num_contrastive": 63,
    "num_particles": 512,
    "num_held_out": 512,
    "show_progress_bars": False,
}


@pytest.fixture(scope="module")
def location():
    """A policy for four readings, trained a little, and a history of two of them."""
    torch.manual_seed(0)
    simulator = LocationFinding()
    policy = DAD(simulator, 4, DeepSetsPolicy(simulator, 32, 8), show_progress_bars=False).train(150, 128, 63, seed=0)
    with torch.no_grad():
        history = pack_history(*rollout(simulator, policy, torch.tensor([1.0, -0.5]), 2))
    return simulator, policy, history


def test_refinement_raises_the_gain_of_the_remaining_trials(location):
    simulator, policy, history = location
    before = [p.clone() for p in policy.parameters()]
    step = refine_policy(policy, simulator, 4, history, seed=1, **{**QUICK, "num_steps": 150})
    assert step.accepted and step.policy is not policy
    assert step.gain_after - step.gain_before > 3 * step.difference_stderr
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_a_refinement_that_does_harm_is_rolled_back(location):
    simulator, policy, history = location
    # A single step of huge size throws the policy far from what it had learned.
    step = refine_policy(policy, simulator, 4, history, seed=1, **{**QUICK, "num_steps": 1, "learning_rate": 30.0})
    assert not step.accepted and step.policy is policy
    assert step.gain_after <= step.gain_before + step.difference_stderr


def test_the_same_seed_refines_alike_and_leaves_the_global_generator_alone(location):
    simulator, policy, history = location
    state = torch.get_rng_state()
    first, second = (refine_policy(policy, simulator, 4, history, seed=3, **QUICK) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert (first.gain_before, first.gain_after) == (second.gain_before, second.gain_after)


def test_a_refined_gain_agrees_with_the_closed_form():
    """Linear-Gaussian: after |ξ| = 1 once, one more such trial gains ½ log((1 + 2/σ²) / (1 + 1/σ²))."""
    simulator = LinearGaussian(noise_sd=0.5)
    policy = StaticPolicy(simulator, 2)
    history = pack_history(torch.ones(1, 1), torch.tensor([[0.3]]))
    settings = {**QUICK, "num_steps": 150, "learning_rate": 0.05, "num_particles": 4000, "num_held_out": 4000}
    step = refine_policy(policy, simulator, 2, history, seed=0, **settings)
    exact = 0.5 * torch.log(torch.tensor((1 + 2 / 0.25) / (1 + 1 / 0.25)))
    stderr = 1.0 / 4000**0.5  # the spread of one history's gain is below 1 nat
    assert abs(step.gain_after - exact) < 4 * stderr + 0.01


def test_a_live_run_refines_once_and_continues_after_a_crash(location, tmp_path):
    simulator, policy, _ = location
    journal = tmp_path / "run.jsonl"
    experiment = StepDAD(policy, simulator, 4, refine_after=(2,), journal=journal, refinement=QUICK, seed=5)
    for outcome in (2.0, 1.2):
        experiment.next_design()
        experiment.record([outcome])
    third = experiment.next_design()
    assert len(experiment.refinements) == 1
    assert experiment.next_design().equal(third) and len(experiment.refinements) == 1
    experiment.close()
    again = StepDAD.load(journal, simulator)
    assert again.next_design().equal(third)
    assert again.refinements == []  # the refined policy came from the file
    again.close()
    assert again.refine_after == (2,) and again.refinement == experiment.refinement


def test_a_crash_before_the_refinement_leads_to_the_same_design(location, tmp_path):
    simulator, policy, _ = location
    designs = []
    for name in ("one", "two"):
        experiment = StepDAD(policy, simulator, 4, (1,), tmp_path / name, refinement=QUICK, seed=5)
        experiment.next_design()
        experiment.record([2.0])
        if name == "two":
            experiment.close()
            experiment = StepDAD.load(tmp_path / name, simulator)
        designs.append(experiment.next_design())
        experiment.close()
    assert designs[0].equal(designs[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"refine_after": (4,)}, ValueError, "within"),
        ({"refine_after": ()}, ValueError, "within"),
        ({"refine_after": (2,), "num_experiments": 3}, ValueError, "step_dad_information_gain"),
    ],
)
def test_arguments_are_checked(location, change, error, message):
    simulator, policy, _ = location
    with pytest.raises(error, match=message):
        StepDAD(policy, simulator, 4, **change)


def test_only_policies_with_weights_can_be_refined(location):
    simulator, _, _ = location
    with pytest.raises(TypeError, match="weights"):
        StepDAD(RandomPolicy(simulator), simulator, 4, (1,))
