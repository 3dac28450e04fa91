"""Products with one-hot matrices, and products of few rows, against NumPy."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms.compiling.modes import REWRITTEN, training_mode
from downhill_rms.compiling.products import ThinDot
from downhill_rms.compiling.thin import is_thin
from tests.compiling.test_rewrites import operations

# Two characters of five are out of range: their rows are 0 nowhere and everywhere.
TEXT = np.array([[0, 4, 2, 2], [1, 5, -1, 3]])
W = np.random.default_rng(0).standard_normal((5, 3))


def columns(t, dtype="int64"):
    return pt.arange(5, dtype=dtype)


ONE_HOTS = {
    "of a column": lambda t: pt.eq(t.reshape((-1, 1)), pt.arange(5)),
    "the other way round": lambda t: pt.eq(pt.arange(5), t.flatten()[:, None]),
    "of a sequence": lambda t: pt.eq(t[:, :, None], pt.arange(5)),
}


def compiled(inputs, outputs):
    return pytensor.function(inputs, outputs, mode=training_mode(REWRITTEN), trust_input=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ONE_HOTS)
def test_a_product_with_a_one_hot_matrix_and_its_gradient(name, dtype):
    t, w = pt.lmatrix("t"), pt.matrix("w", dtype=dtype)
    one_hot = ONE_HOTS[name](t).astype(dtype).reshape((-1, 5))
    product = one_hot @ w
    function = compiled([t, w], [product, pt.grad((product**2).sum(), w)])
    assert operations(function).count("OneHotDot") == 2
    assert "PlainDot" not in operations(function)
    hot = (TEXT.reshape(-1, 1) == np.arange(5)).astype(dtype)
    got, gradient = function(TEXT, W.astype(dtype))
    rtol = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(got, hot @ W, rtol=rtol)
    np.testing.assert_allclose(gradient, 2 * hot.T @ (hot @ W), rtol=rtol)


def batch(name, dtype="float32"):
    return pt.tensor(name, dtype=dtype, shape=(None, None, None))


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 1, 1), (0, 4, 5)])
def test_the_gradient_of_a_matrix_that_a_batch_is_multiplied_with(shape):
    x, w = batch("x"), pt.fmatrix("w")
    function = compiled([x, w], pt.grad(pt.sqr(x @ w).sum(), w))
    assert "BatchedDot" not in operations(function)
    rng = np.random.default_rng(0)
    a = rng.standard_normal(shape, dtype="float32")
    b = rng.standard_normal((shape[2], 2), dtype="float32")
    wanted = 2 * np.einsum("bni,bno->io", a.astype(float), a.astype(float) @ b)
    np.testing.assert_allclose(function(a, b), wanted, rtol=1e-5, atol=1e-6)


def gradient(x, y):
    return x.dimshuffle(0, 2, 1) @ y


@pytest.mark.parametrize(
    ("build", "number"),
    [
        (lambda x, y: gradient(x, y).sum(axis=0), 0),
        (lambda x, y: gradient(x, y).sum(axis=1), 1),
        (lambda x, y: gradient(x, y).sum(), 1),
        (lambda x, y: [gradient(x, y).sum(axis=0), gradient(x, y)], 1),
        (lambda x, y: (x[:, :, :4] @ y).sum(axis=0), 1),
    ],
)
def test_sums_of_products_that_are_one_product(build, number):
    x, y = batch("x"), batch("y")
    outputs = build(x, y)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    function = compiled([x, y], outputs)
    assert operations(function).count("BatchedDot") == number
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 4, 5), dtype="float32")
    b = rng.standard_normal((3, 4, 2), dtype="float32")
    wanted = pytensor.function([x, y], outputs, mode="FAST_COMPILE")(a, b)
    for one, other in zip(function(a, b), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


NOT_ONE_HOT = {
    "other numbers": lambda t: pt.eq(t.reshape((-1, 1)), np.array([0, 1, 2, 4, 3])),
    "several columns": lambda t: pt.eq(t.reshape((-1, 5)), pt.arange(5)),
    "numbers that are no integers": lambda t: pt.eq(t.reshape((-1, 1)) / 2, pt.arange(5)),
    "less": lambda t: pt.lt(t.reshape((-1, 1)), pt.arange(5)),
}


@pytest.mark.parametrize("name", NOT_ONE_HOT)
def test_what_only_looks_like_a_one_hot_matrix_is_multiplied(name):
    t, w = pt.lmatrix("t"), pt.dmatrix("w")
    matrix = NOT_ONE_HOT[name](t).astype("float64")
    function = compiled([t, w], [matrix, matrix @ w])
    assert "OneHotDot" not in operations(function)
    text = np.resize(TEXT, (2, 5))
    left, product = function(text, W)
    np.testing.assert_allclose(product, left @ W)


@pytest.mark.parametrize("rows", [1, 3, 16, 200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_product_of_few_rows(rows, dtype):
    """Turned where that is faster, 16 rows here, and as it is elsewhere."""
    x, y = pt.matrix("x", dtype=dtype), pt.matrix("y", dtype=dtype)
    function = compiled([x, y], ThinDot()(x, y, y.T))
    rng = np.random.default_rng(rows)
    left, right = (rng.standard_normal(s).astype(dtype) for s in ((rows, 300), (300, 301)))
    assert is_thin(left, right) == (rows == 16)
    rtol = 1e-4 if dtype == "float32" else 1e-10
    exact = left.astype("float64") @ right
    np.testing.assert_allclose(function(left, right), exact, rtol=rtol, atol=rtol)


def test_the_gradient_of_a_product_of_few_rows():
    x, y = pt.dmatrix("x"), pt.dmatrix("y")
    theirs = pt.grad((x @ y).sum() ** 2, [x, y])
    ours = pt.grad(ThinDot()(x, y, y.T).sum() ** 2, [x, y])
    function = pytensor.function([x, y], [*ours, *theirs], mode="FAST_COMPILE")
    *gradients, by_x, by_y = function(W.T, W)
    np.testing.assert_allclose(gradients[0], by_x)
    np.testing.assert_allclose(gradients[1], by_y)


def test_what_is_turned_and_loses_an_axis_is_no_transpose():
    x, y = pt.tensor("x", dtype="float64", shape=(None, None, 1)), pt.dmatrix("y")
    with pytensor.config.change_flags(on_opt_error="raise"):
        function = compiled([x, y], [x.dimshuffle(1, 0) @ y])
    stack, matrix = W.reshape(5, 3, 1), W[:, :2].copy()
    np.testing.assert_allclose(function(stack, matrix)[0], W.T @ matrix, rtol=1e-14)
