"""Any input of treatment experiments, actors, sensitivity and model comparison gives the exact answer, or one clear error.

As in `test_any_input`: every answer is known in closed form or by a plain sum, and a warning must name an argument.
"""

import math

import numpy as np
import pytest
import torch
from any_input import (
    CONTAINERS,
    DTYPES,
    NOT_FINITE,
    NOT_NUMBERS,
    SEEDS,
    few_and_many,
    in_container,
    listening,
    refused,
)
from hypothesis import strategies as st
from torch.distributions import Beta, Exponential, Gamma, Independent, Laplace, Normal

from sbi_bed.inference import ModelPosterior, TreatmentExperiment
from sbi_bed.neural_nets import EvidenceClassifier, NeuralActor
from sbi_bed.policies import (
    CoinFlip,
    ExperimenterTransformer,
    GradientExperimenter,
    MixtureOfExperimenters,
    NeymanTeacher,
    NonContextualNeyman,
)
from sbi_bed.simulators import (
    BayesianActor,
    Contexts,
    LogUniform,
    OptimalActor,
    PowerScaledPrior,
    QuadraticCost,
    UniformRange,
    simulate_models,
    simulate_with_context,
)

# ---- powers of priors, and simulations in their contexts


def family(name, dim):
    location, scale = torch.randn(dim, dtype=torch.float64), torch.rand(dim, dtype=torch.float64) + 0.5
    return {
        "normal": lambda: Normal(location, scale),
        "gamma": lambda: Gamma(1 + scale, scale),
        "beta": lambda: Beta(1 + scale, 1.5 + scale),
        "laplace": lambda: Laplace(location, scale),
        "exponential": lambda: Exponential(scale),
    }[name]()


def powered(base, gamma):
    """The same family, raised to powers, in closed form."""
    if isinstance(base, Normal):
        return Normal(base.loc, base.scale * gamma**-0.5)
    if isinstance(base, Laplace):
        return Laplace(base.loc, base.scale / gamma)
    if isinstance(base, Exponential):
        return Exponential(base.rate * gamma)
    if isinstance(base, Gamma):
        return Gamma(gamma * (base.concentration - 1) + 1, gamma * base.rate)
    a, b = (gamma * (part - 1) + 1 for part in (base.concentration1, base.concentration0))
    return Beta(a, b)


def check_powers(case):
    """The power of a member of an exponential family is another member."""
    torch.manual_seed(case["seed"])
    base = family(case["family"], 2)
    prior = PowerScaledPrior(Independent(base, 1))
    if case["bad"] is not None:
        refused(lambda: prior.condition(case["bad"]), "gamma")
        return
    gamma = torch.tensor(case["gamma"], dtype=torch.float64)
    theta = base.sample((5,))
    found, exact = prior.condition(gamma).log_prob(theta), powered(base, gamma).log_prob(theta).sum(-1)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


power_cases = st.fixed_dictionaries(
    {
        "family": st.sampled_from(["normal", "gamma", "beta", "laplace", "exponential"]),
        "gamma": st.lists(st.floats(0.6, 3.0), min_size=2, max_size=2),
        "bad": st.one_of(
            st.none(),
            st.sampled_from([*NOT_NUMBERS[:-1], *NOT_FINITE, 0.0, -1.0, [1.0, 1.0, 1.0], [1.0, -2.0], []]),
        ),
        "seed": SEEDS,
    }
)


