"""Numbers, shared scalars and functions of the epoch among arrays of samples."""

from fractions import Fraction

import numpy as np
import pytensor
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downhill_rms.data.dataset import Dataset
from downhill_rms.data.sources import InputSpec

X = np.arange(22.0).reshape(11, 2)
MATRIX, VECTOR = InputSpec("x", "float64", 2), InputSpec("y", "float64", 1)
KINDS = ("bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64")


def scalar(dtype="float64"):
    return InputSpec("beta", dtype, 0)


def shared(value, name="beta"):
    return pytensor.shared(value, name=name)


def fed(bound, **options):
    return [batch[1] for batch, _ in bound.epoch(**options)]


GIVEN = {
    "number": lambda: 0.5,
    "integer": lambda: 3,
    "truth value": lambda: True,
    "fraction": lambda: Fraction(1, 4),
    "numpy scalar": lambda: np.float32(0.5),
    "array": lambda: np.array(0.5),
    "shared": lambda: shared(0.5),
    "shared integer": lambda: shared(np.int32(2)),
    "function": lambda: lambda epoch: 0.5,
    "function that returns an array": lambda: lambda epoch: np.array(0.5, dtype="float32"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shuffle", ["samples", "batches", None])
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_every_minibatch_has_it_in_the_form_of_its_input(given, shuffle, dtype):
    """Exactly an array without dimensions of the dtype: all else makes Numba compile again."""
    value = given()
    number = value(0) if callable(value) else value
    expected = float(number.get_value() if hasattr(number, "get_value") else number)
    for data in ([X, value], (X, value), {"beta": value, "x": X}):
        bound = Dataset(data, batch_size=4, shuffle=shuffle, prefetch=0).bind(
            [MATRIX, scalar(dtype)]
        )
        for batches in (bound.epoch(), bound.in_order()):
            sizes = []
            for (x, beta), samples in batches:
                assert type(beta) is np.ndarray
                assert (beta.shape, beta.dtype) == ((), dtype)
                assert beta.flags.writeable
                assert float(beta) == expected
                assert len(x) == samples
                sizes.append(samples)
            assert sorted(sizes) == [3, 4, 4]


@settings(max_examples=200, deadline=None)
@given(
    value=st.booleans() | st.integers(-(2**70), 2**70) | st.floats(), dtype=st.sampled_from(KINDS)
)
def test_a_number_is_kept_or_refused(value, dtype):
    """By what NumPy says of the dtype; a float keeps its nearest."""
    target = np.dtype(dtype)
    if target.kind == "b":
        kept, error = isinstance(value, bool), TypeError
    elif target.kind in "iu":
        kept, error = not isinstance(value, float), TypeError
        if kept:
            limits = np.iinfo(target)
            kept, error = limits.min <= value <= limits.max, ValueError
    else:
        with np.errstate(over="ignore"):
            cast = np.array(float(value)).astype(target)
        overflows = np.isinf(cast) and not np.isinf(float(value))
        kept, error = not (overflows or np.isnan(cast)), ValueError
    dataset = Dataset([X, value])
    if not kept:
        with pytest.raises(error, match=r"'beta' \(0-dimensional"):
            dataset.bind([MATRIX, scalar(dtype)])
        return
    (beta,) = fed(dataset.bind([MATRIX, scalar(dtype)]))
    assert beta.dtype == target
    assert beta == (cast if target.kind == "f" else value)


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 30),
    batch_size=st.integers(-1, 12),
    together=st.integers(1, 5),
    prefetch=st.integers(0, 2),
    axis=st.integers(0, 1),
    shuffle=st.sampled_from(["samples", "batches", None]),
    epochs=st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_stacks_and_prefetch_have_the_epoch_s_number(
    n, batch_size, together, prefetch, axis, shuffle, epochs
):
    calls = []

    def schedule(epoch):
        calls.append(epoch)
        return epoch / 10

    x = np.moveaxis(np.arange(2.0 * n).reshape(n, 2), 0, axis)
    options = {"batch_size": batch_size, "axis": axis, "shuffle": shuffle, "prefetch": prefetch}
    dataset = Dataset([schedule, x, 7], rng=0, **options)
    specs = [scalar(), MATRIX, scalar("int32")]
    bound = dataset.bind(specs, epochs[0])
    for epoch in epochs:
        bound.begin_epoch(epoch)
        seen = []
        for (beta, part, seven), samples in bound.epoch(together=together):
            stacks = (beta, part, seven) if together > 1 else (beta[None], part[None], seven[None])
            assert len(stacks[0]) == len(stacks[1]) == len(stacks[2])
            np.testing.assert_array_equal(stacks[0], epoch / 10)
            np.testing.assert_array_equal(stacks[2], 7)
            assert stacks[2].dtype == "int32"
            assert stacks[1].shape[1 + axis] == samples
            seen += [stack.take(i, axis=axis) for stack in stacks[1] for i in range(samples)]
        assert sorted(map(tuple, seen)) == sorted(map(tuple, np.moveaxis(x, axis, 0)))
    unlike = [epoch for place, epoch in enumerate(epochs) if epochs[place - 1 : place] != [epoch]]
    assert calls == unlike  # once for each epoch, and not for each minibatch


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("together", [1, 2])
def test_a_shared_scalar_is_read_anew_for_every_call(together, prefetch):
    beta = shared(0.0)
    dataset = Dataset([X, beta], batch_size=2, shuffle=None, prefetch=prefetch)
    seen = []
    for (_, value), _ in dataset.bind([MATRIX, scalar("float32")]).epoch(together=together):
        seen.append(float(value.flat[0]))
        beta.set_value(beta.get_value() + 1)
    assert seen == [float(i) for i in range(len(seen))]
    assert len(seen) == {1: 6, 2: 4}[together]


def test_a_minibatch_does_not_change_with_the_shared_scalar():
    """A compiled update may assign it while it reads the minibatch."""
    beta = shared(0.5)
    (value,) = fed(Dataset([X, beta], batch_size=0).bind([MATRIX, scalar()]))
    beta.get_value(borrow=True)[...] = 9
    assert value == 0.5


class TestAlone:
    """Scalars without arrays: an epoch is one update, as for a loss without inputs."""

    @pytest.mark.parametrize(
        "data", [0.5, np.float64(0.5), np.array(0.5), shared(0.5), [0.5], {"beta": lambda e: 0.5}]
    )
    def test_an_epoch_is_one_update(self, data):
        dataset = Dataset(data)
        assert len(dataset) == 1
        ((batch, samples),) = dataset.bind([scalar()]).epoch()
        assert samples == 1
        assert [float(value) for value in batch] == [0.5]

    @pytest.mark.parametrize("together", [1, 4, 100])
    def test_or_as_many_as_one_asks_for(self, together):
        dataset = Dataset({"beta": lambda epoch: epoch}, iteration_size=10)
        bound = dataset.bind([scalar()])
        for epoch in range(3):
            bound.begin_epoch(epoch)
            calls = [batch[0] for batch, _ in bound.epoch(together=together)]
            assert len(calls) == -(-10 // together)
            assert sum(value.size for value in calls) == 10
            assert all((value == epoch).all() for value in calls)
        assert len(list(bound.in_order())) == 10


def test_by_hand_the_epochs_are_counted():
    dataset = Dataset([X, lambda epoch: 10 * epoch], batch_size=6)
    assert [[float(beta) for _, beta in dataset] for _ in range(3)] == [[0, 0], [10, 10], [20, 20]]


def test_ready_batches_carry_their_own():
    beta = shared(np.float32(0.25))
    batches = [[X[:4], 0.5], [X[4:8], np.float64(1)], [X[8:], beta]]
    calls = iter(batches)
    for data in (batches, lambda: next(calls)):
        bound = Dataset(data, iteration_size=3).bind([MATRIX, scalar("float32")])
        found = list(bound.epoch())
        assert [float(batch[1]) for batch, _ in found] == [0.5, 1, 0.25]
        assert {(batch[1].dtype.name, batch[1].shape) for batch, _ in found} == {("float32", ())}
        assert [samples for _, samples in found] == [4, 4, 3]
    named = [{"beta": 0.5, "x": X}]
    ((batch, _),) = Dataset(named).bind([MATRIX, scalar()]).epoch(together=2)
    np.testing.assert_array_equal(batch[1], [0.5])


def test_the_representation_says_what_they_are():
    text = repr(Dataset([X, 0.5, shared(2.0), lambda epoch: 3.0], name="train"))
    assert "arrays (11, 2), the number 0.5, shared variable beta, now 2.0" in text
    assert "function of the epoch, 3.0 for epoch 0" in text


def no_number(epoch):
    return "warm"


def of_epoch(value):
    return lambda epoch: value


def needs_nothing():
    return X


MISTAKES = {
    "vector for a scalar": (
        np.zeros(11),
        scalar(),
        ValueError,
        r"shape \(11,\) is given for 'beta",
    ),
    "shared vector": (shared(np.zeros(11)), scalar(), ValueError, "one number, for all samples"),
    "number for a vector": (0.5, VECTOR, ValueError, r"0.5 is given for 'y'.*make the input a sc"),
    "shared scalar for a vector": (shared(0.5), VECTOR, ValueError, "shared scalar beta is given"),
    "function for a vector": (of_epoch(1.0), VECTOR, ValueError, "A function is given for 'y'"),
    "float for an integer": (0.5, scalar("int32"), TypeError, "0.5 is given .* its dtype's kind"),
    "complex": (1j, scalar(), TypeError, "1j is given for 'beta'"),
    "too large": (300, scalar("int8"), ValueError, "300 is given .* its dtype can hold"),
    "too large for float32": (1e39, scalar("float32"), ValueError, "its dtype can hold"),
    "nan": (np.nan, scalar(), ValueError, "nan is given for 'beta'.*not NaN"),
    "masked": (np.ma.masked, scalar(), ValueError, "not NaN"),
    "shared nan": (shared(np.nan), scalar(), ValueError, "not NaN"),
    "function of a text": (no_number, scalar(), TypeError, "for 'beta' .* returned 'warm'"),
    "function of None": (of_epoch(None), scalar(), TypeError, "returned None"),
    "function of a vector": (of_epoch(X), scalar(), ValueError, r"returned an array of shape"),
    "function of nan": (of_epoch(np.nan), scalar(), ValueError, "returned nan"),
    "function of a float": (of_epoch(0.5), scalar("int64"), TypeError, "returned 0.5"),
    "function of batches": (needs_nothing, scalar(), ValueError, "fails for epoch 0 .TypeError"),
}


@pytest.mark.parametrize(("value", "spec", "error", "message"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.filterwarnings("error")
def test_mistakes_are_told_where_data_meet_inputs(value, spec, error, message):
    with pytest.raises(error, match=message) as caught:
        Dataset([X, value], name="train").bind([MATRIX, spec])
    assert str(caught.value).startswith("train: ")


def test_a_later_epoch_s_mistake_is_told_with_its_number():
    bound = Dataset([X, lambda epoch: 1 / (3 - epoch)], name="train").bind([MATRIX, scalar()])
    bound.begin_epoch(2)
    with pytest.raises(ValueError, match=r"train: .*'beta'.* fails for epoch 3 \(ZeroDivision"):
        bound.begin_epoch(3)


def test_infinity_is_a_number():
    assert fed(Dataset([X, np.inf], batch_size=0).bind([MATRIX, scalar()])) == [np.inf]


@pytest.mark.parametrize("value", ["0.5", None, object()])
def test_what_is_neither_array_nor_number_is_refused_at_once(value):
    with pytest.raises((TypeError, ValueError)):
        Dataset([X, value])


@pytest.mark.parametrize("prefetch", [0, 2])
def test_scalars_stand_beside_arrays_that_are_read_by_windows(prefetch):
    beta = pytensor.shared(np.float64(0.0), name="beta")
    given = {"x": np.arange(50.0), "beta": beta, "gamma": lambda epoch: epoch / 2}
    data = Dataset(given, batch_size=8, window=16, rng=0, prefetch=prefetch)
    specs = [InputSpec("x", "float64", 1), scalar(), InputSpec("gamma", "float32", 0)]
    bound = data.bind(specs)
    seen = []
    for epoch in range(2):
        bound.begin_epoch(epoch)
        for number, ((x, at, gamma), samples) in enumerate(bound.epoch()):
            assert (float(at), float(gamma)) == (number - 1 if number else 0.0, epoch / 2)
            assert (len(x), gamma.dtype, gamma.shape) == (samples, "float32", ())
            beta.set_value(np.float64(number))
            seen.extend(x)
        beta.set_value(np.float64(0.0))
    assert sorted(seen) == sorted([*range(50)] * 2)
    (x, at, gamma), _ = next(iter(bound.in_order()))
    assert (x.tolist(), float(at), float(gamma)) == ([*range(8)], 0.0, 0.5)


def test_windows_of_scalars_alone_are_refused():
    with pytest.raises(ValueError, match="windows are for arrays"):
        Dataset({"beta": 0.5}, window=10)
