"""Names and kinds of monitors, and means over a pass."""

import numpy as np
import pytensor.tensor as pt
import pytest

from downhill_rms.watching.monitors import PassMean, named_expressions

A, B = pt.scalar("a"), pt.iscalar("b")


def test_dict_and_pairs_are_the_same():
    """downhill refused a dict."""
    assert named_expressions({"a": A, "b": B}) == named_expressions((("a", A), ["b", B]))
    assert list(named_expressions({"b": B, "a": A})) == ["b", "a"]


@pytest.mark.parametrize(
    ("monitors", "error", "message"),
    [
        ([A], TypeError, "pairs of a name and an expression"),
        ({1: A}, TypeError, "pairs of a name and an expression"),
        ([("a", A), ("a", B)], ValueError, "monitors has 'a' again"),
        ({"loss": A}, ValueError, "monitors has 'loss' again"),
        ({"v": pt.vector()}, TypeError, "'v', which is .* of 1 dimensions"),
        ({"n": 3.0}, TypeError, "'n', which is 3.0"),
        ({"c": pt.zscalar()}, TypeError, "'c' of dtype complex128"),
        (3, TypeError, "monitors is 3"),
    ],
)
def test_monitors_that_are_none(monitors, error, message):
    with pytest.raises(error, match=message):
        named_expressions(monitors)


def test_mean_weights_batches_by_their_samples():
    """downhill weighted a short last batch like a full one."""
    means = PassMean(["loss"])
    data = np.arange(10.0) ** 2
    for batch in (data[:4], data[4:8], data[8:]):
        means.add([np.asarray(batch.mean())], len(batch))
    assert means.result()["loss"] == pytest.approx(data.mean(), rel=1e-14)


def test_mean_over_more_batches_than_a_block():
    means = PassMean(["loss", "other"])
    values = np.random.default_rng(0).normal(size=(3 * PassMean.BLOCK + 5, 2))
    for row in values:
        means.add(list(row), 2)
    result = means.result()
    assert list(result) == ["loss", "other"]
    np.testing.assert_allclose(list(result.values()), values.mean(axis=0), rtol=1e-12)
    assert all(type(value) is float for value in result.values())
