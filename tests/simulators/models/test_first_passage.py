"""First passage: closed forms of choice and mean time, discretisation as documented, stable draws."""

import math

import pytest
import torch

from sbi_bed.simulators.models.first_passage import first_passage, symmetric_stable

CASES = [(2.0, 1.5, 0.6), (-0.7, 1.2, 0.6), (0.5, 1.0, 0.7)]


def exact(drift, boundary, start):
    """Probability of the upper boundary and mean decision time of a diffusion with unit noise (Cox & Miller 1965)."""
    upper = (1 - math.exp(-2 * drift * start)) / (1 - math.exp(-2 * drift * boundary))
    return upper, (boundary * upper - start) / drift


def check(passage, upper, time):
    num = passage.time.numel()
    assert passage.finished.all()
    assert abs(float(passage.upper.double().mean()) - upper) < 4 * math.sqrt(upper * (1 - upper) / num)
    assert abs(float(passage.time.double().mean()) - time) < 4 * float(passage.time.std()) / math.sqrt(num)


@pytest.mark.parametrize("drift, boundary, start", CASES)
def test_diffusion_with_bridges_has_the_exact_choices_and_times(drift, boundary, start):
    passage = first_passage(torch.full((40_000,), drift), boundary, start, dt=0.005, max_time=60.0, bridge=True)
    check(passage, *exact(drift, boundary, start))


@pytest.mark.parametrize("stability", [None, 2.0])
def test_plain_steps_act_as_boundaries_further_out(stability):
    """Diffusion and Lévy flight with α = 2 alike: the boundaries seem 0.5826 √dt further out."""
    dt, (drift, boundary, start) = 0.002, CASES[0]
    passage = first_passage(torch.full((30_000,), drift), boundary, start, stability, dt=dt, max_time=60.0)
    shift = 0.5826 * math.sqrt(dt)
    check(passage, *exact(drift, boundary + 2 * shift, start + shift))


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.7, 2.0])
def test_stable_draws_have_their_characteristic_function(alpha):
    draws = symmetric_stable(torch.tensor(alpha), (200_000,)).double()
    for u in (0.3, 1.0, 2.0):
        cosine = torch.cos(u * draws)
        assert abs(float(cosine.mean()) - math.exp(-(u**alpha))) < 4 * float(cosine.std()) / math.sqrt(200_000)
    assert torch.isfinite(draws).all()


def test_jumps_scale_with_the_step_as_their_stability_says():
    """Far boundaries are passed in one big jump: of T/dt steps, with P(|S| > s) ≈ 2 Γ(α) sin(πα/2) / π · s^{−α}."""
    num, alpha, far, horizon = 300_000, 1.5, 100.0, 4.0
    tail = 2 * math.gamma(alpha) * math.sin(alpha * math.pi / 2) / math.pi * (far * math.sqrt(2)) ** -alpha
    for dt in (0.1, 0.4):
        passage = first_passage(torch.zeros(num), 2 * far, far, alpha, dt=dt, max_time=horizon)
        assert abs(float(passage.finished.double().mean()) / (horizon * tail) - 1) < 4 / math.sqrt(num * horizon * tail)


def test_unfinished_paths_and_starts_outside_are_told():
    passage = first_passage(0.0, torch.tensor([1.0, 1.0, 50.0]), torch.tensor([1.0, -0.1, 25.0]), max_time=0.5)
    assert passage.time.tolist() == [0.0, 0.0, 0.5]
    assert passage.finished.tolist() == [True, True, False] and passage.upper.tolist()[:2] == [True, False]


def test_each_path_has_its_own_parameters():
    """Paths that end early do not disturb those that go on."""
    drift = torch.tensor([30.0, 0.3, -30.0]).repeat(8000)
    passage = first_passage(drift, 1.0, 0.5, dt=0.002, bridge=True, max_time=60.0)
    for k, v in enumerate((30.0, 0.3, -30.0)):
        part = passage.time[k::3]
        assert abs(float(part.mean()) - exact(v, 1.0, 0.5)[1]) < 4 * float(part.std()) / math.sqrt(8000) + 2e-4


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="bridges are for diffusions"):
        first_passage(0.0, 1.0, 0.5, 1.5, bridge=True)
    with pytest.raises(ValueError, match="boundary must be positive, got -1"):
        first_passage(0.0, -1.0, 0.5)
    with pytest.raises(ValueError, match=r"stability must lie in \[1, 2\]"):
        first_passage(0.0, 1.0, 0.5, 2.5)
    with pytest.raises(ValueError, match="dt must be positive"):
        first_passage(0.0, 1.0, 0.5, dt=0.0)
