"""The demonstrations against facts that do not come from this library."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from downhill_rms.command.demos import DEMOS, run_demo

ROOT = Path(__file__).parents[2]


def path_of(result):
    return result.figure().axes[0].lines[0].get_xydata()


def curves_of(result):
    return [ax.get_ylabel() for ax in result.figure().axes]


def test_rosenbrock_reaches_the_minimum():
    """It lies at (1, 1), whatever way leads there."""
    result = run_demo("rosenbrock")
    path = path_of(result)
    assert len(path) == result.trainer.update_count + 1
    assert tuple(path[0]) == (-1.2, 1.0)
    np.testing.assert_allclose(path[-1], [1, 1], atol=1e-6)
    # It is walked, not jumped.
    assert np.abs(np.diff(path, axis=0)).max() < 0.2
    assert "loss 24.2" in result.summary[0]
    assert "stopped by max_updates after 1000 updates" in result.summary[-1]


def test_the_quadratic_is_the_books(mode):
    """The rule of "Dive into Deep Learning", in its own words, and the end that it prints."""
    eta, gamma, eps = 0.4, 0.9, 1e-6
    x1, x2, s1, s2 = -5.0, -2.0, 0.0, 0.0
    book = [(x1, x2)]
    for _ in range(20):
        g1, g2 = 0.2 * x1, 4 * x2
        s1 = gamma * s1 + (1 - gamma) * g1**2
        s2 = gamma * s2 + (1 - gamma) * g2**2
        x1 -= eta / math.sqrt(s1 + eps) * g1
        x2 -= eta / math.sqrt(s2 + eps) * g2
        book.append((x1, x2))
    result = run_demo("quadratic", mode=mode)
    np.testing.assert_allclose(path_of(result), book, rtol=1e-9, atol=1e-12)
    assert "x1 -0.010599, x2  0.000000" in result.summary[1]
    end = [float(param.get_value()) for param in result.trainer.graph.params]
    np.testing.assert_allclose(end, book[-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_regression_finds_the_line(seed):
    result = run_demo("regression", seed=seed)
    w, b = (param.get_value() for param in result.trainer.graph.params)
    np.testing.assert_allclose([*w, b], [1, 2, 3, 4, 5, 6], atol=0.02)
    # The noise has a variance of 0.01; of 200 samples, within four standard errors.
    assert result.trainer.best.loss == pytest.approx(0.01, abs=4 * 0.01 * math.sqrt(2 / 200))
    assert result.trainer.stop_reason == "patience"
    assert "stopped by patience" in result.summary[0]
    assert curves_of(result) == ["loss"]


def test_a_seed_is_a_run_of_its_own(mode):
    losses = [run_demo("regression", seed=s, mode=mode).trainer.best.loss for s in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


def test_the_digits_are_recognised():
    """Chance is 10 %, and the nearest centroid, the simplest of classifiers, 89 %."""
    result = run_demo("digits")
    accuracy = float(result.summary[-1].rsplit(" ", 1)[1].rstrip("%"))
    assert accuracy > 95
    assert all(param.type.dtype == "float32" for param in result.trainer.graph.params)
    assert curves_of(result) == ["loss", "error rate"]


def test_a_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "downhill_rms\[examples\]"'):
        run_demo("digits")


def test_an_unknown_demo_is_refused():
    with pytest.raises(ValueError, match=r"'mnist' is no demo: there are rosenbrock, .*\. Choose"):
        run_demo("mnist")
    assert list(DEMOS) == ["rosenbrock", "quadratic", "regression", "digits"]


def test_a_demo_trains_without_matplotlib():
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import pytensor; pytensor.config.cxx = ''\n"
        "from downhill_rms.command.demos import run_demo\n"
        "print(run_demo('quadratic', mode='FAST_COMPILE').summary[-1])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert result.stdout == "stopped by max_updates after 20 updates\n"
