"""The real backends: PyTensor's default (Numba) and JAX, and what makes Numba compile again."""

import contextlib

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numba.core import event
from pytensor.compile.builders import OpFromGraph

from downhill_rms import Dataset, StopReason, Trainer, sequences
from tests.oracle import Oracle
from tests.training import test_carried

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype("float32")
Y = (X @ np.array([1, -2, 0.5], dtype="float32")).astype("float32")


def make_trainer(mode, dropout=False):
    x, y = pt.fmatrix("x"), pt.fvector("y")
    w = pytensor.shared(np.zeros(3, dtype="float32"), name="w")
    inputs = x
    if dropout:
        _, mask = pt.random.shared_rng(seed=1).bernoulli(0.5, size=x.shape)
        inputs = x * mask.astype("float32")
    return Trainer(pt.sqr(inputs @ w - y).mean(), inputs=[x, y], mode=mode), w


@pytest.fixture
def default_backend():
    """PyTensor as a user has it."""
    with pytensor.config.change_flags(mode="Mode"):
        yield


# PyTensor tells which run-time checks JAX drops, and that JAX copies generators.
jax_only = pytest.mark.filterwarnings(
    "ignore:Skipping:UserWarning", "ignore:The RandomType SharedVariables:UserWarning"
)


def expected(updates, **options):
    oracle = Oracle([np.zeros(3)], **options)
    for _ in range(updates):
        oracle.update([2 * X.T @ (X @ oracle.params[0] - Y) / len(Y)])
    return oracle.params[0]


def layouts(tmp_path):
    """The same data in every layout that users bring."""
    np.save(tmp_path / "x.npy", X)
    read_only = Y.copy()
    read_only.flags.writeable = False
    return {
        "plain": Dataset([X, Y], batch_size=8),
        "float64": Dataset([X.astype("float64"), Y.astype("float64")], batch_size=8),
        "Fortran": Dataset([np.asfortranarray(X), Y], batch_size=8, shuffle=None),
        "strided": Dataset([np.repeat(X, 2, axis=1)[:, ::2], Y[::-1][::-1]], batch_size=8),
        "memmap": Dataset([np.load(tmp_path / "x.npy", mmap_mode="r"), read_only], batch_size=8),
        "memmap in order": Dataset(
            [np.load(tmp_path / "x.npy", mmap_mode="r"), read_only], batch_size=8, shuffle=None
        ),
        "one batch": Dataset([np.asfortranarray(X), read_only], batch_size=0),
        "short batch": Dataset([X, Y], batch_size=7),
        "callable": Dataset(lambda: [np.asfortranarray(X), read_only], iteration_size=3),
    }


class CompilationCounter(event.Listener):
    """Count what Numba compiles."""

    def __init__(self):
        self.started = 0

    def on_start(self, event):
        self.started += 1

    def on_end(self, event):
        pass


def test_numba_compiles_once(default_backend, tmp_path, monkeypatch):
    trainer, w = make_trainer(None)
    first = {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 1e-3, "max_gradient_norm": 9}
    trainer.minimize([X, Y], batch_size=0, max_epochs=5, restore_best=False, **first)
    reference = expected(5, **first)
    np.testing.assert_allclose(w.get_value(), reference, rtol=1e-4, atol=1e-5)

    functions = []
    monkeypatch.setattr(pytensor, "function", lambda *args, **kwargs: functions.append(args))
    compilations = CompilationCounter()
    with event.install_listener("numba:compile", compilations):
        for data in layouts(tmp_path).values():
            trainer.minimize(data, max_epochs=2)
        for number in [
            *({"learning_rate": 0.01}, {"rms_halflife": 3}, {"decay": 0.5}, {"momentum": 0.1}),
            *({"rms_regularizer": 1e-3}, {"weight_decay": 0.5}, {"max_gradient_norm": 0.1}),
        ]:
            trainer.minimize([X, Y], max_epochs=1, **number)
        trainer.set_params([np.asfortranarray(np.ones(3))])
        trainer.step([X, Y])
        trainer.evaluate([X, Y])
    assert compilations.started == 0
    assert functions == []


