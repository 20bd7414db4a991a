"""Arms of a trial: how they are drawn, and the shares that estimate all effects against the control best."""

import pytest
import torch

from sbi_bed.simulators import TreatmentProblem, multi_arm_benchmark, two_arm_benchmark
from sbi_bed.simulators.treatment.arms import arm_chances, as_propensity, clip_shares, draw_arms, weighted_sds


@pytest.mark.parametrize("num_arms", [2, 3, 5])
def test_best_shares_minimise_the_sum_of_variances_of_effects(num_arms):
    sd = torch.rand(num_arms, generator=torch.Generator().manual_seed(num_arms), dtype=torch.float64) + 0.2
    logits = torch.zeros(num_arms, dtype=torch.float64, requires_grad=True)

    def total(shares):  # of variances of the effects of arms 1 … K − 1 against arm 0
        return (sd[1:].square() / shares[1:] + sd[0].square() / shares[0]).sum()

    optimiser = torch.optim.LBFGS([logits], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure():
        optimiser.zero_grad()
        loss = total(logits.softmax(-1))
        loss.backward()
        return loss

    optimiser.step(closure)
    best = weighted_sds(sd)
    assert torch.allclose(logits.softmax(-1).detach(), best / best.sum(), atol=1e-5)
    assert torch.allclose(total(best / best.sum()), best.sum().square())


def test_arms_are_drawn_with_their_probabilities_and_two_as_by_a_threshold():
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chances = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    shares = torch.bincount(draw_arms(uniform, chances.expand(len(uniform), 3), 3)) / len(uniform)
    assert ((shares - chances).abs() < 4.5 * (chances * (1 - chances) / len(uniform)).sqrt()).all()
    propensity = torch.rand(len(uniform), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(draw_arms(uniform, propensity, 2), (uniform < propensity).long())
    assert torch.equal(as_propensity(arm_chances(propensity, 2)), propensity)


def test_clipped_shares_sum_to_one_keep_ratios_and_agree_with_two_arms():
    shares = torch.rand(500, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).pow(6)
    shares = shares / shares.sum(-1, keepdim=True)
    found = clip_shares(shares, 0.08)
    assert torch.allclose(found.sum(-1), torch.ones(500).double()) and float(found.min()) >= 0.08 - 1e-12
    free = found > 0.08 + 1e-9
    ratio = torch.where(free, found / shares, torch.nan)
    lowest, highest = (torch.where(free, found / shares, end) for end in (torch.inf, 0.0))
    assert torch.allclose(lowest.amin(-1), highest.amax(-1)) and int(free.sum()) > 500
    assert ((found == 0.08) | free).all() and (ratio.nan_to_num(0.0) <= 1 + 1e-12).all()
    two = torch.rand(50, 1, dtype=torch.float64)
    assert torch.allclose(clip_shares(torch.cat([1 - two, two], -1), 0.1)[:, 1:], two.clamp(0.1, 0.9))
    only = clip_shares(shares, 0.08, torch.tensor([True, False, True, True, False]))
    assert (only[:, [1, 4]] == 0).all() and float(only[:, [0, 2, 3]].min()) >= 0.08 - 1e-12
    assert torch.allclose(only.sum(-1), torch.ones(500).double())


def test_regret_and_bound_of_three_arms():
    def moments(x):
        mean = torch.cat([x, 2 * x, 1 - x], -1)
        return mean, torch.cat([1 + x, 0.3 + 0 * x, (2 - x).square()], -1)

    nodes = (torch.arange(400).double().unsqueeze(-1) + 0.5) / 400
    problem = TreatmentProblem(lambda n: torch.rand(n, 1).double(), moments, nodes)
    assert problem.num_arms == 3 and torch.allclose(problem.effect, torch.tensor([0.5, 0.0]).double())
    shares = torch.tensor([0.5, 0.2, 0.3]).double().expand(400, 3)
    mean, variance = moments(nodes)
    effects = mean[:, 1:] - mean[:, :1]
    for e in (shares, problem.oracle(nodes)):
        each = variance[:, 1:] / e[:, 1:] + variance[:, :1] / e[:, :1]
        direct = each.mean(0).sum() + effects.var(0, correction=0).sum()
        assert torch.allclose(problem.variance(lambda x, e=e: e), direct)
    assert torch.allclose(problem.variance(problem.oracle), problem.bound)
    assert two_arm_benchmark().num_arms == 2 and multi_arm_benchmark((1.0,) * 5).num_arms == 5
