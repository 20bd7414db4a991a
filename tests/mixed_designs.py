"""An experiment whose design is a dose, a drug and a time: continuous, a category, a whole number."""

import math

import torch
from torch.distributions import MultivariateNormal, constraints

from sbi_bed.simulators import DesignSimulator, DesignSpace

NOISE = 0.05


def dose_drug_time(pass_on_gradients: bool = True) -> DesignSimulator:
    """Effect e = c / (1 + c) of the concentration c = dose · exp(potency of the drug − rate · hours), read with noise.

    Theta: log potencies of three drugs and the log elimination rate. Without gradients the simulator is as users write
    one: it takes the time from a table, and no derivative leads back to the design.
    """
    mean = torch.tensor([-1.0, -1.0, -1.0, -1.5])

    def effect(theta, design):
        dose, drug, hours = design.unbind(-1)
        potency = (theta[..., :3] * torch.nn.functional.one_hot(drug.round().long(), 3).to(theta)).sum(-1)
        concentration = (potency - theta[..., 3].exp() * hours).exp() * dose
        return concentration / (1 + concentration)

    def simulate(theta, design):
        value = effect(theta, design)
        return (value + NOISE * torch.randn_like(value)).unsqueeze(-1)

    def log_likelihood(theta, design, outcome):
        residual = (outcome.squeeze(-1) - effect(theta, design)) / NOISE
        return -0.5 * residual.square() - math.log(NOISE * math.sqrt(2 * math.pi))

    def blind(function):
        return lambda theta, design, *outcome: function(theta, design.detach(), *outcome)

    return DesignSimulator(
        MultivariateNormal(mean, torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.25]))),
        simulate if pass_on_gradients else blind(simulate),
        DesignSpace.of_parts(
            dose=constraints.interval(0.0, 10.0),
            drug=["A", "B", "C"],
            hours=constraints.integer_interval(1, 24),
        ),
        log_likelihood=log_likelihood if pass_on_gradients else blind(log_likelihood),
        reparameterized=pass_on_gradients,
    )


def fine_grid(num_doses: int = 101) -> torch.Tensor:
    """All drugs and times with many doses, (num_doses · 72, 3)."""
    doses = torch.linspace(0, 10, num_doses + 1)[1:]
    return torch.cartesian_prod(doses, torch.arange(3.0), torch.arange(1.0, 25.0))
