"""Generated sizes at every entry: one warning that names levels and numbers outside the trained range, none within it."""

import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from sbi.inference import NPE
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets import posterior_nn

from sbi_bed.diagnostics import atypicality, data_sensitivity, model_report, simulation_gap
from sbi_bed.inference import DeepEnsemblePosterior, ModelPosterior
from sbi_bed.neural_nets import EvidenceClassifier, HierarchicalEmbedding, HistoryEmbedding
from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import LocationFinding, PolicySimulator
from sbi_bed.utils import NoTracker

GROUPS, OBSERVATIONS = (3, 6), (2, 9)  # of training
SIZES = st.one_of(  # any sizes, and mostly those of training
    st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any),
    st.lists(st.integers(*OBSERVATIONS), min_size=GROUPS[0], max_size=GROUPS[1]),
    st.tuples(st.integers(1, 8), st.integers(1, 12)).map(lambda size: [size[1]] * size[0]),
)


def packed(sizes, num=1):
    """Data sets (num, 8, 12, 2) with groups of these sizes, at random places."""
    sizes = torch.tensor(sizes + [0] * (8 - len(sizes)))
    order = torch.rand(num, 8, 12).argsort(-1)
    mask = (order < sizes[:, None]).float()[:, torch.randperm(8)]
    return torch.stack([torch.randn(num, 8, 12) * mask, mask], -1)


def ragged(num):
    """Data sets like those of training."""
    rows = [torch.randint(*(OBSERVATIONS[0], OBSERVATIONS[1] + 1), (int(g),)) for g in torch.randint(3, 7, (num,))]
    return torch.cat([packed(row.tolist()) for row in rows])


@pytest.fixture(scope="module")
def posteriors():
    """Nets with random weights that remember sizes from training; the net itself, and an ensemble of it and another."""
    torch.manual_seed(0)
    members = []
    for _ in range(2):
        embedding = HierarchicalEmbedding(1, output_dim=4).fit_scale(ragged(600))
        members.append(ModelPosterior(EvidenceClassifier(embedding, 2, 4), torch.ones(2) / 2, (8, 12, 2)))
    return members[0], DeepEnsemblePosterior(members)


