"""Ensembles of sbi's NPE: stuck members, likelihood, false alarms and power of the simulation gap; power scaling."""

import time
import warnings

import pytest
import torch
from report import report, save_picture
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from torch import nn
from torch.distributions import MultivariateNormal, StudentT

from sbi_bed.analysis import plot_ensemble_disagreement, plot_power_scaling, to_arviz
from sbi_bed.diagnostics import power_scaling_by_importance, simulation_gap
from sbi_bed.inference import ContextNPE, train_ensemble
from sbi_bed.simulators import Contexts, PowerScaledPrior, simulate_with_context
from sbi_bed.utils import NoTracker, seeded

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # sbi's, of the last epoch
]

COMMAND = "pytest -m benchmark tests/benchmarks/test_ensembles.py -k"
NUM_OBSERVATIONS = 50
MEMBERS = 5

# ---- location and scale of observations: theta is mean and log standard deviation

LOCATION_SCALE = MultivariateNormal(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.25])))


class MeanOfFeatures(nn.Module):
    """x (B, N) → (B, 8), whatever the order of the N observations."""

    def __init__(self, width=32):
        super().__init__()
        self.each = nn.Sequential(nn.Linear(1, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.all = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 8))

    def forward(self, x):
        return self.all(self.each(x.unsqueeze(-1)).mean(-2))


def observe(theta, noise=torch.randn):
    return theta[:, :1] + theta[:, 1:].exp() * noise(len(theta), NUM_OBSERVATIONS)


def student(degrees):
    return lambda *shape: StudentT(torch.tensor(float(degrees))).sample(shape)


def contaminated(share, factor):
    return lambda *shape: torch.where(torch.rand(shape) < share, factor, 1.0) * torch.randn(shape)


MISSPECIFIED = {
    "Student t, 1 degree": student(1),
    "Student t, 2 degrees": student(2),
    "10 % of observations 10 times as wide": contaminated(0.1, 10.0),
    "20 % of observations 10 times as wide": contaminated(0.2, 10.0),
    "10 % of observations 5 times as wide": contaminated(0.1, 5.0),
}


def small_ensemble(breaks=lambda number: False, num_members=MEMBERS, num_simulations=10_000):
    with seeded(0):
        theta = LOCATION_SCALE.sample((num_simulations,))
        x = observe(theta)

    def build(number):
        settings = {"z_score_x": "none", "hidden_features": 32, "num_components": 2}
        net = posterior_nn("mdn", embedding_net=MeanOfFeatures(), **settings)
        trainer = NPE(LOCATION_SCALE, density_estimator=net, tracker=NoTracker(), show_progress_bars=False)
        given = x[torch.randperm(len(x))] if breaks(number) else x  # a broken member sees data of other parameters
        return trainer.append_simulations(theta, given)

    settings = {"max_num_epochs": 30, "training_batch_size": 200, "learning_rate": 2e-3, "stop_after_epochs": 8}
    begin = time.process_time()
    ensemble = train_ensemble(build, num_members, seed=0, train_settings=settings)
    return ensemble, time.process_time() - begin


