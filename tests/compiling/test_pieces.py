"""Large graphs in pieces: the same to the last bit, and equal pieces compiled once."""

from itertools import pairwise

import numpy as np
import pytensor
import pytensor.sparse
import pytensor.tensor as pt
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from downhill_rms.compiling import pieces
from downhill_rms.compiling.compiled import is_cached
from downhill_rms.compiling.modes import REWRITTEN, training_mode

colours = st.lists(st.integers(0, 3), max_size=80)
blocks = st.lists(
    st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=50), st.integers(1, 9))
)


@settings(derandomize=True, deadline=None, database=None)
@given(blocks, colours)
def test_every_operation_is_in_one_piece_that_is_short_enough(blocks, tail):
    sequence = [colour for block, times in blocks for colour in block * times] + tail
    places = pieces.cuts(sequence)
    assert (places[0], places[-1]) == (0, len(sequence))
    sizes = np.diff(places)
    assert all((sizes > 0) & (sizes <= pieces.NODES))


@settings(derandomize=True, deadline=None, database=None)
@given(colours.map(np.array))
def test_stretches_are_apart_and_repeat_a_block(sequence):
    end = 0
    for start, stop, period in pieces.repeats(sequence):
        assert end <= start
        assert stop - start >= 2 * period
        np.testing.assert_array_equal(
            sequence[start : stop - period], sequence[start + period : stop]
        )
        end = stop
    assert end <= len(sequence)


