"""Recurrent networks as users write them: equal values and gradients, whatever is rewritten."""

from collections import Counter

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytensor.compile.mode import Mode, get_mode
from pytensor.gradient import grad
from pytensor.scan.op import Scan
from pytensor.scan.utils import until as stop_when

from downhill_rms import Trainer
from downhill_rms.compiling import recurrent, scangradient, selfcheck
from downhill_rms.compiling.recurrent import prepare_scans
from downhill_rms.compiling.scans import in_order


class Parameters:
    """Makes shared variables with random values, and remembers them."""

    def __init__(self, units, features):
        self.units, self.features = units, features
        self.rng = np.random.default_rng(0)
        self.made = []

    def __call__(self, *shape):
        value = self.rng.standard_normal(shape) / 2
        self.made.append(pytensor.shared(value, name=f"p{len(self.made)}"))
        return self.made[-1]

    def zeros(self, x):
        return pt.zeros((x.shape[1], self.units))


def scan(step, sequences, outputs_info, non_sequences=(), **options):
    return pytensor.scan(
        step,
        sequences=sequences,
        outputs_info=outputs_info,
        non_sequences=list(non_sequences),
        return_updates=False,
        return_list=True,
        **options,
    )


def lstm_with_a_matrix_for_each_gate(x, p):
    w = [p(p.features, p.units) for _ in range(4)]
    u = [p(p.units, p.units) for _ in range(4)]
    b = [p(p.units) for _ in range(4)]

    def step(x, h, c, *params):
        i, f, g, o = (x @ params[k] + h @ params[4 + k] + params[8 + k] for k in range(4))
        c = pt.sigmoid(f) * c + pt.sigmoid(i) * pt.tanh(g)
        return pt.sigmoid(o) * pt.tanh(c), c

    return scan(step, [x], [p.zeros(x), p.zeros(x)], [*w, *u, *b])[0]


def lstm_sliced(x, p):
    w, u, b = p(p.features, 4 * p.units), p(p.units, 4 * p.units), p(4 * p.units)

    def step(x, h, c, w, u, b):
        z = pt.dot(x, w) + pt.dot(h, u) + b
        i, f, g, o = (z[:, k * p.units : (k + 1) * p.units] for k in range(4))
        c = pt.sigmoid(f) * c + pt.sigmoid(i) * pt.tanh(g)
        return pt.sigmoid(o) * pt.tanh(c), c

    return scan(step, [x], [p.zeros(x), p.zeros(x)], [w, u, b], strict=True)[0][-1]


def lstm_with_peepholes(x, p):
    """Graves, "Generating Sequences With Recurrent Neural Networks", equations 7 to 11."""
    w, u, b = p(p.features, 4 * p.units), p(p.units, 4 * p.units), p(4 * p.units)
    pi, pf, po = p(p.units), p(p.units), p(p.units)
    start = p(p.units)

    def step(x, h, c):
        z = x + h @ u + b
        i = pt.sigmoid(z[:, : p.units] + pi * c)
        f = pt.sigmoid(z[:, p.units : 2 * p.units] + pf * c)
        c = f * c + i * pt.tanh(z[:, 2 * p.units : 3 * p.units])
        o = pt.sigmoid(z[:, 3 * p.units :] + po * c)
        return o * pt.tanh(c), c

    first = pt.alloc(start, x.shape[1], p.units)
    h, c = scan(step, [x @ w], [first, p.zeros(x)])
    return h * c[::-1]


def gru(x, p):
    wz, wr, wh = (p(p.features, p.units) for _ in range(3))
    uz, ur, uh = (p(p.units, p.units) for _ in range(3))
    bz, br, bh = (p(p.units) for _ in range(3))

    def step(x, h):
        z = pt.sigmoid(x @ wz + h @ uz + bz)
        r = pt.sigmoid(x @ wr + h @ ur + br)
        return (1 - z) * h + z * pt.tanh(x @ wh + (r * h) @ uh + bh)

    return scan(step, [x], [p.zeros(x)])[0]


def vanilla(x, p):
    w, u, b = p(p.features, p.units), p(p.units, p.units), p(p.units)
    return scan(lambda x, h: pt.tanh(x @ w + h @ u + b), [x], [p.zeros(x)])[0]


def joined(x, p):
    w, b = p(p.features + p.units, p.units), p(p.units)

    def step(x, h):
        return pt.tanh(pt.concatenate([x, h], axis=1) @ w + b)

    return scan(step, [x], [p.zeros(x)])[0]


def output_in_the_loop(x, p):
    u, v, c = p(p.units, p.units), p(p.units, p.features), p(p.features)
    w = p(p.features, p.units)

    def step(x, h):
        h = pt.tanh(x @ w + h @ u)
        return h, pt.special.softmax(h @ v + c, axis=-1)

    return scan(step, [x], [p.zeros(x), None])[1]