def check_contexts(case):
    """Each θ is from the prior of its own context: its probability under it is uniform. x belongs to θ and context."""
    torch.manual_seed(case["seed"])
    dim, num = case["dim"], 800
    base = family(case["family"], dim)
    prior = PowerScaledPrior(Independent(base, 1))
    contexts = Contexts(gamma=LogUniform(0.7, 2.0, dim), shift=UniformRange(-1.0, 1.0))

    def simulator(theta, context):
        return (theta + context["shift"]) * torch.tensor([[case["scale"]]])

    def run(simulator=simulator, prior=prior, num=num, contexts=contexts, **options):
        return simulate_with_context(simulator, prior, num, contexts, seed=case["seed"] % 2**31, **options)

    bad = case["bad"]
    if bad is not None:
        refused(lambda: run(num=bad), "num_simulations")
        refused(lambda: run(batch_size=bad), "batch_size")
        refused(lambda: run(contexts=bad if bad is not None else 1), "contexts")
        refused(lambda: run(simulator=lambda theta, context: bad), "x", "simulator")
        return
    refused(lambda: run(simulator=lambda theta, context: theta[1:]), "x", "simulator")
    refused(lambda: run(simulator=lambda theta, context: theta * math.nan), "x")
    refused(lambda: run(contexts=Contexts(gamma=LogUniform(0.7, 2.0, dim + 1))), "gamma")
    theta, x, context = run()
    gamma = context[:, :dim].double()
    assert ((gamma >= 0.7 - 1e-5) & (gamma <= 2.0 + 1e-5)).all() and context.shape == (num, dim + 1)
    torch.testing.assert_close(x, (theta + context[:, dim:]) * case["scale"])
    if case["family"] in ("gamma", "beta"):
        from scipy import stats

        law, point = powered(base, gamma), theta.double()
        if case["family"] == "gamma":
            place = stats.gamma.cdf(point * law.rate, law.concentration)
        else:
            place = stats.beta.cdf(point, law.concentration1, law.concentration0)
        place = torch.as_tensor(place)
    else:
        place = powered(base, gamma).cdf(theta.double())
    moments = place.mean(0) - 1 / 2, place.square().mean(0) - 1 / 3
    # Of a uniform variable u, u and u² have variances 1/12 and 4/45.
    for gap, variance in zip(moments, (1 / 12, 4 / 45), strict=True):
        assert (gap.abs() < 5 * (variance / num) ** 0.5 + 2e-3).all(), (case, gap)


context_cases = st.fixed_dictionaries(
    {
        "family": st.sampled_from(["normal", "gamma", "beta", "laplace", "exponential"]),
        "dim": st.integers(1, 2),
        "scale": st.sampled_from([1.0, 1e-3, 1e4]),
        "bad": st.one_of(st.none(), st.sampled_from([*NOT_NUMBERS, *NOT_FINITE, 0.5, -1])),
        "seed": SEEDS,
    }
)


# ---- models


def check_models(case):
    """Shares of models, and data of each model at its places; a model that returns something else is refused."""
    value, shape = 1.5, (case["groups"], case["observations"])

    def model(num):
        x = torch.cat([torch.full((num, *shape, 1), value), torch.ones(num, *shape, 1)], -1)
        return {
            "fine": x,
            "double": x.double(),
            "too many": torch.cat([x, x]),
            "nan": x * math.nan,
            "text": "data",
            "half a mask": x * torch.tensor([1.0, 0.5]),
        }[case["returns"]]

    run = lambda: simulate_models([model, model], case["num"], batch_size=7, seed=case["seed"])  # noqa: E731
    if case["returns"] not in ("fine", "double"):
        refused(run, "model", "x")
        return
    index, x = run()
    assert index.shape == (case["num"],) and set(index.tolist()) <= {0, 1}
    assert x.shape == (case["num"], *shape, 2) and (x[..., 0] == value).all() and x.dtype == torch.float32


model_cases = st.fixed_dictionaries(
    {
        "groups": st.integers(1, 3),
        "observations": st.integers(1, 3),
        "num": st.integers(1, 20),
        "returns": st.sampled_from(["fine", "double", "too many", "nan", "text"]),
        "seed": st.integers(0, 2**31),
    }
)


