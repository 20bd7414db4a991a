"""Summaries of grouped data: blind to order at every level, to padding and to the rest of the batch; not blind to data."""

import copy
import itertools
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import CNNEmbedding
from sbi.utils import BoxUniform
from torch.nn.functional import pad

from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.neural_nets.embedding_nets.sets import Sets
from sbi_bed.utils import NoTracker

EXACT = {"rtol": 1e-11, "atol": 1e-11}
SHAPES = {1: (9,), 2: (4, 6), 3: (3, 4, 5)}
LEVELS = pytest.mark.parametrize("levels", SHAPES)


def data_sets(num, levels=2, features=2, missing=0.4, dtype=torch.float64):
    """Random data with observations missing anywhere, so that some groups are empty; none is empty as a whole."""
    shape = (num, *SHAPES[levels])
    mask = (torch.rand(shape) >= missing).to(dtype)
    if levels > 1:
        mask[:, 1] = 0  # the second group of each data set is empty
    mask.view(num, -1)[:, 0] = 1
    x = 3 + 2 * torch.randn(*shape, features, dtype=dtype)
    return torch.cat([x * mask.unsqueeze(-1), mask.unsqueeze(-1)], -1)


def build(levels=2, features=2, **sizes):
    net = HierarchicalEmbedding(
        features, output_dim=5, hidden_dim=8, num_levels=levels, lowest_dim=6, lowest_blocks=1, **sizes
    )
    return net.double().fit_scale(data_sets(50, levels, features))


def shuffled(x, level):
    """Elements of each set of one level in a new order, another one in each set."""
    if level == 0:
        return x[torch.randperm(len(x))]
    return torch.stack([shuffled(part, level - 1) for part in x])


@LEVELS
def test_order_at_each_level_changes_nothing(levels):
    embedding, x = build(levels), data_sets(10, levels)
    summary = embedding(x)
    assert torch.isfinite(summary).all() and summary.shape == (10, 5) and summary.std(0).min() > 1e-3
    for level in range(1, levels + 1):
        torch.testing.assert_close(embedding(shuffled(x, level)), summary, **EXACT)


@LEVELS
def test_padding_and_the_rest_of_the_batch_change_nothing(levels):
    embedding, x = build(levels), data_sets(10, levels)
    summary = embedding(x)
    for level in range(levels):
        torch.testing.assert_close(embedding(pad(x, (0, 0, *(0, 0) * level, 0, 3))), summary, **EXACT)
    torch.testing.assert_close(torch.cat([embedding(row.unsqueeze(0)) for row in x]), summary, **EXACT)
    filled = torch.where(x[..., -1:] > 0, x, torch.cat([torch.randn_like(x[..., :-1]), x[..., -1:]], -1))
    assert torch.equal(embedding(filled), summary)


def test_in_single_precision_too():
    embedding, x = build().float(), data_sets(300, dtype=torch.float32)
    full = data_sets(20, missing=0.0, dtype=torch.float32)[:, :1].expand(-1, 4, -1, -1)
    summary = embedding(full)  # nothing missing: plain sums, not gathered ones
    together = embedding(torch.cat([full, x]))[:20]
    torch.testing.assert_close(together, summary, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embedding(pad(full, (0, 0, 0, 2, 0, 3))), summary, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embedding(shuffled(shuffled(full, 1), 2)), summary, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the data leave the range")
@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=4),
    extra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 99),
)
def test_any_sizes(sizes, extra, seed):
    """Each data set alone, without padding and empty groups, has the summary that it has in a padded batch."""
    sizes = [[1, *row] for row in sizes]
    torch.manual_seed(seed)
    embedding = build().eval()
    groups, observations = max(map(len, sizes)) + extra[0], max(map(max, sizes)) + extra[1]
    x, alone = torch.zeros(len(sizes), groups, observations, 3).double(), []
    for row, numbers in zip(x, sizes, strict=True):
        for group, n in zip(row, numbers, strict=False):
            group[:n] = torch.cat([torch.randn(n, 2), torch.ones(n, 1)], -1).double()
        seen = [group[:n] for group, n in zip(row, numbers, strict=False) if n]
        longest = max(map(len, seen))
        alone.append(embedding(torch.stack([pad(g, (0, 0, 0, longest - len(g))) for g in seen]).unsqueeze(0)))
    torch.testing.assert_close(embedding(x), torch.cat(alone), **EXACT)


def test_every_observation_is_read_in_its_group_and_sizes_count():
    embedding, x = build(), data_sets(10, missing=0.0)
    summary = embedding(x)
    for channel in range(2):
        changed = x.clone()
        changed[:, 2, 3, channel] += 0.5
        assert ((embedding(changed) - summary).abs().amax(-1) > 1e-6).all()
    exchanged = x.clone()
    exchanged[:, [0, 2], [3, 3]] = x[:, [2, 0], [3, 3]]  # between two groups
    assert ((embedding(exchanged) - summary).abs().amax(-1) > 1e-6).all()
    assert ((embedding(torch.cat([x, x], 1)) - summary).abs().amax(-1) > 1e-5).all()  # every group twice
    assert ((embedding(torch.cat([x, x], 2)) - summary).abs().amax(-1) > 1e-5).all()  # every observation twice


