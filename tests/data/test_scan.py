"""Whole arrays are looked through in parts."""

import numpy as np
import pytest
import scipy.sparse

from downhill_rms.data import Dataset, InputSpec, first_infinite, parts
from downhill_rms.data import scan as scanning


def bound(array, ndim, axis=0, sparse=None):
    return Dataset([array], axis=axis).bind([InputSpec("x", "float64", ndim, sparse)]).source


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(scanning, "PART", 100)


@pytest.mark.parametrize("place", [(0, 0), (16, 2), (17, 0), (49, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_first_entry_is_found(small_parts, place, axis):
    array = np.ones((50, 4))
    array[place] = np.nan
    array[-1, -1] = np.inf
    found, value = first_infinite(bound(array, 2, axis).columns[0])
    assert found == place
    np.testing.assert_equal(value, array[place])
    assert first_infinite(bound(np.ones((50, 4)), 2, axis).columns[0]) is None


def test_a_sparse_matrix_and_one_for_a_sparse_input(small_parts):
    array = np.zeros((50, 4))
    array[33, 1] = -np.inf
    for data in (array, scipy.sparse.csr_array(array)):
        assert first_infinite(bound(data, 2, sparse="csr").columns[0]) == ((33, 1), -np.inf)


def test_parts_hold_every_sample_once(small_parts):
    for axis in (0, 1):
        selections = list(parts(bound(np.ones((50, 40)), 2, axis)))
        samples = [i for s in selections for i in range(s.start, s.stop)]
        assert samples == list(range((50, 40)[axis]))
        assert len(selections) > 1