def two_layers_in_one(x, p):
    w1, u1, w2, u2 = (
        p(p.features, p.units),
        p(p.units, p.units),
        p(p.units, p.units),
        p(p.units, p.units),
    )

    def step(x, a, b):
        a = pt.tanh(x @ w1 + a @ u1)
        return a, pt.tanh(a @ w2 + b @ u2)

    return scan(step, [x], [p.zeros(x), p.zeros(x)])[1]


def two_layers_in_two(x, p):
    first = vanilla(x, p)
    w, u = p(p.units, p.units), p(p.units, p.units)
    return scan(lambda x, h: pt.tanh(x @ w + h @ u), [first], [p.zeros(x)])[0]


def bidirectional(x, p):
    results = []
    for backwards in (False, True):
        w, u = p(p.features, p.units), p(p.units, p.units)

        def step(x, h, w, u):
            return pt.tanh(x @ w + h @ u)

        (h,) = scan(step, [x], [p.zeros(x)], [w, u], go_backwards=backwards)
        results.append(h[::-1] if backwards else h)
    return pt.concatenate(results, axis=2)


def masked(x, p):
    w, u = p(p.features, p.units), p(p.units, p.units)
    lengths = pt.arange(x.shape[1]) + 2
    mask = pt.lt(pt.arange(x.shape[0])[:, None], lengths)[:, :, None]

    def step(x, mask, h):
        return pt.where(mask, pt.tanh(x @ w + h @ u), h)

    return scan(step, [x, mask], [p.zeros(x)])[0]


def several_taps(x, p):
    u1, u2, w = p(p.units, p.units), p(p.units, p.units), p(p.features, p.units)
    first = pt.stack([p.zeros(x) + 0.1, p.zeros(x) + 0.2, p(p.units) + p.zeros(x)])

    def step(x, before, h3, h1):
        return pt.tanh(x @ w + before @ w + h3 @ u1 + h1 @ u2)

    sequences = [{"input": x, "taps": [0, -1]}]
    return scan(step, sequences, [{"initial": first, "taps": [-3, -1]}])[0]


def a_vector_as_state(x, p):
    w, u, b = p(p.features, p.units), p(p.units, p.units), p(p.units)

    def step(x, h):
        return pt.tanh(x @ w + u @ h + b)

    return scan(step, [x[:, 0]], [pt.zeros(p.units)])[0]


def a_scalar_as_state(x, p):
    w = p(p.features)
    return scan(lambda x, s: pt.tanh(s * w[0] + x @ w), [x[:, 0]], [pt.zeros(())])[0]


def weights_made_in_the_step(x, p):
    w, g, u = p(p.features, p.units), p(p.units), p(p.units, p.units)

    def step(x, h):
        return pt.tanh(x @ (w * pt.exp(g)) + h @ (u - u.T) + h @ u[:, ::-1])

    return scan(step, [x], [p.zeros(x)])[0]


def embedded(x, p):
    table, u = p(7, p.units), p(p.units, p.units)
    letters = pt.cast(abs(x[:, :, 0]) * 10, "int64") % 7
    return scan(lambda t, h: pt.tanh(table[t] + h @ u), [letters], [p.zeros(x)])[0]


def counted(x, p):
    w, u = p(p.features, p.units), p(p.units, p.units)

    def step(x, count, h):
        return count + 1, pt.tanh(x @ w + h @ u) / (count + 1)

    return scan(step, [x], [pt.as_tensor(0), p.zeros(x)])[1]


def fewer_steps_than_rows(x, p):
    w, u = p(p.features, p.units), p(p.units, p.units)

    def step(x, h):
        return pt.tanh(x @ w + h @ u)

    return scan(step, [x], [p.zeros(x)], n_steps=3)[0]


def attention(x, p):
    """Each step weighs all rows of the input by its state."""
    w, u = p(p.features, p.units), p(p.units, p.units)

    def step(h, x):
        weights = pt.special.softmax(pt.tanh(x @ w + h).sum(axis=2), axis=0)
        return pt.tanh((weights[:, :, None] * x).sum(axis=0) @ w + h @ u)

    return scan(step, [], [p.zeros(x)], [x], n_steps=4)[0]


def held_constant(x, p):
    w, u = p(p.features, p.units), p(p.units, p.units)

    def step(x, h):
        h = pytensor.gradient.disconnected_grad(h) * 0.5 + pytensor.gradient.grad_clip(h, -1, 1)
        return pt.tanh(x @ w + h @ u)

    return scan(step, [x], [p.zeros(x)])[0]


