"""Whatever is wrong with a file, reading it is one clear error: for every kind of file that there is, and every reader.

A flipped bit is noticed by a checksum, or it is one that nobody reads: then what is loaded is what was saved.
"""

import io
import os
import pickle
import random
import time
import zipfile
from functools import partial

import pytest
import torch
from small_trainings import POWERS, PRIOR, SIMULATOR, TRAININGS, train_in_contexts, weights_of
from torch import nn

from sbi_bed.inference import (
    AdaptiveExperiment,
    ContextPosterior,
    DeepEnsemblePosterior,
    ModelPosterior,
    StepDAD,
    TreatmentExperiment,
)
from sbi_bed.inference.experiments.journal import journal_bytes, read_journal
from sbi_bed.neural_nets import HierarchicalEmbedding, NeuralActor
from sbi_bed.neural_nets.classifiers import EvidenceClassifier
from sbi_bed.policies import (
    ContextPolicy,
    DeepSetsPolicy,
    ExperimenterTransformer,
    NonContextualNeyman,
    RandomPolicy,
    StaticPolicy,
    TransformerPolicy,
    load_policy,
)
from sbi_bed.simulators import (
    QuadraticEffortCost,
    read_choices,
    read_participant,
    read_responses,
    read_trial,
)
from sbi_bed.utils.files import save_file

CLEAR = (ValueError, OSError)  # all that a reader may raise


# ---- what can be saved: (write to a path, read it back, the numbers that came back)


def classifier_posterior():
    net = HierarchicalEmbedding(input_dim=1, output_dim=2, hidden_dim=4)
    return ModelPosterior(EvidenceClassifier(net, 2, 2, 4, 1), torch.ones(2) / 2, (3, 3, 2))


def write_actor(path):
    NeuralActor(QuadraticEffortCost(), hidden_dim=4, num_layers=1).save(path)


def write_ensemble(path):
    DeepEnsemblePosterior([classifier_posterior() for _ in range(2)]).save(path)


def write_context_posterior(path):
    train_in_contexts(None).save(path)


SAVED = {
    "deep sets": (
        lambda path: DeepSetsPolicy(SIMULATOR, hidden_dim=4, summary_dim=2).save(path),
        lambda path: load_policy(path, SIMULATOR),
    ),
    "transformer": (
        lambda path: TransformerPolicy(SIMULATOR, 3, hidden_dim=8, num_layers=1, num_heads=1).save(path),
        lambda path: load_policy(path, SIMULATOR),
    ),
    "static": (lambda path: StaticPolicy(SIMULATOR, 3).save(path), lambda path: load_policy(path, SIMULATOR)),
    "context policy": (
        lambda path: ContextPolicy(SIMULATOR, POWERS, 4).save(path),
        lambda path: load_policy(path, SIMULATOR),
    ),
    "experimenter": (
        lambda path: ExperimenterTransformer(1, hidden_dim=8, num_layers=1, num_heads=2).save(path),
        lambda path: load_policy(path),
    ),
    "actor": (write_actor, NeuralActor.load),
    "model posterior": (lambda path: classifier_posterior().save(path), ModelPosterior.load),
    "ensemble": (write_ensemble, DeepEnsemblePosterior.load),
    "context posterior": (write_context_posterior, lambda path: ContextPosterior.load(path, PRIOR)),
}


# ---- trainings: the reader goes on with the training

GOING_ON = {name: (train, partial(train, resume=True)) for name, train in TRAININGS.items()}


# ---- experiments


def write_adaptive(path):
    experiment = AdaptiveExperiment(RandomPolicy(SIMULATOR), SIMULATOR, 5, seed=1)
    for _ in range(2):
        experiment.record(experiment.next_design().sum(-1, keepdim=True).abs())
    experiment.save(path)


def write_step_dad(path):
    policy = DeepSetsPolicy(SIMULATOR, hidden_dim=4, summary_dim=2)
    few = {"num_steps": 1, "batch_size": 8, "num_contrastive": 7, "num_particles": 100, "num_held_out": 8}
    experiment = StepDAD(policy, SIMULATOR, 3, (1,), refine_settings=few, seed=1, show_progress_bars=False)
    for _ in range(2):
        experiment.record(experiment.next_design().sum(-1, keepdim=True).abs())
    experiment.save(path)


def write_treatment(path):
    experiment = TreatmentExperiment(NonContextualNeyman(2), seed=1)
    for unit in range(3):
        experiment.assign([0.1 * unit, 1.0])
        experiment.update(float(unit))
    experiment.save(path)


JOURNALS = {
    "adaptive": (write_adaptive, lambda path: AdaptiveExperiment.load(path, SIMULATOR, journal=False)),
    "step-dad": (write_step_dad, lambda path: StepDAD.load(path, SIMULATOR, journal=False)),
    "treatment": (write_treatment, lambda path: TreatmentExperiment.load(path, journal=False)),
}


# ---- tables

