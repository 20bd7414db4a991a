"""Designs that are not just numbers: a dose, a drug and a time; numbers of prey; candidates."""

import time

import pytest
import torch
from mixed_designs import dose_drug_time, fine_grid
from report import report

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import DAD
from sbi_bed.policies import GreedyPolicy, RandomPolicy
from sbi_bed.policies.design.one_step_gain import nested_information
from sbi_bed.simulators import LocationFinding, PreyPopulation
from sbi_bed.utils.seeding import seeded

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
COMMAND = "pytest -m benchmark tests/benchmarks/test_mixed_designs.py"


def _gain(simulator, belief, designs):
    """One-step gains (J,) of designs (J, 3), from 2,000 draws and 1,000 outcomes of their own."""
    with seeded(77):
        index = torch.multinomial(belief.log_weights.exp().float(), 2000, replacement=True)
        return nested_information(simulator, belief.theta[index], designs, 1000, seed=5)


@pytest.mark.parametrize("pass_on_gradients", [True, False])
def test_dose_drug_time_against_a_fine_grid(pass_on_gradients):
    """Three trials of three experiments: 99 % of the gain of the best of 7,272 designs, in a tenth of its CPU time."""
    simulator = dose_drug_time(pass_on_gradients)
    searched, on_grid = GreedyPolicy(simulator), GreedyPolicy(simulator, candidates=fine_grid())
    ours, theirs, seconds = [], [], [0.0, 0.0]
    for seed in range(3):
        torch.manual_seed(seed)
        theta, state, grid_state = simulator.prior.sample(), searched.initial_state(), on_grid.initial_state()
        for _ in range(3):
            searched._first = None  # the first design is thought of anew
            start = time.process_time()
            design = searched.propose(state)
            between = time.process_time()
            best = on_grid.propose(grid_state)
            seconds = [seconds[0] + between - start, seconds[1] + time.process_time() - between]
            gains = _gain(simulator, state.belief, torch.stack([design, best]))
            ours.append(float(gains[0]))
            theirs.append(float(gains[1]))
            outcome = simulator(theta, design)
            state, grid_state = (p.update(s, design, outcome) for p, s in ((searched, state), (on_grid, grid_state)))
    share = sum(ours) / sum(theirs)
    report(
        f"dose × drug × time, {'pathwise' if pass_on_gradients else 'no'} gradients, searched against 7,272 designs",
        f"{share:.2%} of the gain, {seconds[0] / 9:.2f} s against {seconds[1] / 9:.2f} s of CPU a design",
        COMMAND,
    )
    assert share >= 0.99 and seconds[0] <= seconds[1] / 10


def test_prey_population():
    simulator = PreyPopulation()
    policies = {"random": RandomPolicy(simulator)}
    start = time.process_time()
    policies["DAD"] = DAD(simulator, 10, show_progress_bars=False).train(1000, 256, 255, 4e-3, seed=0)
    seconds = time.process_time() - start
    for name, policy in policies.items():
        gain = expected_information_gain(simulator, policy, 10, 500, 30_000, seed=1)
        report(
            f"prey population, T=10, {name}{f', {seconds:.0f} s of CPU' if name == 'DAD' else ''}", str(gain), COMMAND
        )
    greedy = GreedyPolicy(simulator, num_particles=1024, num_inner=128, num_outer=64)
    best = expected_information_gain(simulator, greedy, 10, 192, 30_000, seed=1)
    report("prey population, T=10, greedy lookahead among 300", str(best), COMMAND)
    assert best.lower + 2 * best.lower_stderr >= 4.52


def test_location_on_candidates():
    """Nine by nine sensors, T=5."""
    side = torch.linspace(-2, 2, 9)
    simulator = LocationFinding()
    simulator.design_space = type(simulator.design_space)(candidates=torch.cartesian_prod(side, side))
    policy = DAD(simulator, 5, show_progress_bars=False).train(600, 256, 255, 4e-3, seed=0)
    gain = expected_information_gain(simulator, policy, 5, 1000, 20_000, seed=1)
    report("location, 9 × 9 candidates, T=5, DAD", str(gain), COMMAND)
    assert gain.lower + 4.5 * gain.lower_stderr >= 3.7
