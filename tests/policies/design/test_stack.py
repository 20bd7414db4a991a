"""A stack of policies proposes what each of them would, and its gradients stay apart."""

import copy

import pytest
import torch
from models import LinearGaussian, blood_samples_in_order

from sbi_bed.policies import DeepSetsPolicy, TransformerPolicy
from sbi_bed.policies.design.stack import PolicyStack
from sbi_bed.simulators import HyperbolicDiscounting, LocationFinding, rollout

BUILD = {
    "deep sets": lambda s: DeepSetsPolicy(s, 16, 8),
    "transformer": lambda s: TransformerPolicy(s, 4, 16),
}


@pytest.mark.parametrize("simulator", [LocationFinding(2), HyperbolicDiscounting()])
@pytest.mark.parametrize("name", BUILD)
def test_a_stack_is_its_policies_side_by_side(name, simulator):
    torch.manual_seed(0)
    policies = [BUILD[name](simulator) for _ in range(3)]
    stack, theta = PolicyStack(policies), simulator.prior.sample((15,)).unflatten(0, (3, 5))
    designs, outcomes = rollout(simulator, stack, theta, 3)
    for index, policy in enumerate(policies):
        state = policy.initial_state((5,))
        for trial in range(3):
            torch.testing.assert_close(designs[index, :, trial], policy.propose(state), rtol=1e-4, atol=1e-5)
            state = policy.update(state, designs[index, :, trial], outcomes[index, :, trial])
    history = torch.cat([designs, outcomes, torch.ones_like(outcomes)], -1).detach()[:, :1]
    after = stack.propose(stack.read(history))
    for index, policy in enumerate(policies):
        torch.testing.assert_close(after[index], policy(history[index]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BUILD)
def test_gradients_reach_one_policy_only_and_unstacking_gives_back_all(name):
    simulator = LocationFinding()
    policies = [BUILD[name](simulator) for _ in range(3)]
    stack = PolicyStack([copy.deepcopy(p) for p in policies])
    designs, _ = rollout(simulator, stack, simulator.prior.sample((12,)).unflatten(0, (3, 4)), 2)
    designs[1].sum().backward()
    for weight in stack.weights:
        assert weight.grad is not None and not weight.grad[[0, 2]].any()
    assert any(weight.grad[1].any() for weight in stack.weights)
    for one, other in zip(policies, stack.unstack(), strict=True):
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_what_cannot_be_stacked_is_refused():
    simulator = LinearGaussian()
    with pytest.raises(ValueError, match="at least one"):
        PolicyStack([])
    with pytest.raises(ValueError, match="one class and configuration"):
        PolicyStack([DeepSetsPolicy(simulator, 16, 8), DeepSetsPolicy(simulator, 32, 8)])
    with pytest.raises(ValueError, match="cannot be stacked"):
        PolicyStack([DeepSetsPolicy(blood_samples_in_order())])