TABLES = {
    "choices": (
        "participant,trial,amount_immediate,amount_delayed,delay_days,chose_immediate\n7,1,20,100,30,0\n7,2,80,100,30,1\n",
        read_choices,
    ),
    "participant": (
        "participant,trial,amount_immediate,amount_delayed,delay_days,chose_immediate\n7,1,20,100,30,0\n",
        lambda path: read_participant(path, 7),
    ),
    "responses": ("subject,stimulus,response\na,1.0,1.1\na,3.0,2.6\nb,2.0,1.5\n", read_responses),
    "trial": (
        "arm,age,y\n1,30,2.0\n0,31,1.0\n1,32,3.0\n0,33,1.5\n",
        lambda path: read_trial(path, "arm", "y", ["age"]),
    ),
}

BINARY = {**SAVED, **GOING_ON}
READERS = {name: read for name, (_, read) in {**BINARY, **JOURNALS, **TABLES}.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bytes of a sound file of each kind, and what it gives."""
    folder, found = tmp_path_factory.mktemp("files"), {}
    for name, (write, read) in {**BINARY, **JOURNALS}.items():
        path = folder / name
        write(path)
        found[name] = path.read_bytes()
        read(path)
    return found


# ---- foreign files


class Bomb:
    """Unpickling this leaves a folder behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def foreign(folder):
    """Files of others, by what they are."""
    packed, tensor, old, bomb, module = (io.BytesIO() for _ in range(5))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"0" * 10_000_000)
    torch.save(torch.ones(3), tensor)
    torch.save({"format": "sbi_bed.policy"}, old, _use_new_zipfile_serialization=False)
    torch.save({"format": "sbi_bed.policy", "policy": Bomb(folder / "gone off")}, bomb)
    torch.save(nn.Linear(2, 2), module)
    line = b'{"crc32":"00000000","entry":{}}\n'
    return {
        "nothing": b"",
        "one byte": b"\x00",
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
        "zip": packed.getvalue(),
        "tensor": tensor.getvalue(),
        "older torch": old.getvalue(),
        "code in torch": bomb.getvalue(),
        "net": module.getvalue(),
        "code": pickle.dumps(Bomb(folder / "gone off")),
        "pickle": pickle.dumps({"a": 1}),
        "text": "größe,dosis\n1,2\n".encode("latin-1"),
        "table": b"a,b\n1,2\n" * 10,
        "long line": b'"' + b"x" * 200_000,
        "zeros": bytes(10_000),
        "half a journal": b'{"crc32":"0123',
        "line": line,
        "deep": b"[" * 100_000,
    }


@pytest.mark.parametrize("name", READERS)
def test_files_of_others_are_one_clear_error(name, tmp_path):
    for what, content in foreign(tmp_path).items():
        path = tmp_path / "foreign"
        path.write_bytes(content)
        start = time.process_time()
        with pytest.raises(CLEAR) as err:
            READERS[name](path)
        assert str(path) in str(err.value), what
        assert time.process_time() - start < 2, what
    assert not (tmp_path / "gone off").exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        READERS[name](path)


@pytest.mark.parametrize("name", [*BINARY, *JOURNALS])
def test_files_of_another_kind_are_refused(name, files, tmp_path):
    mine = files[name]
    for other, content in files.items():
        if _kind(content) != _kind(mine):
            (tmp_path / "other").write_bytes(content)
            with pytest.raises(ValueError, match="other"):
                READERS[name](tmp_path / "other")
            assert other != name


def _kind(content):
    if not content.startswith(b"PK"):
        return content[:2], b"StepDAD" in content[:4000], b"TreatmentExperiment" in content[:4000]
    return torch.load(io.BytesIO(content), weights_only=True)["format"]


# ---- damage


def damaged_by(content, chance, num_flips):
    """Copies with one flipped bit each, at random places."""
    for _ in range(num_flips):
        place = chance.randrange(len(content))
        yield place, content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def check_cuts(name, content, path, lengths):
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(CLEAR):
            READERS[name](path)


def check_flips(name, content, path, num, seed):
    path.write_bytes(content)
    expected = weights_of(READERS[name](path))
    loaded = 0
    for place, flipped in damaged_by(content, random.Random(seed), num):
        path.write_bytes(flipped)
        try:
            found = READERS[name](path)
        except ValueError as err:
            assert str(path) in str(err), place
        else:
            loaded += 1
            assert torch.equal(weights_of(found), expected), place
    return loaded


