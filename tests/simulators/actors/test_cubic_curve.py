"""Curves through equidistant knots: exact for cubics, of fourth order elsewhere, differentiable."""

import pytest
import torch

from sbi_bed.simulators.actors.cubic_curve import CubicCurve


def test_cubics_are_exact_and_curves_lie_side_by_side():
    torch.manual_seed(0)
    coefficients = torch.randn(3, 2, 4, 1, dtype=torch.float64)

    def cubics(t):
        a, b, c, d = coefficients.unbind(-2)
        return a + t * (b + t * (c + t * d))

    knots, points = torch.linspace(-1, 2, 9, dtype=torch.float64), 3 * torch.rand(3, 2, 50, dtype=torch.float64) - 1
    torch.testing.assert_close(CubicCurve(cubics(knots), -1.0, 3 / 8)(points), cubics(points))


@pytest.mark.parametrize("num", [9, 33])
def test_the_error_is_of_fourth_order(num):
    """At most (3/128) h⁴ max |f''''| between inner knots, and at most half of that is reached somewhere."""
    step = 4 / (num - 1)
    curve = CubicCurve(torch.linspace(0, 4, num, dtype=torch.float64).sin(), 0.0, step)
    points = torch.linspace(step, 4 - step, 1001, dtype=torch.float64)
    error, bound = (curve(points) - points.sin()).abs().max().item(), 3 / 128 * step**4
    assert 0.5 * bound < error < 1.001 * bound


def test_gradients():
    torch.manual_seed(0)
    values = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    points = (5 * torch.rand(2, 3, dtype=torch.float64)).requires_grad_()
    torch.autograd.gradcheck(lambda v, p: CubicCurve(v, 0.0, 1.0)(p), (values, points))


def test_too_few_knots():
    with pytest.raises(ValueError, match="a cubic needs 4 knots, got 3"):
        CubicCurve(torch.zeros(3), 0.0, 1.0)
