"""Every kind of prior that an experiment takes."""

import torch
from sbi.utils import BoxUniform, MultipleIndependent
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Dirichlet,
    Gamma,
    HalfNormal,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    TransformedDistribution,
    Uniform,
    transforms,
)


class OwnNormal:
    """A prior that is no torch distribution and says nothing of its support."""

    def sample(self, sample_shape=()):
        return torch.randn(*sample_shape, 2)

    def log_prob(self, theta):
        return Normal(0.0, 1.0).log_prob(theta).sum(-1)


class OwnBox(OwnNormal):
    """Bounded, but it does not say so: outside, its density is 0."""

    def sample(self, sample_shape=()):
        return torch.rand(*sample_shape, 2)

    def log_prob(self, theta):
        return torch.where(((theta > 0) & (theta < 1)).all(-1), 0.0, -torch.inf)


def joined(*parts):
    return MultipleIndependent(list(parts), validate_args=False)


def ones(*shape):
    return torch.ones(*shape)


STANDARD = Normal(torch.zeros(1), ones(1))
SHIFTED = Independent(Normal(torch.tensor([[-2.0, 0.0], [2.0, 0.5]]), ones(2, 2)), 1)
CONTINUOUS = {
    "normal": MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 2.0]])),
    "box": BoxUniform(torch.zeros(2), 2 * ones(2)),
    "uniform": Independent(Uniform(-ones(2), ones(2)), 1),
    "beta": Independent(Beta(2 * ones(2), 3 * ones(2)), 1),
    "lognormal": Independent(LogNormal(torch.zeros(2), 0.5 * ones(2)), 1),
    "halfnormal": Independent(HalfNormal(ones(2)), 1),
    "cauchy": Independent(Cauchy(torch.zeros(2), ones(2)), 1),
    "dirichlet": Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    "dirichlet and normal": joined(Dirichlet(ones(3)), STANDARD),
    "mixture": MixtureSameFamily(Categorical(ones(2)), SHIFTED),
    "mixture of gammas": MixtureSameFamily(
        Categorical(ones(2)), Independent(Gamma(torch.tensor([[1.0, 1.0], [5.0, 3.0]]), ones(2, 2)), 1)
    ),
    "mixture and normal": joined(
        MixtureSameFamily(Categorical(ones(1, 2)), Normal(torch.tensor([[-2.0, 2.0]]), ones(1, 2))), STANDARD
    ),
    "shifted box": TransformedDistribution(
        Independent(Uniform(torch.zeros(2), ones(2)), 1),
        [transforms.AffineTransform(2 * ones(2), 3 * ones(2), event_dim=1)],
    ),
    "joined": joined(Gamma(2 * ones(1), ones(1)), Beta(ones(1), ones(1)), STANDARD),
    "own": OwnNormal(),
    "own box": OwnBox(),
}
DISCRETE = {
    "bernoulli and normal": joined(Bernoulli(0.3 * ones(1)), STANDARD),
    "poisson and gamma": joined(Poisson(3 * ones(1)), Gamma(2 * ones(1), ones(1))),
    "categorical and normals": joined(
        Categorical(torch.tensor([[0.2, 0.3, 0.5]])), MultivariateNormal(torch.zeros(2), torch.eye(2))
    ),
    "bernoullis": Independent(Bernoulli(torch.tensor([0.3, 0.6])), 1),
    "binomial": Independent(Binomial(torch.tensor([30.0, 3.0]), torch.tensor([0.4, 0.5])), 1),
    "one-hot": OneHotCategorical(torch.tensor([0.2, 0.3, 0.5])),
}
PRIORS = CONTINUOUS | DISCRETE
