"""Rollouts, and experiments as ordinary sbi simulators."""

import math

import numpy as np
import pytest
import torch
from models import LinearGaussian, RandomWalk, TinyPolicy, blood_samples_in_order
from sbi.utils import BoxUniform
from sbi.utils.simulation_utils import simulate_for_sbi
from torch.distributions import constraints

from sbi_bed.policies import DeepSetsPolicy, RandomPolicy, StaticPolicy
from sbi_bed.simulators import DesignSimulator, HyperbolicDiscounting, LocationFinding, PolicySimulator, rollout
from sbi_bed.utils import pack_history, unpack_history


def newest_outcome_as_design(history):
    """A user's own policy: sense at the last outcome, first at 1/2."""
    return history[..., -1, 1:2] if history.shape[-2] else torch.full((*history.shape[:-2], 1), 0.5)


def exact_simulator():
    """y = θ + ξ without noise, so that a rollout can be followed by hand."""
    return DesignSimulator(
        LinearGaussian().prior, lambda theta, design: theta + design, constraints.real, reparameterized=True
    )


def test_a_plain_callable_is_a_policy():
    theta = torch.tensor([[1.0], [-2.0]])
    designs, outcomes = rollout(exact_simulator(), newest_outcome_as_design, theta, 3)
    assert designs.squeeze(-1).tolist() == [[0.5, 1.5, 2.5], [0.5, -1.5, -3.5]]
    assert outcomes.squeeze(-1).tolist() == [[1.5, 2.5, 3.5], [-1.5, -3.5, -5.5]]


def test_a_callable_may_return_one_design_for_the_whole_batch():
    designs, outcomes = rollout(exact_simulator(), lambda history: torch.ones(1), torch.zeros(4, 3, 1), 2)
    assert designs.shape == outcomes.shape == (4, 3, 2, 1) and (designs == 1).all()


def test_a_rollout_can_go_on_from_a_history():
    simulator, theta = exact_simulator(), torch.tensor([[1.0], [-2.0]])
    history = pack_history(torch.tensor([[9.0]]), torch.tensor([[7.0]]))
    designs, _ = rollout(simulator, newest_outcome_as_design, theta, 2, history)
    assert designs.squeeze(-1).tolist() == [[7.0, 8.0], [7.0, 5.0]]
    policy = StaticPolicy(simulator, 3, torch.tensor([[1.0], [2.0], [3.0]]))
    assert rollout(simulator, policy, theta, 2, history).designs[0].squeeze(-1).tolist() == [2.0, 3.0]


def test_step_by_step_equals_the_policy_of_the_history_so_far():
    simulator = LinearGaussian(2)
    policy = DeepSetsPolicy(simulator)
    designs, outcomes = rollout(simulator, policy, simulator.prior.sample((6,)), 4)
    for t in range(4):
        torch.testing.assert_close(
            policy(pack_history(designs[:, :t], outcomes[:, :t])), designs[:, t], rtol=1e-4, atol=1e-5
        )


def test_gradients_pass_through_reparameterized_outcomes_and_not_through_others():
    theta = torch.randn(5, 1)
    for reparameterized in (True, False):
        simulator = LinearGaussian(reparameterized=reparameterized)
        policy = TinyPolicy(simulator)
        designs, outcomes = rollout(simulator, policy, theta, 2)
        assert designs.requires_grad and outcomes.requires_grad == reparameterized
    # Asked to detach, a reparameterised simulator is treated like any other.
    designs, outcomes = rollout(LinearGaussian(), policy, theta, 2, detach_outcomes=True)
    assert designs.requires_grad and not outcomes.requires_grad


@pytest.mark.parametrize("policy", [3, "random", None])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(TypeError, match="policy must be a callable history -> design"):
        rollout(exact_simulator(), policy, torch.zeros(2, 1), 1)


def test_designs_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"the policy proposed shape \(2, 3\), expected \(..., 1\)"):
        rollout(exact_simulator(), lambda history: torch.zeros(2, 3), torch.zeros(2, 1), 1)
    with pytest.raises(ValueError, match=r"the policy proposed shape \(5, 1\) for a batch of \(2,\)"):
        rollout(exact_simulator(), lambda history: torch.zeros(5, 1), torch.zeros(2, 1), 1)
    with pytest.raises(TypeError, match="the policy must propose a tensor, got list"):
        rollout(exact_simulator(), lambda history: [0.0], torch.zeros(2, 1), 1)


