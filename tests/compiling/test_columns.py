"""Columns by constant indices and their gradient, against NumPy."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms.compiling.modes import REWRITTEN, training_mode
from tests.compiling.test_rewrites import operations

INDICES = {
    "some more than once": np.array([3, 0, 0, 2, 3, 3]),
    "counted from the end": np.array([-1, -4, 1], dtype="int8"),
    "small": np.array([1, 3, 2], dtype="uint8"),
    "none": np.array([], dtype="int64"),
}


def compiled(inputs, outputs):
    return pytensor.function(inputs, outputs, mode=training_mode(REWRITTEN), trust_input=True)


def tensor(name, dtype="float64"):
    return pt.tensor(name, dtype=dtype, shape=(None, None, None))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", INDICES)
def test_columns_and_their_gradient(name, dtype):
    x, index = tensor("x", dtype), INDICES[name]
    taken = x[:, index]
    function = compiled([x], [taken, pt.grad(pt.sqr(taken).sum(), x)])
    assert {"TakeColumns", "AddColumns"} <= set(operations(function))
    array = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(dtype)
    wanted = np.zeros_like(array)
    np.add.at(wanted, (slice(None), index), 2 * array[:, index])
    # As it comes, and turned, so that it is not contiguous.
    for given in (array, np.ascontiguousarray(array.T).T):
        columns, gradient = function(given)
        np.testing.assert_array_equal(columns, array[:, index])
        np.testing.assert_allclose(gradient, wanted, rtol=1e-6)


def test_one_row_that_is_added_to_all():
    x, y = tensor("x"), tensor("y")
    function = compiled([x, y], x[:, np.array([1, 1, 3])].inc(y))
    assert "AddColumns" in operations(function)
    array, row = np.ones((3, 4, 5)), np.arange(15.0).reshape(1, 3, 5)
    wanted = np.ones((3, 4, 5))
    np.add.at(wanted, (slice(None), np.array([1, 1, 3])), row)
    np.testing.assert_array_equal(function(array, row), wanted)
    np.testing.assert_array_equal(array, np.ones((3, 4, 5)))  # the caller's


@pytest.mark.parametrize("index", [[0, 4, 1], [0, -5, 1]])
def test_an_index_out_of_bounds(index):
    x = tensor("x")
    function = compiled([x], x[:, np.array(index)])
    with pytest.raises(IndexError):
        function(np.ones((3, 4, 5)))


@pytest.mark.parametrize(
    "build",
    [
        lambda x: x[:, pt.argsort(x[0, :, 0])],
        lambda x: x[np.array([0, 0, 2])],
        lambda x: x[:, :, np.array([1, 1])],
        lambda x: x[:, np.array([1, 1, 3])].set(0),
        lambda x: x[:, np.array([True, False, True, True])],
        lambda x: x.astype("int64")[:, np.array([1, 1])],
    ],
)
def test_other_indexing_stays_pytensors(build):
    x = tensor("x")
    function = compiled([x], build(x))
    assert not {"TakeColumns", "AddColumns"} & set(operations(function))
    array = np.random.default_rng(0).standard_normal((3, 4, 5))
    wanted = pytensor.function([x], build(x), mode="FAST_COMPILE")(array)
    np.testing.assert_array_equal(function(array), wanted)
