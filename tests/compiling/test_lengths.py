"""JAX knows lengths that are made of shapes, and is told to whom it leaves those that are not."""

import numpy as np
import pytensor
import pytensor.sparse
import pytensor.tensor as pt
import pytest
from pytensor.compile.builders import OpFromGraph
from pytensor.compile.mode import get_mode
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.scan.utils import until
from pytensor.tensor.fft import rfft
from scipy.sparse import csr_matrix

from downhill_rms import Trainer
from downhill_rms.compiling.modes import training_mode

X = np.random.default_rng(0).normal(size=(4, 3))
ROWS = np.array([1, 2, 0, 2])

# PyTensor tells which run-time checks JAX drops, and that JAX copies generators.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Skipping:UserWarning", "ignore:The RandomType SharedVariables:UserWarning"
)


def scan(w, sequences, step=lambda row, state, w: pt.tanh(row + state @ w), **options):
    return pytensor.scan(
        step,
        sequences=sequences,
        outputs_info=[pt.zeros(3)],
        non_sequences=[w],
        return_updates=False,
        **options,
    )


# Each takes x and rows, whose lengths nobody says, a matrix w, h = x @ w and the length of x.
LENGTHS = {
    "two scans": lambda x, r, w, h, n: scan(w, scan(w, x) * r[:, None]),
    "columns side by side in a scan": lambda x, r, w, h, n: scan(
        w,
        x,
        lambda row, s, w: (
            pt.tanh(pt.concatenate([row, s])) @ pt.concatenate([w, w.T]) + pt.zeros(row.shape[0])
        ),
    ),
    "a scan's steps": lambda x, r, w, h, n: scan(w, x, n_steps=n // 2),
    "a scan of all but one": lambda x, r, w, h, n: scan(w, x[:-1]),
    "a scan backwards": lambda x, r, w, h, n: scan(w, x, go_backwards=True)[::-1],
    "a scan's last state": lambda x, r, w, h, n: scan(w, x)[-1],
    "a truncated gradient": lambda x, r, w, h, n: scan(w, x, truncate_gradient=2),
    "a scan of indices": lambda x, r, w, h, n: scan(
        w, pt.arange(n), lambda i, s, w: pt.tanh(x[i] + s @ w)
    ),
    "half": lambda x, r, w, h, n: h[: n // 2],
    "half, rounded": lambda x, r, w, h, n: h[: pt.ceil(n / 2 + 0.25).astype("int64")],
    "a choice": lambda x, r, w, h, n: h[: pt.switch(n > 3, 3, n)],
    "half set": lambda x, r, w, h, n: pt.set_subtensor(h[: n // 2], 0.5),
    "a range": lambda x, r, w, h, n: pt.arange(2 * n) * h.sum(),
    "zeros": lambda x, r, w, h, n: pt.zeros((n + 1, 3)) + h[0],
    "a diagonal": lambda x, r, w, h, n: pt.eye(n + 1)[:n, :n] @ h,
    "triangles": lambda x, r, w, h, n: pt.triu(x @ x.T) @ h,
    "columns side by side": lambda x, r, w, h, n: pt.concatenate([h, 2 * x, h], axis=1) ** 2,
    "rows above each other": lambda x, r, w, h, n: pt.concatenate([x, h], axis=-2) ** 2,
    "rows that wander": lambda x, r, w, h, n: pt.roll(h, 1, axis=0) * x,
    "tiles": lambda x, r, w, h, n: pt.tile(h, (2, 1)) ** 2,
    "rows repeated": lambda x, r, w, h, n: pt.repeat(h, 2, axis=0) ** 2,
    "columns split": lambda x, r, w, h, n: pt.split(h, [1, 2], axis=1)[1],
    "a vector of lengths": lambda x, r, w, h, n: h.reshape(
        pt.concatenate([x.shape[:1], [3, 1]]), ndim=3
    ),
    "labels": lambda x, r, w, h, n: pt.log(pt.special.softmax(h, axis=1))[pt.arange(n), r],
}


@pytest.mark.parametrize("name", LENGTHS)
def test_jax_computes_lengths_of_shapes(name):
    """The oracle: PyTensor's own Python code."""
    pytest.importorskip("jax")
    x, rows = pt.matrix("x"), pt.lvector("rows")
    w = pytensor.shared(np.random.default_rng(1).normal(size=(3, 3)), name="w")
    loss = pt.sqr(LENGTHS[name](x, rows, w, x @ w, x.shape[0])).mean()
    outputs = [loss, pt.grad(loss, w)]

    def values(mode):
        function = pytensor.function([x, rows], outputs, mode=mode, on_unused_input="ignore")
        return function(X, ROWS)

    ours, theirs = values(get_mode(training_mode("JAX"))), values(training_mode("FAST_COMPILE"))
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_as_much_is_drawn_as_shapes_say():
    pytest.importorskip("jax")
    x = pt.matrix("x")
    generator = pt.random.shared_rng(seed=1)
    following, values = generator.uniform(size=(x.shape[0] + 1, x.shape[1]))
    mode = get_mode(training_mode("JAX"))
    function = pytensor.function([x], values, mode=mode, updates=[(generator, following)])
    drawn = [np.asarray(function(X)) for _ in range(2)]
    assert drawn[0].shape == drawn[1].shape == (5, 3)
    assert len(np.unique(drawn)) == 2 * drawn[0].size


def test_jax_compiles_again_for_another_length():
    pytest.importorskip("jax")
    x = pt.matrix("x")
    w = pytensor.shared(np.ones((3, 3)), name="w")
    states = scan(w, x)
    function = pytensor.function([x], states, mode=get_mode(training_mode("JAX")))
    for n in (4, 2, 3):
        state, wanted = np.zeros(3), []
        for row in X[:n]:
            state = np.tanh(row + state @ np.ones((3, 3)))
            wanted.append(state)
        np.testing.assert_allclose(function(X[:n]), wanted, rtol=1e-12)


class Unknown(Op):
    """An operation that nobody has told JAX of."""

    __props__ = ()

    def make_node(self, x):
        return Apply(self, [x], [pt.dscalar()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = np.array(0.0)

    def pullback(self, inputs, outputs, gradients):
        return [pt.zeros_like(inputs[0])]

    def grad(self, inputs, gradients):
        return [pt.zeros_like(inputs[0])]


def stopped(x, w):
    return pytensor.scan(
        lambda row, state, w: (pt.tanh(row + state @ w), until(pt.gt(state.sum(), 1))),
        sequences=[x],
        outputs_info=[pt.zeros(3)],
        non_sequences=[w],
        return_updates=False,
    )


# Lengths that values decide, and whose values.
UNKNOWN = {
    "a mask": (lambda x, rows, w: (x @ w)[x[:, 0] > 0], "x"),
    "a slice": (lambda x, rows, w: (x @ w)[: rows[0]], "rows"),
    "places": (lambda x, rows, w: (x @ w)[rows.nonzero()], "rows"),
    "values once": (lambda x, rows, w: pt.unique(rows) * w.sum(), "rows"),
    "steps": (lambda x, rows, w: scan(w, x, n_steps=rows.max()), "rows"),
    "a condition": (lambda x, rows, w: stopped(x, w), "x"),
    "a range": (lambda x, rows, w: pt.arange(rows.max()) * w.sum(), "rows"),
    "repetitions": (lambda x, rows, w: pt.repeat(x @ w, rows, axis=0), "rows"),
    "a scan inside": (
        lambda x, rows, w: scan(w, [x, rows], lambda row, n, s, w: s + (row * w)[:n].sum()),
        "",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_lengths_that_values_decide_are_told(name):
    pytest.importorskip("jax")
    x, rows = pt.matrix("x"), pt.lvector("rows")
    w = pytensor.shared(np.ones((3, 3)), name="w")
    graph, source = UNKNOWN[name]
    loss = pt.sqr(graph(x, rows, w)).mean() + 0 * x.sum() * rows.sum()
    trainer = Trainer(loss, inputs=[x, rows], params=[w], mode="JAX")
    told = f"how long the result of .* depends on .*{source}.*pt.where.* another mode"
    with pytest.raises(ValueError, match=told):
        trainer.step([X, ROWS])


def test_what_jax_refuses_for_another_reason_is_not_taken_for_a_length():
    pytest.importorskip("jax")
    x = pt.matrix("x")
    half = (x @ pytensor.shared(np.ones((3, 3)), name="w"))[: x.shape[0] // 2]
    trainer = Trainer(pt.sqr(half).mean() + Unknown()(half), inputs=[x], mode="JAX")
    with pytest.raises(ValueError, match="no JAX code for Unknown.* another mode"):
        trainer.step([X])


def in_a_scan(x, w):
    return scan(w, x, lambda row, state, w: pt.tanh(row + state @ w) + Unknown()(state[None, :]))


# What PyTensor has no JAX code for, and its name.
REFUSED = {
    "in a scan": (lambda x, w: in_a_scan(x, w), "Unknown"),
    "in a graph in an operation": (
        lambda x, w: OpFromGraph([a := pt.dmatrix()], [a * Unknown()(a)])(x @ w),
        "Unknown",
    ),
    "a Fourier transform": (lambda x, w: rfft(x @ w), "RFFTOp"),
    "elementwise": (lambda x, w: pt.kv(1.5, pt.exp(x @ w)), "kve?"),
    "elementwise, fused": (lambda x, w: pt.tanh(2 * pt.kv(1.5, pt.exp(x)) @ w), "kve?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_jax_code_is_named(name):
    pytest.importorskip("jax")
    x = pt.matrix("x")
    w = pytensor.shared(np.ones((3, 3)), name="w")
    graph, told = REFUSED[name]
    trainer = Trainer(pt.sqr(graph(x, w)).mean(), inputs=[x], params=[w], mode="JAX")
    with pytest.raises(ValueError, match=f"no JAX code for {told}.* another mode"):
        trainer.evaluate([X])


def test_sparse_products_are_named():
    pytest.importorskip("jax")
    x = pytensor.sparse.csr_dmatrix("x")
    w = pytensor.shared(np.ones((3, 1)), name="w")
    loss = pt.sqr(pytensor.sparse.structured_dot(x, w)).mean()
    trainer = Trainer(loss, inputs=[x], mode="JAX")
    with pytest.raises(ValueError, match="no JAX code for StructuredDot.* another mode"):
        trainer.evaluate(csr_matrix(X))
