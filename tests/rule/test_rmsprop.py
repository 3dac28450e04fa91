"""The update rule against the NumPy oracle, and what it promises about state and dtype."""

import itertools

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms.rule.hyperparameters import Hyperparameters
from downhill_rms.rule.rmsprop import State, rmsprop_updates
from tests.oracle import Oracle

UPDATES = 50
MOMENTA = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]
CLIPS = [{}, {"max_gradient_elem": 0.5}, {"max_gradient_norm": 1.0}, {"max_global_norm": 1.5}]
DECAYS = [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}]
GRID = [
    {"centered": centered, "regularize": regularize, "bias_correction": bias, **mom, **clip, **wd}
    for centered, regularize, bias, mom, clip, wd in itertools.product(
        [True, False], ["variance", "rms"], [False, True], MOMENTA, CLIPS, DECAYS
    )
]

# The two forms of the variance.
forms = pytest.mark.parametrize("from_new_mean", [False, True], ids=["old mean", "new mean"])

GRID += [
    {"max_update": 0.004, "centered": centered, **mom, **wd}
    for centered, mom, wd in itertools.product([True, False], MOMENTA, DECAYS)
]


def describe(options):
    on = [k if v is True else f"{k}={v}" for k, v in options.items() if v is not False]
    return "-".join(on)


def make_gradients(seed=0):
    """Gradients for a (3, 2) and a (4,) parameter; some long enough for every clip."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=UPDATES))
    return [(s * rng.normal(size=(3, 2)), s * rng.normal(size=4)) for s in scale]


class Ours:
    """Two parameters and the compiled rule, fed with gradients."""

    def __init__(self, values, dtype, mode, from_new_mean=False, **options):
        self.params = [
            pytensor.shared(v.astype(dtype), name=n) for n, v in zip("ab", values, strict=True)
        ]
        self.state = State(self.params, ["a", "b"])
        gradients = [p.type() for p in self.params]
        hyperparameters = Hyperparameters(**options)
        updates = rmsprop_updates(
            self.params, gradients, hyperparameters, self.state, from_new_mean=from_new_mean
        )
        self.function = pytensor.function(gradients, [], updates=updates, mode=mode)
        self.dtype = dtype

    def update(self, gradients):
        self.function(*(np.asarray(g, dtype=self.dtype) for g in gradients))
        return [p.get_value() for p in self.params]


def start():
    rng = np.random.default_rng(42)
    return [rng.normal(size=(3, 2)), rng.normal(size=4)]


@pytest.mark.parametrize("options", GRID, ids=describe)
def test_every_combination_follows_the_oracle_for_50_updates(options, mode):
    follow_the_oracle(options, mode)


@pytest.mark.parametrize("options", [o for o in GRID if o["centered"]][::5], ids=describe)
def test_the_variance_from_the_new_mean_follows_the_oracle(options, mode):
    follow_the_oracle(options, mode, from_new_mean=True)


def follow_the_oracle(options, mode, from_new_mean=False):
    options = {"learning_rate": 0.01, "rms_halflife": 5.0, "rms_regularizer": 1e-4, **options}
    ours = Ours(start(), "float64", mode, from_new_mean, **options)
    oracle = Oracle(start(), **options)
    for gradients in make_gradients():
        for got, expected in zip(ours.update(gradients), oracle.update(gradients), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@forms
@pytest.mark.parametrize("options", GRID[::5], ids=describe)
def test_float32_follows_the_oracle(options, mode, from_new_mean):
    options = {"learning_rate": 0.01, "rms_halflife": 5.0, "rms_regularizer": 1e-2, **options}
    values = [v.astype("float32") for v in start()]
    ours = Ours(values, "float32", mode, from_new_mean, **options)
    oracle = Oracle(values, **options)
    for gradients in make_gradients():
        gradients = [g.astype("float32") for g in gradients]
        for got, expected in zip(ours.update(gradients), oracle.update(gradients), strict=True):
            assert got.dtype == "float32"
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@forms
def test_variance_is_the_difference_of_the_two_averages(mode, from_new_mean):
    """The recurrence equals E[g^2] - E[g]^2 with the textbook's separate averages."""
    gamma = 0.9
    ours = Ours(start(), "float64", mode, from_new_mean, decay=gamma)
    mean = [np.zeros((3, 2)), np.zeros(4)]
    square = [np.zeros((3, 2)), np.zeros(4)]
    for gradients in make_gradients():
        ours.update(gradients)
        mean = [gamma * m + (1 - gamma) * g for m, g in zip(mean, gradients, strict=True)]
        square = [gamma * s + (1 - gamma) * g**2 for s, g in zip(square, gradients, strict=True)]
    for name, m, s in zip("ab", mean, square, strict=True):
        variance = ours.state.accumulators[f"{name}_variance"].get_value()
        np.testing.assert_allclose(variance, s - m**2, rtol=1e-10)


