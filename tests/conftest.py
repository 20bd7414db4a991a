"""One core and no windows, for every test; the same seeds, or others: `pytest --seed-offset N`."""

import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import joblib
import pytest
import torch
from hypothesis import HealthCheck, settings
from seed_offset.sitecustomize import shift_seeds

torch.set_num_threads(1)
EVERYWHERE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("the same cases", derandomize=True, **EVERYWHERE)
settings.register_profile("new cases", **EVERYWHERE)
settings.load_profile("the same cases")


def pytest_addoption(parser):
    parser.addoption("--seed-offset", type=int, default=0, help="is added to every seed: no test may depend on its own")


def pytest_xdist_auto_num_workers(config):
    """One process a core for all default tests; one in all for named files, and for measurements."""
    is_whole = config.args_source is config.ArgsSource.TESTPATHS and config.option.markexpr.startswith("not slow")
    return joblib.cpu_count() if is_whole else 0


def pytest_configure(config):
    offset = config.getoption("--seed-offset")
    if offset:
        settings.load_profile("new cases")
        shift_seeds(offset)
        folder = str(Path(__file__).parent / "seed_offset")  # for processes that tests start
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        os.environ["SEED_OFFSET"] = str(offset)


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state and leaves the default dtype as it was."""
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
