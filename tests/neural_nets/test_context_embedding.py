"""Data with a context behind them: who reads what, in which units, and what is refused."""

import math

import pytest
import torch
from torch import nn

from sbi_bed.neural_nets import ContextEmbedding, HierarchicalEmbedding, HistoryEmbedding
from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import LocationFinding, PolicySimulator
from sbi_bed.utils import pack_context


def test_logs_of_powers_are_standardised():
    gamma = torch.exp(torch.rand(4000, 2) * 2 * math.log(2) - math.log(2))
    x = pack_context(5 + 3 * torch.randn(4000, 6), torch.cat([gamma, torch.rand(4000, 1)], -1))
    net = ContextEmbedding((6,), 3, log_columns=[True, True, False]).fit_scale(x)
    known = net(x)[:, :9]
    torch.testing.assert_close(known.mean(0), torch.zeros(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(known.std(0), torch.ones(9), atol=1e-5, rtol=0)
    logs = gamma.log()
    torch.testing.assert_close(known[:, 6:8], (logs - logs.mean(0)) / logs.std(0), atol=1e-4, rtol=1e-4)


def grouped(num):
    x = torch.randn(num, 3, 5, 2)
    mask = (torch.rand(num, 3, 5, 1) < 0.8).float()
    mask[:, 0, 0] = 1.0
    return torch.cat([x * mask, mask], -1)


def test_grouped_data_stay_invariant_and_the_context_counts():
    x, context = grouped(40), torch.rand(40, 2) + 0.5
    data_net = HierarchicalEmbedding(input_dim=2)
    net = ContextEmbedding((3, 5, 3), 2, data_net, [True, True]).fit_scale(pack_context(x, context)).eval()
    assert not torch.equal(data_net.mean, torch.zeros(2))  # its own scale was measured, too
    summary = net(pack_context(x, context))
    moved = x[:, torch.tensor([2, 0, 1])][:, :, torch.randperm(5)]
    torch.testing.assert_close(net(pack_context(moved, context)), summary, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net(pack_context(x[:3], context[:3])), summary[:3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(summary[:, :32], data_net(x), atol=1e-5, rtol=1e-4)
    assert (net(pack_context(x, context + 0.3)) - summary)[:, 32:].abs().min(0).values.max() > 0.01


def test_histories_keep_their_own_net():
    simulator = LocationFinding()
    x = PolicySimulator(simulator, RandomPolicy(simulator), 4)(simulator.prior.sample((10,)))
    data_net = HistoryEmbedding(simulator).eval()
    net = ContextEmbedding((4, 4), 1, data_net, [True]).eval()
    packed = pack_context(x, torch.ones(10, 1))
    torch.testing.assert_close(net(packed)[:, :32], data_net(x))
    torch.testing.assert_close(net(pack_context(x.flip(1), torch.ones(10, 1))), net(packed), atol=1e-4, rtol=1e-4)


def test_constants_stay_finite():
    x = pack_context(torch.ones(20, 3), torch.ones(20, 1))
    assert torch.isfinite(ContextEmbedding((3,), 1, log_columns=[True]).fit_scale(x)(x)).all()


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: ContextEmbedding((3,), 2, log_columns=[True]), "log_columns must have 2"),
        (lambda: ContextEmbedding((3,), 0), "context_dim"),
        (lambda: ContextEmbedding((3,), 1, nn.Linear(4, 2)), "cannot read"),
        (lambda: ContextEmbedding((3, 2), 1, nn.Linear(2, 2)), r"summaries \(B, S\)"),
        (lambda: ContextEmbedding((3,), 1)(torch.zeros(2, 5)), "1 values of context"),
    ],
)
def test_what_is_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()
