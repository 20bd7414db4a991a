"""Trainings of every kind that take a tenth of a second, for tests of what goes wrong with their files.

Each is `train(path, resume=False, **settings)`: it keeps its state in `path` and returns what was trained.
"""

import torch
from torch import nn
from torch.distributions import Independent, Normal

from sbi_bed.inference import DAD, ActorTrainer, ContextNPE, ImitationTrainer, ModelComparison
from sbi_bed.policies import DeepSetsPolicy, ExperimenterTransformer, NeymanTeacher
from sbi_bed.simulators import (
    Contexts,
    LocationFinding,
    LogUniform,
    PowerScaledPrior,
    QuadraticEffortCost,
    TreatmentStream,
)

SIMULATOR = LocationFinding()
PRIOR = PowerScaledPrior(Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
POWERS = Contexts(gamma=LogUniform(0.5, 2.0, 2))


def weights_of(thing):
    """All numbers of a net, or of a posterior around nets."""
    nets = [thing, *(getattr(thing, name, None) for name in ("classifier", "estimator"))]
    nets += [member.classifier for member in getattr(thing, "members", ())]
    values = [v.flatten().double() for n in nets if isinstance(n, nn.Module) for v in n.state_dict().values()]
    assert values
    return torch.cat(values)


def train_policy(path, resume=False, every=1):
    torch.manual_seed(4)
    policy = DeepSetsPolicy(SIMULATOR, hidden_dim=4, summary_dim=2)
    trainer = DAD(SIMULATOR, 2, policy, show_progress_bars=False)
    return trainer.train(4, 4, 3, seed=0, checkpoint=path, checkpoint_every=every, resume=resume)


def train_models(path, resume=False, every=1):
    torch.manual_seed(5)
    trainer = ModelComparison(2, nn.Sequential(nn.Linear(2, 2)), show_progress_bars=False)
    index = torch.arange(40) % 2
    trainer.append_simulations(index, torch.randn(40, 2) + index[:, None])
    trainer.train(20, max_num_epochs=4, seed=0, checkpoint=path, checkpoint_every=every, resume=resume)
    return trainer.build_posterior()


def train_in_contexts(path, resume=False, every=1):
    torch.manual_seed(5)
    theta, gamma = torch.randn(40, 2), POWERS.sample((40,))
    trainer = ContextNPE(PRIOR, "maf", hidden_features=4, num_transforms=1, contexts=POWERS, show_progress_bars=False)
    trainer.append_simulations(theta, theta + 0.5 * torch.randn(40, 2), gamma)
    trainer.train(20, max_num_epochs=4, seed=0, checkpoint=path, checkpoint_every=every, resume=resume)
    return trainer.build_posterior()


def train_actor(path, resume=False, every=1):
    trainer = ActorTrainer(QuadraticEffortCost(), hidden_dim=4, num_layers=1, show_progress_bars=False)
    return trainer.train(4, 16, num_validation=0, seed=0, checkpoint=path, checkpoint_every=every, resume=resume)


def train_experimenter(path, resume=False, every=1):
    torch.manual_seed(4)
    student = ExperimenterTransformer(1, hidden_dim=8, num_layers=1, num_heads=2)
    trainer = ImitationTrainer(TreatmentStream(1.5), NeymanTeacher(1, 1.5), student, show_progress_bars=False)
    settings = {"num_episodes": 2, "num_units": 6, "batch_size": 2, "units_per_episode": 3, "seed": 3}
    return trainer.train(4, checkpoint=path, checkpoint_every=every, resume=resume, **settings)


TRAININGS = {
    "policy": train_policy,
    "models": train_models,
    "contexts": train_in_contexts,
    "actor training": train_actor,
    "experimenter training": train_experimenter,
}