def test_a_second_trainer_of_an_equal_graph_compiles_nothing(default_backend):
    compilations = CompilationCounter()
    make_trainer(None)[0].minimize([X, Y], max_epochs=1, momentum=0.5)
    with event.install_listener("numba:compile", compilations):
        make_trainer(None)[0].minimize([X, Y], max_epochs=1, momentum=0.25)
    assert compilations.started == 0


def test_axis_one_compiles_nothing_more(default_backend):
    x = pt.ftensor3("x")
    w = pytensor.shared(np.float32(0), name="w")
    trainer = Trainer(pt.sqr(x - w).mean())
    data = RNG.normal(size=(4, 20, 2)).astype("float32")
    trainer.minimize(Dataset(data.copy(), batch_size=5), max_epochs=1)
    compilations = CompilationCounter()
    with event.install_listener("numba:compile", compilations):
        for shuffle in ("samples", "batches", None):
            for axis in (1, 2):
                trainer.minimize(Dataset(data, axis=axis, shuffle=shuffle), max_epochs=1)
    assert compilations.started == 0


@pytest.mark.parametrize("together", [1, 2])
def test_scalars_compile_nothing_more(default_backend, together):
    x, beta = pt.fmatrix("x"), pt.fscalar("beta")
    w = pytensor.shared(np.float32(0), name="w")
    trainer = Trainer(pt.sqr(x - w).mean() + beta * w, inputs=[x, beta])
    options = {"max_epochs": 2, "batch_size": 10, "updates_per_call": together}
    options |= {"patience": np.inf, "restore_best": False}
    trainer.minimize([X, 0.5], **options)
    compilations, shared = CompilationCounter(), pytensor.shared(np.int8(1))
    given = (1, True, np.float64(0.5), np.array(0.5), shared, lambda epoch: epoch / 2)
    with event.install_listener("numba:compile", compilations):
        for value in given:
            trainer.minimize([X, value], **options)
            trainer.step([X, value])
            trainer.evaluate([X, value])
        trainer.minimize([[X[:10], 0.5], [X[10:20], 1]], **options | {"batch_size": None})
        trainer.minimize(
            Dataset([X, 0.5], batch_size=10, prefetch=2), **options | {"batch_size": None}
        )
    assert compilations.started == 0


@jax_only
@pytest.mark.parametrize("together", [1, 2])
def test_scalars_in_jax(together):
    pytest.importorskip("jax")
    ends = []
    for mode in ("FAST_COMPILE", "JAX"):
        x, beta = pt.matrix("x"), pt.scalar("beta")
        w = pytensor.shared(0.0, name="w")
        trainer = Trainer(pt.sqr(x - w).mean() + beta * w, inputs=[x, beta], mode=mode)
        data = Dataset([X, lambda epoch: epoch / 2], batch_size=10, rng=0)
        options = {"max_epochs": 4, "learning_rate": 0.1, "updates_per_call": together}
        trainer.minimize(data, [X, 1.0], **options)
        ends.append(np.asarray(w.get_value()))
    np.testing.assert_allclose(*ends, rtol=1e-10)


def test_the_counter_sees_a_compilation(default_backend):
    """Without this the tests above could not fail."""
    import numba

    compilations = CompilationCounter()
    with event.install_listener("numba:compile", compilations):
        numba.njit(lambda v: v + 1)(1.0)
    assert compilations.started == 1


@jax_only
def test_jax_follows_the_oracle():
    pytest.importorskip("jax")
    options = {"learning_rate": 0.1, "momentum": 0.5, "nesterov": True, "bias_correction": True}
    trainer, w = make_trainer("JAX")
    trainer.minimize([X, Y], batch_size=0, max_epochs=5, restore_best=False, **options)
    np.testing.assert_allclose(w.get_value(), expected(5, **options), rtol=1e-4, atol=1e-5)
    assert np.asarray(w.get_value()).dtype == "float32"
    trainer.set_params("best")
    state = trainer.state_dict()
    trainer.load_state_dict(state)
    trainer.step([X, Y], learning_rate=0.01)


