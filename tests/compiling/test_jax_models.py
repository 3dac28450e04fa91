"""Models of every kind train in JAX mode as in PyTensor's Python code, in single precision."""

import dataclasses

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.builders import OpFromGraph
from pytensor.tensor.signal import convolve1d, convolve2d
from pytensor.tensor.special import log_softmax

from downhill_rms import Trainer
from downhill_rms.command.demos import DEMOS, run_demo
from examples import convnet, text, transformer
from tests.benchmarks.peers import ours
from tests.benchmarks.rungs import DEPTH, OPERATIONS, RUNGS

try:
    from pytensor.conditional.op import ifelse
except ImportError:  # before PyTensor 3.3
    from pytensor.ifelse import ifelse

pytest.importorskip("jax")
# PyTensor tells which run-time checks JAX drops, and that JAX copies generators.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Skipping:UserWarning", "ignore:The RandomType SharedVariables:UserWarning"
)

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
ROWS = np.random.default_rng(1).integers(0, 4, 6)
ONE = np.float32(1)


def gram(h):
    """A positive definite matrix."""
    return h.T @ h + pt.eye(h.shape[1], dtype="float32")


def squared_by_graph(h):
    a = pt.fmatrix()
    return OpFromGraph([a], [a[: a.shape[0] // 2] ** 2])(h)


# Each takes x and rows, whose lengths nobody says, a matrix w of 4 x 4 and h = x @ w.
MODELS = {
    "embedding": lambda x, r, w, h: w[r] - x,
    "labels": lambda x, r, w, h: log_softmax(h, axis=-1)[pt.arange(x.shape[0]), r],
    "1-d convolution, same": lambda x, r, w, h: convolve1d(x, w[0, :3][None], mode="same"),
    "1-d convolution, valid": lambda x, r, w, h: convolve1d(x, w[0, :3][None], mode="valid"),
    "1-d convolution, full": lambda x, r, w, h: convolve1d(x, w[0, :3][None], mode="full"),
    "2-d convolution, same": lambda x, r, w, h: convolve2d(x, w[:2, :3], mode="same"),
    "2-d convolution, valid": lambda x, r, w, h: convolve2d(x, w[:2, :3], mode="valid"),
    "2-d convolution of a batch": lambda x, r, w, h: convolve2d(
        x.reshape((2, 3, 4)), w[None, :2, :2], mode="valid"
    ),
    "neighbourhoods": lambda x, r, w, h: convnet.convolution(
        x.reshape((6, 4, 1)), w.reshape((-1, 1))[:9], side=2
    ),
    "padding": lambda x, r, w, h: pt.pad(h, 1)[1:] * 2,
    "padding by a length": lambda x, r, w, h: pt.pad(h, x.shape[1] // 2),
    "Cholesky": lambda x, r, w, h: pt.linalg.cholesky(gram(h)),
    "solve": lambda x, r, w, h: pt.linalg.solve(gram(w), x.T),
    "triangular": lambda x, r, w, h: pt.linalg.solve_triangular(
        pt.linalg.cholesky(gram(w)), x.T, lower=True
    ),
    "determinant": lambda x, r, w, h: pt.linalg.slogdet(gram(w))[1],
    "block diagonal": lambda x, r, w, h: pt.linalg.block_diag(w, h),
    "lower triangle": lambda x, r, w, h: (
        x @ pt.zeros((4, 4), dtype="float32")[pt.tril_indices(4)].set(w.flatten()[:10])
    ),
    "pooling": lambda x, r, w, h: h.reshape((x.shape[0] // 2, 2, 2, 2)).max(axis=(1, 3)),
    "product": lambda x, r, w, h: pt.prod(h[:2, :2]) * h,
    "sorted": lambda x, r, w, h: h[pt.argsort(h[:, 0])][:2],
    "median": lambda x, r, w, h: pt.sort(h.flatten())[x.size // 2],
    "cumulated": lambda x, r, w, h: pt.cumsum(h, axis=0)[1:] - pt.diff(h, axis=0),
    "one of two branches": lambda x, r, w, h: ifelse(pt.gt(x.sum(), 0), h, h[:, ::-1] * 2),
    "a graph in an operation": lambda x, r, w, h: squared_by_graph(h),
    "added to rows": lambda x, r, w, h: pt.zeros((4, 4), dtype="float32")[r].inc(h),
    "batches": lambda x, r, w, h: pt.stack([x, h]) @ pt.stack([w, w.T]),
    "LSTM": lambda x, r, w, h: lstm(x, w),
}


def lstm(x, w):
    """All states; the gates' matrices are parts of one."""

    def step(row, hidden, cell, w):
        i, f, g, o = (row + hidden @ pt.roll(w, k, axis=1) for k in range(4))
        cell = pt.sigmoid(f) * cell + pt.sigmoid(i) * pt.tanh(g)
        return pt.sigmoid(o) * pt.tanh(cell), cell

    start = pt.zeros(w.shape[0], dtype="float32")
    states, _ = pytensor.scan(
        step, sequences=[x], outputs_info=[start] * 2, non_sequences=[w], return_updates=False
    )
    return states


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_as_in_python(name):
    losses = []
    for mode in ("FAST_COMPILE", "JAX"):
        x, rows = pt.fmatrix("x"), pt.lvector("rows")
        start = np.random.default_rng(2).normal(size=(4, 4)).astype("float32") / 2
        w = pytensor.shared(start, name="w")
        loss = pt.sqr(MODELS[name](x, rows, w, x @ w) - ONE).mean() + 0 * (x[0, 0] * (rows[0] > 9))
        trainer = Trainer(loss.astype("float32"), inputs=[x, rows], params=[w], mode=mode)
        trainer.set_hyperparameters(learning_rate=0.01, rms_regularizer=1e-3)
        losses.append([trainer.step([X, ROWS])["loss"] for _ in range(4)])
    assert len(set(losses[0])) == 4
    np.testing.assert_allclose(*losses, rtol=1e-4)


# Rungs that differ from another one in their size alone are left out.
QUICK = ("A", "B", "D-tanh", "E0.1", "F40", "G-32", "G-GRU", "G-RNN")
SLOW = ("C", "D", "D-deep", "E1", "E10", "G")


@pytest.fixture
def python(monkeypatch):
    """The benchmarks' usage that leaves everything to PyTensor's Python code."""
    monkeypatch.setitem(ours.USAGES, "python", ("FAST_COMPILE", 1))


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_rung_of_the_benchmarks(name, python):
    rung = RUNGS[name]
    sizes = {"samples": 2 * rung.batch} if rung.kind == "network" else {}
    sizes |= {"length": 8} if rung.kind == "language_model" else {}
    rung = dataclasses.replace(rung, **sizes)
    train = getattr(ours, rung.kind)
    checks = [train(rung, usage)(3) for usage in ("python", "jax")]
    np.testing.assert_allclose(*checks, rtol=1e-3, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "convnet"])
def test_a_deep_network_of_the_benchmarks(kind, python):
    rung = DEPTH[kind][2]
    checks = [getattr(ours, kind)(rung, usage)(3) for usage in ("python", "jax")]
    np.testing.assert_allclose(*checks, rtol=1e-3)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_of_the_benchmarks(name, python):
    rung = OPERATIONS[name]
    if len(rung.shapes) == 2 and rung.shapes[0] == (256, 256):
        rung = dataclasses.replace(rung, shapes=((32, 24), (3, 3)))
    totals = [ours.operation(rung, usage)(1) for usage in ("python", "jax")]
    np.testing.assert_allclose(*totals, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMOS)
def test_a_demonstration(name):
    if name == "digits":
        pytest.importorskip("sklearn")
    losses = []
    for mode in ("FAST_COMPILE", "JAX"):
        trainer = run_demo(name, mode=mode, progress=False).trainer
        losses.append(trainer.history[-1].train["loss"])
    np.testing.assert_allclose(*losses, rtol=0.05, atol=1e-6)  # a thousand updates and more


@pytest.mark.slow
@pytest.mark.parametrize("example", [text, transformer, convnet])
def test_an_example(example):
    """Two minibatches of each."""
    losses = []
    for mode in ("FAST_COMPILE", "JAX"):
        problem = example.problem()
        options = {"monitors": problem.monitors, "carried": problem.carried, "mode": mode}
        trainer = Trainer(problem.loss, inputs=problem.inputs, **options)
        trainer.set_hyperparameters(**problem.hyperparameters)
        batch = first_batch(problem)
        losses.append([trainer.step(batch)["loss"] for _ in range(2)])
    np.testing.assert_allclose(*losses, rtol=1e-3)


def first_batch(problem):
    """A minibatch of a problem's own data."""
    if isinstance(problem.train, list | tuple):
        return [array[: problem.options["batch_size"]] for array in problem.train]
    return next(iter(problem.train))