STYLES = [
    lstm_with_a_matrix_for_each_gate,
    lstm_sliced,
    lstm_with_peepholes,
    gru,
    vanilla,
    joined,
    output_in_the_loop,
    two_layers_in_one,
    two_layers_in_two,
    bidirectional,
    masked,
    several_taps,
    a_vector_as_state,
    a_scalar_as_state,
    weights_made_in_the_step,
    embedded,
    counted,
    fewer_steps_than_rows,
    attention,
    held_constant,
]


def loss_of(style, units=3, features=4):
    """A loss of a style's results, its parameters and its input."""
    p, x = Parameters(units, features), pt.dtensor3("x")
    result = style(x, p)
    loss = (result**2).sum() + (result[0] * p.rng.standard_normal()).sum()
    return loss, p.made, x


def with_gradients(loss, params, x):
    options = {"disconnected_inputs": "ignore", "return_disconnected": "zero"}
    return [loss, *grad(loss, [*params, x], **options)]


def assert_equal(style, mode, batch, units):
    """Equal values and gradients, by the plain graph and the one that is prepared."""
    loss, params, x = loss_of(style, units, batch.shape[2])
    (prepared,) = prepare_scans([loss])
    assert prepared is not loss
    functions = [
        pytensor.function([x], with_gradients(v, params, x), mode=mode, on_unused_input="ignore")
        for v in (loss, prepared)
    ]
    for expected, value in zip(*(function(batch) for function in functions), strict=True):
        scale = max(1, abs(expected).max())
        np.testing.assert_allclose(value / scale, expected / scale, rtol=0, atol=1e-12)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_values_and_gradients_are_those_of_the_plain_graph(style, mode):
    batch = np.random.default_rng(1).standard_normal((5, 2, 4))
    assert_equal(style, mode, batch, units=3)


def test_what_is_computed_after_the_loop_computes_nothing_of_the_loop_again():
    """The state's product was there twice, once for all steps in Python."""
    loss, _, _ = loss_of(output_in_the_loop)
    (prepared,) = prepare_scans([loss])
    products = [node.op for node in in_order([prepared]) if "Dot" in str(node.op)]
    assert [type(op).__name__ for op in products] == ["Dot", "Dot"]


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    style=st.sampled_from(STYLES),
    shape=st.tuples(*[st.integers(1, 3)] * 3),
    units=st.integers(2, 4),
    seed=st.integers(0, 2**32),
)
def test_any_shape(mode, style, shape, units, seed):
    length, batch, features = shape
    length += 3 * (style in (fewer_steps_than_rows, several_taps))
    x = np.random.default_rng(seed).standard_normal((length, batch, features))
    assert_equal(style, mode, x, units)


def loops(outputs):
    """The scans behind some expressions."""
    return [node for node in in_order(outputs) if isinstance(node.op, Scan)]


def operations(node):
    """Names of what a scan's step computes."""
    ops = [getattr(inner.op, "core_op", inner.op) for inner in node.op.fgraph.toposort()]
    return Counter(type(getattr(op, "scalar_op", op)).__name__ for op in ops)


def test_an_lstm_computes_nothing_twice():
    loss, params, x = loss_of(lstm_with_a_matrix_for_each_gate)
    outputs = prepare_scans([loss])
    forward, backward = map(operations, loops(with_gradients(*outputs, params, x)))
    # Of the state, one for each gate; those of the input, and those by matrices, left the loop.
    assert (forward["Dot"], forward["ThinDot"]) == (0, 4)
    assert (backward["Dot"], backward["ThinDot"]) == (0, 4)
    assert (forward["Sigmoid"], forward["Tanh"]) == (3, 2)
    assert (backward["Sigmoid"], backward["Tanh"]) == (0, 0)
    assert backward["Sum"] == 0


def test_what_is_larger_than_a_state_is_computed_again():
    loss, params, x = loss_of(attention)
    forward, backward = loops(with_gradients(*prepare_scans([loss]), params, x))
    assert max(output.type.ndim for output in forward.op.inner_outputs) == 2
    assert operations(forward)["Tanh"] == operations(backward)["Tanh"] + 1 == 2


def test_an_output_layer_leaves_the_loop():
    loss, _, _ = loss_of(output_in_the_loop)
    (loop,) = loops(prepare_scans([loss]))
    assert operations(loop)["ThinDot"] == 1
    assert operations(loop)["Softmax"] == 0


def test_a_monitor_shares_the_scan():
    loss, _, x = loss_of(gru)
    monitor = (loss - 1) ** 2
    prepared = prepare_scans([loss, monitor, x.sum()])
    assert len(loops(prepared)) == 1


def test_what_holds_no_scan_is_the_same_object():
    loss, _, x = loss_of(vanilla)
    other = x.sum()
    prepared = prepare_scans([loss, other])
    assert prepared[0] is not loss
    assert prepared[1] is other


