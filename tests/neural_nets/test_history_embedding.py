"""Summaries of histories: blind to order, padding and the rest of the batch; not blind to any trial."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.neural_nets import posterior_nn
from torch.nn.functional import pad

from sbi_bed.neural_nets.embedding_nets.history import HistoryEmbedding
from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import ConstantElasticity, HyperbolicDiscounting, LocationFinding, PolicySimulator

MODELS = {"location": LocationFinding, "discounting": HyperbolicDiscounting, "elasticity": ConstantElasticity}
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def build(simulator=None, **sizes):
    sizes = {"output_dim": 5, "hidden_dim": 8, "num_heads": 2, **sizes}
    return HistoryEmbedding(simulator or LocationFinding(), **sizes).double()


def histories(simulator, num, horizon=6, min_trials=0):
    experiment = PolicySimulator(simulator, RandomPolicy(simulator), horizon, min_trials=min_trials)
    return experiment(simulator.prior.sample((num,))).double()


@pytest.mark.parametrize("name", MODELS)
def test_order_padding_and_batch_change_nothing(name):
    simulator = MODELS[name]()
    embedding, x = build(simulator), histories(simulator, 20)
    summary = embedding(x)
    assert torch.isfinite(summary).all() and summary.shape == (20, 5)
    torch.testing.assert_close(embedding(x[:, torch.randperm(6)]), summary, **EXACT)  # padding among the trials, too
    torch.testing.assert_close(embedding(pad(x, (0, 0, 0, 7))), summary, **EXACT)
    torch.testing.assert_close(torch.cat([embedding(h.unsqueeze(0)) for h in x]), summary, **EXACT)
    torch.testing.assert_close(torch.stack([embedding(h[: int(h[:, -1].sum())]) for h in x]), summary, **EXACT)
    torch.testing.assert_close(embedding(x.reshape(4, 5, *x.shape[1:])), summary.reshape(4, 5, -1), **EXACT)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), extra=st.integers(0, 4), seed=st.integers(0, 99))
def test_any_lengths_in_any_order(lengths, extra, seed):
    torch.manual_seed(seed)
    simulator = LocationFinding()
    embedding = build(simulator).eval()
    full = histories(simulator, len(lengths), horizon=5, min_trials=5)
    alone = torch.stack([embedding(h[:n][torch.randperm(n)]) for h, n in zip(full, lengths, strict=True)])
    padded = full * (torch.arange(5) < torch.tensor(lengths).unsqueeze(-1)).unsqueeze(-1)
    torch.testing.assert_close(embedding(pad(padded, (0, 0, 0, extra))), alone, **EXACT)


def test_whatever_stands_in_padding_is_not_read():
    simulator = LocationFinding()
    embedding, x = build(simulator), histories(simulator, 30)
    filled = torch.where(x[..., -1:] > 0, x, torch.randn_like(x) * torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert torch.equal(embedding(filled), embedding(x))


def test_every_trial_is_read_and_repeats_count():
    simulator = LocationFinding()
    embedding, x = build(simulator), histories(simulator, 10, min_trials=6)
    for trial in range(6):
        for channel in range(3):
            changed = x.clone()
            changed[:, trial, channel] += 0.5
            assert ((embedding(changed) - embedding(x)).abs().amax(-1) > 1e-7).all()
    twice = torch.cat([x, x], dim=-2)
    assert ((embedding(twice) - embedding(x)).abs().amax(-1) > 1e-4).all()


def test_gradients_do_not_come_from_padding_or_other_histories():
    simulator = LocationFinding()
    embedding, x = build(simulator), histories(simulator, 12).requires_grad_()
    (gradient,) = torch.autograd.grad(embedding(x)[3:].square().sum(), x)
    observed = x[..., -1:] > 0
    assert torch.isfinite(gradient).all()
    assert (gradient[:3] == 0).all() and (gradient.masked_select(~observed) == 0).all()
    assert (gradient[3:][..., :3].abs().sum(-1)[observed[3:].squeeze(-1)] > 0).all()


def test_weights_get_the_gradients_of_single_histories():
    simulator = LocationFinding()
    embedding, x = build(simulator), histories(simulator, 6)
    weights = list(embedding.parameters())
    together = torch.autograd.grad(embedding(x).square().sum(), weights)
    apart = torch.autograd.grad(sum(embedding(h[: int(h[:, -1].sum())]).square().sum() for h in x), weights)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_no_trials_at_all(name):
    embedding = build(MODELS[name]())
    width = embedding.input_dim
    summary = embedding(torch.zeros(3, 4, width).double())
    summary.sum().backward()
    assert torch.isfinite(summary).all()
    assert all(torch.isfinite(p.grad).all() for p in embedding.parameters() if p.grad is not None)
    torch.testing.assert_close(embedding(torch.zeros(3, 0, width).double()), summary, **EXACT)


def test_copies_and_files_give_the_same_summaries():
    simulator = LocationFinding()
    embedding, x = build(simulator), histories(simulator, 8)
    assert torch.equal(copy.deepcopy(embedding)(x), embedding(x))
    assert torch.equal(pickle.loads(pickle.dumps(embedding))(x), embedding(x))
    file = io.BytesIO()
    torch.save(embedding.state_dict(), file)
    file.seek(0)
    other = build(simulator)
    assert not torch.allclose(other(x), embedding(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), embedding(x))


def test_building_is_seeded_by_the_caller_alone():
    simulator = LocationFinding()
    nets = []
    for _ in range(2):
        torch.manual_seed(4)
        nets.append(build(simulator))
    x = histories(simulator, 3)
    assert torch.equal(nets[0](x), nets[1](x))
    assert nets[0](x.float()).dtype == torch.float64  # a net of double weights reads what experiments in float hold


@pytest.mark.parametrize("model", ["maf", "mdn"])
@pytest.mark.parametrize("min_trials", [1, 6], ids=["lengths vary", "all full"])
def test_z_scoring_by_sbi_is_refused(min_trials, model):
    simulator = LocationFinding()
    x = histories(simulator, 50, min_trials=min_trials).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sbi warns of its own about z-scoring a constant mask
        estimator = posterior_nn(model, embedding_net=build(simulator).float())(torch.randn(50, 2), x)
    with pytest.raises(ValueError, match='z_score_x="none"'):
        estimator.loss(torch.randn(50, 2), x)


def test_errors():
    simulator = LocationFinding()
    with pytest.raises(ValueError, match=r"\(\.\.\., trials, 4\), got \(2, 5, 3\)"):
        build(simulator)(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match=r"\(\.\.\., trials, 4\), got \(4,\)"):
        build(simulator)(torch.zeros(4))
    with pytest.raises(ValueError, match=r"hidden_dim \(10\) must be a multiple of num_heads \(4\)"):
        HistoryEmbedding(simulator, hidden_dim=10)
    with pytest.raises(ValueError, match="num_rounds must be at least 1"):
        HistoryEmbedding(simulator, num_rounds=0)
    with pytest.raises(TypeError, match="is built for a DesignSimulator"):
        HistoryEmbedding(lambda theta: theta)