@forms
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 3.7, 1e2, 1e4, 1e6])
def test_float32_constant_gradients_never_cancel(magnitude, mode, from_new_mean):
    """torch 2.13 and optax 0.2.8 give NaN here after about 260 updates."""
    options = {"learning_rate": 1e-6, "rms_regularizer": 1e-8}
    ours = Ours(start(), "float32", mode, from_new_mean, **options)
    gradients = [np.full((3, 2), magnitude), np.full(4, -magnitude)]
    variances = [ours.state.accumulators[f"{n}_variance"] for n in "ab"]
    for _ in range(5000):
        ours.update(gradients)
        assert all((v.get_value(borrow=True) >= 0).all() for v in variances)
    assert all(np.isfinite(p.get_value()).all() for p in ours.params)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_first_corrected_variance_is_zero_in_either_form(dtype, mode):
    """There w is 1, and w / (1 - w) is no number."""
    gradients = [np.full((3, 2), 1e3), np.full(4, 0.1)]
    for from_new_mean in (False, True):
        ours = Ours(start(), dtype, mode, from_new_mean, bias_correction=True, decay=0.9)
        ours.update(gradients)
        variances = [ours.state.accumulators[f"{n}_variance"].get_value() for n in "ab"]
        assert not any(v.any() for v in variances)


def test_max_update_bounds_the_large_steps_of_constant_gradients(mode):
    """Centered, a constant gradient g ends in steps of learning_rate * g / sqrt(regularizer)."""
    gradients = [np.full((3, 2), 100.0), np.full(4, -100.0)]
    steps = {}
    for bound in (0.0, 0.5):
        options = {"learning_rate": 1e-4, "rms_regularizer": 1e-8, "max_update": bound}
        ours = Ours([np.zeros((3, 2)), np.zeros(4)], "float64", mode, **options)
        for _ in range(2000):
            before = ours.params[0].get_value()
            ours.update(gradients)
        steps[bound] = before - ours.params[0].get_value()
    np.testing.assert_allclose(steps[0.0], 1e-4 * 100 / 1e-4, rtol=1e-6)
    np.testing.assert_allclose(steps[0.5], 0.5)


def test_subtracting_two_averages_does_cancel_in_float32():
    """The fault that the recurrence avoids is real: the usual formula goes negative."""
    g = np.array([1e-3, 1, 3.7, 1e2, 1e4, 1e6], dtype="float32")
    gamma, weight = np.float32(0.95), np.float32(0.05)
    mean, square = np.zeros_like(g), np.zeros_like(g)
    lowest = np.zeros_like(g)
    for _ in range(5000):
        mean = mean + weight * (g - mean)
        square = gamma * square + weight * g * g
        lowest = np.minimum(lowest, square - mean * mean)
    assert (lowest < -1e-8).any()


def test_state_has_names_shapes_and_dtypes_of_its_parameters():
    w = pytensor.shared(np.zeros((3, 1), dtype="float32"), name="w", shape=(3, 1))
    state = State([w], ["w"])
    rmsprop_updates([w], [w.type("g")], Hyperparameters(momentum=0.9), state)
    assert list(state.accumulators) == ["w_mean", "w_variance", "w_velocity"]
    for accumulator in state.accumulators.values():
        assert accumulator.type == w.type
        assert accumulator.get_value().shape == (3, 1)
    state = State([w], ["w"])
    rmsprop_updates([w], [w.type("g")], Hyperparameters(centered=False), state)
    assert list(state.accumulators) == ["w_mean_square"]


def test_updates_keep_each_parameters_dtype_in_a_mixed_model(mode):
    """downhill gave float64 updates to float32 parameters."""
    a = pytensor.shared(np.ones(2, dtype="float32"), name="a")
    b = pytensor.shared(np.ones(2, dtype="float64"), name="b")
    gradients = [a.type(), b.type()]
    options = Hyperparameters(
        momentum=0.5, nesterov=True, weight_decay=0.1, max_global_norm=1.0, bias_correction=True
    )
    updates = rmsprop_updates([a, b], gradients, options, State([a, b], ["a", "b"]))
    for variable, new in updates:
        assert new.type.dtype == variable.type.dtype
    pytensor.function(gradients, [], updates=updates, mode=mode)(
        np.ones(2, dtype="float32"), np.ones(2)
    )
    assert a.get_value().dtype == "float32"


@forms
def test_initial_accumulator(mode, from_new_mean):
    for centered in (True, False):
        options = {"initial_accumulator": 2.0, "centered": centered, "learning_rate": 0.1}
        ours = Ours(start(), "float64", mode, from_new_mean, **options)
        oracle = Oracle(start(), **options)
        for gradients in make_gradients():
            got, expected = ours.update(gradients), oracle.update(gradients)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_schedule_of_the_update_count(dtype, mode):
    ours = Ours(start(), dtype, mode, learning_rate=lambda t: 0.1 / pt.sqrt(t))
    oracle = Oracle(start(), learning_rate=lambda t: 0.1 / np.sqrt(t))
    for gradients in make_gradients():
        got, expected = ours.update(gradients), oracle.update(gradients)
        rtol = 1e-12 if dtype == "float64" else 1e-4
        np.testing.assert_allclose(got[1], expected[1], rtol=rtol, atol=rtol)
    assert int(ours.state.update_count.get_value()) == UPDATES