@pytest.mark.parametrize("other", ["NUMBA", "FAST_COMPILE", None])
def test_other_modes_leave_scans_as_they_are(other):
    loss, _, _ = loss_of(vanilla)
    assert prepare_scans([loss], other)[0] is loss  # the tests' default is FAST_COMPILE
    with pytensor.config.change_flags(mode="NUMBA"):
        assert prepare_scans([loss], None)[0] is not loss


def test_jax_mode_rewrites_scans_too():
    loss, _, _ = loss_of(vanilla)
    assert prepare_scans([loss], "JAX")[0] is not loss


def until(x, p):
    w = p(p.features, p.units)

    def step(x, h):
        h = pt.tanh(x @ w + h)
        return h, stop_when(h.sum() > 100)

    return scan(step, [x], [p.zeros(x)])[0]


def truncated(x, p):
    w = p(p.features, p.units)
    return scan(lambda x, h: pt.tanh(x @ w + h), [x], [p.zeros(x)], truncate_gradient=2)[0]


def random(x, p):
    w = p(p.features, p.units)
    rng = pytensor.shared(np.random.default_rng(0))

    def step(x, h, rng):
        next_rng, mask = pt.random.bernoulli(0.5, size=h.shape, rng=rng).owner.outputs
        return pt.tanh(x @ w + h * mask), next_rng

    return scan(step, [x], [p.zeros(x), rng])[0]


def in_a_loop(x, p):
    """A loop of loops, whose gradient computes the inner ones again to save memory."""
    u = p(p.units, p.units)

    def outer(x, h):
        return scan(lambda h: pt.tanh(h @ u + x.sum()), [], [h], n_steps=3)[0][-1]

    return scan(outer, [x], [p.zeros(x)])[0]


def without_a_gradient(x, p):
    w = p(p.features, p.units)

    def step(x, h):
        return pt.tanh(x @ w + pytensor.gradient.undefined_grad(h))

    return scan(step, [x], [p.zeros(x)])[0]


@pytest.mark.filterwarnings("ignore:RandomVariable:DeprecationWarning")
@pytest.mark.parametrize("style", [until, truncated, random, in_a_loop, without_a_gradient])
def test_a_scan_that_is_not_understood_stays_as_it_is(style):
    loss, _, _ = loss_of(style)
    assert prepare_scans([loss])[0] is loss


def from_ones(rows, n_steps):
    return pt.ones((n_steps + 1, *rows.shape[1:]))


def takes_no_more(*arguments):
    raise TypeError("it takes other arguments now")


@pytest.mark.parametrize(
    ("changed", "told"),
    [(from_ones, "a scan has another value or gradient"), (takes_no_more, "other arguments now")],
)
def test_a_pytensor_that_has_changed_costs_the_rewrites_and_no_more(
    changed, told, monkeypatch, tmp_path
):
    monkeypatch.setattr(selfcheck, "marker", lambda *key: tmp_path / "marker")
    monkeypatch.setattr(scangradient, "expand_empty", changed)
    loss, _, _ = loss_of(vanilla)
    recurrent._works.cache_clear()
    with pytest.warns(UserWarning, match=told) as said:
        assert [prepare_scans([loss])[0] for _ in range(2)] == [loss, loss]
    recurrent._works.cache_clear()
    assert len(said) == 1


def test_an_evaluation_keeps_nothing_for_a_gradient():
    loss, _, x = loss_of(lstm_sliced)
    prepared = prepare_scans([loss])
    (loop,) = loops(prepared)
    assert loop.op.info.n_nit_sot > 0
    mode = Mode("py", get_mode("NUMBA").optimizer)
    function = pytensor.function([x], prepared, mode=mode)
    (loop,) = loops(function.maker.fgraph.outputs)
    assert loop.op.info.n_nit_sot == 0


@pytest.mark.slow
def test_training_with_numba_follows_the_plain_graph():
    batch = np.random.default_rng(1).standard_normal((6, 2, 4))
    losses = []
    for mode in ("FAST_COMPILE", "NUMBA"):
        loss, params, x = loss_of(vanilla)
        with pytensor.config.change_flags(mode=mode):
            trainer = Trainer(loss, params, [x])
            losses.append([trainer.step(batch)["loss"] for _ in range(5)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-12)
    assert losses[0][-1] < losses[0][0]


def test_a_checkpoint_knows_the_loss_in_every_mode():
    loss, params, x = loss_of(vanilla)
    plain = Trainer(loss, params, [x], mode="FAST_COMPILE")
    rewritten = Trainer(loss, params, [x], mode="tiered")
    assert rewritten.steps.gradients[0] is not plain.steps.gradients[0]
    assert rewritten.steps.fingerprint == plain.steps.fingerprint
