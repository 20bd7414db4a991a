"""Roots by halving, and their derivatives by the implicit function theorem."""

import torch

from sbi_bed.simulators.actors.roots import increasing_root


def test_roots_and_their_gradients_are_exact():
    a = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a: increasing_root(lambda x: x**3 + a * x - 2, torch.zeros(3).double(), torch.full((3,), 3.0).double()),
        a,
    )
    root = increasing_root(lambda x: x**3 + a * x - 2, torch.zeros(3).double(), torch.full((3,), 3.0).double())
    torch.testing.assert_close(root**3 + a * root, torch.full((3,), 2.0).double(), rtol=0, atol=1e-12)


def test_a_flat_function_and_no_gradients():
    low, high = torch.zeros(1).double(), torch.ones(1).double()
    with torch.no_grad():
        step = increasing_root(lambda x: (x > 0.3).double() - 0.5 + 0 * x, low, high)
    assert abs(float(step) - 0.3) < 1e-12
