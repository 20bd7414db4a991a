"""What of sbi is private and yet used: it is where `_compat.py` expects it, and no other file uses such a thing."""

import ast
import copy
import inspect
from pathlib import Path

import pytest
import sbi
import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.trainers._contracts import TrainConfig
from sbi.inference.trainers.base import NeuralInference
from torch import nn

import sbi_bed
from sbi_bed._compat import TrainingLoop
from sbi_bed.utils import NoTracker

PACKAGE = Path(sbi_bed.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "_compat.py")
ADVICE = f"it has moved in sbi {sbi.__version__}: read sbi_bed/_compat.py again"


def private_of_sbi(source):
    """Private modules and names of sbi that a source imports, or reaches by attributes of what it imports from sbi."""
    tree, found, ours = ast.parse(source), [], {"sbi"}
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "sbi":
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            ours |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names if alias.name.split(".")[0] == "sbi"]
            ours |= {alias.asname or "sbi" for alias in node.names if alias.name.split(".")[0] == "sbi"}
        found += [name for name in modules if any(part.startswith("_") for part in name.split("."))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in ours:
                found.append(ast.unparse(node))
        if isinstance(node, ast.ClassDef) and any(
            isinstance(b, ast.Name) and b.id == "NeuralInference" for b in node.bases
        ):
            found.append(f"class {node.name}(NeuralInference)")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_sbi_are_for_one_file(path):
    assert private_of_sbi(path.read_text()) == []


def test_the_finder_finds():
    assert private_of_sbi("from sbi.inference.trainers._contracts import TrainConfig") != []
    assert private_of_sbi("from sbi.inference import _secret") != []
    assert private_of_sbi("import sbi.utils._tools") != []
    assert private_of_sbi("import sbi\nsbi.utils._tools.f()") == ["sbi.utils._tools"]
    assert private_of_sbi("from sbi.inference import NPE as Net\nNet._loss") == ["Net._loss"]
    assert private_of_sbi("from sbi.inference import NPE\nself._loss(NPE().x)\nfrom ._compat import TrainingLoop") == []
    assert private_of_sbi((PACKAGE / "_compat.py").read_text()) != []


def test_methods_that_are_called_or_replaced_exist():
    """Replacing a method that sbi no longer calls would be noticed by nobody."""
    own = [name for name, value in vars(TrainingLoop).items() if callable(value) and name.startswith("_")]
    hooks = {name for name in own if not name.startswith("__")} - {"_not_here"}
    assert hooks >= {"_get_losses", "_converged", "_maybe_show_progress", "_report_convergence_at_end"}
    for name in (*hooks, "_run_training_loop"):
        assert callable(getattr(NeuralInference, name, None)), f"NeuralInference.{name}: {ADVICE}"
    loop = inspect.getsource(NeuralInference._run_training_loop) + inspect.getsource(NeuralInference._train_epoch)
    loop += inspect.getsource(NeuralInference._validate_epoch)
    for name in ("_get_losses", "_converged", "_maybe_show_progress", "_report_convergence_at_end"):
        assert f"self.{name}(" in loop, f"sbi's loop calls no {name}: {ADVICE}"
        ours, theirs = (inspect.signature(getattr(c, name)).parameters.keys() for c in (TrainingLoop, NeuralInference))
        assert ours - {"self"} == theirs - {"self"}, f"{name}: {ADVICE}"


def test_arguments_of_the_loop_exist():
    assert list(inspect.signature(NeuralInference._run_training_loop).parameters)[:4] == [
        "self", "train_loader", "val_loader", "train_config",
    ], ADVICE  # fmt: skip
    names = {
        "training_batch_size", "learning_rate", "validation_fraction", "stop_after_epochs", "max_num_epochs",
        "resume_training", "retrain_from_scratch", "show_train_summary", "clip_max_norm",
    }  # fmt: skip
    assert names == set(inspect.signature(TrainConfig).parameters), ADVICE


def test_what_is_kept_between_epochs_is_all_that_the_loop_carries():
    """State that a newer sbi would add is not in a checkpoint, and a resumed training would not be the same."""

    class Batches(list):
        batch_size = 4

    kept = {}

    def loop(after_epoch):
        torch.manual_seed(0)
        net = nn.Linear(2, 1)
        losses = lambda x: net(x).square().sum(-1)  # noqa: E731
        return TrainingLoop(net, losses, lambda: 0.1, lambda _: False, after_epoch, torch.device("cpu"), NoTracker())

    data = Batches([torch.ones(4, 2), 2 * torch.ones(4, 2)])
    # As a checkpoint does, between epochs: when a run ends, the net gets its best weights back.
    whole, second = loop(lambda loop: kept.update({loop.epoch: copy.deepcopy(loop.state_dict())})), loop(lambda _: None)
    before = set(vars(whole))
    whole.run(data, data, 4, 20, 5.0)
    second.load_state_dict(kept[2])
    second.run(data, data, 4, 20, 5.0)
    assert whole.epoch == second.epoch == 4 and whole.validation_losses == second.validation_losses
    for one, two in zip(whole._neural_net.parameters(), second._neural_net.parameters(), strict=True):
        assert torch.equal(one, two)
    known = {
        "_best_model_state_dict",
        "_best_val_loss",
        "_epochs_since_last_improvement",
        "_val_loss",
        "_max_num_epochs",
    }
    assert set(vars(whole)) - before <= known, f"{sorted(set(vars(whole)) - before - known)}: {ADVICE}"


def test_the_leakage_that_is_forgotten_is_kept_by_that_name():
    assert "_leakage_density_correction_factor" in inspect.getsource(DirectPosterior.leakage_correction), ADVICE
    uses = [path.name for path in FILES if "_leakage_density" in path.read_text(encoding="utf-8")]
    assert uses == []
