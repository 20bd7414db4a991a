"""Beyond a classifier: evidences from posteriors, nets that were trained before, and experiments that tell models apart."""

import math
import statistics
import time

import pytest
import torch
from report import report
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn

from sbi_bed.diagnostics import compare_evidence_routes, model_information_gain
from sbi_bed.inference import DAD, ModelComparison, PosteriorEvidence
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.objectives import PCE, ModelPCE
from sbi_bed.policies import RandomPolicy, TransformerPolicy
from sbi_bed.simulators import (
    ExponentialDiscounting,
    HyperbolicDiscounting,
    ModelMixture,
    NestedNormal,
    simulate_models,
)
from sbi_bed.utils import NoTracker

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
COMMAND = "pytest -m benchmark tests/benchmarks/test_model_routes.py"


def posterior_of_variances(models, model_index, num_simulations):
    """NPE of (τ², σ²) under one model, the embedding net being that of a classifier."""
    theta, x = models.sample(model_index, num_simulations)
    variances, embedding_net = theta[:, 1:].float(), HierarchicalEmbedding(1)
    embedding_net.fit_scale(x[:2000])
    build = posterior_nn(
        "zuko_nsf",
        embedding_net=embedding_net,
        z_score_x="none",
        z_score_theta="transform_to_unconstrained",
        x_dist=models.variance_prior,
    )
    inference = NPE(models.variance_prior, density_estimator=build, tracker=NoTracker(), show_progress_bars=False)
    inference.append_simulations(variances, x).train(
        training_batch_size=256, learning_rate=1e-3, max_num_epochs=12, show_train_summary=False
    )
    return inference.build_posterior()


@pytest.mark.parametrize("size", [20, 50])
def test_routes_to_the_evidence(size):
    models, start = NestedNormal(size, size), time.process_time()
    torch.manual_seed(0)
    model_index, x = simulate_models(models, 20_000, seed=1)
    classifiers = {}
    for loss in ("cross-entropy", "l-pop"):
        torch.manual_seed(0)
        alpha = 2.0 if loss == "l-pop" else None
        trainer = ModelComparison(2, HierarchicalEmbedding(1), show_progress_bars=False, loss=loss, alpha=alpha)
        trainer.append_simulations(model_index, x).train(max_num_epochs=12, seed=0, vary_sizes=False)
        classifiers[f"classifier, {loss}"] = trainer.build_posterior()
    torch.manual_seed(0)
    posteriors = [posterior_of_variances(models, j, 10_000) for j in range(2)]
    likelihoods = [lambda theta, x, j=j: models.log_likelihood_of_variances(theta, x, j) for j in range(2)]
    priors = [models.variance_prior] * 2
    routes = classifiers | {
        f"posteriors, {method}": PosteriorEvidence(posteriors, likelihoods, priors, None, 500, method, seed=0)
        for method in ("importance", "identity")
    }
    test_x = simulate_models(models, 1000, seed=2)[1]
    exact = torch.stack([models.log_evidence(test_x, j) for j in range(2)], -1)
    found = compare_evidence_routes(routes, test_x, exact)
    print(f"\n{found}")
    seconds = time.process_time() - start
    for route in routes:
        near, far = (float(found.errors(route, largest).square().mean().sqrt()) for largest in (9, 40))
        probability = (found.log_probs[route].exp() - found.log_probs["exact"].exp()).abs().mean()
        report(
            f"nested normal {size}×{size}, {route}",
            f"RMSE of log BF {near:.3f} up to 9 nats, {far:.3f} up to 40; error of probabilities {float(probability):.4f} "
            f"({seconds:.0f} s of CPU for all routes)",
            f"{COMMAND} -k routes",
        )
    importance = found.errors("posteriors, importance", 40)
    assert importance.square().mean().sqrt() <= 3


def test_transfer_from_small_data():
    """Steps on 40×40 data until the validation loss is within .01 of the best, from scratch and after 10×10 data."""
    small, large = NestedNormal(10, 10), NestedNormal(40, 40)
    steps = {"new": [], "pre-trained": []}
    for seed in range(5):
        torch.manual_seed(seed)
        first = ModelComparison(2, HierarchicalEmbedding(1), show_progress_bars=False)
        simulations = simulate_models(small, 20_000, seed=10 + seed)
        first.append_simulations(*simulations).train(max_num_epochs=8, seed=seed, vary_sizes=False)
        data = simulate_models(large, 6000, seed=20 + seed)
        losses = {}
        for name in steps:
            torch.manual_seed(seed)
            if name == "new":
                trainer = ModelComparison(2, HierarchicalEmbedding(1), show_progress_bars=False)
            else:
                trainer = ModelComparison.transfer(first.build_posterior(), show_progress_bars=False)
            settings = {"max_num_epochs": 16, "validation_fraction": 0.3, "seed": seed, "vary_sizes": False}
            trainer.append_simulations(*data).train(64, **settings)
            losses[name] = trainer.validation_losses
        goal = min(map(min, losses.values())) + 0.01
        for name, values in losses.items():
            epochs = next((number for number, loss in enumerate(values, 1) if loss <= goal), math.inf)
            steps[name].append(epochs * math.ceil(0.7 * 6000 / 64))
    for name, found in steps.items():
        report(
            f"nested normal 40×40, 6,000 simulations, {name} net, five seeds",
            f"steps of 64 until within .01 of the best validation loss: {', '.join(map(str, found))}",
            f"{COMMAND} -k transfer",
        )
    assert statistics.median(steps["pre-trained"]) < statistics.median(steps["new"])


def test_a_policy_that_tells_discounting_models_apart():
    """Ten questions: hyperbolic or exponential?"""
    mixture, start = ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()]), time.process_time()
    torch.manual_seed(0)
    policy = TransformerPolicy(mixture, 10)
    found = {"random": model_information_gain(mixture, RandomPolicy(mixture), 10, 4000, 10_000, seed=1)}
    trainings = {"parameters": (PCE(255), 300, 2e-3), "model": (ModelPCE(4096), 200, 1e-3)}
    for name, (bound, num_steps, rate) in trainings.items():
        trainer = DAD(mixture, 10, policy, bound=bound, show_progress_bars=False)
        trainer.train(num_steps, 256, learning_rate=rate, seed=0)
        found[name] = model_information_gain(mixture, policy, 10, 4000, 10_000, seed=1)
    for name, gain in found.items():
        label = "random questions" if name == "random" else f'DAD on "{name}", going on from the row above'
        report(f"hyperbolic or exponential discounting, 10 questions, {label}", str(gain), f"{COMMAND} -k discounting")
    report("of these, training", f"{time.process_time() - start:.0f} s of CPU with all evaluations", COMMAND)
    assert found["model"].lower - found["random"].lower > 3 * math.hypot(
        found["model"].lower_stderr, found["random"].lower_stderr
    )
