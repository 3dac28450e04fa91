"""The examples, run as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples import d2l

ROOT = Path(__file__).parent.parent
FAST = "cxx=,mode=FAST_COMPILE"


def run(name, *arguments, flags=FAST):
    flags = ",".join(filter(None, [os.environ.get("PYTENSOR_FLAGS"), flags]))
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", ROOT / "examples" / f"{name}.py", *arguments],
        env=dict(os.environ, PYTENSOR_FLAGS=flags, PYTHONPATH=str(ROOT), PYTHONIOENCODING="utf-8"),
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_digits_with_the_default_backend():
    """Nothing is changed here: this is PyTensor and the library as they come."""
    output = run("digits", flags="")
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", output).group(1))
    assert accuracy > 96


def test_quickstart():
    output = run("quickstart")
    losses = [float(v) for v in re.findall(r"loss (\d\.\d+)", output)]
    assert losses == sorted(losses, reverse=True)
    first, last = re.findall(r"'loss': ([\d.]+)", output)
    assert float(last) < float(first) / 4


def test_step_loop():
    errors = [float(v) for v in re.findall(r"error: ([\d.]+)", run("step_loop"))]
    assert len(errors) == 20
    assert errors[-1] < errors[0] / 10


def test_d2l_prints_the_books_numbers(tmp_path):
    """On diabetes data in the airfoil file's form; the airfoil data are not in the project."""
    features, target = d2l.load()
    np.savetxt(tmp_path / "data.dat", np.column_stack([features, target]), delimiter="\t")
    output = run("d2l", str(tmp_path / "data.dat"))
    assert "epoch 20, x1: -0.010599, x2: 0.000000" in output
    assert output.count("gamma = ") == 4
    loss = float(re.search(r"loss: ([\d.]+)", output).group(1))
    best = np.linalg.lstsq(features, target, rcond=None)[0]
    least = np.mean((features @ best - target) ** 2) / 2
    assert least < loss < 1.1 * least


@pytest.mark.skipif("DOWNHILL_RMS_AIRFOIL" not in os.environ, reason="needs the airfoil data")
@pytest.mark.parametrize("seed", range(5))
def test_d2l_regression_on_airfoil_self_noise(seed):
    """Set DOWNHILL_RMS_AIRFOIL to the path of airfoil_self_noise.dat."""
    loss = d2l.regression(*d2l.load(os.environ["DOWNHILL_RMS_AIRFOIL"]), seed=seed)
    assert 0.242 <= loss <= 0.248


def test_torch_parity():
    pytest.importorskip("torch")
    differences = re.findall(r"difference (\S+)", run("torch_parity"))
    assert len(differences) == 5
    assert all(float(d) < 1e-6 for d in differences)
