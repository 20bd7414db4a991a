"""Both losses are least at the log evidences, whatever share of the simulations each model has."""

import pytest
import torch

from sbi_bed.neural_nets.classifiers import EvidenceClassifier, parity_odd_power
from sbi_bed.objectives import CrossEntropyLoss, LPopLoss

LOSSES = pytest.mark.parametrize("build", [CrossEntropyLoss, LPopLoss])
FREQUENCIES = torch.tensor([0.6, 0.3, 0.1])


@LOSSES
def test_the_minimum_is_at_the_log_evidences(build):
    """x has few values, so that the expected loss is a sum and its minimum is found by Newton's method."""
    torch.manual_seed(0)
    evidences = torch.randn(3, 4).softmax(-1).double()  # p(x | j)
    joint = FREQUENCIES.double().unsqueeze(-1) * evidences
    torch.set_default_dtype(torch.float64)
    loss = build(FREQUENCIES.double())
    guess = torch.zeros(4, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [guess], max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def expected():
        optimizer.zero_grad()
        total = sum((joint[j] * loss(guess, torch.full((4,), j))).sum() for j in range(3))
        total.backward()
        return total

    optimizer.step(expected)
    found, exact = guess.detach(), evidences.log().T
    torch.testing.assert_close(found - found[:, :1], exact - exact[:, :1], rtol=1e-4, atol=1e-5)


def test_two_models_have_the_published_exponential_loss():
    torch.manual_seed(0)
    f, m = torch.randn(50), torch.randint(2, (50,))
    logs = torch.stack([torch.zeros(50), parity_odd_power(f)], -1)
    expected = torch.exp((0.5 - m) * parity_odd_power(f))
    torch.testing.assert_close(LPopLoss(torch.tensor([0.5, 0.5]))(logs, m), expected)


def test_a_simulation_that_is_far_off_does_not_overflow_and_is_still_pulled_back():
    logs = torch.tensor([[0.0, 1e4]], requires_grad=True)
    loss = LPopLoss(torch.tensor([0.5, 0.5]))(logs, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss.sum(), logs)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all() and gradient[0, 1] > 100


def test_the_power_is_odd_increasing_and_leaves_small_numbers_alone():
    f = torch.linspace(-5, 5, 101).double()
    for alpha in (1.5, 2.0, 3.0):
        power = parity_odd_power(f, alpha)
        assert (power.diff() > 0).all()
        torch.testing.assert_close(power, -parity_odd_power(-f, alpha))
    small = torch.tensor([1e-6]).double().requires_grad_()
    (slope,) = torch.autograd.grad(parity_odd_power(small).sum(), small)
    assert abs(float(slope) - 1) < 1e-5


def test_a_classifier_gives_evidences_relative_to_the_first_model_and_can_begin_anew():
    torch.manual_seed(0)
    net, x = EvidenceClassifier(torch.nn.Linear(3, 4), 5, 4, alpha=2.0), torch.randn(6, 3)
    first = net(x)
    assert first.shape == (6, 5) and (first[:, 0] == 0).all() and first[:, 1:].std(0).min() > 0
    before = net.embedding_net.weight.clone()
    net.reset()
    assert not torch.equal(net.embedding_net.weight, before) and not torch.allclose(net(x)[:, 1:], first[:, 1:])


@LOSSES
def test_errors(build):
    with pytest.raises(ValueError, match="frequencies must be positive, one for each model"):
        build(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="num_models must be at least 2"):
        EvidenceClassifier(torch.nn.Identity(), 1, 4)