def test_gradients_do_not_come_from_padding_or_other_data_sets():
    embedding, x = build(3), data_sets(6, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(embedding(x)[2:].square().sum(), x)
    seen = x[..., -1] > 0
    assert torch.isfinite(gradient).all()
    assert (gradient[:2] == 0).all() and (gradient[~seen] == 0).all()
    assert (gradient[2:][..., :2].abs().sum(-1)[seen[2:]] > 0).all()


def test_gradients_are_those_of_autograd_in_finite_differences():
    embedding, x = build(), data_sets(2)
    values, mask = x[..., :-1].clone().requires_grad_(), x[..., -1:]
    assert torch.autograd.gradcheck(lambda v: embedding(torch.cat([v * mask, mask], -1)), values)


def test_constant_and_single_observations_have_finite_gradients():
    embedding = build()
    for x in (torch.ones(2, 3, 4, 3), torch.ones(2, 1, 1, 3)):
        embedding.zero_grad()
        summary = embedding(x.double())
        summary.square().sum().backward()
        assert torch.isfinite(summary).all()
        assert all(torch.isfinite(p.grad).all() for p in embedding.parameters() if p.grad is not None)


def test_the_scale_is_that_of_what_was_observed():
    x = data_sets(400)
    embedding = build().fit_scale(x)
    observed = x[..., :2][x[..., 2] > 0]
    torch.testing.assert_close(embedding.mean, observed.mean(0))
    torch.testing.assert_close(embedding.sd, observed.std(0))
    # Another unit, measured anew, is another scale and the same summary.
    twin = copy.deepcopy(embedding)
    other = torch.cat([(100 * x[..., :2] - 7) * x[..., 2:], x[..., 2:]], -1)
    torch.testing.assert_close(twin.fit_scale(other)(other), embedding(x))
    constant = torch.cat([torch.full((9, 4, 6, 1), 5.0), x[:9, ..., :1], torch.ones(9, 4, 6, 1)], -1)
    assert embedding.fit_scale(constant).sd[0] == 1.0


def test_moments_are_those_of_each_set():
    values = [torch.randn(n, 3).double() for n in (5, 1, 8)]
    sets = Sets(torch.tensor([5.0, 1.0, 8.0]).double(), torch.tensor([0] * 5 + [1] + [2] * 8))
    moments = sets.moments(torch.cat(values))
    for row, v in zip(moments, values, strict=True):
        variance = ((v - v.mean(0)).square().sum(0) + 0.01) / (len(v) - 1 + 0.01)
        expected = v.mean(0), variance.sqrt(), variance.sqrt().log(), (v.mean(0) * (len(v) / variance).sqrt()).asinh()
        torch.testing.assert_close(row, torch.cat(expected))


def test_a_single_observation_tells_nothing_of_spread_and_equal_ones_no_more_than_their_number():
    """In units of a typical sd within a set: log sd is 0 for one observation, and grows slowly in size without spread."""
    typical = torch.tensor([4.0]).double()
    for n, mean in itertools.product((1, 2, 20, 1000), (0.0, 1.0, -30.0)):
        sets = Sets(torch.tensor([float(n)]).double())
        found = sets.moments(torch.full((n, 1), mean).double(), typical).squeeze(0)
        log_sd, t = float(found[2]) - math.log(2.0), float(found[3].sinh())
        variance = 1.0 if n == 1 else 0.01 / (n - 1 + 0.01)
        assert log_sd == pytest.approx(0.5 * math.log(variance)) and log_sd > -6
        assert t == pytest.approx(mean / 2 * (n / variance) ** 0.5, rel=1e-6)


def test_typical_variance_is_that_within_sets():
    x = torch.cat([5 + 3 * torch.randn(400, 6, 1, 1) + 0.7 * torch.randn(400, 6, 8, 1), torch.ones(400, 6, 8, 1)], -1)
    embedding = HierarchicalEmbedding(1).fit_scale(x)
    within = embedding.typical_variance.sqrt() * embedding.sd
    assert float(within) == pytest.approx(0.7, rel=5 / (2 * 400 * 42) ** 0.5)


def test_parts_are_whole_sets(monkeypatch):
    embedding, x = build(), data_sets(30)
    summary, full = embedding(x), embedding(x.index_fill(-1, torch.tensor([2]), 1.0))
    for most in (1, 7, 40):
        monkeypatch.setattr("sbi_bed.neural_nets.embedding_nets.hierarchical._ELEMENTS_AT_A_TIME", most)
        torch.testing.assert_close(embedding(x), summary, **EXACT)
        torch.testing.assert_close(embedding(x.index_fill(-1, torch.tensor([2]), 1.0)), full, **EXACT)


def test_series_are_read_one_by_one_by_an_encoder():
    torch.manual_seed(1)
    cnn = CNNEmbedding(
        (12,), num_conv_layers=1, out_channels_per_layer=[2], kernel_size=3, num_linear_units=4, output_dim=3
    )
    embedding = HierarchicalEmbedding(12, output_dim=4, encoder=cnn)
    mask = (torch.rand(6, 3, 5, 1) < 0.7).float()
    mask[:, 0, 0] = 1
    x = torch.cat([torch.randn(6, 3, 5, 12).cumsum(-1) * mask, mask], -1)
    summary = embedding.fit_scale(x)(x)
    torch.testing.assert_close(embedding(shuffled(x, 1)), summary, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embedding(pad(x, (0, 0, 0, 2, 0, 1))), summary, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(embedding(torch.cat([x[..., :12].flip(-1), x[..., 12:]], -1)), summary, atol=1e-3)
    assert embedding.mean.unique().numel() == 1  # one scale for all times
    summary.sum().backward()
    assert all(p.grad is not None for p in cnn.parameters())


def test_copies_and_plain_data_give_the_same_summaries():
    embedding, x = build(), data_sets(5)
    for twin in (copy.deepcopy(embedding), pickle.loads(pickle.dumps(embedding))):
        assert torch.equal(twin(x), embedding(x))
    twin = HierarchicalEmbedding(**embedding.config).double()
    twin.load_state_dict(embedding.state_dict())
    assert torch.equal(twin(x), embedding(x))
    assert embedding(x.float()).dtype == torch.float64


@pytest.mark.parametrize("model", ["maf", "mdn"])
def test_it_is_an_embedding_net_of_sbi(model):
    """Mean of all groups from groups of different sizes: the posterior is close to the closed form.

    sbi's learning rate is constant, which leaves the posterior's mean off by up to .25 sd in all data sets alike, so the
    training ends at a tenth of it. With d weights that matter the squared error of means is about d/N, in squared sds.
    """
    torch.manual_seed(2)
    prior = BoxUniform(torch.tensor([-2.0]), torch.tensor([2.0]))
    theta = prior.sample((6000,))

    def simulate(theta):
        centres = theta.view(-1, 1, 1, 1) + 0.5 * torch.randn(len(theta), 5, 1, 1)
        mask = (torch.arange(5) < torch.randint(2, 6, (len(theta), 1)))[:, :, None, None].float().expand(-1, -1, 4, 1)
        return torch.cat([(centres + torch.randn(len(theta), 5, 4, 1)) * mask, mask], -1)

    x = simulate(theta)
    embedding = HierarchicalEmbedding(1, output_dim=4, hidden_dim=16, lowest_dim=8).fit_scale(x)
    build = posterior_nn(model, embedding_net=embedding, z_score_x="none", hidden_features=16, num_transforms=2)
    inference = NPE(prior, density_estimator=build, tracker=NoTracker(), show_progress_bars=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of features that do not vary, and of the last epoch
        inference.append_simulations(theta, x)
        for epochs, rate in ((8, 3e-3), (4, 3e-4)):
            settings = {"max_num_epochs": epochs, "learning_rate": rate, "force_first_round_loss": True}
            inference.train(training_batch_size=256, **settings)
    posterior = inference.build_posterior()
    true = prior.sample((200,)) * 0.7
    x = simulate(true)
    draws = posterior.sample_batched((200,), x=x, max_sampling_batch_size=500, show_progress_bars=False)[..., 0]
    groups = x[:, :, 0, 1].sum(-1)
    mean = (x[..., 0].sum((1, 2)) / (4 * groups)).clamp(-2, 2)
    sd = ((0.25 + 1 / 4) / groups).sqrt()  # of the posterior, where the prior's bounds are far
    inside = mean.abs() < 1.2
    error = ((draws.mean(0) - mean) / sd)[inside]
    assert error.square().mean() < 300 / 5400  # d of .25 sd; of 2,000 weights some 100 matter
    assert abs(float((draws.std(0) / sd)[inside].mean()) - 1) < 0.2


def test_z_scoring_by_sbi_is_refused():
    x = data_sets(50, dtype=torch.float32)
    estimator = posterior_nn("maf", embedding_net=HierarchicalEmbedding(2))
    with pytest.raises(ValueError, match='z_score_x="none"'):
        estimator(torch.randn(50, 2), x).loss(torch.randn(50, 2), x)


def test_errors():
    embedding, x = build(), data_sets(4)
    x[2, ..., -1] = 0
    with pytest.raises(ValueError, match="data set 2 of the batch has no observation"):
        embedding(x)
    with pytest.raises(
        ValueError, match=r"of 2 levels must have shape \(batch, groups, observations, 3\), .* got \(4, 6, 3\)"
    ):
        embedding(x[0])
    with pytest.raises(ValueError, match="must have shape"):
        embedding(x[..., 1:])
    with pytest.raises(ValueError, match="a scale needs at least two observations, got 0"):
        embedding.fit_scale(torch.zeros(1, 1, 1, 3))
    with pytest.raises(ValueError, match="num_levels must be at least 1"):
        HierarchicalEmbedding(1, num_levels=0)
    with pytest.raises(ValueError, match=r"encoder cannot read observations of shape \(n, 3\)"):
        HierarchicalEmbedding(3, encoder=torch.nn.Linear(4, 2))
