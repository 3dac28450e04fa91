"""Demonstrations that need no file: each trains for real, says how it went, and can be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.special import log_softmax

from downhill_rms.data import Dataset
from downhill_rms.rule import Hyperparameters, preset
from downhill_rms.trainer import Trainer
from downhill_rms.watching.plots import learning_curves, trace_2d

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("x1", "x2")
ROSENBROCK_UPDATES = 1000
WEIGHTS, BIAS, NOISE = np.arange(1.0, 6.0), 6.0, 0.1  # of the generated line
PIXELS, HIDDEN, CLASSES = 64, 128, 10


@dataclass(frozen=True)
class DemoResult:
    """How a demonstration went.

    Attributes
    ----------
    name : str
        The demonstration.
    trainer : Trainer
        As training left it.
    summary : list of str
        Lines for a terminal.
    figure : callable
        Draws the path or the curves, and returns matplotlib's figure (extra ``plot``).
    """

    name: str
    trainer: Trainer
    summary: list[str]
    figure: Callable[[], Figure]


def run_demo(
    name: str, *, seed: int = 0, mode: Any = None, progress: bool | None = None
) -> DemoResult:
    """Train on data that come with a package or are generated.

    Parameters
    ----------
    name : str
        ``rosenbrock`` or ``quadratic``: two parameters on their way to a minimum, from a fixed
        start; ``regression``: a line through generated data; ``digits``: a network on
        scikit-learn's images (extra ``examples``).
    seed : int
        Of the data, their order and a network's start.
    mode : str or Mode, optional
        How PyTensor compiles.
    progress : bool, optional
        As for ``Trainer.minimize``.

    Returns
    -------
    DemoResult

    Raises
    ------
    ValueError
        For an unknown name.
    ImportError
        If scikit-learn is not installed for ``digits``.
    """
    if name not in DEMOS:
        raise ValueError(f"{name!r} is no demo: there are {', '.join(DEMOS)}. Choose one of these.")
    return DEMOS[name](seed, mode, progress)


def rosenbrock(seed: int, mode: Any, progress: bool | None) -> DemoResult:
    """Rosenbrock's valley, with Graves' hyperparameters and a falling learning rate."""
    rule = preset("graves", learning_rate=lambda t: 0.003 * 0.01 ** (t / ROSENBROCK_UPDATES))
    return _follow(
        "rosenbrock",
        lambda x1, x2: (1 - x1) ** 2 + 100 * (x2 - x1**2) ** 2,
        (-1.2, 1.0),
        (1.0, 1.0),
        rule,
        max_updates=ROSENBROCK_UPDATES,
        mode=mode,
        progress=progress,
    )


def quadratic(seed: int, mode: Any, progress: bool | None) -> DemoResult:
    """The quadratic of "Dive into Deep Learning", chapter 12.8: flat one way, steep the other."""
    return _follow(
        "quadratic",
        lambda x1, x2: 0.1 * x1**2 + 2 * x2**2,
        (-5.0, -2.0),
        (0.0, 0.0),
        preset("d2l", lr=0.4, gamma=0.9, eps=1e-6),
        max_updates=20,
        mode=mode,
        progress=progress,
    )


def regression(seed: int, mode: Any, progress: bool | None) -> DemoResult:
    """A line in five dimensions through generated samples with noise."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(1000, len(WEIGHTS)))
    targets = samples @ WEIGHTS + BIAS + NOISE * rng.normal(size=len(samples))
    x, y = pt.dmatrix("x"), pt.dvector("y")
    w = pytensor.shared(np.zeros(len(WEIGHTS)), name="w")
    b = pytensor.shared(np.array(0.0), name="b")
    trainer = Trainer(pt.sqr(x @ w + b - y).mean(), inputs=[x, y], mode=mode)
    trainer.minimize(
        Dataset([samples[:800], targets[:800]], name="train", rng=rng),
        [samples[800:], targets[800:]],
        learning_rate=0.01,
        validate_every=1,
        max_epochs=100,
        progress=progress,
    )
    found = " ".join(f"{value:.3f}" for value in [*w.get_value(), float(b.get_value())])
    true = " ".join(f"{value:.3f}" for value in [*WEIGHTS, BIAS])
    summary = [
        *_headline(trainer),
        f"weights and bias found: {found}",
        f"                  true: {true}",
        f"the true line has a loss of {NOISE**2:.4g} on average, the variance of the noise",
    ]
    return DemoResult("regression", trainer, summary, lambda: learning_curves(trainer.history))


