"""Fingerprints tell losses apart, and are the same in any process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms.rule import fingerprint, fingerprint_difference, read_graph
from tests.rule.fingerprints import losses

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "goldens" / "fingerprints.json"  # PyTensor 3.0.7's
# PyTensor 3.0.7 and 3.3.8 build these of other operations.
DIFFERENT = {"chosen", "shapes"}


def digests(prints):
    return {name: json.loads(text)["digest"] for name, text in prints.items()}


def test_they_are_the_same_in_another_process():
    here = {name: fingerprint(read_graph(loss)) for name, loss in losses()}
    for seed in ("1", "2"):
        output = subprocess.run(
            [sys.executable, "-m", "tests.rule.fingerprints"],
            cwd=ROOT,
            env=dict(os.environ, PYTHONHASHSEED=seed, PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert json.loads(output) == here
    assert len(set(digests(here).values())) == len(here)


@pytest.mark.parametrize("name", [name for name, _ in losses() if name not in DIFFERENT])
def test_they_are_the_same_in_other_releases_of_pytensor(name):
    here = {n: fingerprint(read_graph(loss)) for n, loss in losses() if n == name}
    assert digests(here)[name] == digests(json.loads(GOLDEN.read_text()))[name]


def line(constant=2.0, name="w", dtype="float64", swapped=False, twice=False, second=False):
    x, y = pt.matrix("x", dtype=dtype), pt.vector("y", dtype=dtype)
    w = pytensor.shared(np.zeros(3, dtype=dtype), name=name)
    error = x @ w - y
    again = x @ w - y if twice else error
    error.name = "a name that tells nothing" if twice else None
    count = pytensor.shared(0, name="count")
    loss = (error * again).mean() + np.asarray(constant, dtype) * pt.sqr(w).sum()
    inputs = [y, x] if swapped else [x, y]
    return read_graph(loss, inputs=inputs, updates=[(count, count + (2 if second else 1))])


@pytest.mark.parametrize(
    "edit",
    [
        {"constant": 2.5},
        {"name": "v"},
        {"dtype": "float32"},
        {"swapped": True},
        {"second": True},
    ],
)
def test_an_edit_shows(edit):
    assert fingerprint_difference(fingerprint(line()), fingerprint(line(**edit)))


def test_what_is_built_twice_or_named_is_the_same():
    assert fingerprint_difference(fingerprint(line()), fingerprint(line(twice=True))) == ""


def test_a_difference_names_operations_constants_and_releases():
    before = fingerprint(line())
    now = json.loads(fingerprint(line(constant=2.5))) | {"pytensor": "9.9"}
    text = fingerprint_difference(before, json.dumps(now))
    assert "constant 2 1 times before and 0 now, constant 2.5 0 times before and 1 now" in text
    assert f"PyTensor was {pytensor.__version__} and is 9.9" in text