@jax_only
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("mode", [None, "JAX"])
def test_many_updates_in_a_call_are_single_updates_to_the_last_bit(default_backend, mode, dropout):
    if mode == "JAX":
        pytest.importorskip("jax")
    ends = []
    options = {"max_epochs": 3, "restore_best": False, "momentum": 0.5, "learning_rate": 0.05}
    for updates_per_call in (1, 150):
        trainer, w = make_trainer(mode, dropout)
        data = Dataset([np.tile(X, (30, 1)), np.tile(Y, 30)], batch_size=7, rng=0)
        trainer.minimize(data, [X, Y], updates_per_call=updates_per_call, **options)
        ends.append((np.asarray(w.get_value()), [record.train for record in trainer.history]))
    np.testing.assert_array_equal(*(w for w, _ in ends))
    assert ends[0][1] == ends[1][1]
    assert ends[0][0].any()


@pytest.mark.parametrize(("mode", "together"), [(None, 1), (None, 3), ("tiered", 1)])
def test_a_state_is_carried_through_compiled_updates(default_backend, mode, together):
    trainer, expected = test_carried.make(mode), test_carried.ByHand()
    data = (test_carried.train_data(), test_carried.valid_data())
    options = test_carried.OPTIONS | {"updates_per_call": together}
    for train, valid in trainer.iterate(*data, **options):
        wanted = expected.epoch(test_carried.WAVE, train=True)
        np.testing.assert_allclose(train["loss"], wanted, rtol=1e-10)
        wanted = expected.epoch(test_carried.OTHER, train=False)
        np.testing.assert_allclose(valid["loss"], wanted, rtol=1e-10)
    np.testing.assert_array_equal(test_carried.hidden(trainer), test_carried.BEGINNING)


@jax_only
@pytest.mark.parametrize("together", [1, 2])
def test_a_state_is_carried_in_jax(together):
    pytest.importorskip("jax")
    ends = []
    for mode in ("FAST_COMPILE", "JAX"):
        x, y = pt.matrix("x"), pt.matrix("y")
        w = pytensor.shared(np.array([1.0, 0.5]), name="w")
        before = pytensor.shared(np.full(3, 0.1), name="before")
        output = pt.tanh(w[0] * x[0] + w[1] * before)
        trainer = Trainer(
            pt.sqr(output - y[0]).mean(), inputs=[x, y], carried={before: output}, mode=mode
        )
        series = np.sin(np.arange(25.0))
        options = {"max_updates": 12, "learning_rate": 0.01, "updates_per_call": together}
        trainer.minimize(sequences(series, 1, 3), sequences(series[:10], 1, 3), **options)
        ends.append(
            [trainer.history[-1].train["loss"], trainer.best.loss, *trainer.parameters.copy()["w"]]
        )
        ends[-1] += list(trainer.state_dict()["carried/before"])
        assert not np.allclose(ends[-1][-1], 0.1)  # in the middle of the second pass
    np.testing.assert_allclose(*ends, rtol=1e-12)


@jax_only
def test_dropout_changes_at_every_update_in_jax():
    pytest.importorskip("jax")
    trainer, _ = make_trainer("JAX", dropout=True)
    trainer.set_params([np.ones(3, dtype="float32")])
    losses = {trainer.evaluate([X, Y])["loss"] for _ in range(4)}
    assert len(losses) == 1
    losses |= {trainer.step([X, Y], learning_rate=0.0)["loss"] for _ in range(4)}
    assert len(losses) == 5


@pytest.mark.parametrize("mode", [None, "tiered"])
def test_evaluations_draw_the_same_numbers_in_numba(default_backend, mode):
    """Uncompiled, compiled by a child and compiled here: all read the same generators."""
    x, y = pt.fmatrix("x"), pt.fvector("y")
    w = pytensor.shared(np.ones(3, dtype="float32"), name="w")
    # Of binomial numbers Numba draws others than NumPy.
    _, noise = pt.random.shared_rng(seed=1).normal(size=x.shape)
    loss = pt.sqr((x + noise.astype("float32")) @ w - y).mean()
    trainer = Trainer(loss, inputs=[x, y], mode=mode)
    first = trainer.evaluate([X, Y])["loss"]
    trainer.step([X, Y], learning_rate=0.0)
    assert trainer.evaluate([X, Y])["loss"] == pytest.approx(first, rel=1e-5)
    trainer.steps.settle()
    assert trainer.evaluate([X, Y])["loss"] == pytest.approx(first, rel=1e-5)


