"""Updates from gradients that are given, in a loop that is not ours."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import downhill_rms
from tests.oracle import Oracle

GRADIENTS = np.random.default_rng(0).normal(size=(30, 3, 2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"centered": False, "rms_halflife": 3.0},
        {"momentum": 0.9, "nesterov": True, "max_gradient_norm": 1.0},
        {"bias_correction": True, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_gradients_that_are_given_are_followed_as_the_oracle_does(options, mode):
    w, g = pytensor.shared(np.ones((3, 2)), name="w"), pt.matrix("g")
    pairs = downhill_rms.updates([w], [g], learning_rate=0.01, **options)
    step = pytensor.function([g], updates=pairs, mode=mode)
    oracle = Oracle([np.ones((3, 2))], learning_rate=0.01, **options)
    for gradient in GRADIENTS:
        step(gradient)
        oracle.update([gradient])
    np.testing.assert_allclose(w.get_value(), oracle.params[0], rtol=1e-12)


def test_two_calls_share_nothing():
    w, g = pytensor.shared(0.0, name="w"), pt.scalar("g")
    first, second = (dict(downhill_rms.updates([w], [g])) for _ in range(2))
    assert {*first} & {*second} == {w}


def test_what_is_fed_may_be_an_accumulated_gradient(mode):
    """Four gradients are added up in a variable of the user's, and followed as one."""
    w, total = pytensor.shared(np.ones(2), name="w"), pytensor.shared(np.zeros(2), name="total")
    g = pt.vector("g")
    add = pytensor.function([g], updates=[(total, total + g)], mode=mode)
    pairs = downhill_rms.updates([w], [total / 4], learning_rate=0.1)
    step = pytensor.function([], updates=[*pairs, (total, pt.zeros_like(total))], mode=mode)
    oracle = Oracle([np.ones(2)], learning_rate=0.1)
    for gradients in GRADIENTS.reshape(-1, 2)[:80].reshape(20, 4, 2):
        for gradient in gradients:
            add(gradient)
        step()
        oracle.update([gradients.mean(axis=0)])
    np.testing.assert_allclose(w.get_value(), oracle.params[0], rtol=1e-12)


W, G = pytensor.shared(np.zeros(2), name="w"), pt.vector("g")


@pytest.mark.parametrize(
    ("params", "gradients", "options", "kind", "text"),
    [
        ([], [], {}, ValueError, "params is empty"),
        (W, [G], {}, TypeError, "params is .*shared variables"),
        ([W], [], {}, ValueError, "gradients has 0 for 1"),
        ([W, W], [G, G], {}, ValueError, "twice"),
        ([G], [G], {}, TypeError, "a parameter is a shared variable"),
        ([W], [np.zeros(2)], {}, TypeError, "a gradient is a symbolic"),
        ([W], [pt.matrix("h")], {}, ValueError, "of 2 dimensions"),
        ([W], [pt.zvector("h")], {}, TypeError, "a gradient is real"),
        ([W], [G], {"learning_rat": 1}, TypeError, "learning_rate"),
        ([W], [G], {"momentum": 1.5}, ValueError, "momentum"),
    ],
)
def test_what_cannot_be_followed_is_refused(params, gradients, options, kind, text):
    with pytest.raises(kind, match=text):
        downhill_rms.updates(params, gradients, **options)
