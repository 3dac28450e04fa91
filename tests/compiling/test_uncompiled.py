"""Functions that run at once, without a compiler."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.scalar.basic import Mul
from pytensor.tensor.elemwise import Elemwise

from downhill_rms.compiling.uncompiled import UncompiledFunction


def test_updates_are_applied_and_calls_counted():
    x, total = pt.vector("x"), pytensor.shared(0.0, name="total")
    function = UncompiledFunction([x], [x.sum()], [(total, total + x.sum())])
    for calls in (1, 2):
        assert function(np.ones(3)) == [3.0]
        assert total.get_value() == 3.0 * calls
        assert function.calls == calls


def test_a_loss_stays_finite_where_the_compiled_one_does():
    """log(softmax(x)) and its gradient: without rewriting they are -inf and NaN here."""
    x = pt.vector("x", dtype="float64")
    loss = -pt.log(pt.special.softmax(x))[0]
    function = UncompiledFunction([x], [loss, pt.grad(loss, x)])
    value, gradient = function(np.array([-1000.0, 0.0, 0.0]))
    np.testing.assert_allclose(value, 1000 + np.log(2))
    np.testing.assert_allclose(gradient, [-1.0, 0.5, 0.5])


VALUES = np.array([-300.5, -0.5, 0.0, 0.25, 2.0, 1e30])

ELEMENTWISE = {
    "to float32": (lambda x: pt.cast(x, "float32"), VALUES.astype("float32")),
    "to bool": (lambda x: pt.cast(x, "bool"), VALUES != 0),
    "from bool": (lambda x: pt.cast(x > 0, "float64"), (VALUES > 0) * 1.0),
    "to int64": (lambda x: pt.cast(pt.minimum(x, 9), "int64"), [-300, 0, 0, 0, 2, 9]),
    "four addends": (lambda x: pt.add(x, 1.0, x, x), 3 * VALUES + 1),
    "three factors": (lambda x: pt.mul(x, x, 2.0), 2 * VALUES**2),
    "clip": (lambda x: pt.clip(x, -1.0, 1), np.clip(VALUES, -1, 1)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_operations_are_numpy_s(name):
    expression, expected = ELEMENTWISE[name]
    x = pt.vector("x", dtype="float64")
    output = expression(x)
    function = UncompiledFunction([x], [output])
    (value,) = function(VALUES)
    assert value.dtype == output.dtype
    np.testing.assert_allclose(value, expected, rtol=1e-15)
    # One call of NumPy for each: PyTensor's alternative is a Python call for each element.
    for node in function._function.maker.fgraph.apply_nodes:
        if isinstance(node.op, Elemwise):
            assert node.op.nfunc_spec[1] == len(node.inputs)


@pytest.mark.parametrize("depth", [1, 2])
def test_products_inside_scans_are_numpy_s_too(monkeypatch, depth):
    """An LSTM's update took ten seconds, one element at a time."""
    elements = []
    impl = Mul.impl
    monkeypatch.setattr(Mul, "impl", lambda *given: elements.append(given) or impl(*given))
    x = pt.tensor("x", dtype="float64", shape=(None,) * (depth + 1))

    def step(row):
        if row.ndim == 1:
            return pt.mul(row, row + 1, 2.0)
        return pytensor.scan(step, [row], return_updates=False)

    rows = step(x)
    values = np.array([VALUES[:-1]] * 2)
    values = values.reshape((2, 5) if depth == 1 else (2, 1, 5))
    (found,) = UncompiledFunction([x], [rows])(values)
    np.testing.assert_allclose(found, values * (values + 1) * 2, rtol=1e-15)
    assert len(elements) == 0


def test_clip_keeps_nan():
    x = pt.vector("x", dtype="float64")
    (value,) = UncompiledFunction([x], [pt.clip(x, -1.0, 1.0)])(np.array([np.nan, np.inf]))
    np.testing.assert_array_equal(value, [np.nan, 1.0])


def test_overflow_gives_infinity_and_no_warning():
    x = pt.vector("x", dtype="float64")
    function = UncompiledFunction([x], [pt.cast(x, "float32"), pt.exp(x), pt.dot(x, x)])
    for _ in range(2):
        for value in function(np.full(2, 1e300)):
            assert np.isposinf(value).all()


def test_a_scan_is_run():
    x = pt.vector("x", dtype="float64")
    sums = pytensor.scan(
        lambda value, total: total + value,
        [x],
        [pt.zeros((), dtype="float64")],
        return_updates=False,
    )
    (value,) = UncompiledFunction([x], [sums])(np.arange(4.0))
    np.testing.assert_array_equal(value, [0, 1, 3, 6])


def test_a_sum_inside_a_scan_is_right():
    """PyTensor 3.0's own rewrites for C leave the first element of a sum of squares unsquared."""
    xs = pt.matrix("xs")
    sums = pytensor.scan(lambda x: pt.sqr(x).sum(), sequences=[xs], return_updates=False)
    w = pytensor.shared(np.ones(3), name="w")
    loss = pytensor.scan(lambda x: pt.sqr(x * w).sum(), sequences=[xs], return_updates=False).sum()
    values = np.arange(6.0).reshape(2, 3)
    found, gradient = UncompiledFunction([xs], [sums, pytensor.grad(loss, w)])(values)
    np.testing.assert_allclose(found, (values**2).sum(axis=1))
    np.testing.assert_allclose(gradient, 2 * (values**2).sum(axis=0))
