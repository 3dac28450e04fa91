"""A variational approximation by minibatches, beside PyMC's own.

    python -m tests.benchmarks.variational [--rows 100000] [--updates 20000] [--rounds 3]

The model is a logistic regression with 20 predictors, minibatches have 500 rows. This library and
``pm.fit``, with several of its optimisers, make the same number of updates, in turns; seconds are
those of a whole fit, of a model that was fitted before, so that what is compiled is in the cache.
Beside them stand how far means are from those of the Laplace approximation, in its standard
deviations, and by which part standard deviations differ from those of the best independent normal,
at the most over all 21 numbers. Needs the extra ``pymc``.
"""

import argparse
import statistics
import time

import numpy as np
import pymc as pm

from downhill_rms.pymc import advi_problem
from tests.benchmarks.hardware import description
from tests.pymc import models

BATCH, PREDICTORS = 500, 20
OPTIMISERS = {
    "its default": pm.adagrad_window(),
    "adagrad_window, 0.01": pm.adagrad_window(learning_rate=0.01),
    "adam, 0.001": pm.adam(learning_rate=0.001),
}


def ours(data, updates, seed):
    """Mean and standard deviation of the approximation."""
    model = models.logistic_model(data)
    problem = advi_problem(model, data, batch_size=BATCH, updates=updates, seed=seed)
    problem.minimize(seed=seed, progress=False, validate_every=10**9)
    return problem.mean.get_value(), np.exp(problem.log_std.get_value())


def by_pymc(optimiser, data, updates, seed):
    """The same, by ``pm.fit``."""
    with models.with_minibatch(data, BATCH):
        fitted = pm.fit(
            updates, obj_optimizer=optimiser, random_seed=seed, progressbar=False, method="advi"
        )
    return fitted.mean.eval(), fitted.std.eval()


def main():
    """Measure, and print a line for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in description().items()))
    data = models.logistic_data(arguments.rows, PREDICTORS)
    mean, covariance = models.logistic_laplace(data)
    std = np.diag(np.linalg.inv(covariance)) ** -0.5
    contestants = {"ours": ours} | {
        f"pm.fit, {name}": lambda *given, optimiser=optimiser: by_pymc(optimiser, *given)
        for name, optimiser in OPTIMISERS.items()
    }
    seconds = {name: [] for name in contestants}
    errors = {name: [] for name in contestants}
    for turn in range(arguments.rounds + 1):
        for name, fit in contestants.items():
            updates = arguments.updates if turn else 10  # the first fills the cache
            started = time.perf_counter()
            found_mean, found_std = fit(data, updates, turn)
            if turn:
                seconds[name].append(time.perf_counter() - started)
                marginal = np.sqrt(np.diag(covariance))
                off = np.abs(found_mean - mean) / marginal, np.abs(found_std / std - 1)
                errors[name].append([part.max() for part in off])
    for name, figures in seconds.items():
        ratios = [a / b for a, b in zip(figures, seconds["ours"], strict=True)]
        off = np.max(errors[name], axis=0)
        print(
            f"{name:<24} {statistics.median(figures):6.2f} s, ratio {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f}); means off by {off[0]:.3f} standard "
            f"deviations, standard deviations by {off[1]:.1%}"
        )


if __name__ == "__main__":
    main()