def test_gap_and_likelihood():
    """False alarms over 1,000 well-specified data sets, power against misspecified ones, likelihood of the mixture."""
    ensemble, seconds = small_ensemble()
    assert len(ensemble) == MEMBERS
    with seeded(1):
        reference_x, theta = observe(LOCATION_SCALE.sample((4000,))), LOCATION_SCALE.sample((1000,))
        data = {"as simulated": observe(theta)}
        for name, noise in MISSPECIFIED.items():
            data[name] = observe(LOCATION_SCALE.sample((400,)), noise)
    begin = time.process_time()
    gap = simulation_gap(ensemble, torch.cat(list(data.values())), reference_x, seed=0)
    judged = time.process_time() - begin
    sizes = [len(x) for x in data.values()]
    rows = zip(*(p.split(sizes) for p in (gap.p_value, gap.disagreement_p_value, gap.atypicality_p_value)), strict=True)
    shares = {}
    command = f"{COMMAND} gap"
    for name, p_values in zip(data, rows, strict=True):
        both, apart, rare = ((p < 0.05).double().mean().item() for p in p_values)
        stderr = (both * (1 - both) / len(p_values[0])) ** 0.5
        shares[name] = both
        figure = f"p < .05: {both:.3f} ± {stderr:.3f} (disagreement alone {apart:.3f}, summaries alone {rare:.3f})"
        report(f"simulation gap, M = {MEMBERS}, {name}", figure, command)
    report("of these, CPU seconds", f"training {seconds:.0f}, judging {sum(sizes)} data sets {judged:.0f}", command)
    test_x, test_theta = data["as simulated"], theta
    each = torch.stack([m.log_prob_batched(test_theta.unsqueeze(0), test_x, norm_posterior=False)[0] for m in ensemble])
    mixture = ensemble.log_prob_batched(test_theta.unsqueeze(0), test_x, norm_posterior=False)[0]
    best = each[each.mean(-1).argmax()]
    gain, stderr = (mixture - best).mean().item(), (mixture - best).std().item() / len(test_x) ** 0.5
    members = ", ".join(f"{v:.3f}" for v in each.mean(-1).tolist())
    figure = f"mixture {mixture.mean():.3f}, members {members}; mixture − best {gain:+.4f} ± {stderr:.4f}"
    report("held-out log-likelihood of 1,000 fresh simulations, nats", figure, command)
    names = list(MISSPECIFIED)[:3]
    shown = torch.cat([test_x[:2], *(data[name][:1] for name in names)])
    few = simulation_gap(ensemble, shown, reference_x, seed=0)
    axes = plot_ensemble_disagreement(few, names=["simulated", "simulated", *names])
    save_picture(axes.figure, "ensemble_disagreement.png")
    assert abs(shares["as simulated"] - 0.05) <= 0.015
    assert min(shares["Student t, 1 degree"], shares["20 % of observations 10 times as wide"]) >= 0.8
    assert gain >= -stderr


def test_broken_member():
    """A member that learns from shuffled data is trained again; broken twice, it is left out."""
    command, times = f"{COMMAND} broken", []

    def once(number):
        times.append(number)
        return number == 1 and times.count(1) == 1

    with pytest.warns(RuntimeWarning) as warned:
        ensemble, seconds = small_ensemble(once, 3, 3000)
    texts = [str(w.message) for w in warned if w.category is RuntimeWarning]
    report("broken once", f"{'; '.join(texts)} → {len(ensemble)} members, {seconds:.0f} s of CPU", command)
    assert len(ensemble) == 3 and len(texts) == 1 and "member 1" in texts[0]
    with pytest.warns(RuntimeWarning) as warned:
        ensemble, _ = small_ensemble(lambda number: number == 1, 3, 3000)
    texts = [str(w.message) for w in warned if w.category is RuntimeWarning]
    report("broken twice", f"{'; '.join(texts)} → {len(ensemble)} members", command)
    assert len(ensemble) == 2 and "left out" in texts[1]


# ---- linear-Gaussian: x = A theta + noise, theta ~ N(0, Σ)

MATRIX = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.3, 0.0, 0.7]])


def exact(prior_sd, noise, x, gamma=1.0):
    """Mean and covariance of the posterior with prior covariance Σ/γ, float64."""
    matrix = MATRIX.double()
    covariance = torch.linalg.inv(gamma * torch.eye(3).double() / prior_sd**2 + matrix.T @ matrix / noise**2)
    return covariance @ matrix.T @ x.double() / noise**2, covariance


