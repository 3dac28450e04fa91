"""Scans that are written as one function, against NumPy."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pytensor.scan.utils import until as stop_when

from downhill_rms.compiling import scanloop, selfcheck
from downhill_rms.compiling.modes import REWRITTEN, training_mode
from downhill_rms.compiling.recurrent import prepare_scans
from downhill_rms.compiling.thin import is_thin
from tests.compiling.test_recurrent import STYLES, loss_of, scan, with_gradients

RNG = np.random.default_rng(0)
EXAMPLES = 3


@pytest.fixture
def written(monkeypatch):
    """Of each scan that is compiled that it is written here, or why it is not."""
    answers = []
    compiled = scanloop.compiled

    def watched(*args, **kwargs):
        try:
            result = compiled(*args, **kwargs)
        except NotImplementedError as reason:
            answers.append(str(reason))
            raise
        answers.append("written")
        return result

    monkeypatch.setattr(scanloop, "compiled", watched)
    return answers


def compiled(inputs, outputs):
    with pytensor.config.change_flags(on_opt_error="raise"):
        return pytensor.function(
            inputs, outputs, mode=training_mode(REWRITTEN), on_unused_input="ignore"
        )


def normal(*shape):
    return RNG.standard_normal(shape)


class Everything:
    """A step with taps, swapped states, masks, numbers, rows, parts of arrays, fixed results."""

    n_steps = pt.lscalar("n_steps")
    x, scale = pt.dtensor3("x"), pt.dvector("scale")
    mask = pt.tensor("mask", shape=(None, None, 1), dtype="bool")
    row, first = pt.lvector("row"), pt.dtensor3("first")
    u, table = pt.dmatrix("u"), pt.dmatrix("table")
    inputs = (n_steps, x, scale, mask, row, first, u, table)

    def __init__(self):
        self.a, self.b, self.fixed, self.number = scan(
            self.step,
            [self.x, self.scale, self.mask, self.row],
            [self.first[0], {"initial": self.first, "taps": [-3, -1]}, None, None],
            [self.u, self.table],
            n_steps=self.n_steps,
        )

    @staticmethod
    def step(x, scale, mask, row, a_tm1, b_tm3, b_tm1, u, table):
        z = pt.dot(a_tm1 + b_tm3, u) + table[row]
        kept = pt.where(mask, z[:, 2:] * scale, x[:, :-1])
        part = pt.set_subtensor(pt.zeros_like(z)[:, 1:3], pt.exp(z[:, -2:]))
        return b_tm1, pt.tanh(kept + part[:, :2]), u.T * 2, scale * 2

    @staticmethod
    def numpy(n_steps, x, scale, mask, row, first, u, table):
        a, b = [first[0]], list(first)
        for t in range(n_steps):
            z = (a[-1] + b[-3]) @ u + table[row[t]]
            kept = np.where(mask[t], z[:, 2:] * scale[t], x[t, :, :-1])
            part = np.zeros_like(z)
            part[:, 1:3] = np.exp(z[:, -2:])
            a.append(b[-1])
            b.append(np.tanh(kept + part[:, :2]))
        return [np.array(a[1:]), np.array(b[3:]), [u.T * 2] * n_steps, scale[:n_steps] * 2]

    @staticmethod
    def arrays(n_steps):
        row = np.array([0, 4, -1, -5, 2, 2, 1])
        x, scale, mask = normal(7, 2, 3), normal(7), normal(7, 2, 1) > 0
        return n_steps, x, scale, mask, row, normal(3, 2, 2), normal(2, 4), normal(5, 4)


def test_everything_that_has_a_place(written):
    scans = Everything()
    function = compiled(scans.inputs, [scans.a, scans.b, scans.fixed, scans.number])
    assert written == ["written"]
    for n_steps in (7, 1, 0, 4):
        arrays = scans.arrays(n_steps)
        first = arrays[5].copy()
        for got, wanted in zip(function(*arrays), scans.numpy(*arrays), strict=True):
            assert len(got) == n_steps
            if n_steps:
                np.testing.assert_allclose(got, wanted, rtol=1e-12)
        np.testing.assert_array_equal(arrays[5], first)
    n_steps, x, scale, mask, row, first, u, table = scans.arrays(7)
    with pytest.raises(IndexError, match="out of range"):
        function(n_steps, x, scale, mask, row + 1, first, u, table)
    with pytest.raises(ValueError, match="fewer rows"):
        function(9, x, scale, mask, row, first, u, table)
    with pytest.raises(ValueError, match="Incompatible shapes"):
        function(n_steps, x[:, :, :2], scale, mask, row, first, u, table)


def test_only_the_last_rows_are_kept_where_no_others_are_asked_for(written):
    scans = Everything()
    function = compiled(scans.inputs, [scans.a[-1], scans.b[-2:], scans.fixed[-1], scans.number])
    assert written == ["written"]
    for n_steps in (7, 3, 2):
        arrays = scans.arrays(n_steps)
        a, b, fixed, number = scans.numpy(*arrays)
        for got, wanted in zip(function(*arrays), [a[-1], b[-2:], fixed[-1], number], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_a_part_that_is_added_to_is_begun_anew_in_each_step(written):
    """It had added to what the step before had left there."""
    x, u = pt.dtensor3("x"), pt.dmatrix("u")

    def step(x, h, u):
        whole = pt.set_subtensor(pt.zeros((h.shape[0], 4))[:, :2], h @ u)
        whole = pt.inc_subtensor(whole[:, 1:], x)
        return whole[:, 1:3], whole

    _, wholes = scan(step, [x], [pt.ones((2, 2)), None], [u])
    function = compiled([x, u], [wholes])
    assert written == ["written"]
    batch, matrix = normal(5, 2, 3), normal(2, 2)
    h, wanted = np.ones((2, 2)), []
    for x_t in batch:
        whole = np.zeros((2, 4))
        whole[:, :2] = h @ matrix
        whole[:, 1:] += x_t
        wanted.append(whole)
        h = whole[:, 1:3]
    np.testing.assert_allclose(function(batch, matrix)[0], wanted, rtol=1e-12)


def test_a_row_that_is_another_one_in_each_step_leaves_none_behind(written):
    """Rows of all steps before had stayed."""
    x, rows, u = pt.dmatrix("x"), pt.lvector("rows"), pt.dmatrix("u")

    def step(x, row, h, u):
        return pt.tanh(h @ u + pt.set_subtensor(pt.zeros((3, 2))[row], x))

    states = scan(step, [x, rows], [pt.zeros((3, 2))], [u])
    function = compiled([x, rows, u], states)
    assert written == ["written"]
    batch, where, matrix = normal(5, 2), np.array([2, 0, 1, 0, -1]), normal(2, 2)
    h, wanted = np.zeros((3, 2)), []
    for x_t, row in zip(batch, where, strict=True):
        set_to = np.zeros((3, 2))
        set_to[row] = x_t
        h = np.tanh(h @ matrix + set_to)
        wanted.append(h)
    np.testing.assert_allclose(function(batch, where, matrix)[0], wanted, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_so_large_that_products_are_turned(written, dtype):
    """Forward and backward, against derivatives by differences."""
    units, rows, length = 400, 7, 3
    assert is_thin(np.zeros((rows, units)), np.zeros((units, units)))
    x, u = pt.tensor3("x", dtype=dtype), pt.matrix("u", dtype=dtype)
    (states,) = scan(lambda x, h, u: pt.tanh(x + h @ u), [x], [pt.zeros_like(x[0])], [u])
    (loss,) = prepare_scans([(states**2).sum()])
    function = compiled([x, u], [loss, pt.grad(loss, u)])
    assert written == ["written", "written"]
    arrays = normal(length, rows, units), normal(units, units) / 10
    value, gradient = function(*(array.astype(dtype) for array in arrays))

    def loss_of_numpy(u):
        h, total = np.zeros((rows, units)), 0
        for x_t in arrays[0]:
            h = np.tanh(x_t + h @ u)
            total += (h**2).sum()
        return total

    direction, step = normal(units, units), 1e-6
    slope = (
        loss_of_numpy(arrays[1] + step * direction) - loss_of_numpy(arrays[1] - step * direction)
    ) / (2 * step)
    rtol = 1e-4 if dtype == "float32" else 1e-6
    np.testing.assert_allclose(value, loss_of_numpy(arrays[1]), rtol=rtol)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=rtol)


def ends_early(x, u):
    def step(x, h, u):
        h = pt.tanh(x + h @ u)
        return h, stop_when(h.sum() > 100)

    return scan(step, [x], [pt.zeros_like(x[0])], [u])[0]


def looks_at_all(x, u):
    def step(h, x, u):
        return pt.tanh((x * h).sum(axis=0) + h @ u)

    return scan(step, [], [pt.zeros_like(x[0])], [x, u], n_steps=x.shape[0])[0]


@pytest.mark.parametrize(
    ("network", "reason"), [(ends_early, "no plain loop"), (looks_at_all, "Sum")]
)
def test_what_has_no_place_is_left_to_pytensor(written, network, reason):
    x, u = pt.dtensor3("x"), pt.dmatrix("u")
    states = network(x, u)
    function = compiled([x, u], [states])
    assert reason in " ".join(written)
    assert "written" not in written
    plain = pytensor.function([x, u], [states], mode="FAST_COMPILE")
    arrays = normal(4, 2, 3), normal(3, 3)
    np.testing.assert_allclose(function(*arrays)[0], plain(*arrays)[0], rtol=1e-12)


def test_so_is_a_step_that_draws_random_numbers(written):
    x, u = pt.dtensor3("x"), pt.dmatrix("u")
    rng = pytensor.shared(np.random.default_rng(3))

    def step(x, h, u, rng):
        _, kept = pt.random.bernoulli(0.5, size=h.shape, rng=rng, return_next_rng=True)
        return pt.tanh(x + h @ u) * kept

    function = compiled([x, u], scan(step, [x], [pt.zeros_like(x[0])], [u, rng]))
    assert written == ["what is no array"]
    batch, matrix = normal(40, 2, 3), normal(3, 3)
    (states,) = function(batch, matrix)
    whole = np.tanh(batch + np.concatenate([np.zeros((1, 2, 3)), states[:-1]]) @ matrix)
    assert 40 < (states != 0).sum() < 200
    np.testing.assert_allclose(states, np.where(states == 0, 0, whole), rtol=1e-12)


def test_on_a_pytensor_that_is_not_known_the_first_scan_is_tried(written, monkeypatch, tmp_path):
    monkeypatch.setattr(selfcheck, "TESTED", set())
    monkeypatch.setattr(selfcheck, "marker", lambda *key: tmp_path / str(key[1]))
    x, u = pt.dtensor3("x"), pt.dmatrix("u")
    states = scan(lambda x, h, u: pt.tanh(x + h @ u), [x], [pt.zeros_like(x[0])], [u])
    scanloop.works.cache_clear()
    try:
        assert scanloop.works()
        assert (tmp_path / "written scans").exists()
        (tmp_path / "written scans").unlink()
        scanloop.works.cache_clear()
        monkeypatch.setattr(scanloop, "indices_from_subtensor", lambda inputs: None)
        with pytest.warns(UserWarning, match="PyTensor .* is not as this library knows it"):
            function = compiled([x, u], states)
    finally:
        scanloop.works.cache_clear()
    assert written == ["another PyTensor than this library knows"]
    batch, matrix = normal(1, 2, 3), normal(3, 3)
    np.testing.assert_allclose(function(batch, matrix)[0], np.tanh(batch), rtol=1e-12)


# What a random step computes of two values (2, 4) and of what it is given; `pt` and `np` share it.
OPERATIONS = {
    "product": lambda m, v, o, g: v @ g.u,
    "product turned": lambda m, v, o, g: v @ g.u.T,
    "products of values": lambda m, v, o, g: v @ m.tanh(o.T @ v),
    "gate": lambda m, v, o, g: m.tanh(v) * o + g.x,
    "row of a table": lambda m, v, o, g: v + g.table[g.row],
    "number": lambda m, v, o, g: v * g.scale - 0.5,
    "column": lambda m, v, o, g: v * o[:, 0][:, None] + o[:, -1][:, None],
    "turned": lambda m, v, o, g: (v.T * g.table[:4, 0][:, None] + o.T).T,
    "choice": lambda m, v, o, g: m.where(v > o, v, -o),
    "the same in all steps": lambda m, v, o, g: v + m.tanh(g.u * 2)[1],
    "part set": lambda m, v, o, g: put(v, (slice(None), slice(1, 3)), o[:, :2]),
    "part added": lambda m, v, o, g: add(v, (slice(None), slice(-2, None)), m.tanh(o[:, 1:3])),
    "part of zeros": lambda m, v, o, g: put(zeros(o), (slice(None), slice(1, None)), v[:, :3]),
    "parts of zeros": lambda m, v, o, g: add(
        put(zeros(o), (slice(None), slice(0, 2)), v[:, :2]),
        (slice(None), slice(1, 3)),
        m.tanh(o[:, 2:]),
    ),
    "row set": lambda m, v, o, g: put(v, g.row % 2, o[1]),
    "row of zeros": lambda m, v, o, g: put(zeros(o), g.row % 2, v[0]) + o,
}


def zeros(like):
    return np.zeros((2, 4)) if isinstance(like, np.ndarray) else pt.zeros((2, 4))


def put(whole, where, part):
    if isinstance(whole, pt.Variable):
        return pt.set_subtensor(whole[where], part)
    whole = whole.copy()
    whole[where] = part
    return whole


def add(whole, where, part):
    if isinstance(whole, pt.Variable):
        return pt.inc_subtensor(whole[where], part)
    whole = whole.copy()
    whole[where] += part
    return whole


@dataclass
class Program:
    """A step that computes one value of earlier ones after the other, and returns some."""

    operations: list[tuple[str, int, int]]
    returned: tuple[int, int, int, int]

    def step(self, m, known, a_tm1, b_tm2, b_tm1):
        values = [a_tm1 @ known.u, a_tm1, b_tm1, b_tm2, known.x]
        for name, first, second in self.operations:
            value, other = values[first % len(values)], values[second % len(values)]
            values.append(OPERATIONS[name](m, value, other, known))
        a, b, *traces = (values[index % len(values)] for index in self.returned)
        return m.tanh(a), m.tanh(b + values[0]), *traces

    def numpy(self, x, scale, row, u, table, first):
        a, b, traces = [first[0]], list(first), []
        for t in range(len(x)):
            known = SimpleNamespace(x=x[t], scale=scale[t], row=row[t], u=u, table=table)
            a_t, b_t, *traced = self.step(np, known, a[-1], b[-2], b[-1])
            a.append(a_t)
            b.append(b_t)
            traces.append(traced)
        return [np.array(a[1:]), np.array(b[2:]), *map(np.array, zip(*traces, strict=True))]

    def symbolic(self, inputs):
        x, scale, row, u, table, first = inputs

        def step(x, scale, row, a_tm1, b_tm2, b_tm1, u, table):
            known = SimpleNamespace(x=x, scale=scale, row=row, u=u, table=table)
            return list(self.step(pt, known, a_tm1, b_tm2, b_tm1))

        infos = [first[0], {"initial": first, "taps": [-2, -1]}, None, None]
        return scan(step, [x, scale, row], infos, [u, table])


programs = st.builds(
    Program,
    st.lists(
        st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=6,
    ),
    st.tuples(*[st.integers(0, 10)] * 4),
)


def test_random_steps(written, request):
    number = request.config.getoption("--random-graphs")

    @settings(
        max_examples=number or EXAMPLES,
        deadline=None,
        derandomize=not number,  # so that compiled code is in the cache
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(program=programs, last=st.booleans())
    def try_one(program, last):
        inputs = (
            pt.dtensor3(),
            pt.dvector(),
            pt.lvector(),
            pt.dmatrix(),
            pt.dmatrix(),
            pt.dtensor3(),
        )
        shapes = (5, 2, 4), (5,), (5,), (4, 4), (5, 4), (2, 2, 4)
        arrays = [normal(*shape) for shape in shapes]
        arrays[2] = np.array([0, 3, -1, 4, 1])
        outputs = program.symbolic(inputs)
        if last:
            outputs = [output[-1] for output in outputs]
        results = compiled(inputs, outputs)(*arrays)
        for got, wanted in zip(results, program.numpy(*arrays), strict=True):
            exact = wanted[-1] if last else wanted
            scale = max(1, abs(exact).max())
            np.testing.assert_allclose(got / scale, exact / scale, rtol=0, atol=1e-9)

    try_one()
    assert "written" in written
    assert set(written) <= {"written", "an array that is a constant of the graph"}


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_values_and_gradients_are_those_of_the_plain_graph(style):
    batch = np.random.default_rng(1).standard_normal((5, 2, 4))
    loss, params, x = loss_of(style)
    (prepared,) = prepare_scans([loss])
    function = compiled([x], with_gradients(prepared, params, x))
    plain = pytensor.function(
        [x], with_gradients(loss, params, x), mode="FAST_COMPILE", on_unused_input="ignore"
    )
    for got, wanted in zip(function(batch), plain(batch), strict=True):
        scale = max(1, abs(wanted).max())
        np.testing.assert_allclose(got / scale, wanted / scale, rtol=0, atol=1e-12)
