"""Many updates in one call: the same numbers as one update a call."""

import numpy as np
import pytensor
import pytensor.sparse
import pytensor.tensor as pt
import pytest

from downhill_rms import Trainer
from downhill_rms.compiling.stacked import check_stackable, stack_steps

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 10, 3)).astype("float32")  # minibatches, samples, features
Y = RNG.normal(size=(6, 10)).astype("float32")

RULES = {
    "plain": {},
    "momentum": {"momentum": 0.9, "nesterov": True},
    "bias correction": {"bias_correction": True},
    "schedule": {"learning_rate": lambda t: 0.1 / t},
    "uncentered, clipped": {"centered": False, "max_global_norm": 0.5},
}


def regression(dropout=False, **hyperparameters):
    """Inputs, outputs and updates of one step, the loss and two monitors."""
    x, y = pt.fmatrix("x"), pt.fvector("y")
    w = pytensor.shared(np.full(3, 0.5, dtype="float32"), name="w")
    kept = x
    if dropout:
        _, mask = pt.random.shared_rng(seed=1).bernoulli(0.5, size=x.shape)
        kept = x * mask.astype("float32")
    loss = pt.sqr(kept @ w - y).mean()
    seen = pytensor.shared(np.int64(0), name="seen")
    trainer = Trainer(loss, inputs=[x, y], updates=[(seen, seen + y.shape[0])])
    updates = trainer.get_updates(**{"learning_rate": 0.05} | hyperparameters)
    return [x, y], [loss, abs(w).sum(), y.max()], updates


def values(updates):
    found = [variable.get_value() for variable, _ in updates]
    return [v.bit_generator.state if isinstance(v, np.random.Generator) else v for v in found]


def one_by_one(step, mode):
    function = pytensor.function(step[0], step[1], updates=step[2], mode=mode)
    outputs = [function(x, y) for x, y in zip(X, Y, strict=True)]
    return [np.array(values) for values in zip(*outputs, strict=True)], values(step[2])


def together(step, mode, sizes=(6,)):
    inputs, outputs, updates = stack_steps(*step)
    function = pytensor.function(inputs, outputs, updates=updates, mode=mode)
    ends = np.cumsum(sizes)
    parts = [function(X[e - s : e], Y[e - s : e]) for s, e in zip(sizes, ends, strict=True)]
    return [np.concatenate(values) for values in zip(*parts, strict=True)], values(updates)


@pytest.mark.parametrize("rule", RULES)
def test_the_same_to_the_last_bit(mode, rule):
    expected, state = one_by_one(regression(**RULES[rule]), mode)
    outputs, final = together(regression(**RULES[rule]), mode)
    assert len(set(expected[0])) == 6  # each minibatch has a loss of its own
    for got, wanted in zip([*outputs, *final], [*expected, *state], strict=True):
        np.testing.assert_array_equal(got, wanted, strict=True)


def test_the_number_of_minibatches_may_change_from_call_to_call(mode):
    expected, state = together(regression(momentum=0.9), mode)
    outputs, final = together(regression(momentum=0.9), mode, sizes=(1, 3, 2))
    for got, wanted in zip([*outputs, *final], [*expected, *state], strict=True):
        np.testing.assert_array_equal(got, wanted, strict=True)


def test_random_numbers_are_those_of_single_updates(mode):
    expected, state = one_by_one(regression(dropout=True), mode)
    outputs, final = together(regression(dropout=True), mode, sizes=(4, 2))
    np.testing.assert_array_equal(outputs[0], expected[0])
    for got, wanted in zip(final, state, strict=True):
        np.testing.assert_equal(got, wanted)


def test_numba_gives_the_same_to_the_last_bit():
    with pytensor.config.change_flags(mode="NUMBA"):  # inside the scan too
        expected, state = one_by_one(regression(momentum=0.9), "NUMBA")
        outputs, final = together(regression(momentum=0.9), "NUMBA", sizes=(1, 5))
    for got, wanted in zip([*outputs, *final], [*expected, *state], strict=True):
        np.testing.assert_array_equal(got, wanted, strict=True)


def test_inputs_keep_their_names_types_and_static_shapes():
    x = pt.tensor("x", dtype="int64", shape=(None, 7))
    inputs, _, _ = stack_steps([x], [x.sum()], [])
    assert inputs[0].name == "x_batches"
    assert inputs[0].type.dtype == "int64"
    assert inputs[0].type.shape == (None, None, 7)


def test_sparse_minibatches_are_refused():
    x = pytensor.sparse.csr_matrix("x")
    with pytest.raises(TypeError, match="updates_per_call is above 1 for the input 'x'"):
        check_stackable([x])


def test_steps_without_inputs_are_counted(mode):
    """The only input then says how many there are, whatever its values."""
    w = pytensor.shared(1.0, name="w")
    inputs, outputs, updates = stack_steps([], [w], [(w, 2 * w)])
    (values,) = pytensor.function(inputs, outputs, updates=updates, mode=mode)([7, 7, 7])
    assert (values.tolist(), w.get_value()) == ([1.0, 2.0, 4.0], 8.0)
