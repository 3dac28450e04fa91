"""Derivatives, clips and weight decay, against NumPy."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import disconnected_grad

from downhill_rms.rule import gradients

RNG = np.random.default_rng(0)
VALUES = [RNG.normal(size=(3, 2)), 5 * RNG.normal(size=4), np.zeros(2)]


def evaluate(build, mode):
    variables = [pt.matrix(), pt.vector(), pt.vector()]
    return pytensor.function(variables, build(variables), mode=mode)(*VALUES)


def test_differentiate_is_the_derivative(mode):
    w = pytensor.shared(np.array([1.0, -2.0]), name="w")
    (g,) = gradients.differentiate((w**3).sum(), [w])
    value = pytensor.function([], g, mode=mode)()
    np.testing.assert_allclose(value, [3.0, 12.0])


@pytest.mark.parametrize("use", [lambda w: w.shape[0], lambda w: disconnected_grad(w).sum()])
def test_parameter_without_a_path_is_named(use):
    w, v = pytensor.shared(np.ones(3), name="w"), pytensor.shared(1.0, name="v")
    with pytest.raises(ValueError, match="'w' .* is not"):
        gradients.differentiate(v * use(w).astype("float64"), [w, v])


def test_clip_elements(mode):
    got = evaluate(lambda g: gradients.clip_elements(g, 0.3), mode)
    for value, expected in zip(got, VALUES, strict=True):
        np.testing.assert_array_equal(value, np.clip(expected, -0.3, 0.3))


def test_clip_norms_bounds_each_and_leaves_short_ones_alone(mode):
    got = evaluate(lambda g: gradients.clip_norms(g, 3.0), mode)
    assert np.linalg.norm(VALUES[0]) < 3 < np.linalg.norm(VALUES[1])
    np.testing.assert_array_equal(got[0], VALUES[0])
    assert np.linalg.norm(got[1]) == pytest.approx(3)
    np.testing.assert_allclose(got[1] / VALUES[1], 3 / np.linalg.norm(VALUES[1]))
    np.testing.assert_array_equal(got[2], 0)


def test_clip_global_norm_scales_all_alike(mode):
    common = np.sqrt(sum((v**2).sum() for v in VALUES))
    got = evaluate(lambda g: gradients.clip_global_norm(g, common / 2), mode)
    for value, expected in zip(got, VALUES, strict=True):
        np.testing.assert_allclose(value, expected / 2)
    got = evaluate(lambda g: gradients.clip_global_norm(g, common * 2), mode)
    np.testing.assert_array_equal(got[1], VALUES[1])


def test_weight_decay_is_added(mode):
    w = pytensor.shared(np.array([1.0, -2.0]), name="w")
    (g,) = gradients.add_weight_decay([pt.constant([0.5, 0.5])], [w], 0.1)
    np.testing.assert_allclose(pytensor.function([], g, mode=mode)(), [0.6, 0.3])
