"""Rows before zeros: what the gradient by the first rows of an array is made of."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms.compiling.modes import REWRITTEN, training_mode
from tests.compiling.test_rewrites import operations

X = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize("stop", [4, 7, 2, 0, -1, -9])
def test_the_gradient_by_the_first_rows(stop):
    x, n = pt.dmatrix("x"), pt.lscalar("n")
    gradient = pt.grad((x[:n] ** 2).sum(), x)
    function = pytensor.function([x, n], gradient, mode=training_mode(REWRITTEN))
    assert "ZerosAfter" in operations(function)
    assert "IncSubtensor" not in operations(function)
    exact = np.zeros_like(X)
    exact[:stop] = 2 * X[:stop]
    np.testing.assert_array_equal(function(X, stop), exact)


def test_one_row_is_still_added_to_all():
    x, n = pt.dmatrix("x"), pt.lscalar("n")
    rows = pt.zeros((n, 3))[:n].inc(x)  # of which PyTensor does not know that it has one row
    function = pytensor.function([x, n], rows, mode=training_mode(REWRITTEN))
    np.testing.assert_array_equal(function(X[:1], 4), np.tile(X[:1], (4, 1)))


def test_what_is_returned_is_no_part_of_an_input():
    x, n = pt.dmatrix("x"), pt.lscalar("n")
    rows = pt.zeros(x.shape)[:n].inc(x)
    function = pytensor.function([x, n], rows, mode=training_mode(REWRITTEN))
    array = X.copy()
    assert not np.shares_memory(function(array, 4), array)