@jax_only
@pytest.mark.parametrize("mode", ["Mode", "JAX"])
def test_a_generator_inside_an_op_advances_in_every_backend(mode):
    """As those of pm.Minibatch."""
    if mode == "JAX":
        pytest.importorskip("jax")
    inside, rows = pt.random.rng("inside"), pt.fvector("rows")
    state, index = inside.integers(0, rows.shape[0], size=3)
    minibatch = OpFromGraph([rows, inside], [rows[index], state])
    values = pytensor.shared(np.arange(1000, dtype="float32"), name="values")
    drawn, _ = minibatch(values, pt.random.shared_rng(seed=1, name="rng"))
    w = pytensor.shared(np.float32(0), name="w")
    total = drawn.sum()
    trainer = Trainer(w * total, params=[w], monitors={"drawn": total}, mode=mode)
    assert len({trainer.step()["drawn"] for _ in range(3)}) == 3
    assert len({trainer.evaluate(None)["drawn"] for _ in range(3)}) == 1
    several = trainer.evaluate(Dataset(None, iteration_size=3))["drawn"]
    assert several != trainer.evaluate(None)["drawn"]  # it advances within a pass


@jax_only
@pytest.mark.parametrize("on_divergence", ["stop", "raise"])
def test_a_divergence_is_seen_at_the_end_of_the_epoch_in_jax(on_divergence):
    """To look at every update's loss would be to wait for the device at every update."""
    pytest.importorskip("jax")
    trainer, w = make_trainer("JAX")
    calls = []

    def batches():
        calls.append(1)
        return [np.full_like(X[:10], np.nan if len(calls) == 7 else 1.0), Y[:10]]

    data = Dataset(batches, iteration_size=5)
    expected = pytest.raises(ValueError, match="diverged at update 10")
    with expected if on_divergence == "raise" else contextlib.nullcontext():
        trainer.minimize(data, [X, Y], max_epochs=9, on_divergence=on_divergence)
    assert trainer.stop_reason is StopReason.DIVERGED
    assert trainer.update_count == 10
    assert "parameter 'w'" in str(trainer.divergence)
    assert np.isfinite(w.get_value()).all()


@pytest.mark.filterwarnings("ignore:Skipping Assert")
@pytest.mark.parametrize("backend", ["NUMBA", "JAX"])
def test_what_the_backend_would_not_see_is_refused(backend):
    """Numba reads beyond the array or takes no columns for zeros; JAX takes the nearest entry."""
    if backend == "JAX":
        pytest.importorskip("jax")
    x, y = pt.matrix("x"), pt.lvector("y")
    w = pytensor.shared(np.zeros((3, 4)), name="w")
    logits = x @ w
    loss = (pt.logsumexp(logits, axis=1) - logits[pt.arange(logits.shape[0]), y]).mean()
    trainer = Trainer(loss, inputs=[x, y], mode=backend)
    data, labels = X.astype("float64"), np.arange(40) % 4
    assert trainer.evaluate([data, labels])["loss"] == pytest.approx(np.log(4))
    with pytest.raises(ValueError, match="dataset, row 3: input 'y' is 4"):
        trainer.evaluate([data, labels + (labels == 3)])
    with pytest.raises(ValueError, match=r"'x' of shape \(32, 0\) meets parameter 'w'"):
        trainer.evaluate([data[:, :0], labels])
    with pytest.raises(ValueError, match="batch 1 of dataset, row 3: input 'y' is 4"):
        trainer.evaluate([(data, labels), (data, labels + 1)])


