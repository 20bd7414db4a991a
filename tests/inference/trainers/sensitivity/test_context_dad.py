"""Designs for every prior: on an experiment whose best design depends on the prior, in closed form."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import ContextDAD
from sbi_bed.policies import ContextPolicy, DeepSetsPolicy
from sbi_bed.policies.base import load_policy
from sbi_bed.simulators import Contexts, DesignSimulator, LocationFinding, LogUniform, PowerScaledPrior
from sbi_bed.simulators.design_space import DesignSpace

CONTEXTS = Contexts(gamma=LogUniform(0.2, 5.0, 2))


class Angle(DesignSimulator):
    """y ~ N(θ_1 cos ξ + θ_2 sin ξ, 0.5²): one trial is best spent on the parameter that the prior leaves more open."""

    def __init__(self):
        super().__init__(
            Independent(Normal(torch.zeros(2), torch.ones(2)), 1),
            lambda theta, design: self.mean(theta, design) + 0.5 * torch.randn(self.mean(theta, design).shape),
            DesignSpace(torch.distributions.constraints.interval(0.0, math.pi / 2), dim=1),
            lambda theta, design, outcome: Normal(self.mean(theta, design), 0.5).log_prob(outcome).squeeze(-1),
            reparameterized=True,
        )

    @staticmethod
    def mean(theta, design):
        return theta[..., :1] * design.cos() + theta[..., 1:] * design.sin()

    @staticmethod
    def gain(gamma, design):
        variance = (design.cos() ** 2 / gamma[..., :1] + design.sin() ** 2 / gamma[..., 1:]).squeeze(-1)
        return 0.5 * (1 + variance / 0.25).log()


@pytest.fixture(scope="module")
def trained():
    simulator = Angle()
    trainer = ContextDAD(simulator, PowerScaledPrior(simulator.prior), 1, CONTEXTS, show_progress_bars=False)
    return trainer.train(300, 128, 63, 5e-3, seed=0)


def test_designs_follow_the_prior(trained):
    gamma = CONTEXTS.sample((500,))
    gamma = gamma[(gamma[:, 0] / gamma[:, 1]).log().abs() > 0.3]
    design = trained.in_context(gamma)(torch.zeros(len(gamma), 0, 3))
    best = Angle.gain(gamma, (gamma[:, :1] > gamma[:, 1:]).float() * math.pi / 2)
    lost = best - Angle.gain(gamma, design)
    # One design for all priors loses more: the best of them is any.
    fixed = torch.stack([best - Angle.gain(gamma, torch.full((1, 1), a)) for a in torch.linspace(0, math.pi / 2, 9)])
    assert lost.mean() < 0.2 * fixed.mean(1).min()


def test_the_gain_in_one_context_is_the_closed_form(trained):
    simulator, gamma = Angle(), torch.tensor([0.3, 2.0])
    here = simulator.with_prior(PowerScaledPrior(simulator.prior).condition(gamma))
    found = expected_information_gain(here, trained.in_context(gamma), 1, 4000, 2000, seed=0)
    exact = Angle.gain(gamma, trained.in_context(gamma)(torch.zeros(0, 3))).item()
    assert found.lower - 4 * found.lower_stderr < exact < found.upper + 4 * found.upper_stderr


def test_step_by_step_equals_all_at_once_and_files_keep_it(tmp_path):
    simulator = LocationFinding()
    policy = ContextPolicy(simulator, CONTEXTS)
    context = CONTEXTS.sample((3,))
    history = torch.randn(3, 4, 4)
    history[..., 2] = history[..., 2].exp()  # intensities are positive
    history[..., -1] = 1
    here = policy.in_context(context)
    state = here.initial_state((3,))
    for trial in history.unbind(1):
        state = here.update(state, trial[:, :2], trial[:, 2:3])
    torch.testing.assert_close(here.propose(state), here(history))
    for row in range(3):
        torch.testing.assert_close(policy.in_context(context[row])(history[row]), here(history)[row])
    policy.save(tmp_path / "policy.pt")
    loaded = load_policy(tmp_path / "policy.pt", simulator)
    assert torch.equal(loaded.in_context(context)(history), here(history))


def test_the_same_seed_gives_the_same_policy():
    simulator = Angle()

    def build():
        trainer = ContextDAD(simulator, PowerScaledPrior(simulator.prior), 2, show_progress_bars=False)
        return trainer.train(3, 8, 7, seed=1).in_context([1.0, 0.5])(torch.zeros(0, 3))

    assert torch.equal(build(), build())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda s: ContextPolicy(s, CONTEXTS)(torch.zeros(0, 3)), ValueError, "which context"),
        (lambda s: ContextPolicy(s, CONTEXTS).in_context([9.0, 1.0]), ValueError, "lies outside"),
        (lambda s: ContextDAD(s, s.prior, 1), TypeError, "contexts must be"),
        (lambda s: ContextDAD(s, s.prior, 1, CONTEXTS, DeepSetsPolicy(s)), TypeError, "ContextPolicy"),
        (lambda s: ContextDAD(s, PowerScaledPrior(s.prior), 1).train(learning_rate=0), ValueError, "learning_rate"),
        (lambda s: ContextDAD(s, PowerScaledPrior(s.prior), 0), ValueError, "horizon"),
    ],
)
def test_what_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call(Angle())


def test_a_likelihood_is_needed():
    simulator = Angle()
    blind = DesignSimulator(simulator.prior, lambda theta, design: theta[..., :1] + design, simulator.design_space)
    with pytest.raises(ValueError, match="log_likelihood"):
        ContextDAD(blind, PowerScaledPrior(simulator.prior), 1)
