"""A gradient that is a product, and the update that wants it, in one pass."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Trainer
from downhill_rms.compiling import threads
from downhill_rms.compiling.machine import blas_library, openblas_function
from downhill_rms.compiling.modes import REWRITTEN, training_mode
from downhill_rms.compiling.productupdates import UpdateByProduct
from tests.compiling.test_rewrites import operations

pytestmark = pytest.mark.skipif(not threads.are_shared(), reason="no threads that take work here")

RNG = np.random.default_rng(0)
DEPTH, ROWS, COLUMNS = 160, 301, 203
RATE = 0.01


def compiled(inputs, outputs, **options):
    return pytensor.function(inputs, outputs, mode=training_mode(REWRITTEN), **options)


def numbers(*shape, dtype="float32"):
    return RNG.normal(size=shape).astype(dtype)


def step_of(x, y, product, start):
    """A function that takes one step along a product, and its parameters."""
    w, mean = (pytensor.shared(start.copy(), name=name) for name in "wm")
    gradient = product(x, y)
    tenth, rate = (np.array(number, start.dtype) for number in (0.1, RATE))
    mean_t = mean + tenth * (gradient - mean)
    updates = {mean: mean_t, w: w - rate * gradient / pt.sqrt(mean_t**2 + tenth)}
    return compiled([x, y], [], updates=updates), w, mean


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", [(True, False), (False, False), (False, True), (True, True)])
@pytest.mark.parametrize("sizes", [(DEPTH, ROWS, COLUMNS), (3, 7, 5)], ids=["large", "small"])
def test_the_update(transposed, dtype, sizes):
    depth, rows, columns = sizes
    x = numbers(*((depth, rows) if transposed[0] else (rows, depth)), dtype=dtype)
    y = numbers(*((columns, depth) if transposed[1] else (depth, columns)), dtype=dtype)
    start, large = numbers(rows, columns, dtype=dtype), numbers(ROWS, COLUMNS, dtype=dtype)

    def product(x, y):
        return (x.T if transposed[0] else x) @ (y.T if transposed[1] else y)

    x_in, y_in = (pt.matrix(name, dtype=dtype) for name in "xy")
    step, w, mean = step_of(x_in, y_in, product, large)
    assert "UpdateByProduct" in operations(step)
    for shared in (w, mean):  # which may have become smaller
        shared.set_value(start.copy())
    threads_before = openblas_function(blas_library(), "get_num_threads")()
    for _ in range(3):
        step(x, y)
    assert openblas_function(blas_library(), "get_num_threads")() == threads_before

    gradient = product(x.astype("float64"), y.astype("float64"))
    w_t = mean_t = start.astype("float64")
    for _ in range(3):
        mean_t = mean_t + 0.1 * (gradient - mean_t)
        w_t = w_t - RATE * gradient / np.sqrt(mean_t**2 + 0.1)
    tolerance = 2e-5 if dtype == "float32" else 1e-11
    np.testing.assert_allclose(mean.get_value(), mean_t, rtol=tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(w.get_value(), w_t, rtol=tolerance, atol=10 * tolerance)


def test_the_same_bits_every_time():
    x, y, start = numbers(DEPTH, ROWS), numbers(DEPTH, COLUMNS), numbers(ROWS, COLUMNS)
    found = set()
    for _ in range(5):
        step, w, mean = step_of(pt.fmatrix("x"), pt.fmatrix("y"), lambda x, y: x.T @ y, start)
        step(x, y)
        found.add(w.get_value().tobytes() + mean.get_value().tobytes())
    assert len(found) == 1


def test_matrices_that_are_not_contiguous():
    x, y = numbers(ROWS, DEPTH).T, numbers(DEPTH, 2 * COLUMNS)[:, ::2]
    start = numbers(ROWS, COLUMNS)
    step, w, _ = step_of(pt.fmatrix("x"), pt.fmatrix("y"), lambda x, y: x.T @ y, start)
    step(x, y)
    other, wanted, _ = step_of(pt.fmatrix("x"), pt.fmatrix("y"), lambda x, y: x.T @ y, start)
    other(np.ascontiguousarray(x), np.ascontiguousarray(y))
    np.testing.assert_allclose(w.get_value(), wanted.get_value(), rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_fit_are_an_error_and_change_nothing():
    start = numbers(ROWS, COLUMNS)
    step, w, mean = step_of(pt.fmatrix("x"), pt.fmatrix("y"), lambda x, y: x.T @ y, start)
    for shapes in [(DEPTH, ROWS - 1, COLUMNS), (DEPTH, ROWS, COLUMNS + 1)]:
        depth, rows, columns = shapes
        with pytest.raises(ValueError, match=r"shape|dimension|size"):
            step(numbers(depth, rows), numbers(depth, columns))
    with pytest.raises(ValueError, match=r"shape|dimension|size"):
        step(numbers(DEPTH, ROWS), numbers(DEPTH - 1, COLUMNS))
    np.testing.assert_array_equal(w.get_value(), start)
    np.testing.assert_array_equal(mean.get_value(), start)


def test_a_gradient_that_something_else_wants_is_computed():
    x, y, start = pt.fmatrix("x"), pt.fmatrix("y"), numbers(ROWS, COLUMNS)
    w = pytensor.shared(start.copy(), name="w")
    gradient = x.T @ y
    rate = np.float32(RATE)
    step = compiled([x, y], [pt.sqr(gradient).sum()], updates={w: w - rate * pt.tanh(gradient)})
    assert "UpdateByProduct" not in operations(step)
    a, b = numbers(DEPTH, ROWS), numbers(DEPTH, COLUMNS)
    exact = a.astype("float64").T @ b
    np.testing.assert_allclose(step(a, b)[0], (exact**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(w.get_value(), start - RATE * np.tanh(exact), rtol=1e-4, atol=1e-4)


def test_a_parameter_is_a_factor_of_its_own_gradient():
    """The update may not overwrite what its product still reads."""
    start = numbers(ROWS, ROWS) / 20
    x, w = pt.fmatrix("x"), pytensor.shared(start.copy(), name="w")
    step = compiled([x], [], updates={w: w - np.float32(RATE) * (x.T @ w)})
    a = numbers(ROWS, ROWS)
    step(a)
    exact = start - RATE * (a.astype("float64").T @ start)
    np.testing.assert_allclose(w.get_value(), exact, rtol=1e-4, atol=1e-5)


def test_tied_weights_train_as_in_pytensors_own_mode():
    data = numbers(256, 300)
    results = []
    for mode in (training_mode(REWRITTEN), "FAST_COMPILE"):
        rng = np.random.default_rng(1)
        x = pt.fmatrix("x")
        w = pytensor.shared(rng.normal(size=(300, 200)).astype("f") / 20, name="w")
        v = pytensor.shared(rng.normal(size=(200, 200)).astype("f") / 20, name="v")
        hidden = pt.tanh(pt.tanh(x @ w) @ v) @ v
        trainer = Trainer(pt.sqr(hidden @ w.T - x).mean(), [w, v], [x], mode=mode)
        for _ in range(5):
            trainer.step([data], learning_rate=0.001, momentum=0.9, nesterov=True)
        results.append([w.get_value(), v.get_value()])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_without_numba_it_computes_the_same():
    x, y, w = (pytensor.shared(numbers(4, 4), name=name) for name in "xyw")
    values = [variable.get_value() for variable in (x, y, w)]
    elementwise = (w - x).owner.op
    op = UpdateByProduct(type(elementwise)(elementwise.scalar_op, {0: 0}), 1, (True, False))
    storage = [[None]]
    node = op.make_node(x, y, w)
    op.perform(node, [value.copy() for value in values], storage)
    np.testing.assert_allclose(storage[0][0], values[2] - values[0].T @ values[1], rtol=1e-5)