def every_kind_of_layer(dtype):
    """A loss with biases, means, norms, a scan, an embedding and constants, and its inputs."""
    generator = np.random.default_rng(0)
    x, rows = pt.tensor("x", shape=(8, 3), dtype=dtype), pt.lvector("rows")
    w, u, e = (
        pytensor.shared(generator.normal(size=shape).astype(dtype) / 2, name=name)
        for name, shape in [("w", (3, 4)), ("u", (4, 4)), ("e", (5, 4))]
    )
    b, scale = pytensor.shared(np.zeros(4, dtype), name="b"), pytensor.shared(np.ones((), dtype))
    scale.name = "scale"
    h = pt.tanh(x @ w + b + e[rows])
    normed = (h - h.mean(axis=0)) / pt.sqrt(h.var(axis=0) + pt.constant(1e-3, dtype=dtype)) * scale
    states = pytensor.scan(
        lambda row, state, u: pt.tanh(row + state @ u) / pt.sqrt(1 + pt.sqr(row).sum()),
        sequences=[normed],
        outputs_info=[pt.zeros(4, dtype=dtype)],
        non_sequences=[u],
        return_updates=False,
    )
    chosen = pt.switch(states > 0, states, pt.constant(0.1, dtype=dtype) * states)
    loss = pt.sqr(chosen).mean() + pt.constant(1e-3, dtype=dtype) * pt.sqr(w).sum()
    monitors = {"norm": pt.sqrt(pt.sqr(w).sum()), "largest": abs(states).max()}
    return loss, [w, u, e, b, scale], [x, rows], monitors


STRUCTURES = [
    {},
    {"momentum": 0.5, "nesterov": True, "max_global_norm": 1.0, "weight_decay": 1e-3},
    {"centered": False, "bias_correction": True, "max_gradient_norm": 0.5},
    {"regularize": "rms", "max_gradient_elem": 0.1, "learning_rate": lambda t: 0.1 / (1 + t)},
]


@jax_only
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", STRUCTURES, ids=["plain", "momentum", "corrected", "schedule"])
def test_every_dtype_stays_in_jax(dtype, options):
    """Each update's parameters, accumulators and monitors, beside PyTensor's Python code."""
    pytest.importorskip("jax")
    generator = np.random.default_rng(1)
    batches = [
        [generator.normal(size=(8, 3)).astype(dtype), generator.integers(0, 5, 8)] for _ in range(3)
    ]
    seen = {}
    for mode in ("JAX", "FAST_COMPILE"):
        *arguments, monitors = every_kind_of_layer(dtype)
        trainer = Trainer(
            *arguments, monitors=monitors, monitor_gradients=True, monitor_updates=True, mode=mode
        )
        trainer.set_hyperparameters(**options)
        seen[mode] = []
        for batch in batches:
            outputs = trainer.steps.update(batch)
            expressions = trainer.steps._update.outputs
            assert [str(np.asarray(o).dtype) for o in outputs] == [e.dtype for e in expressions]
            for variable in trainer.parameters.variables.values():
                assert variable.get_value(borrow=True).dtype == dtype
            for variable, _ in trainer.steps._update.updates:
                assert variable.get_value(borrow=True).dtype == variable.type.dtype
            seen[mode].append([*map(np.asarray, outputs), *trainer.parameters.copy().values()])
    tolerance = {"float32": 2e-3, "float64": 1e-9}[dtype]
    for ours, theirs in zip(*seen.values(), strict=True):
        for got, want in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@jax_only
def test_a_bias_in_single_precision_is_trained_in_jax():
    pytest.importorskip("jax")
    x, y = pt.fmatrix("x"), pt.fvector("y")
    w, b = (pytensor.shared(np.zeros(shape, dtype="float32")) for shape in (3, ()))
    trainer = Trainer(pt.sqr(x @ w + b - y).mean(), inputs=[x, y], mode="JAX")
    trainer.minimize([X, Y + 1], max_epochs=20, learning_rate=0.05)
    assert {str(v.get_value().dtype) for v in (w, b)} == {"float32"}
    assert trainer.best.loss < 0.5
