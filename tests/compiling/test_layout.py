"""Arrays that Numba is told of being contiguous."""

import numba
import numpy as np
import pytest

from downhill_rms.compiling.layout import contiguous, lengthened

ARRAY = np.arange(24.0).reshape(4, 3, 2)


# Slices as PyTensor's code makes them: with a step of None, whose layout Numba does not know.
@numba.njit
def rows(x, start, stop):
    return contiguous(x[slice(start, stop, None)])


@numba.njit
def turned(x):
    return contiguous(x.T)


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 3), (2, 3), (2, 2)])
def test_rows_are_known_to_be_contiguous_and_not_copied(start, stop):
    found = rows(ARRAY, start, stop)
    np.testing.assert_array_equal(found, ARRAY[start:stop])
    assert np.shares_memory(found, ARRAY) or start == stop
    assert rows.nopython_signatures[0].return_type.layout == "C"


@pytest.mark.parametrize("array", [ARRAY, ARRAY[::-1], ARRAY[:, 1:], ARRAY[:, :, :1], ARRAY[:1]])
def test_what_is_not_contiguous_is_copied(array):
    found = turned(array)
    np.testing.assert_array_equal(found, array.T)
    assert found.flags.c_contiguous
    assert not np.shares_memory(found, ARRAY) or array.T.flags.c_contiguous


@pytest.mark.parametrize("turned", [False, True])
def test_dimensions_of_length_one_leave_the_layout_as_it_is(turned):
    """A transposed matrix, too, stays one whose columns are contiguous."""
    lengthen = lengthened((None, 0, None, 1))

    @numba.njit
    def longer(x):
        return lengthen(x)

    matrix = np.asfortranarray(ARRAY[0]) if turned else ARRAY[0]
    found = longer(matrix)
    np.testing.assert_array_equal(found, ARRAY[0][None, :, None, :])
    assert np.shares_memory(found, matrix)
    assert longer.nopython_signatures[0].return_type.layout == ("F" if turned else "C")
