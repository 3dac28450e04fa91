"""What is said of arrays that are not finite."""

import numpy as np
import scipy.sparse

from downhill_rms.training.divergence import describe_infinite, explain_infinite


def test_counts():
    array = np.array([1, np.nan, np.inf, -np.inf], dtype="float32")
    assert describe_infinite("x", array) == "3 of 4 values of x are not finite"
    assert describe_infinite("x", array[:1]) == ""
    assert describe_infinite("n", np.array([1, 2])) == ""
    assert describe_infinite("c", np.array([1j * np.nan])).startswith("1 of 1")
    assert describe_infinite("s", scipy.sparse.csr_array([[0, np.nan]])).startswith("1 of 1")


def test_explanation_names_every_guilty_array_or_points_at_the_expression():
    good, bad = np.ones(2), np.full(2, np.nan)
    text = explain_infinite({"x": bad, "y": good, "z": bad})
    assert "values of x" in text
    assert "values of z" in text
    assert "y" not in text.split(":")[0]
    assert "logarithm or division of 0" in explain_infinite({"x": good})
