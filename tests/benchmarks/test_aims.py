"""What training for an aim is worth: policies trained for it, for all of theta, greedy and random, by one judge."""

import time

import pytest
import torch
from models import LinearGaussian
from report import report

from sbi_bed.diagnostics import expected_information_gain, expected_utility
from sbi_bed.inference import DAD
from sbi_bed.objectives import PCE, Decision, DecisionUtility
from sbi_bed.policies import DeepSetsPolicy, GreedyPolicy, RandomPolicy
from sbi_bed.simulators import HyperbolicDiscounting, Pharmacokinetics

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
COMMAND = "pytest -m benchmark tests/benchmarks/test_aims.py"
SEEDS = (0, 1, 2)

# A person has to choose between 100 in 60 days and 50 today, and will ask the experimenter.
SAYS_LATER = Decision(
    lambda theta, action: action[..., 0] * (100 / (1 + 60 * theta[..., 0].exp()) - 50), [[0.0], [1.0]]
)
OFFERS = [[reward, 60.0] for reward in (20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0)]
CASES = {
    "linear and Gaussian, 3 parameters, T=2, about one": (lambda: LinearGaussian(3), 2, {"of": [0]}),
    "pharmacokinetics, T=3, about k_e": (Pharmacokinetics, 3, {"of": [1]}),
    "discounting, T=4, about seven offers in 60 days": (HyperbolicDiscounting, 4, {"target_designs": OFFERS}),
    "discounting, T=4, utility of a choice made for the person": (HyperbolicDiscounting, 4, {"decision": SAYS_LATER}),
}


@pytest.mark.parametrize("name", CASES)
def test_training_for_the_aim_beats_training_for_all_of_theta(name):
    build, horizon, aim = CASES[name]
    simulator = build()

    def judged(policy, num_rollouts=1000):
        if "decision" in aim:
            found = expected_utility(simulator, policy, horizon, SAYS_LATER, num_rollouts, 2000, seed=1)
            return found.utility, found.stderr
        found = expected_information_gain(simulator, policy, horizon, num_rollouts, 2000, bound=PCE(**aim), seed=1)
        return found.lower, found.lower_stderr

    def trained(seed, for_aim):
        torch.manual_seed(seed)
        policy, bound = DeepSetsPolicy(simulator), PCE(255, **({} if "decision" in aim or not for_aim else aim))
        if for_aim and "decision" in aim:
            bound = DecisionUtility(simulator, SAYS_LATER)
        DAD(simulator, horizon, policy, bound=bound, show_progress_bars=False).train(300, 120, None, 3e-3, seed=seed)
        return judged(policy)

    lookahead = {"objective": "utility", **aim} if "decision" in aim else aim
    lookahead = {"objective": "prediction", **aim} if "target_designs" in aim else lookahead
    start = time.process_time()
    rows = {
        "trained for it": [trained(seed, True) for seed in SEEDS],
        "trained for all of theta": [trained(seed, False) for seed in SEEDS],
        "greedy for it": [judged(GreedyPolicy(simulator, num_candidates=64, **lookahead), 64)],
        "random": [judged(RandomPolicy(simulator))],
    }
    for policy, gains in rows.items():
        report(f"{name}: {policy}", ", ".join(f"{gain:.3f} ± {error:.3f}" for gain, error in gains), COMMAND)
    print(f"{time.process_time() - start:.0f} s of CPU")
    (random, _), aims, alls = rows["random"][0], rows["trained for it"], rows["trained for all of theta"]
    assert all(gain > random + 4.5 * error for gain, error in aims)
    assert all(gain > other - 2 * error for (gain, error), (other, _) in zip(aims, alls, strict=True))