def test_policy_simulator_packs_designs_outcomes_mask():
    x = PolicySimulator(exact_simulator(), newest_outcome_as_design, horizon=2)(torch.tensor([[1.0], [-2.0]]))
    assert x.tolist() == [[[0.5, 1.5, 1.0], [1.5, 2.5, 1.0]], [[0.5, -1.5, 1.0], [-1.5, -3.5, 1.0]]]
    assert not x.requires_grad


def test_policy_simulator_takes_one_theta_arrays_and_doubles():
    simulate = PolicySimulator(exact_simulator(), newest_outcome_as_design, horizon=2)
    assert simulate(torch.tensor([1.0])).tolist() == [[0.5, 1.5, 1.0], [1.5, 2.5, 1.0]]
    assert simulate(np.array([[1.0], [2.0]])).dtype == torch.float32
    assert simulate(torch.zeros(3, 4, 1)).shape == (3, 4, 2, 3)


def test_ragged_lengths_are_uniform_and_padding_is_zero():
    simulate = PolicySimulator(LinearGaussian(), RandomPolicy(LinearGaussian()), horizon=4, min_trials=1)
    x = simulate(torch.randn(8000, 1))
    lengths = x[..., -1].sum(-1)
    counts = torch.stack([(lengths == n).sum() for n in range(5)]).double()
    assert counts[0] == 0 and (counts[1:] - 2000).abs().max() < 4 * math.sqrt(8000 * 3 / 16)
    padded = x[..., -1] == 0
    assert (x[padded] == 0).all()
    designs, _ = unpack_history(x[:20], 1)
    assert [len(d) for d in designs] == lengths[:20].tolist()


def test_no_trials_at_all_is_a_possible_length():
    x = PolicySimulator(LinearGaussian(), RandomPolicy(LinearGaussian()), 2, min_trials=0)(torch.randn(300, 1))
    assert set(x[..., -1].sum(-1).tolist()) == {0.0, 1.0, 2.0}


# Workers take seconds to start: one policy is enough for them.
@pytest.mark.parametrize(("num_workers", "policy"), [(1, "net"), (1, "callable"), (2, "net")])
def test_sbi_simulates_it(num_workers, policy):
    simulator = LocationFinding()
    policy = DeepSetsPolicy(simulator) if policy == "net" else lambda history: torch.zeros(*history.shape[:-2], 2)
    simulate = PolicySimulator(simulator, policy, horizon=3, min_trials=1)
    theta, x = simulate_for_sbi(simulate, simulator.prior, 40, num_workers=num_workers, seed=1, show_progress_bar=False)
    theta, x = torch.as_tensor(theta), torch.as_tensor(x)
    assert theta.shape == (40, 2) and x.shape == (40, 3, 4)
    assert torch.isfinite(x).all() and set(x[..., -1].unique().tolist()) == {0.0, 1.0}
    assert len(x[:, 0, 2].unique()) == 40  # workers do not repeat each other's noise


def test_sbi_simulates_with_sbi_priors():
    simulator = HyperbolicDiscounting()
    _, x = simulate_for_sbi(
        PolicySimulator(simulator, RandomPolicy(simulator), 5), simulator.prior, 20, show_progress_bar=False
    )
    assert x.shape == (20, 5, 4)
    box = LocationFinding(prior=BoxUniform(-torch.ones(2), torch.ones(2)))
    theta, _ = simulate_for_sbi(PolicySimulator(box, RandomPolicy(box), 2), box.prior, 20, show_progress_bar=False)
    assert (theta.abs() <= 1).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"horizon": 0}, ValueError, "horizon must be at least 1"),
        ({"horizon": 2.5}, TypeError, "horizon must be a whole number"),
        ({"horizon": 2, "min_trials": 3}, ValueError, r"min_trials \(3\) must not exceed the horizon \(2\)"),
        ({"horizon": 2, "min_trials": -1}, ValueError, "min_trials must be at least 0"),
    ],
)
def test_policy_simulator_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        PolicySimulator(exact_simulator(), newest_outcome_as_design, **arguments)


