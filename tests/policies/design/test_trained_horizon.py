"""Policies and embeddings know how many trials they were trained on: one warning beyond, none within."""

import warnings

import pytest
import torch
from models import LinearGaussian

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import DAD, AdaptiveExperiment
from sbi_bed.neural_nets import HistoryEmbedding
from sbi_bed.policies import DeepSetsPolicy, RandomPolicy, load_policy
from sbi_bed.simulators import PolicySimulator


@pytest.fixture(scope="module")
def trained():
    simulator = LinearGaussian()
    policy = DAD(simulator, 3, DeepSetsPolicy(simulator, 8, 4), show_progress_bars=False).train(2, 8, 7, 1e-3, seed=0)
    return simulator, policy


def uses(simulator, policy, horizon):
    return {
        "live run": lambda: AdaptiveExperiment(policy, simulator, horizon, seed=0),
        "simulator": lambda: PolicySimulator(simulator, policy, horizon),
        "gain": lambda: expected_information_gain(simulator, policy, horizon, 8, 20, seed=0),
    }


@pytest.mark.parametrize("use", ["live run", "simulator", "gain"])
@pytest.mark.parametrize("from_file", [False, True])
def test_more_trials_than_trained_give_one_warning(trained, use, from_file, tmp_path):
    simulator, policy = trained
    if from_file:
        policy.save(tmp_path / "policy")
        policy = load_policy(tmp_path / "policy", simulator)
    assert policy.trained_horizon == 3
    with pytest.warns(UserWarning, match="trained for 3 trials and is asked for 5") as caught:
        uses(simulator, policy, 5)[use]()
    assert len(caught) == 1 and caught[0].filename == __file__
    for quiet, horizon in ((policy, 3), (policy, 1), (DeepSetsPolicy(simulator), 9), (RandomPolicy(simulator), 9)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            uses(simulator, quiet, horizon)[use]()


def test_a_live_run_on_the_disk_remembers_what_its_policy_was_trained_for(trained, tmp_path):
    simulator, policy = trained
    AdaptiveExperiment(policy, simulator, 3, tmp_path / "run.jsonl", seed=0).close()
    again = AdaptiveExperiment.load(tmp_path / "run.jsonl", simulator)
    again.close()
    assert again.policy.trained_horizon == 3


def test_an_embedding_knows_the_lengths_of_its_training():
    simulator = LinearGaussian()
    embedding = HistoryEmbedding(simulator)
    x = PolicySimulator(simulator, RandomPolicy(simulator), 6)(simulator.prior.sample((50,)))
    lengths = torch.arange(50) % 3 + 3  # 3 to 5
    x = x * (torch.arange(6) < lengths.unsqueeze(-1)).unsqueeze(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedding.eval()(x)  # never trained: nothing is known
        embedding.train()(x)
        embedding.eval()(x)
        embedding(x[:1, :3])
    again = HistoryEmbedding(simulator)
    again.load_state_dict(embedding.state_dict())
    for net in (embedding, again.eval()):
        for n in (1, 2, 6):
            beyond = x[:2].clone()
            beyond[:] = x[2:3]
            beyond[..., -1] = (torch.arange(6) < n).float()
            with pytest.warns(RuntimeWarning, match=rf"trials: {n}, trained on 3 to 5"):
                net(beyond)
    old = {name: value for name, value in embedding.state_dict().items() if "trained" not in name}
    again.load_state_dict(old)  # of a version that did not know
