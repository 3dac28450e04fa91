"""What a large graph's matrices are taken for: nothing, unless linear algebra makes one."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms.compiling import pieces
from downhill_rms.compiling.modes import REWRITTEN, training_mode


@pytest.mark.parametrize("small", [0, 1000])
def test_a_diagonal_matrix_is_known_for_one(small, monkeypatch):
    monkeypatch.setattr(pieces, "SMALL", small)
    x = pt.dmatrix("x")
    function = pytensor.function([x], x @ pt.eye(3), mode=training_mode(REWRITTEN))
    names = [type(node.op).__name__ for node in function.maker.fgraph.apply_nodes]
    assert not any("Dot" in name for name in names)
    np.testing.assert_allclose(function(np.ones((2, 3))), np.ones((2, 3)))


@pytest.mark.parametrize(("small", "asked"), [(0, False), (1000, True)])
def test_products_of_a_large_graph_are_not_looked_at(small, asked, monkeypatch):
    monkeypatch.setattr(pieces, "SMALL", small)
    x, y = pt.dmatrix("x"), pt.dmatrix("y")
    function = pytensor.function([x, y], x @ y.T, mode=training_mode(REWRITTEN))
    known = function.maker.fgraph.assumption_feature.cache
    assert bool(known) is asked
    np.testing.assert_allclose(function(np.ones((2, 3)), np.ones((4, 3))), np.full((2, 4), 3.0))
