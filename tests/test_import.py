"""`import sbi_bed` is light: no torch, no sbi, a tenth of a second at most."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, time
start = time.perf_counter()
import sbi_bed
print(time.perf_counter() - start, *(name for name in ("torch", "sbi", "numpy", "matplotlib") if name in sys.modules))
"""


def run(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_package_is_light():
    assert run(SCRIPT)[1:] == []


@pytest.mark.benchmark
def test_importing_the_package_is_quick():
    assert min(float(run(SCRIPT)[0]) for _ in range(3)) < 0.1


def test_names_are_found_on_use():
    assert (
        run("import sbi_bed; print(sbi_bed.__version__, sbi_bed.simulators.LocationFinding.__name__)")[1]
        == "LocationFinding"
    )
