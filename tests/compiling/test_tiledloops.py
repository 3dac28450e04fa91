"""Elementwise operations in tiles: the same bits with one thread and with several."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Trainer
from downhill_rms.compiling import threads, tiledloops
from downhill_rms.compiling.machine import usable_cores
from downhill_rms.compiling.modes import REWRITTEN, training_mode

pytestmark = pytest.mark.skipif(not threads.are_shared(), reason="no threads that take work here")
needs_cores = pytest.mark.skipif(usable_cores() < 2, reason="one core here")

RNG = np.random.default_rng(0)
# Rows and vectors that no vector instruction divides.
MATRIX, VECTOR = (301, 133), (40_123,)


@pytest.fixture
def with_threads(monkeypatch):
    """Have loops computed by so many threads at the most."""

    def limit(number):
        monkeypatch.setattr(threads._limit, "value", number)

    return limit


@pytest.fixture
def tiles(monkeypatch):
    """How many loops of a graph were made to be computed in tiles."""
    found = []
    original = tiledloops._tiled

    def noted(*arguments):
        found.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(tiledloops, "_tiled", noted)
    return found


def compiled(inputs, outputs, **options):
    return pytensor.function(inputs, outputs, mode=training_mode(REWRITTEN), **options)


def numbers(shape, dtype="float32"):
    return RNG.normal(size=shape).astype(dtype)


def variable(array, name="x"):
    return pt.tensor(
        name, dtype=array.dtype, shape=tuple(1 if n == 1 else None for n in array.shape)
    )


def same_bits(function, arrays, with_threads):
    """The results with one thread, which are those with more."""
    with_threads(1)
    alone = [np.array(result) for result in function(*arrays)]
    with_threads(threads.MOST)
    for _ in range(3):
        for one, other in zip(alone, function(*arrays), strict=True):
            np.testing.assert_array_equal(one, other, strict=True)
    return alone


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shapes",
    [
        (VECTOR, VECTOR),
        (MATRIX, MATRIX),
        (MATRIX, (1, MATRIX[1])),
        ((MATRIX[0], 1), MATRIX),
        ((MATRIX[0], 1), (1, MATRIX[1])),
        ((37, 21, 43), (1, 21, 1)),
        ((3, 20_001), (3, 1)),
    ],
    ids=str,
)
def test_values_of_all_shapes(shapes, dtype, with_threads, tiles):
    x, y = (numbers(shape, dtype) for shape in shapes)
    inputs = [variable(x), variable(y, "y")]
    a, b = inputs
    function = compiled(
        inputs, [pt.tanh(a + b) / pt.sqrt(1 + a * a), pt.exp(a) > b, pt.cast(b / 2, "int32")]
    )
    value, larger, halved = same_bits(function, [x, y], with_threads)
    assert tiles
    wide, high = x.astype("float64"), y.astype("float64")
    np.testing.assert_allclose(value, np.tanh(wide + high) / np.sqrt(1 + wide**2), rtol=1e-5)
    assert (larger == (np.exp(wide) > high)).mean() > 0.9999
    np.testing.assert_array_equal(halved, (y / 2).astype("int32"))


@pytest.mark.parametrize("shape", [VECTOR, MATRIX], ids=str)
def test_what_is_updated_in_place(shape, with_threads, tiles):
    start, gradient = numbers(shape), numbers(shape)
    rate = pt.fscalar("rate")
    g = variable(gradient)
    results = []
    for number in (1, threads.MOST):
        with_threads(number)
        w, mean = (pytensor.shared(start.copy(), name=name) for name in "wm")
        mean_t = mean + np.float32(0.1) * (g - mean)
        step = compiled(
            [g, rate], [], updates={mean: mean_t, w: w - rate * g / pt.sqrt(mean_t**2 + 1)}
        )
        for _ in range(3):
            step(gradient, np.float32(0.1))
        results.append([shared.get_value() for shared in (w, mean)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    assert tiles
    w, mean, g = (array.astype("float64") for array in (start, start, gradient))
    for _ in range(3):
        mean = mean + np.float32(0.1) * (g - mean)
        w = w - 0.1 * g / np.sqrt(mean**2 + 1)
    np.testing.assert_allclose(results[1][0], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results[1][1], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["transposed", "strided", "read-only", "small", "empty"])
def test_other_arrays(layout, with_threads):
    x = numbers(MATRIX)
    if layout == "transposed":
        x = np.asfortranarray(x)
    elif layout == "strided":
        x = numbers((602, 266))[::2, ::2]
    elif layout == "read-only":
        x.flags.writeable = False
    else:
        x = numbers((3, 5) if layout == "small" else (0, 5))
    v = pt.fmatrix("x")
    function = compiled([v], [pt.exp(v) * v, v.T + 1])
    product, turned = same_bits(function, [x], with_threads)
    np.testing.assert_allclose(product, np.exp(x) * x, rtol=1e-5)
    np.testing.assert_array_equal(turned, x.T + np.float32(1))


def test_shapes_that_do_not_fit_are_an_error(with_threads):
    x, y = pt.fmatrix("x"), pt.fmatrix("y")
    function = compiled([x, y], [x * y + 1])
    with_threads(threads.MOST)
    for shape in [(MATRIX[0], MATRIX[1] - 1), (1, MATRIX[1]), (MATRIX[0] + 1, MATRIX[1])]:
        with pytest.raises(ValueError, match="shape"):
            function(numbers(MATRIX), numbers(shape))


def test_a_loop_that_is_known_to_be_small_stays_as_it_is(tiles):
    x = pt.tensor("x", dtype="float32", shape=(100, 100))
    compiled([x], [pt.exp(x) + 1])
    assert not tiles


def trainer_of(seed):
    """A network large enough for tiles."""
    rng = np.random.default_rng(seed)
    x, v = pt.fmatrix("x"), numbers((64, 10))
    w = pytensor.shared(rng.normal(size=(300, 64)).astype("f") / 20, name="w")
    b = pytensor.shared(np.zeros(64, "float32"), name="b")
    loss = pt.sqr(pt.tanh(x @ w + b) @ v).mean()
    batch = [rng.normal(size=(512, 300)).astype("f")]
    return Trainer(loss, [w, b], [x], mode=training_mode(REWRITTEN)), batch


def trained(trainer, batch):
    for _ in range(30):
        trainer.step(batch, learning_rate=0.01, momentum=0.9)
    return [
        value.copy() for value in trainer.state_dict().values() if isinstance(value, np.ndarray)
    ]


@needs_cores
def test_two_trainers_in_two_threads_of_python(with_threads):
    with_threads(threads.MOST)
    pairs = [trainer_of(seed) for seed in (1, 2)]
    starts = [trainer.state_dict() for trainer, _ in pairs]
    alone = [trained(*pair) for pair in pairs]
    for (trainer, _), start in zip(pairs, starts, strict=True):
        trainer.load_state_dict(start)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda pair: trained(*pair), pairs))
    for one, other in zip(alone, together, strict=True):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)