def test_power_scaling():
    """Importance weights against the exact answer and a net that knows γ; k̂ tells where the former fail."""
    pytest.importorskip("arviz")
    command, prior_sd, noise = f"{COMMAND} power", 0.5, 1.0
    x = torch.tensor([2.5, -1.5, 2.0])
    gamma = torch.logspace(-1, 1, 21, dtype=torch.float64)
    moments = [exact(prior_sd, noise, x, g) for g in gamma]
    mean, sd = torch.stack([m for m, _ in moments]), torch.stack([c.diagonal().sqrt() for _, c in moments])
    with seeded(0):
        theta = MultivariateNormal(*exact(prior_sd, noise, x)).sample((4000,))
    found = power_scaling_by_importance(theta, -0.5 * (theta / prior_sd).square().sum(-1), gamma)
    begin = time.process_time()
    prior = PowerScaledPrior(MultivariateNormal(torch.zeros(3), prior_sd**2 * torch.eye(3)))
    contexts = Contexts.power_scaling(prior, 0.1, 10.0)
    simulated = simulate_with_context(
        lambda theta: theta @ MATRIX.T + noise * torch.randn_like(theta), prior, 20_000, contexts, seed=0
    )
    trainer = ContextNPE(prior, show_progress_bars=False, contexts=contexts).append_simulations(*simulated)
    trainer.train(max_num_epochs=30, seed=0)
    posterior = trainer.build_posterior()
    seconds = time.process_time() - begin
    with seeded(0):
        draws = [posterior.sample((2000,), x=x, context=[float(g.float())] * contexts.dim) for g in gamma]
    net = torch.stack([part.double().mean(0) for part in draws])
    error, net_error = (((m - mean) / sd).abs().amax(-1) for m in (found.mean, net))
    inside = found.reliable
    figure = f"largest error of a mean, sd: where k̂ allows (γ {gamma[inside].min():.2f}–{gamma[inside].max():.2f}) "
    figure += (
        f"{error[inside].max():.3f}, elsewhere {error[~inside].max():.3f}" if (~inside).any() else f"{error.max():.3f}"
    )
    report("power scaling by importance, linear-Gaussian, 4,000 draws", figure, command)
    figure = f"same, all γ: {net_error.max():.3f} (20,000 simulations, {seconds:.0f} s of CPU)"
    report("a net that knows γ", figure, command)
    axes = plot_power_scaling(found, exact_mean=mean, exact_sd=sd, others={"context network": net})
    save_picture(axes[0].figure, "power_scaling.png")
    assert error[inside].max() < 0.25 and (~inside).any() and error[~inside].max() > error[inside].max()


def test_psense():
    """Diagnoses by draws of a trained NPE are those by draws of the exact posterior."""
    pytest.importorskip("arviz_base")
    psense_summary = pytest.importorskip("arviz_stats").psense_summary
    cases = {
        "prior-dominated": (0.3, 1.0, [0.1, 0.1, -0.1]),
        "in conflict": (1.0, 1.0, [3.5, 3.0, 2.5]),
        "uneventful": (3.0, 0.2, [1.0, -0.5, 0.5]),
    }
    command, begin = f"{COMMAND} psense", time.process_time()
    for name, (prior_sd, noise, x) in cases.items():
        prior, x = MultivariateNormal(torch.zeros(3), prior_sd**2 * torch.eye(3)), torch.tensor(x)
        with seeded(0):
            theta = prior.sample((10_000,))
            simulated = theta @ MATRIX.T + noise * torch.randn_like(theta)
            net = posterior_nn("maf", hidden_features=32, num_transforms=2)
            trainer = NPE(prior, density_estimator=net, tracker=NoTracker(), show_progress_bars=False)
            trainer.append_simulations(theta, simulated).train(
                training_batch_size=200, max_num_epochs=25, learning_rate=1e-3
            )
            posterior = trainer.build_posterior()
        tables = []
        for source in (Exact(prior, prior_sd, noise), posterior):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tables.append(psense_summary(to_arviz(source, x, 4000, seed=1)))
        text = "; ".join(
            f"{who}: prior {', '.join(f'{float(v):.3f}' for v in table['prior'])}, likelihood "
            f"{', '.join(f'{float(v):.3f}' for v in table['likelihood'])} ({', '.join(sorted(set(table['diagnosis'])))})"
            for who, table in zip(("exact", "NPE"), tables, strict=True)
        )
        report(f"psense, {name}", text, command)
        assert (tables[0]["diagnosis"] == tables[1]["diagnosis"]).all()
    report("psense, three NPE", f"{time.process_time() - begin:.0f} s of CPU", command)


class Exact:
    """The exact posterior, as sbi's are called."""

    def __init__(self, prior, prior_sd, noise):
        self.prior, self._settings = prior, (prior_sd, noise)

    def _at(self, x):
        return MultivariateNormal(*(part.float() for part in exact(*self._settings, x)))

    def sample(self, sample_shape, x=None):
        return self._at(x).sample(sample_shape)

    def log_prob(self, theta, x=None):
        return self._at(x).log_prob(theta)