@pytest.mark.parametrize("name", BINARY)
def test_damaged_nets_and_trainings(name, files, tmp_path):
    content = files[name]
    check_cuts(name, content, tmp_path / "cut", [0, 1, 3, 30, *range(50, len(content), 997), len(content) - 1])
    assert check_flips(name, content, tmp_path / "flipped", 15, 0) < 12


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", BINARY)
def test_much_damage_to_nets_and_trainings(name, files, tmp_path):
    content = files[name]
    check_cuts(name, content, tmp_path / "cut", range(0, len(content), max(7, len(content) // 2000)))
    loaded = check_flips(name, content, tmp_path / "flipped", 400, 1)
    print(f"\n{name}: {loaded} of 400 flips were of no importance")


def check_journal(name, content, path, lengths, num_flips):
    """A cut journal lacks trials at its end; a flipped bit is noticed, or nothing but the end of a line was hit."""
    header_end = content.index(b"\n")
    path.write_bytes(content)
    _, entries = read_journal(path)
    for length in lengths:
        path.write_bytes(content[:length])
        if length < header_end:
            with pytest.raises(ValueError, match=r"cut|empty|damaged"):
                READERS[name](path)
        else:
            READERS[name](path)
            kept = read_journal(path)[1]
            assert kept == entries[: len(kept)]
    for place, flipped in damaged_by(content, random.Random(2), num_flips):
        path.write_bytes(flipped)
        try:
            READERS[name](path)
        except ValueError as err:
            assert str(path) in str(err), place
        else:  # the last line counts as half-written, unless only its newline is gone
            kept = read_journal(path)[1]
            assert kept in (entries, entries[:-1]) and place >= content[:-1].rindex(b"\n")


@pytest.mark.parametrize("name", JOURNALS)
def test_damaged_journals(name, files, tmp_path):
    content = files[name]
    check_journal(name, content, tmp_path / "journal", range(0, len(content), 499), 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOURNALS)
def test_much_damage_to_journals(name, files, tmp_path):
    content = files[name]
    check_journal(name, content, tmp_path / "journal", range(0, len(content), 17), 2000)


@pytest.mark.parametrize("name", TABLES)
def test_damaged_tables(name, tmp_path):
    """A table has no checksum: what still reads is finite."""
    text, read = TABLES[name]
    content, path = text.encode(), tmp_path / "table.csv"
    copies = [content[:length] for length in range(len(content))]
    copies += [flipped for _, flipped in damaged_by(content, random.Random(3), 100)]
    copies += [content.replace(b"\n", end) for end in (b"\x00\n", b"\x00", b"\xff\n", b",\n")]
    copies += [text.encode("utf-16"), content * 2, b"\xef\xbb\xbf" + content]
    read_well = 0
    for copy in copies:
        path.write_bytes(copy)
        try:
            found = read(path)
        except ValueError as err:
            assert str(path) in str(err)
        else:
            read_well += 1
            for one in found.values() if isinstance(found, dict) else [found]:
                numbers = [value for value in vars(one).values() if isinstance(value, torch.Tensor)]
                assert numbers and all(torch.isfinite(value).all() for value in numbers)
    assert 0 < read_well < len(copies)


# ---- sound files with senseless content


SENSELESS = [None, "x", -1, [], {}, float("nan"), [[1.0], "a"]]


def variants(content):
    """Copies of a dict in which one entry, or an entry of an entry, is missing or senseless."""
    for key in content:
        if key in ("format", "format_version", "version"):
            continue
        yield key, {k: v for k, v in content.items() if k != key}
        for value in SENSELESS:
            yield key, {**content, key: value}
        if isinstance(content[key], dict):
            for inner, changed in variants(content[key]):
                yield f"{key}.{inner}", {**content, key: changed}


@pytest.mark.parametrize("name", SAVED)
def test_senseless_content(name, files, tmp_path):
    content, path = torch.load(io.BytesIO(files[name]), weights_only=True), tmp_path / "file"
    kind = content["format"].removeprefix("sbi_bed.")
    chosen = list(variants(content))
    for key, changed in random.Random(4).sample(chosen, min(len(chosen), 60)):
        save_file(path, kind, {k: v for k, v in changed.items() if k not in ("format", "version")})
        try:
            READERS[name](path)
        except ValueError as err:
            assert str(path) in str(err), key


@pytest.mark.parametrize("name", TRAININGS)
def test_senseless_trainings(name, files, tmp_path):
    content, path = torch.load(io.BytesIO(files[name]), weights_only=True), tmp_path / "file"
    kind = content.pop("format").removeprefix("sbi_bed.")
    del content["version"]
    states = [{k: v for k, v in content.items() if k != key} for key in content]
    parts = ["loop", "weights", "actor", "optimizer", "step", "settings", "random_state"]
    states += [{**content, key: value} for key in parts if key in content for value in ("x", -1, [], None)]
    for state in states:
        save_file(path, kind, state)
        with pytest.raises(ValueError, match=r"file (lacks|cannot be loaded|is a checkpoint of)"):
            READERS[name](path)


@pytest.mark.parametrize("name", JOURNALS)
def test_senseless_journals(name, files, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(files[name])
    header, entries = read_journal(path)
    chosen = [(key, changed, entries) for key, changed in variants(header)]
    for place, entry in enumerate(entries):
        chosen += [(k, header, [*entries[:place], c, *entries[place + 1 :]]) for k, c in variants(entry)]
    for key, head, rest in random.Random(5).sample(chosen, min(len(chosen), 150)):
        try:
            path.write_bytes(journal_bytes(head, rest))
        except ValueError:  # a journal holds finite numbers
            continue
        try:
            READERS[name](path)
        except ValueError as err:
            assert str(path) in str(err), key
