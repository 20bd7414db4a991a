"""NPE with every kind of prior: a posterior inside its support, right where known, or one error before anything runs."""

import copy
import math
import pickle

import pytest
import torch
from models import linear_in
from priors import CONTINUOUS, DISCRETE
from sbi.inference import simulate_for_sbi
from torch.distributions import Dirichlet, Independent, Multinomial, Normal, constraints

from sbi_bed.inference import ContextNPE, HistoryNPE
from sbi_bed.objectives import PosteriorBound
from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import DesignSimulator, PolicySimulator
from sbi_bed.simulators.sbi_prior import SBIPrior
from sbi_bed.utils.transforms import inside_support, to_unconstrained


@pytest.mark.parametrize("name", CONTINUOUS)
def test_npe_takes_the_prior(name):
    prior = CONTINUOUS[name]
    simulator = linear_in(prior)
    experiment = PolicySimulator(simulator, RandomPolicy(simulator), 3)
    theta, x = simulate_for_sbi(experiment, prior, 200, simulation_batch_size=None, seed=0, show_progress_bar=False)
    trainer = HistoryNPE(simulator, show_progress_bars=False).append_simulations(theta, x)
    trainer.train(max_num_epochs=2)
    in_context = ContextNPE(prior, show_progress_bars=False).append_simulations(theta, x, torch.rand(200, 1))
    in_context.train(max_num_epochs=2, seed=0)
    everywhere = in_context.build_posterior().set_default_x(x[0])
    for posterior in (trainer.build_posterior().set_default_x(x[:1]), everywhere.condition_on([0.5])):
        for same in (posterior, pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior)):
            draws = same.sample((50,), show_progress_bars=False)
            assert inside_support(prior, draws).all() and torch.isfinite(prior.log_prob(draws)).all()
            assert torch.isfinite(same.log_prob(draws, norm_posterior=False)).all()
    assert inside_support(prior, everywhere.sample((50,), context=[0.5])).all()
    bound = PosteriorBound(simulator, 3, "zuko_maf")
    assert torch.isfinite(bound(theta.float(), x.float())).all()


@pytest.mark.parametrize("name", DISCRETE)
def test_npe_refuses_discrete_parameters_before_anything_runs(name):
    simulator = linear_in(DISCRETE[name])
    builds = (lambda: HistoryNPE(simulator), lambda: ContextNPE(simulator.prior), lambda: PosteriorBound(simulator, 3))
    for build in builds:
        with pytest.raises(ValueError, match="theta is discrete in part"):
            build()


def test_priors_in_doubles_give_posteriors_in_single_precision():
    prior = Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)
    simulator = linear_in(prior)
    experiment = PolicySimulator(simulator, RandomPolicy(simulator), 3)
    theta = prior.sample((200,))
    x = experiment(theta)
    trainer = HistoryNPE(simulator, show_progress_bars=False).append_simulations(theta, x)
    trainer.train(max_num_epochs=2)
    assert trainer.build_posterior().sample((5,), x=x[:1], show_progress_bars=False).dtype == torch.float32


def counts_of(num):
    """Counts of `num` answers whose probabilities are theta."""
    prior = Dirichlet(torch.tensor([1.0, 2.0, 3.0]))

    def simulate(theta, design):
        shape = torch.broadcast_shapes(theta.shape[:-1], design.shape[:-1])
        return Multinomial(num, theta.expand(*shape, 3)).sample()

    return DesignSimulator(
        prior,
        simulate,
        torch.zeros(1, 1),
        outcome_shape=(3,),
        outcome_space=constraints.independent(constraints.real, 1),
    )


@pytest.mark.parametrize("in_contexts", [False, True])
def test_probabilities_on_a_simplex_have_the_conjugate_posterior(in_contexts):
    """Densities integrate to 1 over the first two of three probabilities, E_p[q / p] = 1, and draws follow the counts."""
    simulator = counts_of(10)
    theta = simulator.prior.sample((3000,))
    x = PolicySimulator(simulator, RandomPolicy(simulator), 1)(theta)
    if in_contexts:
        trainer = ContextNPE(simulator.prior, show_progress_bars=False)
        trainer.append_simulations(theta, x[:, 0, 1:4], torch.rand(3000, 1)).train(max_num_epochs=10, seed=0)
        posterior = trainer.build_posterior().condition_on([0.5])
    else:
        trainer = HistoryNPE(simulator, show_progress_bars=False).append_simulations(theta, x)
        trainer.train(max_num_epochs=10, learning_rate=4e-3, training_batch_size=200)
        posterior = trainer.build_posterior()
    for counts in ([2.0, 3.0, 5.0], [1.0, 6.0, 3.0]):  # such as the prior gives
        row = torch.tensor([[0.0, *counts, 1.0]])
        posterior.set_default_x(torch.tensor([counts]) if in_contexts else row.unsqueeze(0))
        exact = Dirichlet(torch.tensor([1.0, 2.0, 3.0]) + torch.tensor(counts))
        draws = posterior.sample((2000,), show_progress_bars=False)
        assert ((draws.mean(0) - exact.mean).abs() < 0.6 * exact.stddev).all()  # the prior's are 3.6 sd away
        spread = Dirichlet(torch.tensor([1.0, 1.0, 1.0]))
        theta = spread.sample((20_000,))
        ratio = (posterior.log_prob(theta, norm_posterior=False) - spread.log_prob(theta)).double().exp()
        assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(20_000)


def test_a_prior_for_sbi_is_the_same_distribution():
    for prior in CONTINUOUS.values():
        theta = SBIPrior(prior).sample((50,))
        assert torch.equal(SBIPrior(prior).log_prob(theta), prior.log_prob(theta).reshape(-1))
        assert SBIPrior(prior).support.check(theta).all()
        transform = torch.distributions.biject_to(SBIPrior(prior).support)
        if to_unconstrained(prior).free_dim == theta.shape[-1]:
            torch.testing.assert_close(transform(transform.inv(theta)), theta, rtol=1e-3, atol=1e-4)
            assert transform.log_abs_det_jacobian(transform.inv(theta), theta).shape == (50,)
