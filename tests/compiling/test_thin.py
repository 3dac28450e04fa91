"""Products of few rows, against NumPy."""

import numba
import numpy as np
import pytest

from downhill_rms.compiling.thin import is_thin, thin_dot_into

# Rows, and the other matrix's rows and columns: empty ones, and some so large that they are turned.
SHAPES = [(1, 32, 128), (1, 7, 1), (1, 0, 4), (1, 4, 0), (3, 6, 5), (40, 300, 400)]
TURNED = [(2, 600, 1000), (40, 600, 1000)]


@numba.njit
def product(x, y, y_transposed, result):
    thin_dot_into(x, y, y_transposed, result)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_product_of_few_rows_is_written_where_it_belongs(dtype):
    rng = np.random.default_rng(0)
    for rows, inner, columns in SHAPES + TURNED:
        x = rng.standard_normal((rows, inner)).astype(dtype)
        y = rng.standard_normal((inner, columns)).astype(dtype)
        assert is_thin(x, y) == ((rows, inner, columns) in TURNED)
        result = np.full((rows, columns), np.nan, dtype)
        product(x, y, np.ascontiguousarray(y.T), result)
        exact = x.astype("float64") @ y.astype("float64")
        atol = (1e-5 if dtype == "float32" else 1e-13) * max(inner, 1) ** 0.5
        np.testing.assert_allclose(result, exact, rtol=0, atol=atol)