def caught(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    assert all(w.filename == __file__ for w in found if "leave the range" in str(w.message))
    return [str(w.message) for w in found if issubclass(w.category, RuntimeWarning)]


def said(member, sizes):
    """What a warning has to say of such sizes, by counting in plain Python."""
    trained, there = member.classifier.embedding_net.trained, [size for size in sizes if size]
    share = 1 - sum(there) / (len(there) * max(there))
    found = []
    for name, low, high, bounds in (
        ("groups", len(there), len(there), GROUPS),
        ("observations per group", min(there), max(there), OBSERVATIONS),
        ("share missing", share, share, (float(trained.low[2]), float(trained.high[2]))),
    ):
        if low < bounds[0] - 1e-6 or high > bounds[1] + 1e-6:
            interval = " to ".join(dict.fromkeys(f"{v:.2f}".rstrip("0").rstrip(".") for v in (low, high)))
            found.append(f"{name}: {interval}, trained on ")
            if name != "share missing":
                found[-1] += f"{bounds[0]} to {bounds[1]}"
    return found


def check(messages, parts):
    assert len(messages) == (len(parts) > 0), (messages, parts)
    for message in messages:
        assert all(part in message for part in parts)
        assert message.count(", trained on ") == len(parts)


@settings(max_examples=60)
@given(sizes=SIZES, seed=st.integers(0, 2**31))
def test_probabilities_of_any_sizes(posteriors, sizes, seed):
    torch.manual_seed(seed)
    x, parts = packed(sizes, 2), said(posteriors[0], sizes)
    for posterior in posteriors:
        check(caught(lambda who=posterior: who.probs(x)), parts)
        check(caught(lambda who=posterior: who.sample((3,), x)), parts)
        check(caught(lambda who=posterior: who.log_bayes_factor(x, 1, 0)), parts)


@settings(max_examples=8)
@given(sizes=SIZES, seed=st.integers(0, 2**31))
def test_reports_of_any_sizes(posteriors, sizes, seed):
    torch.manual_seed(seed)
    x, parts = torch.cat([packed(sizes), ragged(1)]), said(posteriors[0], sizes)
    reference = ragged(120)
    for posterior in posteriors:
        check(caught(lambda who=posterior: model_report(who, x, reference, num_permutations=20, seed=0)), parts)
        check(caught(lambda who=posterior: atypicality(who, x, reference, num_permutations=20, seed=0)), parts)
    check(caught(lambda: simulation_gap(posteriors[1], x, reference, seed=0)), parts)


@settings(max_examples=20)
@given(sizes=SIZES.filter(lambda sizes: sum(size > 0 for size in sizes) > 1), seed=st.integers(0, 2**31))
def test_variants_of_data_of_any_sizes(posteriors, sizes, seed):
    """Without one group: the data sets themselves, and those with a group less."""
    torch.manual_seed(seed)
    x, there = packed(sizes)[0], [size for size in sizes if size]
    smaller = [there[:k] + there[k + 1 :] for k in range(len(there))]
    outside = any(said(posteriors[0], each) for each in [there, *smaller])
    for posterior in posteriors:
        arguments = {"level": "groups", "num_bootstrap": 0, "num_missing": 0, "seed": 0}
        messages = caught(lambda who=posterior, arguments=arguments: data_sensitivity(who, x, **arguments))
        assert len(messages) == outside and all("trained on" in message for message in messages)


@pytest.fixture(scope="module")
def of_histories():
    """sbi's NPE on histories of three to five trials, and such histories, of up to eight."""
    torch.manual_seed(0)
    simulator = LocationFinding(1, 1)
    theta = simulator.prior.sample((200,))
    x = PolicySimulator(simulator, RandomPolicy(simulator), 8)(theta)
    lengths = torch.arange(200) % 3 + 3
    embedding = HistoryEmbedding(simulator, output_dim=4, hidden_dim=16, num_layers=1)
    build = posterior_nn("maf", embedding_net=embedding, z_score_x="none", num_transforms=2, hidden_features=8)
    inference = NPE(simulator.prior, density_estimator=build, tracker=NoTracker(), show_progress_bars=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inference.append_simulations(theta, x * (torch.arange(8) < lengths[:, None])[..., None]).train(max_num_epochs=1)
    return inference, theta, x


@pytest.mark.parametrize("sample_with", ["direct", "mcmc", "importance"])
def test_posteriors_of_sbi_on_histories_of_any_length(of_histories, sample_with):
    """They read the same history many times: 30,000 draws in three parts, chains at each of their steps."""
    inference, theta, x = of_histories
    posterior, quiet = inference.build_posterior(sample_with=sample_with), {"show_progress_bars": False}
    if sample_with == "mcmc":
        short = MCMCPosteriorParameters(num_chains=1, warmup_steps=1, thin=1, init_strategy="proposal")
        posterior = inference.build_posterior(posterior_parameters=short)
    for n in (2, 4, 6) if sample_with == "mcmc" else range(1, 9):
        history = x[:1] * (torch.arange(8) < n)[:, None]
        parts = [] if 3 <= n <= 5 else [f"trials: {n}, trained on 3 to 5"]
        calls = [lambda h=history: posterior.sample((30_000 if sample_with == "direct" else 3,), x=h, **quiet)]
        if sample_with == "direct":
            calls.append(lambda h=history: posterior.log_prob(theta[:5], x=h))
            calls.append(lambda h=history: posterior.sample_batched((20,), x=torch.cat([h, h]), **quiet))
        for call in calls:
            for _ in range(2):  # each time
                messages = [message for message in caught(call) if "leave the range" in message]
                check(messages, parts)
