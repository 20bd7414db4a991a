"""Ten lines made wrong, one at a time, in a copy: a sign, a mask, a scale or a seed each. The tests must notice every one.

    python tests/mutations.py

The tests named beside a line are run first as they are and must pass; then with the line changed, and one must fail.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# method, file below sbi_bed/, text that is in it once, what it becomes, tests
MUTATIONS = [
    (
        "policy design",
        "objectives/contrastive.py",
        "torch.exp(sums.top - top)",
        "torch.exp(top - sums.top)",
        "tests/objectives/test_contrastive.py",
    ),
    (
        "policy design",
        "policies/design/deep_sets.py",
        "(self.encoder(features) * mask).sum(-2)",
        "self.encoder(features).sum(-2)",
        "tests/policies/design/test_policies.py",
    ),
    (
        "model comparison",
        "neural_nets/embedding_nets/hierarchical.py",
        "return mask > 0",
        "return mask >= 0",
        "tests/neural_nets/test_hierarchical_embedding.py",
    ),
    (
        "model comparison",
        "inference/posteriors/model_probabilities.py",
        "evidences + log_prior.to(evidences)",
        "evidences - log_prior.to(evidences)",
        "tests/inference/trainers/models/test_model_comparison.py",
    ),
    (
        "sensitivity",
        "simulators/sensitivity/power_scaled_prior.py",
        "(1 - g) / g * d.scale.square()",
        "(g - 1) / g * d.scale.square()",
        "tests/simulators/sensitivity/test_power_scaled_prior.py",
    ),
    (
        "sensitivity",
        "diagnostics/sensitivity/simulation_gap.py",
        "(others <= own.unsqueeze(-1))",
        "(others < own.unsqueeze(-1))",
        "tests/diagnostics/sensitivity/test_simulation_gap.py",
    ),
    (
        "Bayesian actors",
        "simulators/actors/perception.py",
        "spread = weight.sqrt() * sigma",
        "spread = weight * sigma",
        "tests/simulators/actors/test_perception.py",
    ),
    (
        "Bayesian actors",
        "simulators/actors/perception.py",
        "return -value.log()",
        "return value.log()",
        "tests/simulators/actors/test_perception.py",
    ),
    (
        "treatment",
        "inference/experiments/treatment/a2ipw.py",
        "- (1 - arm) * (outcome - f0)",
        "+ (1 - arm) * (outcome - f0)",
        "tests/inference/experiments/treatment/test_a2ipw.py",
    ),
    (
        "treatment",
        "inference/experiments/treatment/experiment.py",
        'seed_for(self.seed, f"unit {number}")',
        'seed_for(self.seed, "unit")',
        "tests/inference/experiments/treatment/test_treatment_experiment.py",
    ),
]


def run(tree: Path, tests: list[str]) -> tuple[int, str]:
    """Exit status of pytest in the copy, and the first test that failed."""
    python = [sys.executable, "-B"]  # no byte code, which would be of the line before
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-W", "ignore"]
    done = subprocess.run(
        [*python, "-m", "pytest", *options, *tests], cwd=tree, env=environment, capture_output=True, text=True
    )
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else done.stdout[-300:]


def main() -> int:
    """Print a line for each mutation; 1 if one was not noticed."""
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "main"
        for name in ("sbi_bed", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        where = [sys.executable, "-c", "import sbi_bed; print(sbi_bed.__file__)"]
        found = subprocess.run(where, cwd=folder, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True)
        if str(tree) not in found.stdout.decode():
            raise RuntimeError(f"the copy is not what is imported, but {found.stdout.decode()!r}.")
        status, what = run(tree, sorted({tests for *_, tests in MUTATIONS}))
        if status != 0:
            raise RuntimeError(f"without a mutation, too: {what}")
        for method, name, old, new, tests in MUTATIONS:
            path, start = tree / "sbi_bed" / name, time.perf_counter()
            source = path.read_text(encoding="utf-8")
            if source.count(old) != 1:
                raise RuntimeError(f"{name} has {old!r} {source.count(old)} times.")
            path.write_text(source.replace(old, new), encoding="utf-8")
            status, what = run(tree, [tests])
            path.write_text(source, encoding="utf-8")
            answer = f"caught by {what}" if status == 1 else f"SURVIVED (pytest: {status}) {what}"
            survived += status != 1
            line = source[: source.index(old)].count("\n") + 1
            seconds = time.perf_counter() - start
            print(f"{method}: {name}:{line}: {old} -> {new}: {answer} ({seconds:.0f} s)", flush=True)
    print(f"{len(MUTATIONS) - survived} of {len(MUTATIONS)} caught")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
