"""What is read from a graph before any data are computed with."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms.rule import read_bounds, read_graph

X, Y = pt.matrix("x"), pt.lvector("y")


def read(loss, **shapes):
    graph = read_graph(loss)
    known = {v: shapes[v.name] for v in graph.inputs}
    known |= {p: p.get_value().shape for p in graph.params}
    names = {v: repr(v.name) for v in known}
    return read_bounds([loss], graph.inputs, known, names)


def weights(*shape, name="w"):
    return pytensor.shared(np.ones(shape), name=name)


def test_the_extent_of_what_is_computed_is_that_of_the_parameters():
    loss = pt.tanh(X @ weights(5, 3))[pt.arange(Y.shape[0]), Y].sum()
    reading = read(loss, x=(None, 5), y=(None,))
    (index,) = reading.indices
    assert (index.inputs, index.extent, index.axis) == ((1,), 3, 1)
    assert index.values is reading.leaves[Y]
    assert reading.conflict is None
    assert not reading.unbounded


@pytest.mark.parametrize(
    "loss",
    [
        lambda: weights(3)[pt.argmax(X, axis=1)].sum(),
        lambda: (weights(3) * X.sum()).sum() + X[Y].sum(),
        lambda: weights(3)[pt.cast(weights(3, name="v"), "int64")].sum() + X.sum() + Y.sum(),
    ],
    ids=["from real numbers", "of the minibatch", "from parameters"],
)
def test_what_cannot_be_bounded_is_told(loss):
    reading = read(loss(), x=(None, 3), y=(None,))
    assert len(reading.unbounded) == 1
    assert not reading.indices


@pytest.mark.parametrize(
    "loss",
    [
        lambda: X[1:-1, ::2].sum() * weights(3).sum(),
        lambda: X[X > 0].sum() * weights(3).sum(),
        lambda: (pt.eq(Y[:, None], np.arange(3)) * weights(3)).sum(),
        lambda: weights(3)[-3] + weights(3, name="v")[[0, 2, -1]].sum(),
        lambda: (X[pt.arange(X.shape[0])] * weights(3)).sum(),
    ],
    ids=["slices", "masks", "comparison", "constants", "every sample"],
)
def test_what_needs_no_check(loss):
    reading = read(loss(), x=(None, 3), y=(None,))
    assert reading.conflict is None
    assert not reading.indices
    assert not reading.unbounded


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda: (X @ weights(3)).sum(), "'x' of shape (?, 4) meets 'w' of shape (3,) in Dot"),
        (lambda: (X.T + weights(4, 1)).sum(), "Make 'w' with shape=(None, 1)"),
        (lambda: weights(3)[[0, 3]].sum(), "'w' of shape (3,) in AdvancedSubtensor"),
        (lambda: (X.reshape((X.shape[0], 2, 2)) @ weights(3, 5)).sum(), "2 columns meet 3 rows"),
    ],
)
def test_operands_that_do_not_fit(loss, text):
    assert text in str(read(loss(), x=(None, 4), y=(None,)).conflict)
