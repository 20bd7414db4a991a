"""Every policy: step by step and from the start give the same designs; padding, batches and files change nothing."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from models import LinearGaussian, TinyPolicy, YesNo
from torch.distributions import constraints

from sbi_bed.inference import DAD
from sbi_bed.policies import DeepSetsPolicy, Policy, RandomPolicy, StaticPolicy, TransformerPolicy, load_policy
from sbi_bed.simulators import (
    ConstantElasticity,
    DesignSimulator,
    DesignSpace,
    HyperbolicDiscounting,
    LocationFinding,
    rollout,
)
from sbi_bed.utils import pack_history
from sbi_bed.utils.files import save_file

SIMULATORS = {"location": LocationFinding, "discounting": HyperbolicDiscounting, "elasticity": ConstantElasticity}
NETS = {
    "deep sets": lambda simulator: DeepSetsPolicy(simulator, hidden_dim=16, summary_dim=8),
    "transformer": lambda simulator: TransformerPolicy(simulator, horizon=6, hidden_dim=8, num_heads=2),
}
POLICIES = {
    **NETS,
    "static": lambda simulator: StaticPolicy(simulator, horizon=6),
    "fixed": lambda simulator: StaticPolicy(simulator, 6, simulator.design_space.sample((6,))),
}


def histories(simulator, num_trials, batch=5, dtype=torch.float64):
    theta = simulator.prior.sample((batch,))
    trials = rollout(simulator, RandomPolicy(simulator), theta, max(1, num_trials))
    return pack_history(*trials)[:, :num_trials].to(dtype)


def step_by_step(policy, history):
    state = policy.initial_state(history.shape[:-2])
    for trial in history.unbind(-2):
        state = policy.update(state, trial[..., : policy.design_dim], trial[..., policy.design_dim : -1])
    return policy.propose(state)


@pytest.mark.parametrize("model", SIMULATORS)
@pytest.mark.parametrize("name", POLICIES)
def test_reading_a_history_equals_updating_trial_by_trial(name, model):
    simulator = SIMULATORS[model]()
    policy = POLICIES[name](simulator).double()
    for num_trials in (0, 1, 5):
        history = histories(simulator, num_trials)
        torch.testing.assert_close(policy(history), step_by_step(policy, history), rtol=1e-11, atol=1e-11)
        assert policy.design_space.contains(policy(history)).all()


@pytest.mark.parametrize("name", POLICIES)
def test_padding_and_the_rest_of_the_batch_change_nothing(name):
    simulator = LocationFinding()
    policy = POLICIES[name](simulator).double()
    lengths = [3, 0, 5, 3, 1]
    trials = [history[:n] for history, n in zip(histories(simulator, 5), lengths, strict=True)]
    alone = torch.stack([policy(history) for history in trials])
    batch = pack_history([h[:, :2] for h in trials], [h[:, 2:3] for h in trials], horizon=6)
    torch.testing.assert_close(policy(batch), alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(policy(batch.reshape(5, 1, 6, 4)).squeeze(1), alone, rtol=1e-12, atol=1e-12)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(policy(batch[order]), alone[order], rtol=1e-12, atol=1e-12)


def test_gradients_of_a_ragged_batch_are_those_of_its_members():
    policy = NETS["deep sets"](LocationFinding()).double()
    trials = [history[:n] for history, n in zip(histories(LocationFinding(), 4), [4, 2, 0], strict=False)]
    batch = pack_history([h[:, :2] for h in trials], [h[:, 2:3] for h in trials])
    together = torch.autograd.grad(policy(batch).square().sum(), list(policy.parameters()))
    apart = torch.autograd.grad(sum(policy(h).square().sum() for h in trials), list(policy.parameters()))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_deep_sets_do_not_see_order_and_the_transformer_does():
    simulator = LocationFinding()
    history = histories(simulator, 5)
    shuffled = history[:, [3, 1, 4, 0, 2]]
    deep_sets, transformer = (NETS[name](simulator).double() for name in ("deep sets", "transformer"))
    torch.testing.assert_close(deep_sets(history), deep_sets(shuffled), rtol=1e-12, atol=1e-12)
    assert ((transformer(history) - transformer(shuffled)).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("name", NETS)
def test_designs_depend_on_every_trial(name):
    simulator = LocationFinding()
    policy, history = NETS[name](simulator).double(), histories(simulator, 4)
    for trial in range(4):
        changed = history.clone()
        changed[:, trial, 2] *= 3
        assert ((policy(history) - policy(changed)).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("head", ["pointer", "linear"])
def test_transformer_states_equal_all_tokens_at_once(head):
    simulator = LocationFinding()
    policy = TransformerPolicy(simulator, horizon=6, hidden_dim=8, num_heads=2, head=head).double()
    history = histories(simulator, 5)
    tokens = policy.embed(policy.features(history[..., :2], history[..., 2:3])) + policy.position[:5]
    tokens = torch.cat([policy.start.expand(5, 1, -1), tokens], dim=-2)
    summaries, places = tokens, torch.cat([torch.zeros(5, 1, 2), history[..., :2]], 1)
    for block in policy.blocks:
        summaries, _ = block(summaries)
    for n in range(6):
        if head == "linear":
            design = policy.head(summaries[:, n])
        else:  # in the plane, designs are their own free coordinates
            design = policy.head(summaries[:, n], policy.head.to_key(tokens[:, : n + 1]), places[:, : n + 1])
        torch.testing.assert_close(policy(history[:, :n]), design, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("model", SIMULATORS)
def test_a_pointer_head_that_takes_no_step_proposes_the_mean_of_the_origin_and_earlier_designs(model):
    simulator = SIMULATORS[model]()
    policy, space = TransformerPolicy(simulator, 6, hidden_dim=8, head="pointer"), simulator.design_space
    for linear in (policy.head.to_query, policy.head.step):  # all attention scores and the step are 0
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    history = histories(simulator, 4, dtype=torch.float32)
    mean = space.standardize(history[..., : policy.design_dim]).sum(1) / 5
    torch.testing.assert_close(policy(history), space.from_free(mean))


def test_a_pointer_head_steps_from_the_design_that_its_attention_is_on():
    policy, history = TransformerPolicy(LocationFinding(), 6, hidden_dim=8).double(), histories(LocationFinding(), 4)
    state, head = policy.read(history), policy.head
    keys = torch.nn.functional.one_hot(torch.arange(5), 16).double().expand(5, -1, -1)  # of the origin and four designs
    with torch.no_grad():
        head.to_query.weight.zero_()
        head.to_query.bias.copy_(1e4 * keys[0, 3])
        head.step.bias[-1] = -10.0  # the logarithm of the step's size
    design = policy.propose(state._replace(keys=keys))
    step = head.step(head.norm(state.summary))
    torch.testing.assert_close(design - history[:, 2, :2], step[:, :2] * step[:, 2:].exp(), rtol=1e-8, atol=1e-12)
    assert 0 < (design - history[:, 2, :2]).norm(dim=-1).max() < 1e-3


@pytest.mark.parametrize("name", POLICIES)
def test_an_update_leaves_the_old_state_as_it_was(name):
    simulator = LocationFinding()
    policy, history = POLICIES[name](simulator), histories(simulator, 3, dtype=torch.float32)
    state = policy.read(history)
    before = policy.propose(state).clone()
    policy.update(state, torch.ones(5, 2), torch.ones(5, 1))
    assert torch.equal(policy.propose(state), before)


@pytest.mark.parametrize("name", NETS)
def test_the_first_design_is_learned(name):
    policy = NETS[name](LocationFinding())
    policy(torch.zeros(0, 4)).sum().backward()
    learned = policy.empty if name == "deep sets" else policy.start
    assert learned.grad.abs().max() > 0


def test_static_designs():
    simulator = LinearGaussian()
    policy = StaticPolicy(simulator, 3)
    designs, _ = rollout(simulator, policy, simulator.prior.sample((4,)), 3)
    torch.testing.assert_close(designs, policy.design_space.from_free(policy.free).expand(4, 3, 1))
    fixed = StaticPolicy(simulator, 2, torch.tensor([[0.5], [-1.0]]))
    assert rollout(simulator, fixed, simulator.prior.sample((4,)), 2).designs[3].tolist() == [[0.5], [-1.0]]
    assert not any(p.requires_grad for p in fixed.parameters())
    with pytest.raises(ValueError, match="this policy holds 2 designs; there is none for trial 3"):
        rollout(simulator, fixed, simulator.prior.sample((4,)), 3)
    with pytest.raises(ValueError, match=r"designs must have shape \(2, 1\), got \(3, 1\)"):
        StaticPolicy(simulator, 2, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="outside the design space"):
        StaticPolicy(simulator, 1, torch.tensor([[2.0]]))
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        StaticPolicy(simulator, 0)


def test_random_designs_are_fresh_for_each_experiment_and_trial():
    simulator = LinearGaussian(2)
    policy = RandomPolicy(simulator)
    designs, _ = rollout(simulator, policy, simulator.prior.sample((5000,)), 2)
    assert designs.unique().numel() > 19_900
    assert abs(float(designs.mean())) < 4 / math.sqrt(3 * 20_000)
    assert policy(torch.zeros(7, 0, 4)).shape == (7, 2)
    narrow = torch.distributions.Independent(torch.distributions.Uniform(torch.zeros(2), torch.full((2,), 0.1)), 1)
    designs, _ = rollout(simulator, RandomPolicy(simulator, narrow), simulator.prior.sample((50,)), 2)
    assert ((designs >= 0) & (designs <= 0.1)).all()


def test_a_transformer_is_built_for_its_horizon():
    simulator = LocationFinding()
    with pytest.raises(ValueError, match="this policy was built for 6 trials"):
        NETS["transformer"](simulator)(histories(simulator, 7, dtype=torch.float32))
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        TransformerPolicy(simulator, 0)
    with pytest.raises(ValueError, match=r"hidden_dim \(6\) must be a multiple of num_heads \(4\)"):
        TransformerPolicy(simulator, 3, hidden_dim=6)


@pytest.mark.parametrize("name", POLICIES)
def test_histories_of_another_precision_are_read(name):
    policy, history = POLICIES[name](LocationFinding()), histories(LocationFinding(), 3)
    assert policy(history).dtype == torch.float32
    torch.testing.assert_close(policy(history), policy(history.float()))
    ragged = pack_history([history[0, :, :2], history[1, :1, :2]], [history[0, :, 2:3], history[1, :1, 2:3]])
    assert policy(ragged).shape == (2, 2)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (torch.zeros(3, 5), "history must have 4 values in its last dimension"),
        (torch.full((1, 4), float("nan")), "history must be finite"),
        (torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]), "trials of a history must come first"),
    ],
)
def test_what_is_not_a_history_is_refused(history, message):
    with pytest.raises(ValueError, match=message):
        NETS["deep sets"](LocationFinding())(history)


def test_a_policy_needs_a_design_simulator():
    with pytest.raises(TypeError, match="a policy is built for a DesignSimulator"):
        DeepSetsPolicy(lambda theta: theta)


@pytest.mark.parametrize("model", SIMULATORS)
@pytest.mark.parametrize("name", POLICIES)
def test_a_saved_policy_proposes_the_same_designs(name, model, tmp_path):
    simulator = SIMULATORS[model]()
    policy = POLICIES[name](simulator)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", SIMULATORS[model]())
    assert type(loaded) is type(policy) and loaded.config == policy.config
    for num_trials in (0, 3):
        history = histories(simulator, num_trials, dtype=torch.float32)
        assert torch.equal(loaded(history), policy(history))


def test_a_copy_proposes_the_same_designs_for_large_outcomes():
    policy = DeepSetsPolicy(LinearGaussian(noise_sd=1.0))
    history = pack_history(torch.ones(2, 1), torch.tensor([[500.0], [-900.0]]))
    assert torch.equal(copy.deepcopy(policy)(history), policy(history))


def test_random_policies_are_saved_unless_they_hold_a_distribution(tmp_path):
    simulator = LinearGaussian()
    RandomPolicy(simulator).save(tmp_path / "policy")
    assert isinstance(load_policy(tmp_path / "policy", simulator), RandomPolicy)
    with pytest.raises(ValueError, match="with a distribution of its own cannot be saved"):
        RandomPolicy(simulator, simulator.prior).save(tmp_path / "policy")


def test_a_file_with_an_old_name_of_an_argument_is_loaded(tmp_path):
    simulator = LocationFinding()
    policy = TransformerPolicy(simulator, 3, hidden_dim=8)
    policy.config["width"] = policy.config.pop("hidden_dim")  # as it was written before
    policy.save(tmp_path / "policy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_policy(tmp_path / "policy", simulator)
    history = torch.zeros(2, 1, 4)
    assert again.config["hidden_dim"] == 8 and torch.equal(again(history), policy(history))
    with pytest.warns(FutureWarning, match="width= is now hidden_dim="):
        TransformerPolicy(simulator, 3, width=8)


def test_a_file_of_a_time_without_pointer_heads_is_loaded(tmp_path):
    simulator = LocationFinding()
    policy = TransformerPolicy(simulator, 3, hidden_dim=8, head="linear")
    del policy.config["head"]  # as it was written before
    policy.save(tmp_path / "policy")
    again = load_policy(tmp_path / "policy", simulator)
    assert again.config["head"] == "linear" and torch.equal(again(torch.ones(2, 1, 4)), policy(torch.ones(2, 1, 4)))
    with pytest.raises(ValueError, match="head must be 'pointer' or 'linear'"):
        TransformerPolicy(simulator, 3, head="pointers")


@pytest.mark.parametrize("model, head", [("location", "pointer"), ("discounting", "linear"), ("elasticity", "linear")])
def test_heads_are_pointers_where_designs_are_unbounded(model, head, tmp_path):
    simulator = SIMULATORS[model]()
    assert simulator.design_space.is_unbounded == (head == "pointer")
    for chosen, expected in ((None, head), ("pointer", "pointer"), ("linear", "linear")):
        policy = TransformerPolicy(simulator, 3, hidden_dim=8, head=chosen)
        policy.save(tmp_path / f"{chosen}")
        again = load_policy(tmp_path / f"{chosen}", simulator)
        assert policy.config["head"] == again.config["head"] == expected
        history = histories(simulator, 2, dtype=torch.float32)
        assert torch.equal(again(history), policy(history))


def test_a_pointer_head_needs_places_to_point_at():
    candidates, mixed = LocationFinding(), LocationFinding()
    candidates.design_space = DesignSpace(candidates=torch.randn(9, 2))
    mixed.design_space = DesignSpace.of_parts(x=constraints.interval(-1.0, 1.0), y=range(-3, 4))
    for simulator, is_linear in ((LocationFinding(), False), (candidates, True), (mixed, True)):
        policy = TransformerPolicy(simulator, 3, hidden_dim=8, head="pointer")
        assert isinstance(policy.head, torch.nn.Sequential) == is_linear
        assert simulator.design_space.contains(policy(torch.zeros(2, 0, 4))).all()


def test_a_users_own_policy_is_saved_and_loaded_with_its_class(tmp_path):
    simulator = YesNo(torch.float32)
    policy = TinyPolicy(simulator, start=-0.7)
    policy.save(tmp_path / "policy")
    with pytest.raises(ValueError, match="'TinyPolicy' is not one of sbi_bed's policies; give policy_class="):
        load_policy(tmp_path / "policy", simulator)
    loaded = load_policy(tmp_path / "policy", simulator, policy_class=TinyPolicy)
    history = histories(simulator, 2, dtype=torch.float32)
    assert torch.equal(loaded(history), policy(history))


def test_the_three_methods_of_the_docstring_make_a_policy():
    class Alternate(Policy):
        def initial_state(self, batch_shape=()):
            return torch.zeros(*batch_shape, self.design_dim)

        def update(self, state, design, outcome):
            return 1 - state

        def propose(self, state):
            return state

    simulator = LinearGaussian()
    designs, _ = rollout(simulator, Alternate(simulator), simulator.prior.sample((2,)), 4)
    assert designs[1].squeeze(-1).tolist() == [0.0, 1.0, 0.0, 1.0]
    assert Alternate(simulator)(histories(simulator, 3)).squeeze(-1).tolist() == [1.0] * 5


def test_settings_of_numpy_are_saved(tmp_path):
    simulator = LocationFinding()
    for policy in (
        StaticPolicy(simulator, np.int64(3)),
        DeepSetsPolicy(simulator, np.int64(8), np.int32(4), np.int64(1)),
    ):
        policy.save(tmp_path / "policy")
        assert type(load_policy(tmp_path / "policy", simulator)) is type(policy)


def test_files_that_hold_no_fitting_policy_are_refused(tmp_path):
    policy = NETS["deep sets"](LocationFinding())
    path = tmp_path / "policy"
    policy.save(path)
    with pytest.raises(ValueError, match="the saved DeepSetsPolicy does not fit this simulator"):
        load_policy(path, LocationFinding(dim=3))
    data = path.read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(ValueError, match="truncated or not a file of sbi_bed"):
            load_policy(tmp_path / "cut", LocationFinding())
    torch.save(policy.state_dict(), tmp_path / "weights")
    with pytest.raises(ValueError, match="is not a file of sbi_bed"):
        load_policy(tmp_path / "weights", LocationFinding())
    save_file(tmp_path / "parts", "policy", {"policy": "DeepSetsPolicy"})
    with pytest.raises(ValueError, match="lacks parts of a policy"):
        load_policy(tmp_path / "parts", LocationFinding())
    save_file(tmp_path / "odd", "policy", {"policy": "DeepSetsPolicy", "config": {"depth": 3}, "weights": {}})
    with pytest.raises(ValueError, match=r"cannot be built from \{'depth': 3\}"):
        load_policy(tmp_path / "odd", LocationFinding())
    for name in ("load_policy", "os", "__class__"):
        save_file(tmp_path / "name", "policy", {"policy": name, "config": {}, "weights": {}})
        with pytest.raises(ValueError, match=f"'{name}' is not one of sbi_bed's policies"):
            load_policy(tmp_path / "name", LocationFinding())
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "none", LocationFinding())


def test_the_best_of_many_starts_is_kept():
    """θ ~ N(0, 1), y ~ N(θ g(ξ), 1) where g has a low bump at −3 and a high one at 3, far from most starts."""

    def height(design):
        return torch.exp(-((design + 3) ** 2)) + 3 * torch.exp(-((design - 3) ** 2))

    def log_density(theta, design, outcome):
        return -0.5 * (outcome - theta * height(design)).square().squeeze(-1)

    simulator = DesignSimulator(
        torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1)),
        lambda theta, design: theta * height(design) + torch.randn_like(theta * design),
        DesignSpace(torch.distributions.constraints.real, scale=3.0),
        log_density,
        reparameterized=True,
    )
    torch.manual_seed(3)
    one, many = StaticPolicy(simulator, 1), StaticPolicy(simulator, 1, num_starts=16)
    with torch.no_grad():
        one.free.fill_(-1.2)
        many.free[0].fill_(-1.2)
    designs = []
    for policy in (one, many):
        DAD(simulator, 1, policy, show_progress_bars=False).train(150, 256, 63, 0.05, seed=0)
        designs.append(float(policy(torch.zeros(0, 3))))
    assert abs(designs[0] + 3) < 0.3 and abs(designs[1] - 3) < 0.3
    assert many.num_starts == 1 and many.config["num_starts"] == 1


def test_starts_are_dealt_out_in_turn():
    simulator = LocationFinding()
    policy = StaticPolicy(simulator, 2, num_starts=3)
    design = policy.propose(policy.initial_state((7,)))
    torch.testing.assert_close(design, policy.free[torch.arange(7) % 3, 0])
    with pytest.raises(ValueError, match="fixed designs have one start"):
        StaticPolicy(simulator, 2, torch.zeros(2, 2), num_starts=2)
