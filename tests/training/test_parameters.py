"""Values of parameters, read and written together."""

import numpy as np
import pytensor
import pytest

from downhill_rms.training.parameters import Parameters


@pytest.fixture
def parameters():
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    w, b = pytensor.shared(values, name="w"), pytensor.shared(np.float32(1), name="b")
    return Parameters([w, b], ["w", "b"])


def test_values_become_c_contiguous(parameters):
    """An F-ordered parameter would make Numba compile twice."""
    value = parameters.variables["w"].get_value(borrow=True)
    assert value.flags.c_contiguous
    np.testing.assert_array_equal(value, np.arange(6.0).reshape(2, 3))
    assert parameters.variables["b"].get_value(borrow=True).shape == ()


def test_copies_are_independent_both_ways(parameters):
    copy = parameters.copy()
    copy["w"][:] = 0
    assert parameters.variables["w"].get_value()[1, 2] == 5
    parameters.put_back(copy)
    copy["w"][:] = 7
    np.testing.assert_array_equal(parameters.variables["w"].get_value(), 0)


def test_set_casts_to_the_parameters_dtype(parameters):
    parameters.set({"b": 2, "w": np.ones((2, 3), dtype="float32", order="F")})
    assert parameters.variables["b"].get_value() == np.float32(2)
    value = parameters.variables["w"].get_value(borrow=True)
    assert (value.dtype, value.flags.c_contiguous) == ("float64", True)