@pytest.mark.parametrize("period", [1, 5, 31, 32, 33, 100])
def test_as_many_repetitions_as_there_may_be_are_a_few_pieces(period):
    counts = set()
    for times in (40, 80, 160):
        sequence = [1000, 1001, *list(range(period)) * times, 1002]
        places = pieces.cuts(sequence)
        cut = {tuple(sequence[a:b]) for a, b in pairwise(places)}
        counts.add(len(cut))
        assert len(cut) <= 4 + 2 * -(-period // pieces.NODES)
    assert max(counts) - min(counts) <= 2


def in_pieces(monkeypatch, nodes):
    monkeypatch.setattr(pieces, "SMALL", 0)
    monkeypatch.setattr(pieces, "NODES", nodes)


def whole(monkeypatch):
    monkeypatch.setattr(pieces, "SMALL", 10**9)


def train(layers, steps=3):
    """What a deep network's parameters are after some updates, and its function."""
    rng = np.random.default_rng(0)
    x = pt.fmatrix("x")
    params, hidden = [], x
    for _ in range(layers):
        w = pytensor.shared((rng.normal(size=(8, 8)) / 3).astype("float32"))
        b = pytensor.shared(np.zeros(8, "float32"))
        params += [w, b]
        hidden = pt.tanh(hidden @ w + b)
    loss = pt.sqr(hidden - 1).mean()
    velocities = [pytensor.shared(p.get_value() * 0) for p in params]
    updates = []
    for p, v, g in zip(params, velocities, pt.grad(loss, params), strict=True):
        faster = np.float32(0.9) * v - np.float32(0.1) * g
        updates += [(v, faster), (p, p + faster)]
    function = pytensor.function([x], loss, updates=updates, mode=training_mode(REWRITTEN))
    batch = rng.normal(size=(16, 8)).astype("float32")
    losses = [function(batch) for _ in range(steps)]
    return function, [losses, *(p.get_value() for p in params)]


def test_a_deep_network_is_the_same_to_the_last_bit(monkeypatch):
    whole(monkeypatch)
    function, exact = train(6)
    assert len(function.vm.jit_fn.dispatchers) == 1
    for nodes in (1, 7, 32):
        in_pieces(monkeypatch, nodes)
        function, found = train(6)
        assert len(function.vm.jit_fn.dispatchers) > 1
        assert is_cached(function)
        for a, b in zip(found, exact, strict=True):
            np.testing.assert_array_equal(a, b)


def test_twice_the_layers_are_no_more_functions():
    """They differ by what is left over where layers are cut in groups."""
    different = []
    for layers in (24, 48):
        function, _ = train(layers, steps=1)
        dispatchers = function.vm.jit_fn.dispatchers
        different.append(len(set(dispatchers)))
        assert len(dispatchers) > 4
    assert abs(different[1] - different[0]) <= 2


def encoder(layers):
    """The update of a small transformer's encoder, linked and not yet compiled."""
    rng = np.random.default_rng(0)
    params = []

    def shared(*shape):
        params.append(pytensor.shared(rng.normal(size=shape).astype("float32")))
        return params[-1]

    def normal(h):
        centred = h - h.mean(axis=-1, keepdims=True)
        scale = pt.sqrt(pt.sqr(centred).mean(axis=-1, keepdims=True) + 1e-5)
        return centred / scale * shared(8) + shared(8)

    h = x = pt.tensor3("x", dtype="float32")
    for _ in range(layers):
        query, key, value = (normal(h) @ shared(8, 8) for _ in range(3))
        h = h + pt.special.softmax(query @ key.transpose((0, 2, 1)), axis=-1) @ value
        h = h + pt.maximum(normal(h) @ shared(8, 16) + shared(16), 0) @ shared(16, 8)
    gradients = pt.grad((h**2).mean(), params)
    updates = [(p, p - np.float32(0.1) * g) for p, g in zip(params, gradients, strict=True)]
    return pytensor.function([x], [], updates=updates, mode=training_mode(REWRITTEN)).vm.jit_fn


# PyTensor 3.3 would make one loop of more of these plain updates than it can.
@pytest.mark.filterwarnings("ignore:Loop fusion failed:UserWarning")
@pytest.mark.slow
def test_layers_with_residual_connections_are_no_more_functions_either():
    """What flows back through them was a sum of other length in each, and in another order."""
    few, many = (len(set(encoder(layers).dispatchers)) for layers in (4, 8))
    assert many - few <= 6  # PyTensor's order is not the same in each process


def test_a_parameter_keeps_its_array(monkeypatch):
    for prepare in (whole, lambda monkeypatch: in_pieces(monkeypatch, 2)):
        prepare(monkeypatch)
        x = pt.fvector("x")
        params = [pytensor.shared(np.full(3, i, "float32")) for i in range(9)]
        updates = [(p, p * 2 + x) for p in params]
        function = pytensor.function([x], [], updates=updates, mode=training_mode(REWRITTEN))
        before = [p.get_value(borrow=True) for p in params]
        for _ in range(2):
            function(np.ones(3, "float32"))
        for i, (p, array) in enumerate(zip(params, before, strict=True)):
            assert p.get_value(borrow=True) is array
            np.testing.assert_array_equal(array, np.full(3, 4 * i + 3))


def results_of(kind):
    """What a graph with something unusual in it computes, twice."""
    x = pt.fmatrix("x")
    count = pytensor.shared(np.float32(3), name="count")
    batch = np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3)
    inputs, arrays, updates = [x], [batch], []
    if kind == "scan":
        h = pytensor.scan(
            lambda row, h: pt.tanh(row + h * count),
            sequences=[pt.exp(x)],
            outputs_info=[pt.zeros(3, dtype="float32")],
            return_updates=False,
        )
        outputs = [pt.cos(h).sum(), *pt.grad(h.sum(), [x])]
    elif kind == "random":
        generator = pt.random.shared_rng(seed=1)
        after, noise = generator.normal(0, 1, size=(4, 3))
        last, mask = after.bernoulli(0.5, size=(4, 3))
        outputs = [pt.exp(x + noise.astype("float32")), x * mask]
        updates = [(generator, last)]
    elif kind == "sparse":
        s = pytensor.sparse.csr_fmatrix("s")
        inputs, arrays = [s, x], [scipy.sparse.random(5, 4, 0.5, "csr", "float32", 1), batch]
        product = pytensor.sparse.structured_dot(s, pt.exp(x))
        outputs = [pt.tanh(product), pt.grad(product.sum(), x)]
    elif kind == "scalars":
        rows = x.shape[0] + 1
        scale = 1 / (1 + pt.exp(count))  # in single precision, used where count is a new one
        outputs = [x * scale, pt.arange(rows) * 2, x[: rows // 2] * scale, x.sum() / rows]
        updates = [(count, count + scale + x.mean())]
    else:
        rows = pt.stack([x[i % 4] * (i + 1) for i in range(20)])
        outputs = [pt.inc_subtensor(rows[3:5], x[1:3]), rows[-1], x[::-1] + rows[:4]]
    mode = training_mode(REWRITTEN)
    function = pytensor.function(inputs, outputs, updates=updates, mode=mode)
    found = [value for _ in range(2) for value in function(*arrays)]
    return function, [*found, count.get_value()]


@pytest.mark.parametrize("kind", ["scan", "random", "sparse", "scalars", "indices"])
def test_unusual_operations_in_pieces(kind, monkeypatch):
    whole(monkeypatch)
    _, exact = results_of(kind)
    in_pieces(monkeypatch, 1)
    function, found = results_of(kind)
    assert len(function.vm.jit_fn.dispatchers) > 1
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_pieces_can_be_compiled_without_a_call(monkeypatch):
    """As a child process does, which has no sensible values."""
    in_pieces(monkeypatch, 3)
    function, _ = train(4, steps=0)
    arguments = [container.storage[0] for container in function.input_storage]
    arguments[0] = np.zeros((2, 8), "float32")
    program = function.vm.jit_fn
    program.compile_for(arguments)
    before = [set(dispatcher.overloads) for dispatcher in program.dispatchers]
    function(np.ones((16, 8), "float32"))
    assert [set(dispatcher.overloads) for dispatcher in program.dispatchers] == before
