"""Contexts, dtypes and sizes at every entry point of a `ContextPosterior`: the answer, one ValueError, or one warning."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal

from sbi_bed.inference import ContextModelPosterior, ContextNPE, DeepEnsemblePosterior, ModelPosterior
from sbi_bed.neural_nets import ContextEmbedding, EvidenceClassifier, HierarchicalEmbedding
from sbi_bed.policies import ContextPolicy
from sbi_bed.simulators import (
    Contexts,
    LocationFinding,
    LogUniform,
    PowerScaledPrior,
    UniformRange,
    simulate_with_context,
)

CONTEXTS = Contexts(gamma=LogUniform(0.5, 2.0, 2), upper=UniformRange(1.0, 3.0))
PRIOR = PowerScaledPrior(Independent(Normal(torch.zeros(2), torch.ones(2)), 1))


def simulator(theta):
    values = theta.unsqueeze(1).unsqueeze(1).expand(-1, 3, 4, 2) + torch.randn(len(theta), 3, 4, 2)
    return torch.cat([values, torch.ones(len(theta), 3, 4, 1)], -1)


@pytest.fixture(scope="module")
def posterior():
    simulations = simulate_with_context(simulator, PRIOR, 400, CONTEXTS, seed=0)
    net = HierarchicalEmbedding(2, output_dim=4)
    trainer = ContextNPE(PRIOR, contexts=CONTEXTS, embedding_net=net, show_progress_bars=False, num_transforms=1)
    trainer.append_simulations(*simulations).train(max_num_epochs=1, seed=0, vary_sizes=False)
    return trainer.build_posterior()


@pytest.fixture(scope="module")
def models():
    net = EvidenceClassifier(ContextEmbedding((4,), 3, log_columns=[True, True, False]), num_models=2, summary_dim=39)
    return ContextModelPosterior(ModelPosterior(net, torch.tensor([0.5, 0.5]), (7,)), CONTEXTS)


X = simulator(torch.zeros(1, 2))[0]
THETA = torch.zeros(5, 2)
ENTRIES = {
    "sample": lambda p, x, c: p.sample((4,), x=x, context=c),
    "sample_batched": lambda p, x, c: p.sample_batched((4,), np.asarray(x)[None], context=c),
    "log_prob": lambda p, x, c: p.log_prob(THETA, x=x, context=c),
    "log_prob_batched": lambda p, x, c: p.log_prob_batched(THETA.unsqueeze(1), np.asarray(x)[None], c),
    "condition_on, sample": lambda p, x, c: p.condition_on(c).sample(
        (4,), x=torch.as_tensor(np.asarray(x)).float(), show_progress_bars=False
    ),
    "condition_on, log_prob": lambda p, x, c: p.condition_on(c).log_prob(
        THETA, x=torch.as_tensor(np.asarray(x)).float()
    ),
    "ensemble": lambda p, x, c: DeepEnsemblePosterior([p, p]).sample((4,), x=x, context=c),
    "ensemble, condition_on": lambda p, x, c: (
        DeepEnsemblePosterior([p, p])
        .condition_on(c)
        .sample((4,), x=torch.as_tensor(np.asarray(x)).float(), show_progress_bars=False)
    ),
}
FORMS = {
    "list": lambda c: list(map(float, c)),
    "float64": lambda c: torch.tensor(c, dtype=torch.float64),
    "numpy": lambda c: np.asarray(c),
    "numpy float32": lambda c: np.asarray(c, dtype=np.float32),
}


@pytest.mark.parametrize("entry", ENTRIES)
@given(
    values=st.tuples(st.floats(0.05, 8.0), st.floats(0.05, 8.0), st.floats(-1.0, 5.0)),
    form=st.sampled_from(list(FORMS)),
    data_form=st.sampled_from([lambda x: x, lambda x: x.double(), lambda x: x.double().numpy(), lambda x: x.tolist()]),
)
@settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_contexts_outside_training_are_refused_at_every_entry(posterior, entry, values, form, data_form):
    gamma_inside = all(0.5 <= value <= 2.0 for value in values[:2])
    bounds = (0.5, 2.0, 1.0, 3.0)
    if any(abs(value - bound) < 1e-3 for value in values for bound in bounds):
        return  # rounding decides
    context, x = FORMS[form](values), data_form(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if gamma_inside and 1.0 <= values[2] <= 3.0:
            found = ENTRIES[entry](posterior, x, context)
            assert found.dtype == torch.float32 and bool(torch.isfinite(found).all())
        else:
            outside = "gamma" if not gamma_inside else "upper = "
            with pytest.raises(ValueError, match=rf"{outside}.* lies outside what the net was trained on, \["):
                ENTRIES[entry](posterior, x, context)


@given(
    values=st.tuples(st.floats(0.05, 8.0), st.floats(0.05, 8.0), st.floats(-1.0, 5.0)),
    form=st.sampled_from(list(FORMS)),
)
@settings(max_examples=30, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_models_and_policies_refuse_contexts_outside_training(models, values, form):
    if any(abs(value - bound) < 1e-3 for value in values for bound in (0.5, 2.0, 1.0, 3.0)):
        return
    policy, x = ContextPolicy(LocationFinding(), CONTEXTS), torch.randn(6, 4)
    context = FORMS[form](values)
    calls = [
        lambda: models.probs(x, context),
        lambda: models.log_bayes_factor(x, 0, 1, context),
        lambda: models.condition_on(context).probs(x),
        lambda: policy.in_context(context)(torch.zeros(0, 4)),
    ]
    is_inside = all(0.5 <= value <= 2.0 for value in values[:2]) and 1.0 <= values[2] <= 3.0
    for call in calls:
        if is_inside:
            assert bool(torch.isfinite(call()).all())
        else:
            with pytest.raises(ValueError, match="lies outside what the net was trained on"):
                call()


def test_one_bad_context_in_a_batch_is_named(posterior):
    contexts = torch.tensor([[1.0, 1.0, 2.0], [1.0, 4.0, 2.0]])
    with pytest.raises(ValueError, match=r"gamma\[1\] = 4 at index \(1,\) lies outside"):
        posterior.sample_batched((4,), X.unsqueeze(0), contexts)


@pytest.mark.parametrize("entry", ENTRIES)
def test_sizes_outside_training_give_one_warning_at_every_entry(posterior, entry):
    smaller = X.clone()
    smaller[1, 2:] = 0
    with pytest.warns(RuntimeWarning, match=r"observations per group: 2 .*trained on 4") as caught:
        ENTRIES[entry](posterior, smaller, [1.0, 1.0, 2.0])
    assert len([each for each in caught if issubclass(each.category, RuntimeWarning)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ENTRIES[entry](posterior, X, [1.0, 1.0, 2.0])


def test_sbi_has_nothing_to_say_of_batch_sizes(posterior):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior.condition_on([1.0, 1.0, 2.0]).sample_batched(
            (3,), simulator(torch.zeros(200, 2)), show_progress_bars=False
        )