def test_policy_simulator_refuses_bad_theta_and_reports_bad_outcomes():
    simulate = PolicySimulator(exact_simulator(), newest_outcome_as_design, horizon=2)
    with pytest.raises(ValueError, match=r"theta must be finite, got nan at index \(1, 0\)"):
        simulate(torch.tensor([[0.0], [float("nan")]]))
    with pytest.raises(ValueError, match=r"theta must have 1 values in its last dimension, got shape \(5, 2\)"):
        simulate(torch.zeros(5, 2))
    broken = DesignSimulator(LinearGaussian().prior, lambda t, d: (t + d).log(), constraints.real)
    with pytest.raises(ValueError, match=r"outcomes must be finite, got nan at index \(0, 0, 0\)"):
        PolicySimulator(broken, newest_outcome_as_design, horizon=1)(torch.tensor([[-3.0]]))


def test_trials_of_a_run_share_its_hidden_state():
    simulator, theta = RandomWalk(), torch.randn(6, 2, 1)
    designs, outcomes = rollout(simulator, RandomPolicy(simulator), theta, 4)
    walk = (outcomes - theta.unsqueeze(-2) * designs).squeeze(-1)
    torch.testing.assert_close(walk, walk[..., :1] + torch.arange(4.0))
    assert walk[..., 0].unique().numel() == 12
    x = PolicySimulator(simulator, DeepSetsPolicy(simulator, 8, 4), horizon=3)(theta)
    walk = x[..., 1] - theta * x[..., 0]
    torch.testing.assert_close(walk, walk[..., :1] + torch.arange(3.0))


def test_a_run_goes_on_from_its_hidden_state():
    simulator, theta = RandomWalk(), torch.randn(6, 1)
    policy, history, state = RandomPolicy(simulator), torch.ones(2, 3), torch.full((6, 1), 7.0)
    designs, outcomes = rollout(simulator, policy, theta, 2, history, state=state)
    torch.testing.assert_close(
        (outcomes - theta.unsqueeze(-2) * designs)[..., 0], torch.tensor([7.0, 8.0]).expand(6, 2)
    )
    with pytest.raises(ValueError, match="share a hidden state, which a history does not hold: give state="):
        rollout(simulator, policy, theta, 2, history)
    assert rollout(simulator, policy, theta, 2, torch.zeros(3, 3)).designs.shape == (6, 2, 1)
    with pytest.raises(ValueError, match="has no hidden state, but one was given"):
        rollout(exact_simulator(), newest_outcome_as_design, theta, 2, state=state)


def test_designs_keep_to_what_the_history_leaves():
    simulator = blood_samples_in_order()
    theta = simulator.prior.sample((50, 2))
    times = rollout(simulator, RandomPolicy(simulator), theta, 6).designs[..., 0]
    assert (times.diff() >= 0).all() and times.min() >= 0 and times.max() <= 24
    history = torch.tensor([[20.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    later = rollout(simulator, RandomPolicy(simulator), theta, 2, history).designs[..., 0]
    assert later.min() >= 20 and (later.diff() >= 0).all()


def test_a_policy_must_take_the_space_that_it_is_told():
    simulator = blood_samples_in_order()
    with pytest.raises(TypeError, match=r"the policy needs propose\(state, space\)"):
        rollout(simulator, TinyPolicy(simulator), simulator.prior.sample((2,)), 2)
    hourly = rollout(simulator, lambda history: torch.ones(1) + history.shape[-2], simulator.prior.sample((2,)), 3)
    assert hourly.designs[0, :, 0].tolist() == [1.0, 2.0, 3.0]


def test_a_design_that_moves_takes_later_ones_along():
    """ξ_3 = ξ_2 + (24 − ξ_2) p and so on, so that ∂ξ_3/∂ξ_1 = (1 − p)²."""
    simulator = blood_samples_in_order()
    policy = StaticPolicy(simulator, 3)
    policy.free.data[:] = 0.3
    designs, _ = rollout(simulator, policy, simulator.prior.sample((2,)), 3)
    (gradient,) = torch.autograd.grad(designs[0, 2, 0], policy.free)
    first, second, third = gradient.flatten().tolist()
    share = float(designs[0, 0, 0]) / 24
    own = 24 * share * (1 - share) * (1 - float(torch.tanh(torch.tensor(0.05))) ** 2)  # dξ_1/du_1, ξ = 6 tanh(u / 6)
    assert [first, second, third] == pytest.approx([own * (1 - share) ** 2] * 3, rel=1e-4)