def check_model_posteriors(case):
    """A linear classifier: probabilities and Bayes factors are those of its log-evidences and the prior."""
    torch.manual_seed(case["seed"])
    num_models, width, batch = case["num_models"], case["width"], case["batch"]
    classifier = EvidenceClassifier(torch.nn.Identity(), num_models, width, num_layers=0).to(case["dtype"])
    weights = torch.rand(num_models).double() + 0.1
    posterior = ModelPosterior(classifier, weights, (width,))
    x = case["size"] * torch.randn(batch, width, dtype=torch.float64)
    given = (
        x
        if case["container"] == "tensor"
        else x.numpy()
        if batch > 1
        else in_container(x[0].tolist(), case["container"])
    )
    if case["bad"] is not None:
        spoiled = x.tolist()
        spoiled[-1][-1] = case["bad"]
        refused(lambda: posterior.probs(spoiled), "x")
        refused(lambda: posterior.probs(x, model_prior=[case["bad"], *[1.0] * (num_models - 1)]), "model_prior")
        refused(lambda: posterior.log_bayes_factor(x, case["bad"], 0), "i must")
        return
    refused(lambda: posterior.probs(torch.zeros(batch, width + 1)), "x")
    refused(lambda: posterior.probs(x, model_prior=[1.0] * (num_models + 1)), "model_prior")
    refused(lambda: posterior.log_bayes_factor(x, num_models, 0), "i =")
    refused(lambda: posterior.log_bayes_factor(x, 0, -1), "j must")
    layer = classifier.head[0]
    evidences = torch.nn.functional.pad(x.to(case["dtype"]) @ layer.weight.T + layer.bias, (1, 0)).double().detach()
    exact = (evidences + weights.log()).log_softmax(-1)
    # Log-evidences are computed in the precision of the net.
    slack = {"rtol": 0, "atol": (1e-4 if case["dtype"] == torch.float32 else 1e-6) * (1 + case["size"])}
    torch.testing.assert_close(posterior.log_probs(given), exact, **slack)
    torch.testing.assert_close(posterior.probs(given).sum(-1), torch.ones(batch).double())
    i, j = (int(torch.randint(num_models, ())) for _ in range(2))
    with listening(f"models {i} and {j}") as warned:
        factor = posterior.log_bayes_factor(given, i, j)
    torch.testing.assert_close(factor, evidences[:, i] - evidences[:, j], **slack)
    both = (evidences.log_softmax(-1)[:, [i, j]] < math.log(1e-3) - 0.01).all(-1).any()
    assert warned or i == j or not both  # models that both lose by far are never compared without a word


model_posterior_cases = st.fixed_dictionaries(
    {
        "num_models": st.integers(2, 5),
        "width": st.integers(1, 4),
        "batch": st.integers(1, 5),
        "size": st.sampled_from([0.1, 1.0, 30.0]),
        "dtype": st.sampled_from(DTYPES),
        "container": st.sampled_from(CONTAINERS),
        "bad": st.one_of(st.none(), st.sampled_from([*NOT_NUMBERS, *NOT_FINITE])),
        "seed": SEEDS,
    }
)


# ---- actors


def check_bayesian_actors(case):
    """Under quadratic cost responses are log-normal, with parameters in closed form."""
    torch.manual_seed(case["seed"])
    dtype, simulator = case["dtype"], BayesianActor(OptimalActor(QuadraticCost()), {"sigma": case["sigma"]})
    low, high = simulator.stimulus_range
    theta = simulator.prior.sample(case["theta_shape"]).to(dtype)
    design = low + (high - low) * torch.rand(*case["design_shape"], 1, dtype=dtype)
    if case["bad"] is not None:
        refused(lambda: simulator(theta, [[case["bad"]]]), "design", "stimul")
        refused(lambda: simulator.log_likelihood(theta, [[1.0]], [[case["bad"]]]), "outcome", "response")
        refused(lambda: simulator.log_likelihood([[case["bad"]] * 3], [[1.0]], [[1.0]]), "theta")
        refused(lambda: BayesianActor(OptimalActor(QuadraticCost()), {"sigma": case["bad"]}), "fixed", "sigma")
        return
    refused(lambda: simulator(theta[..., :-1], design), "theta")
    refused(lambda: simulator(theta, -design), "stimuli", "design")
    try:
        shape = torch.broadcast_shapes(case["theta_shape"], case["design_shape"])
    except RuntimeError:
        refused(lambda: simulator(theta, design), "theta")
        return
    sigma = torch.tensor(case["sigma"], dtype=torch.float64)
    sigma_0, mu_0, sigma_r = (part.expand(shape) for part in theta.double().unbind(-1))
    stimulus = design.double().squeeze(-1).expand(shape)
    w = sigma_0.square() / (sigma_0.square() + sigma.square())
    offset = 0.5 * w * sigma.square() - 1.5 * sigma_r.square()  # the best action is exp(μ_p + σ_p²/2 − 3 σ_r²/2)
    law = Normal(
        (1 - w) * mu_0.log() + w * stimulus.log() + offset, (w.square() * sigma.square() + sigma_r.square()).sqrt()
    )
    response = (law.mean + law.stddev * torch.randn(shape, dtype=torch.float64)).exp()
    found = simulator.log_likelihood(theta, design, response.unsqueeze(-1).to(dtype))
    exact = law.log_prob(response.log()) - response.log()
    # In float32 a response has a relative error of 6e-8, its z-score one of 6e-8 / sd.
    slack = 1e-3 + (1e-5 if dtype == torch.float32 else 0) / law.stddev.min()
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=float(slack))
    many = simulator(theta.expand(400, *shape, 3), design).squeeze(-1).log().double()
    assert ((many.mean(0) - law.mean).abs() < 5.5 * law.stddev / 20 + 1e-3).all()