def digits(seed: int, mode: Any, progress: bool | None) -> DemoResult:
    """Handwritten digits: a softmax network with one hidden layer, in float32."""
    rng = np.random.default_rng(seed)
    train, valid, test = _load_digits(rng)
    inputs, loss, error_rate = _network(rng)
    trainer = Trainer(loss, inputs=inputs, monitors={"error rate": error_rate}, mode=mode)
    trainer.minimize(
        Dataset(train, name="train", rng=rng),
        valid,
        learning_rate=2e-3,
        rms_regularizer=1e-4,
        validate_every=1,
        max_epochs=100,
        progress=progress,
    )
    result = trainer.evaluate(test)
    summary = [
        *_headline(trainer),
        f"on {len(test[0])} images that training never saw: loss {result['loss']:.4f}, "
        f"accuracy {1 - result['error rate']:.2%}",
    ]
    return DemoResult(
        "digits",
        trainer,
        summary,
        lambda: learning_curves(trainer.history, ("loss", "error rate")),
    )


DEMOS: dict[str, Callable[[int, Any, bool | None], DemoResult]] = {
    "rosenbrock": rosenbrock,
    "quadratic": quadratic,
    "regression": regression,
    "digits": digits,
}


def _follow(
    name: str,
    function: Callable[[Any, Any], Any],
    start: tuple[float, float],
    minimum: tuple[float, float],
    rule: Hyperparameters,
    *,
    max_updates: int,
    mode: Any,
    progress: bool | None,
) -> DemoResult:
    """Follow two parameters, update by update, on their way to a known minimum."""
    x1, x2 = (pytensor.shared(np.array(v), name=n) for v, n in zip(start, NAMES, strict=True))
    trainer = Trainer(function(x1, x2), mode=mode)
    epochs = trainer.iterate(
        max_updates=max_updates,
        patience=math.inf,
        restore_best=False,  # the path is shown to its end, whichever point of it is the best
        progress=progress,
        **rule,
    )
    # Without data, an epoch is one update.
    trace = [start, *((float(x1.get_value()), float(x2.get_value())) for _ in epochs)]
    end = trace[-1]
    summary = [
        f"start    {_place(start)}: loss {function(*start):.4g}",
        f"end      {_place(end)}: loss {function(*end):.4g}",
        f"minimum  {_place(minimum)}: {math.dist(end, minimum):.2g} away",
        f"stopped by {trainer.stop_reason} after {trainer.update_count} updates",
    ]
    return DemoResult(name, trainer, summary, lambda: trace_2d(function, trace, names=NAMES))


def _place(point: tuple[float, float]) -> str:
    # Without the sum, what is rounded to zero would keep its sign.
    return ", ".join(f"{n} {round(v, 6) + 0.0:9.6f}" for n, v in zip(NAMES, point, strict=True))


def _headline(trainer: Trainer) -> list[str]:
    lines = [
        f"stopped by {trainer.stop_reason} after {trainer.epoch_count} epochs, "
        f"{trainer.update_count} updates"
    ]
    if trainer.best is not None:
        lines.append(
            f"best validation loss {trainer.best.loss:.4g}, after epoch {trainer.best.epoch}"
        )
    return lines


def _load_digits(rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Images in [0, 1] and their labels: a training, a validation and a test set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "scikit-learn is not installed. The images of the digits demo come with it. "
            'Run pip install "downhill_rms[examples]".'
        ) from error
    data = load_digits()
    images, labels = (data.data / 16).astype("float32"), data.target.astype("int32")
    parts = np.split(rng.permutation(len(images)), [1197, 1497])
    return [[images[part], labels[part]] for part in parts]


def _network(rng: np.random.Generator) -> tuple[list[Any], Any, Any]:
    """The inputs, and the loss and the error rate as functions of them."""
    x, y = pt.fmatrix("x"), pt.ivector("y")

    def layer(values: Any, rows: int, columns: int, number: int) -> Any:
        weights = (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype("float32")
        biases = np.zeros(columns, dtype="float32")
        w = pytensor.shared(weights, name=f"w{number}")
        b = pytensor.shared(biases, name=f"b{number}")
        return values @ w + b

    hidden = pt.maximum(layer(x, PIXELS, HIDDEN, 1), 0)
    log_probability = log_softmax(layer(hidden, HIDDEN, CLASSES, 2), axis=-1)
    of_label = pt.eq(y[:, None], np.arange(CLASSES, dtype="int32"))
    loss = -pt.where(of_label, log_probability, 0).sum(axis=1).mean()
    return [x, y], loss, pt.neq(log_probability.argmax(axis=1), y).mean()
