"""Plans of trials agree with the theory of what designs can do."""

import math

import pytest
import torch
from matplotlib.figure import Figure

from sbi_bed.analysis import plot_treatment_plan
from sbi_bed.diagnostics import plan_treatment
from sbi_bed.policies import CoinFlip, NonContextualNeyman, OracleNeyman
from sbi_bed.simulators import multi_arm_benchmark

PLACES = [60, 120, 240]


@pytest.fixture(scope="module", params=[((1.0, 3.0), (0.0, 0.8)), ((3.0, 1.0, 1.0), (0.0, 0.8, 0.8))])
def planned(request):
    problem = multi_arm_benchmark(*request.param)
    designs = {
        "coin": CoinFlip(0, num_arms=problem.num_arms),
        "adaptive": NonContextualNeyman(0, num_arms=problem.num_arms),
        "oracle": OracleNeyman(problem),
    }
    return problem, plan_treatment(problem, designs, PLACES[::-1], 400, seed=0)


def normal_power(effect, stderr):
    normal = torch.distributions.Normal(0.0, 1.0)
    return float(normal.cdf(torch.tensor(effect / stderr - 1.96)) + normal.cdf(torch.tensor(-effect / stderr - 1.96)))


def test_widths_and_power_of_fixed_designs_follow_from_their_variance(planned):
    problem, plan = planned
    assert plan.num_units == PLACES and plan.designs == ["coin", "adaptive", "oracle"]
    sd, num_arms = problem.moments(torch.zeros(1, 0))[1][0].sqrt(), problem.num_arms
    oracle = torch.stack([1 - problem.oracle(problem.nodes), problem.oracle(problem.nodes)], -1)[0]
    shares = {
        0: torch.full((num_arms,), 1 / num_arms),
        2: oracle if num_arms == 2 else problem.oracle(problem.nodes)[0],
    }
    for row, share in shares.items():
        each = (sd[1:].square() / share[1:] + sd[0].square() / share[0]).sqrt()
        for column, num in enumerate(PLACES[1:], 1):
            expected = float(1.96 * each.mean()) / num**0.5
            assert float(plan.half_width[row, column]) == pytest.approx(
                expected, rel=0.06
            )  # predicted means are estimates
            power = sum(normal_power(0.8, float(v) / num**0.5) for v in each) / len(each)
            assert abs(float(plan.power[row, column]) - power) < 4.5 * (0.25 / 400) ** 0.5 + 0.02
    assert (plan.half_width[1, 1:] < plan.half_width[0, 1:] - 2 * plan.half_width_stderr[0, 1:]).all()
    assert (plan.stopped.diff(dim=1) >= 0).all() and (plan.stopped[:, -1] < plan.power[:, -1]).all()


def test_units_needed_tables_and_picture(planned):
    (_, plan), axes = planned, Figure().add_subplot()
    needed = plan.units_needed(float(plan.power[1, 1]))
    assert needed["adaptive"] == pytest.approx(120) and plan.units_needed(0.9999)["coin"] is None
    assert plan.units_needed(float(plan.power[:, 0].min()) / 2)["coin"] == 60.0
    frame = plan.to_dataframe()
    assert len(frame) == 9 and len(str(plan).splitlines()) == 11
    assert math.isclose(frame["power"][4], float(plan.power[1, 1]))
    for what in ("half_width", "power", "stopped"):
        axes.clear()
        plot_treatment_plan(plan, what, ax=axes)
        assert torch.equal(torch.as_tensor(axes.lines[1].get_ydata()), getattr(plan, what)[1])
    with pytest.raises(ValueError, match="what must be"):
        plot_treatment_plan(plan, "width", ax=axes)


def test_what_is_refused():
    problem = multi_arm_benchmark((1.0, 1.0))
    with pytest.raises(ValueError, match="must not be empty"):
        plan_treatment(problem, {}, [100])
    with pytest.raises(ValueError, match="num_units must be at least 2"):
        plan_treatment(problem, {"coin": CoinFlip(0)}, [1])