actor_cases = st.fixed_dictionaries(
    {
        "sigma": st.sampled_from([0.05, 0.2, 0.4]),
        "dtype": st.sampled_from(DTYPES),
        "theta_shape": st.lists(st.sampled_from([1, 2, 3]), max_size=2).map(tuple),
        "design_shape": st.lists(st.sampled_from([1, 2, 3]), max_size=2).map(tuple),
        "bad": st.one_of(st.none(), st.sampled_from([*NOT_NUMBERS, *NOT_FINITE])),
        "seed": SEEDS,
    }
)


def check_neural_actors(case):
    """Under a cost that scales actions are an exact power law; outside the range of training there is a warning."""
    torch.manual_seed(case["seed"])
    actor, dtype = NeuralActor(QuadraticCost()), case["dtype"]
    with torch.no_grad():
        actor.head.weight.normal_(0, 0.1)
    box = actor.training_box
    values = {
        n: lo + (hi - lo) * torch.rand(case["shape"], dtype=dtype) for n, (lo, hi) in box.items() if n != "stimulus"
    }
    measurement = torch.exp(torch.randn(case["shape"], dtype=dtype))
    if case["bad"] is not None:
        refused(lambda: actor(measurement, **{**values, "sigma_r": case["bad"]}), "sigma_r")
        refused(lambda: actor(case["bad"], **values), "measurement")
        return
    name = case["leaves"]
    if name is not None:
        low, high = box[name]
        with listening(name) as warned:
            actor(measurement, **{**values, name: high + case["far"] * (high - low)})
        assert len(warned) == 1
        actor.outside = "raise"
        refused(lambda: actor(measurement, **{**values, name: high + case["far"] * (high - low)}), name)
        return
    refused(lambda: actor(measurement, **values, beta=0.5), "beta")
    refused(lambda: actor(-measurement, **values), "measurement")
    action = actor(measurement, **values)
    assert action.dtype == dtype
    weight = values["sigma_0"].square() / (values["sigma_0"].square() + values["sigma"].square())
    further = actor(case["scale"] * measurement, **values)
    torch.testing.assert_close(further, action * case["scale"] ** weight, rtol=1e-4, atol=0)


neural_actor_cases = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "shape": st.lists(st.sampled_from([1, 2, 3]), max_size=2).map(tuple),
        "scale": st.sampled_from([0.01, 3.0, 1000.0]),
        "leaves": st.sampled_from([None, None, "sigma", "sigma_0", "sigma_r"]),
        "far": st.sampled_from([0.01, 1.0, 100.0]),
        "bad": st.one_of(st.none(), st.none(), st.sampled_from([*NOT_NUMBERS, *NOT_FINITE])),
        "seed": SEEDS,
    }
)


# ---- treatments


def build_treatment_policy(name, d):
    small = {"hidden_dim": 8, "num_layers": 1, "num_heads": 1}
    return {
        "coin": lambda: CoinFlip(d, 0.3),
        "arms": lambda: NonContextualNeyman(d),
        "teacher": lambda: NeymanTeacher(d, burn_in=0),
        "gradient": lambda: GradientExperimenter(d, num_layers=2),
        "transformer": lambda: ExperimenterTransformer(d, **small),
        "mixture": lambda: MixtureOfExperimenters([NonContextualNeyman(d), GradientExperimenter(d, num_layers=2)]),
    }[name]()


TREATMENT_POLICIES = ["coin", "arms", "teacher", "gradient", "transformer", "mixture"]