def test_schedule_that_is_no_scalar_is_refused():
    w = pytensor.shared(np.ones(3), name="w")
    options = Hyperparameters(learning_rate=lambda t: pt.ones(3) * t)
    with pytest.raises(ValueError, match="schedule that returned .*: it returns a real scalar"):
        rmsprop_updates([w], [w.type()], options, State([w], ["w"]))


def test_shared_learning_rate_is_used_as_it_is(mode):
    rate = pytensor.shared(0.5, name="rate")
    ours = Ours(start(), "float64", mode, learning_rate=rate)
    before = ours.update(make_gradients()[0])
    rate.set_value(0.0)
    after = ours.update(make_gradients()[1])
    np.testing.assert_array_equal(before[0], after[0])


def test_numbers_change_without_a_new_graph(mode):
    ours = Ours(start(), "float64", mode, learning_rate=0.1, momentum=0.5)
    oracle = Oracle(start(), learning_rate=0.1, momentum=0.5)
    for t, gradients in enumerate(make_gradients()):
        if t == 20:
            ours.state.assign(Hyperparameters(learning_rate=0.01, momentum=0.9, decay=0.8))
            oracle.learning_rate, oracle.mu, oracle.gamma = 0.01, 0.9, 0.8
        got, expected = ours.update(gradients), oracle.update(gradients)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)


def test_regularizer_that_vanishes_in_float32_is_refused():
    w = pytensor.shared(np.ones(3, dtype="float32"), name="w")
    with pytest.raises(ValueError, match=r"1e-50, which is 0 .* float32"):
        State([w], ["w"]).assign(Hyperparameters(rms_regularizer=1e-50))


def test_reset_puts_accumulators_back_to_their_start(mode):
    ours = Ours(start(), "float64", mode, initial_accumulator=1.5, bias_correction=False)
    ours.update(make_gradients()[0])
    ours.state.reset()
    np.testing.assert_array_equal(ours.state.accumulators["a_variance"].get_value(), 1.5)
    np.testing.assert_array_equal(ours.state.accumulators["a_mean"].get_value(), 0)


def averages_of(ours):
    return [average.get_value() for average in ours.state.averages().values()]


@pytest.mark.parametrize("halflife", [1.0, 8.0, 1000.0])
def test_an_exponential_average_weighs_all_values_by_their_age(halflife, mode):
    """The recurrence against the sum that it stands for, weight by weight."""
    ours = Ours(
        start(), "float64", mode, learning_rate=0.1, average="ema", average_halflife=halflife
    )
    seen = []
    for gradients in make_gradients():
        seen.append([value.copy() for value in ours.update(gradients)])
        weights = 0.5 ** (np.arange(len(seen))[::-1] / halflife)
        for got, values in zip(averages_of(ours), zip(*seen, strict=True), strict=True):
            expected = np.average(np.array(values), axis=0, weights=weights)
            np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("first", [0, 20])
def test_the_mean_of_the_tail_is_that_of_the_updates_after_its_start(first, mode):
    ours = Ours(start(), "float64", mode, learning_rate=0.1, average="tail", average_start=first)
    seen = []
    for gradients in make_gradients():
        seen.append([value.copy() for value in ours.update(gradients)])
        for got, values in zip(averages_of(ours), zip(*seen, strict=True), strict=True):
            expected = np.mean(values[first:], axis=0) if len(seen) > first else values[-1]
            np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_averages_change_no_bit_of_the_parameters_and_keep_their_dtype(mode):
    plain = Ours(start(), "float32", mode, momentum=0.9)
    averaged = Ours(start(), "float32", mode, momentum=0.9, average="ema")
    for gradients in make_gradients():
        for one, other in zip(plain.update(gradients), averaged.update(gradients), strict=True):
            np.testing.assert_array_equal(one, other)
    assert {a.dtype for a in averages_of(averaged)} == {np.dtype("float32")}


def test_an_average_starts_at_its_parameter_and_returns_there(mode):
    ours = Ours(start(), "float64", mode, average="ema")
    for got, expected in zip(averages_of(ours), start(), strict=True):
        np.testing.assert_array_equal(got, expected)
    ours.update(make_gradients()[0])
    for param, value in zip(ours.params, start(), strict=True):
        param.set_value(2 * value)
    ours.state.reset()
    for got, expected in zip(averages_of(ours), start(), strict=True):
        np.testing.assert_array_equal(got, 2 * expected)
