"""Evidence accumulation: priors as written, models nested as they should be, data as the parameters say."""

import math

import pytest
import torch
from scipy import stats

from sbi_bed.simulators import EvidenceAccumulation, simulate_models

SMALL = EvidenceAccumulation(num_persons=2, num_trials=4, dt=0.01)


def column(model_index, name, num=4000):
    parameters = EvidenceAccumulation(num_persons=1, num_trials=1).sample_parameters(model_index, num)
    return parameters[:, 0, EvidenceAccumulation.parameter_names.index(name)].double()


def test_priors_have_the_quantiles_of_a_plain_simulation():
    """Against scipy, group parameters first, then one person of each group."""
    num, generator = 4000, 7
    uniform = {"size": num, "random_state": generator}

    def positive(mean, sd):
        return stats.truncnorm(-mean / sd, math.inf, mean, sd).rvs(**uniform)

    for name, scale, sign in (("a", (0.4, 0.15), 1), ("v_0", (0.5, 0.25), -1), ("t_0", (0.1, 0.05), 1)):
        expected = sign * stats.gamma(stats.norm(5, 1).rvs(num, random_state=1), scale=positive(*scale)).rvs(
            num, random_state=2
        )
        assert stats.ks_2samp(column(3, name).numpy(), expected).pvalue > 1e-3
    mean, sd = stats.norm(1.65, 0.15).rvs(num, random_state=3), positive(0.3, 0.1)
    alpha = stats.truncnorm((1 - mean) / sd, (2 - mean) / sd, mean, sd).rvs(num, random_state=4)
    assert stats.ks_2samp(column(1, "alpha").numpy(), alpha).pvalue > 1e-3
    start = stats.norm(stats.norm(0, 0.25).rvs(num, random_state=5), positive(1e-9, 0.05)).rvs(num, random_state=6)
    assert stats.ks_2samp(torch.logit(column(0, "z")).numpy(), start).pvalue > 1e-3
    for name, distribution in (
        ("s_z", stats.beta(1, 3)),
        ("s_v", stats.halfnorm(0, 2)),
        ("s_t", stats.halfnorm(0, 0.3)),
    ):
        assert stats.kstest(column(2, name).numpy(), distribution.cdf).pvalue > 1e-3


def test_models_differ_where_they_should():
    for model_index in range(4):
        flight, full = model_index % 2 == 1, model_index >= 2
        alpha, spread = column(model_index, "alpha", 100), column(model_index, "s_v", 100)
        assert bool((alpha < 2).all()) == flight and bool((spread > 0).all()) == full
        if not flight:
            assert (alpha == 2).all()


def test_persons_of_a_group_resemble_each_other():
    parameters = EvidenceAccumulation(num_persons=200, num_trials=1).sample_parameters(0, 300)
    between = parameters[..., 0].log().mean(1).var()
    assert between > 5 * (parameters[..., 0].log().var(1) / 200).mean()  # groups differ beyond the noise of 200 persons


def test_response_times_are_decision_times_plus_the_wait():
    models = EvidenceAccumulation(num_persons=1, num_trials=6000, dt=0.005, max_time=20.0)
    a, z, v, t_0 = 1.4, 0.5, 1.8, 0.4
    x = models.simulate_parameters(torch.tensor([[[a, z, -v, v, t_0, 2.0, 0.0, 0.0, 0.0]]]))[0, 0]
    shift = 0.5826 * math.sqrt(0.005)
    wide = a + 2 * shift
    right = 1 / (1 + math.exp(-v * wide))
    mean = wide / (2 * v) * math.tanh(v * wide / 2) + t_0
    assert x[:, 3].all() and float(x[:, 0].mean()) == 0.5
    correct = (x[:, 0] == x[:, 2]).double()
    assert abs(float(correct.mean()) - right) < 4 * math.sqrt(right * (1 - right) / 6000)
    assert abs(float(x[:, 1].mean()) - mean) < 4 * float(x[:, 1].std()) / math.sqrt(6000)
    assert float(x[:, 1].min()) > t_0


def test_undecided_and_missing_trials_are_masked():
    models = EvidenceAccumulation((1, 3), (4, 8), missing=0.3, dt=0.01, max_time=0.3)
    x = models.simulate(3, 300)
    assert x.shape == (300, 3, 8, 4) and not x[x[..., 3] == 0].any()
    seen = x[x[..., 3] == 1]
    assert 0.1 < len(seen) / (300 * 2 * 6) < 0.7 and (seen[:, 1] > 0).all()
    assert set(seen[:, 2].tolist()) == set(seen[:, 0].tolist()) == {0.0, 1.0}


def test_models_simulate_together_and_have_no_evidence():
    model_index, x = simulate_models(SMALL, 40, seed=0, batch_size=16)
    assert x.shape == (40, 2, 4, 4) and set(model_index.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="no evidence in closed form"):
        SMALL.log_evidence(x, 0)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="max_time at least dt"):
        EvidenceAccumulation(dt=0.5, max_time=0.1)
    with pytest.raises(ValueError, match="missing is a share"):
        EvidenceAccumulation(missing=2.0)