def check_treatment_policies(case):
    """Propensities within the clip; those of other units are the same; unobserved units change nothing."""
    torch.manual_seed(case["seed"])
    d, dtype, num, name = case["d"], case["dtype"], case["num"], case["policy"]
    policy = build_treatment_policy(name, d)
    x, arm = torch.rand(*case["batch"], num, d, dtype=dtype), torch.randint(2, (*case["batch"], num)).to(dtype)
    outcome = torch.randn(*case["batch"], num, dtype=dtype) * (1 + arm) + arm
    history = torch.cat([x, torch.stack([arm, outcome, torch.ones_like(arm)], -1)], -1)
    covariates = torch.rand(*case["batch"], d, dtype=dtype)
    if case["bad"] is not None:
        spoiled, plain = history.reshape(-1, d + 3)[0].tolist(), covariates.flatten()[:d]
        for place, names in ((-2, ("history",)), (-3, ("history", "arm")), (-1, ("history", "mask"))):
            row = [*spoiled]
            row[place] = case["bad"]
            refused(lambda row=row: policy([row], plain), *names)
        if d:
            refused(lambda: policy(history, [[case["bad"]] * d]), "covariates")
        return
    refused(lambda: policy(history[..., :-1], covariates), "history")
    refused(
        lambda: policy(history, torch.cat([covariates, torch.ones_like(history[..., 0, :1])], -1)),
        "covariates",
    )
    with torch.no_grad():
        found = policy(history, covariates).double()
        assert found.shape == tuple(case["batch"]) and ((found >= 0.05 - 1e-6) & (found <= 0.95 + 1e-6)).all()
        gone = torch.cat([x[..., :1, :], torch.ones(*case["batch"], 1, 1), torch.zeros(*case["batch"], 1, 2)], -1).to(
            dtype
        )
        padded = policy(torch.cat([history, gone], -2), covariates).double()
        torch.testing.assert_close(padded, found, rtol=0, atol=1e-5)
        scaled = history.double()
        scaled[..., -2] = case["unit"][0] * scaled[..., -2] + case["unit"][1]
        torch.testing.assert_close(policy(scaled, covariates).double(), found, rtol=0, atol=1e-4)
    if name == "arms" and num > 1:
        exact = [_neyman(a, y) for a, y in zip(arm.reshape(-1, num), outcome.reshape(-1, num), strict=True)]
        assert found.flatten().tolist() == pytest.approx([min(max(e, 0.05), 0.95) for e in exact], abs=1e-5)


def _neyman(arm, outcome):
    """σ̂_1 / (σ̂_1 + σ̂_0) with variances shrunk to the pooled one, by plain sums."""
    arm, outcome = arm.double().numpy(), outcome.double().numpy()
    parts = [outcome[arm == a] for a in (0, 1)]
    squares = [float(((y - y.mean()) ** 2).sum()) if len(y) else 0.0 for y in parts]
    pooled = sum(squares) / max(len(arm) - 2, 1)
    if pooled == 0:
        return 0.5
    sd = [math.sqrt((s + 4 * pooled) / (max(len(y) - 1, 0) + 4)) for s, y in zip(squares, parts, strict=True)]
    return sd[1] / (sd[0] + sd[1])


treatment_policy_cases = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(TREATMENT_POLICIES),
        "d": st.integers(0, 5),
        "num": st.integers(1, 20),
        "batch": st.sampled_from([(), (1,), (3,), (2, 2)]),
        "dtype": st.sampled_from(DTYPES),
        "unit": st.sampled_from([(1000.0, 7.0), (1e-3, 0.0), (1.0, 1e4)]),
        "bad": st.one_of(st.none(), st.none(), st.sampled_from([*NOT_NUMBERS, *NOT_FINITE])),
        "seed": SEEDS,
    }
)


def check_treatment_experiments(case):
    """Batches, late outcomes and any container: the estimate is the plain sum, and a bad input leaves no trace."""
    torch.manual_seed(case["seed"])
    d, space, bad = case["d"], case["space"], case["bad"]
    policy = build_treatment_policy(case["policy"], d)
    experiment = TreatmentExperiment(policy, seed=case["seed"] % 2**31, outcome_space=space)
    order, arms = [], {}

    def outcome(arm):
        drawn = float(torch.rand(())) * (1 + arm)
        return drawn if space == "real" else float(drawn > 0.5) if space == "binary" else min(drawn, 2.0)

    outcomes = {}
    while len(arms) < case["num"]:
        size = int(torch.randint(1, 4, ()))
        rows = torch.rand(size, d).double()
        if bad is not None and d:
            refused(lambda rows=rows: experiment.assign([[bad] * d, *rows.tolist()]), "covariates")
        given = in_container(rows[0].tolist(), case["container"]) if size == 1 and d else rows
        drawn, propensity = experiment.assign(given)
        names = range(len(arms), len(arms) + size)
        arms |= dict(zip(names, drawn.reshape(-1).tolist(), strict=True))
        assert ((propensity >= 0.05 - 1e-12) & (propensity <= 0.95 + 1e-12)).all()
        order += names
        while order and float(torch.rand(())) < 0.7:
            unit = order.pop(int(torch.randint(len(order), ())))
            outcomes[unit] = outcome(arms[unit])
            if bad is not None:
                refused(lambda unit=unit: experiment.update(bad, unit=unit), "outcome")
                refused(lambda unit=unit: experiment.update(1e300, unit=unit), "outcome")
                refused(lambda: experiment.update(0.0, unit=[bad]), "unit")
            experiment.update(in_container([outcomes[unit]], case["container"]), unit=unit)
    for unit in order:
        outcomes[unit] = outcome(arms[unit])
        experiment.update(outcomes[unit], unit=unit)
    log = experiment.log
    assert log.outcome.tolist() == pytest.approx([outcomes[u] for u in range(len(arms))], abs=1e-6)
    assert log.arm.tolist() == list(arms.values())
    if bad is not None:
        refused(lambda: experiment.estimate(bad), "level")
        refused(lambda: TreatmentExperiment(policy, outcome_space=bad), "outcome_space")
    with listening("outcome_space"):
        found = experiment.estimate()
    scores = _plain_scores(log)
    assert found.num_units == len(scores) and found.ate == pytest.approx(np.mean(scores), abs=1e-6)
    assert found.stderr >= np.std(scores, ddof=1) / len(scores) ** 0.5 - 1e-9
    for low, high in (found.interval, found.confidence_sequence):
        assert (
            low - 1e-9 <= found.ate <= high + 1e-9 and high - low >= 2 * found.stderr * (1 - 1e-9)
        ) or space != "real"
        assert low < high


def _plain_scores(log):
    """A2IPW scores of all units, one after the other; blind ones are predicted by the arms' means before them."""
    scores, seen = [], ([], [])
    for t, (a, y, e, f) in enumerate(
        zip(log.arm.tolist(), log.outcome.tolist(), log.propensity.tolist(), log.predicted.tolist(), strict=True)
    ):
        everything = seen[0] + seen[1]
        if t < log.num_blind:
            f = [np.mean(part or everything) if everything else None for part in seen]
        if f[0] is not None:
            scores.append(f[1] - f[0] + ((y - f[1]) / e if a else -(y - f[0]) / (1 - e)))
        seen[int(a)].append(y)
    return scores


treatment_experiment_cases = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(TREATMENT_POLICIES),
        "d": st.integers(0, 3),
        "num": st.integers(3, 12),
        "space": st.sampled_from(["real", "real", "binary", (0.0, 2.0)]),
        "container": st.sampled_from(CONTAINERS),
        "bad": st.one_of(st.none(), st.sampled_from([*NOT_NUMBERS, *NOT_FINITE])),
        "seed": SEEDS,
    }
)


# ---- the tests

test_a_few_cases, test_many_cases = few_and_many(
    {  # check: cases, number in the default tests, number in the slow ones
        check_powers: (power_cases, 20, 150),
        check_contexts: (context_cases, 10, 60),
        check_models: (model_cases, 10, 60),
        check_model_posteriors: (model_posterior_cases, 30, 200),
        check_bayesian_actors: (actor_cases, 20, 120),
        check_neural_actors: (neural_actor_cases, 20, 120),
        check_treatment_policies: (treatment_policy_cases, 25, 200),
        check_treatment_experiments: (treatment_experiment_cases, 15, 120),
    }
)
