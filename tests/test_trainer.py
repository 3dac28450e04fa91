"""The contract: counts, means, validation, patience, and every way out."""

import inspect
import logging
import math

import numpy as np
import pytensor
import pytensor.sparse
import pytensor.tensor as pt
import pytest
import scipy.sparse

import downhill_rms
from downhill_rms import Dataset, StopReason, Trainer
from downhill_rms.training.options import OPTIONS
from tests.oracle import Oracle

RNG = np.random.default_rng(5)
DATA = RNG.normal(size=(50, 3))
TARGET = DATA @ [1.0, -2.0, 0.5] + 0.1 * RNG.normal(size=50)


def regression(mode, **kwargs):
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(3), name="w")
    return Trainer(pt.sqr(x @ w - y).mean(), inputs=[x, y], mode=mode, **kwargs), w


def fixed(mode, **kwargs):
    """A loss w that is what the data say, whatever the parameter does: w - w + x."""
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    return Trainer((x + w - w).mean(), mode=mode, **kwargs), w


def half_squared_error(w, x=DATA, y=TARGET):
    return float(((x @ w - y) ** 2).mean())


# Updates


def test_a_run_follows_the_oracle(mode):
    trainer, w = regression(mode)
    oracle = Oracle([np.zeros(3)], learning_rate=0.05, momentum=0.9, nesterov=True)
    data = Dataset([DATA, TARGET], batch_size=8, shuffle=None)
    trainer.minimize(
        data, learning_rate=0.05, momentum=0.9, nesterov=True, max_epochs=3, restore_best=False
    )
    for _ in range(3):
        for start in range(0, 50, 8):
            x, y = DATA[start : start + 8], TARGET[start : start + 8]
            error = x @ oracle.params[0] - y
            oracle.update([2 * x.T @ error / len(y)])
    np.testing.assert_allclose(w.get_value(), oracle.params[0], rtol=1e-12)


def test_step_is_one_update_and_returns_the_loss_before_it(mode):
    trainer, _ = regression(mode)
    values = trainer.step([DATA, TARGET], learning_rate=0.1)
    assert values == {"loss": pytest.approx(half_squared_error(np.zeros(3)))}
    assert trainer.update_count == 1
    assert trainer.step({"y": TARGET, "x": DATA})["loss"] < values["loss"]
    assert trainer.hyperparameters.learning_rate == 0.1


def test_get_updates_are_plain_pairs_with_accumulators_of_their_own(mode):
    trainer, w = regression(mode)
    updates = trainer.get_updates(learning_rate=0.1)
    assert [v.name for v, _ in updates] == ["w_mean", "w_variance", "w"]
    x, y = trainer.graph.inputs
    step = pytensor.function([x, y], [], updates=updates, mode=mode)
    step(DATA, TARGET)
    oracle = Oracle([np.zeros(3)], learning_rate=0.1)
    oracle.update([2 * DATA.T @ -TARGET / 50])
    np.testing.assert_allclose(w.get_value(), oracle.params[0], rtol=1e-12)
    assert trainer.state.accumulators == {}
    assert trainer.hyperparameters.learning_rate == 1e-4


def test_hyperparameters_that_are_not_named_stay(mode):
    trainer, _ = regression(mode)
    trainer.step([DATA, TARGET], learning_rate=0.1, momentum=0.9)
    trainer.step([DATA, TARGET], learning_rate=0.01)
    trainer.set_hyperparameters(decay=0.5)
    h = trainer.hyperparameters
    assert (h.learning_rate, h.momentum, h.decay) == (0.01, 0.9, 0.5)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("learning_rat", "learning_rate"), ("patiense", "patience"), ("max_epoch", "max_epochs")],
)
def test_typos_are_refused_everywhere(typo, meant, mode):
    """downhill swallowed them."""
    trainer, _ = regression(mode)
    for method in (trainer.iterate, trainer.minimize, trainer.get_updates, trainer.step):
        with pytest.raises(TypeError, match=f"{typo!r}. Did you mean {meant!r}"):
            method(**{"batch" if method == trainer.step else "batch_size": None, typo: 3})


def test_count_of_updates_reaches_schedules_across_structures(mode):
    trainer, _ = regression(mode)
    for _ in range(3):
        trainer.step([DATA, TARGET])
    seen = pytensor.shared(0.0, name="seen")
    trainer.step([DATA, TARGET], learning_rate=lambda t: t * 0.0 + seen)
    assert int(trainer.state.update_count.get_value()) == 4


# Counts


def test_max_updates_counts_minibatches(mode):
    """downhill counted passes."""
    trainer, _ = regression(mode)
    trainer.minimize([DATA, TARGET], batch_size=8, max_updates=10)
    assert trainer.update_count == 10
    assert trainer.stop_reason is StopReason.MAX_UPDATES
    assert len(trainer.history) == 2


def test_max_epochs_counts_passes(mode):
    trainer, _ = regression(mode)
    epochs = list(trainer.iterate([DATA, TARGET], batch_size=8, max_epochs=3))
    assert len(epochs) == 3
    assert (trainer.update_count, trainer.epoch_count) == (21, 3)
    assert trainer.stop_reason is StopReason.MAX_EPOCHS


@pytest.mark.parametrize("option", ["max_updates", "max_epochs", "validate_every"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_limits_are_integers_of_at_least_one(option, value, mode):
    trainer, _ = regression(mode)
    error = ValueError if value in (0, -1) else TypeError
    with pytest.raises(error, match=f"{option} is {value}: it "):
        trainer.iterate([DATA, TARGET], **{option: value})


def test_two_halves_of_a_run_are_the_run(mode):
    """A second iterate goes on: accumulators, counts, and the place in the pass."""
    options = {"learning_rate": 0.05, "momentum": 0.5, "restore_best": False}
    whole, w = regression(mode)
    whole.minimize(Dataset([DATA, TARGET], batch_size=8, rng=3), max_updates=20, **options)
    halves, v = regression(mode)
    data = Dataset([DATA, TARGET], batch_size=8, rng=3)
    halves.minimize(data, max_updates=9, **options)
    halves.minimize(data, max_updates=11, **options)
    np.testing.assert_array_equal(v.get_value(), w.get_value())


def test_a_loss_without_inputs_has_epochs_of_one_update(mode):
    w = pytensor.shared(np.ones(2), name="w")
    trainer = Trainer((w**2).sum(), mode=mode)
    trainer.minimize(max_epochs=5)
    assert trainer.update_count == 5


def test_a_loss_with_inputs_needs_data(mode):
    trainer, _ = regression(mode)
    with pytest.raises(ValueError, match="train is None for 2 inputs"):
        trainer.iterate()


# Means


def test_means_are_those_of_the_data_set_also_with_a_short_last_batch(mode):
    trainer, _ = fixed(mode)
    values = np.arange(10.0) ** 2
    for train, valid in trainer.iterate([values], batch_size=4, max_epochs=2):
        assert train["loss"] == pytest.approx(values.mean(), rel=1e-14)
        assert valid["loss"] == pytest.approx(values.mean(), rel=1e-14)
    assert trainer.evaluate([values])["loss"] == pytest.approx(values.mean(), rel=1e-14)


def test_gradient_monitors_are_norms_before_any_clip(mode):
    """downhill gave squared norms."""
    trainer, _ = regression(mode, monitor_gradients=True, monitors={"bias": pt.constant(2.0)})
    values = trainer.step([DATA, TARGET], max_gradient_norm=1e-3)
    expected = np.linalg.norm(2 * DATA.T @ -TARGET / 50)
    assert list(values) == ["loss", "bias", "grad(w)"]
    assert values["grad(w)"] == pytest.approx(expected)


def test_evaluate_changes_nothing(mode):
    trainer, w = regression(mode)
    first = trainer.evaluate([DATA, TARGET])
    assert first == {"loss": pytest.approx(half_squared_error(np.zeros(3)))}
    assert first == trainer.evaluate([DATA, TARGET])
    by_name = trainer.evaluate(Dataset({"y": TARGET, "x": DATA}, batch_size=0))
    assert by_name == {"loss": pytest.approx(first["loss"], rel=1e-14)}
    np.testing.assert_array_equal(w.get_value(), 0)


# Validation and patience


def test_validation_before_the_first_update_every_so_often_and_at_the_end(mode):
    trainer, _ = regression(mode)
    passes = []

    def valid():
        passes.append(trainer.epoch_count)
        return [DATA, TARGET]

    data = Dataset(valid, iteration_size=1)
    trainer.minimize([DATA, TARGET], data, max_epochs=7, validate_every=3, learning_rate=1e-3)
    assert passes == [0, 3, 6, 7]
    assert [r.validated for r in trainer.history] == [False, False, True] * 2 + [True]


def test_the_last_validation_is_of_the_final_parameters(mode):
    trainer, w = regression(mode)
    _, valid = trainer.minimize(
        [DATA, TARGET], max_updates=3, restore_best=False, learning_rate=0.1
    )
    assert valid["loss"] == pytest.approx(half_squared_error(w.get_value()))


def test_patience_stops_and_the_best_is_restored(mode):
    trainer, w = regression(mode)
    options = {"validate_every": 1, "patience": 2, "learning_rate": 0.3}
    losses = [v["loss"] for _, v in trainer.iterate([DATA, TARGET], [DATA, TARGET], **options)]
    assert trainer.stop_reason is StopReason.PATIENCE
    assert trainer.best.loss == min(losses)
    assert losses.index(min(losses)) == len(losses) - 4  # more than two failures in a row
    assert half_squared_error(w.get_value()) == pytest.approx(min(losses))
    assert trainer.history[len(losses) - 4].best
    assert trainer.best.epoch == len(losses) - 3


def test_negative_losses_run_out_of_patience(mode):
    """Under downhill's formula a negative loss that got worse was an improvement."""
    w = pytensor.shared(0.0, name="w")
    trainer = Trainer(w - 100, mode=mode)
    trainer.set_params([0.0])
    options = {"learning_rate": 1e-9, "min_improvement": 0.01, "validate_every": 1, "patience": 3}
    trainer.minimize(max_epochs=50, **options)
    assert trainer.stop_reason is StopReason.PATIENCE
    assert trainer.update_count == 4


# Ways out


def test_break_restores_the_best(mode):
    """downhill left the last parameters."""
    trainer, w = regression(mode)
    for train, _ in trainer.iterate([DATA, TARGET], validate_every=100, learning_rate=0.3):
        if train["loss"] < 0.5:
            break
    assert trainer.stop_reason is StopReason.ABANDONED
    np.testing.assert_array_equal(w.get_value(), 0)  # the one validation so far


def test_restore_best_can_be_declined(mode):
    trainer, w = regression(mode)
    for _ in trainer.iterate([DATA, TARGET], restore_best=False):
        break
    assert (w.get_value() != 0).all()
    trainer.set_params("best")
    np.testing.assert_array_equal(w.get_value(), 0)


def test_an_exception_restores_and_goes_on_to_the_caller(mode):
    trainer, w = regression(mode)
    calls = []

    def batches():
        calls.append(1)
        if len(calls) == 7:
            raise OSError("the disk is gone")
        return [DATA, TARGET]

    with pytest.raises(OSError, match="the disk is gone"):
        trainer.minimize(Dataset(batches, iteration_size=5), [DATA, TARGET])
    assert trainer.stop_reason is StopReason.ERROR
    np.testing.assert_array_equal(w.get_value(), 0)


def test_interrupt_ends_the_run_in_order(mode):
    trainer, w = regression(mode)
    calls = []

    def batches():
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return [DATA, TARGET]

    trainer.minimize(Dataset(batches, iteration_size=5), [DATA, TARGET])
    assert trainer.stop_reason is StopReason.INTERRUPTED
    np.testing.assert_array_equal(w.get_value(), 0)


def test_nan_during_training_restores_the_best(mode):
    trainer, w = regression(mode)
    x = DATA.copy()
    calls = []

    def batches():
        calls.append(1)
        return [x * (math.nan if len(calls) == 7 else 1), TARGET]

    options = {"validate_every": 1, "learning_rate": 1e-3}
    trainer.minimize(Dataset(batches, iteration_size=3), [DATA, TARGET], **options)
    assert trainer.stop_reason is StopReason.DIVERGED
    assert trainer.epoch_count == 3
    assert trainer.update_count == 7  # the update that saw it was the last
    assert trainer.divergence.update == 7
    assert trainer.divergence.found[0] == "loss is nan"
    assert any("150 of 150 values of input 'x'" in text for text in trainer.divergence.found)
    assert trainer.best.epoch == 2
    assert np.isfinite(w.get_value()).all()
    np.testing.assert_array_equal(w.get_value(), trainer.best.params["w"])


def test_nan_in_the_first_training_batch_is_an_error_that_names_the_input(mode):
    trainer, w = regression(mode)
    x = DATA.copy()
    x[3, 1] = math.nan
    with pytest.raises(ValueError, match="is nan on the first training batch.*1 of 150 .*'x'"):
        trainer.step([x, TARGET])
    np.testing.assert_array_equal(w.get_value(), 0)
    assert trainer.update_count == 0
    for accumulator in trainer.state.accumulators.values():
        np.testing.assert_array_equal(accumulator.get_value(), 0)


def test_nan_in_validation_data_is_found_before_the_first_update(mode):
    trainer, _ = regression(mode)
    bad = TARGET.copy()
    bad[-1] = math.inf
    with pytest.raises(ValueError, match="valid, row 49 of input 'y' is inf"):
        trainer.minimize([DATA, TARGET], [DATA, bad])
    assert trainer.update_count == 0


def test_nan_in_validation_data_that_are_read_as_they_come_is_told_by_batch(mode):
    trainer, _ = regression(mode)
    batches = [(DATA, TARGET), (DATA, TARGET * math.nan)]
    with pytest.raises(ValueError, match="is nan on batch 1 of valid.*50 of 50 .*'y'"):
        trainer.minimize([DATA, TARGET], batches)
    assert trainer.update_count == 0


def test_infinite_loss_of_finite_data_points_at_the_expression(mode):
    w = pytensor.shared(1.0, name="w")
    with pytest.raises(ValueError, match="finite: look for a logarithm"):
        Trainer(w / pt.scalar("x"), mode=mode).step(0.0)


def test_infinite_parameter_is_named(mode):
    w = pytensor.shared(math.nan, name="w")
    with pytest.raises(ValueError, match="1 of 1 values of parameter 'w'"):
        Trainer(w**2, mode=mode).step()


# Parameters and state


def test_set_params_by_order_and_by_name(mode):
    a, b = pytensor.shared(np.zeros(2), name="a"), pytensor.shared(0.0, name="b")
    trainer = Trainer((a**2).sum() + b, mode=mode)
    trainer.set_params([[1, 2], 3.0])
    np.testing.assert_array_equal(a.get_value(), [1, 2])
    trainer.set_params({"b": 4})
    assert (a.get_value()[1], b.get_value()) == (2, 4)
    assert b.get_value().dtype == "float64"


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ("best", ValueError, "targets is 'best', with best=None"),
        ("last", ValueError, "targets is 'last'.* the one name is 'best'"),
        ([1.0], ValueError, "targets has 1 values for 2"),
        ([[1.0, 2.0, 3.0], 1.0], ValueError, r"'a' of \(2,\) .* is given \(3,\)"),
        ({"a": [1j, 2], "b": 1}, ValueError, "'a' .* complex128"),
        ({"c": 1.0}, TypeError, "Unknown parameter 'c'"),
    ],
)
def test_set_params_refuses_what_does_not_fit(targets, error, message, mode):
    a, b = pytensor.shared(np.zeros(2), name="a"), pytensor.shared(0.0, name="b")
    trainer = Trainer((a**2).sum() + b, mode=mode)
    with pytest.raises(error, match=message):
        trainer.set_params(targets)
    np.testing.assert_array_equal(a.get_value(), 0)


def test_best_is_a_copy(mode):
    trainer, w = regression(mode)
    trainer.minimize([DATA, TARGET], max_epochs=1, learning_rate=0.01)
    w.get_value(borrow=True)[:] = 99
    trainer.set_params()
    assert (w.get_value() != 99).all()


def test_state_dict_goes_on_bit_for_bit(mode):
    options = {"learning_rate": 0.05, "momentum": 0.9, "bias_correction": True}
    trainer, w = regression(mode)
    for _ in range(5):
        trainer.step([DATA, TARGET], **options)
    state = trainer.state_dict()
    other, v = regression(mode)
    other.load_state_dict(state)
    assert other.hyperparameters == trainer.hyperparameters
    for _ in range(5):
        trainer.step([DATA, TARGET])
        other.step([DATA, TARGET])
    np.testing.assert_array_equal(v.get_value(), w.get_value())
    assert other.update_count == 10
    assert state["update_count"] == 5


def test_load_state_dict_names_each_field_that_differs_and_changes_nothing(mode):
    trainer, w = regression(mode)
    trainer.step([DATA, TARGET], learning_rate=0.1)
    state = trainer.state_dict()
    before = w.get_value()
    bad = dict(state, **{"param/w": np.zeros(4), "param/z": np.zeros(3)})
    bad["accumulator/w_mean"] = state["accumulator/w_mean"].astype("float32")
    bad["update_count"] = "many"
    del bad["epoch_count"]
    with pytest.raises(ValueError, match="does not fit") as error:
        trainer.load_state_dict(bad)
    for field in (
        "param/w is (4,)",
        "param/z is unknown",
        "w_mean is (3,) float32",
        "epoch_count",
        "'many'",
    ):
        assert field in str(error.value)
    np.testing.assert_array_equal(w.get_value(), before)


def test_a_loaded_accumulator_knows_its_start(mode):
    """A first update that is taken back starts where the loaded rule starts."""
    trainer, _ = regression(mode)
    trainer.step([DATA, TARGET], **downhill_rms.preset("tf1"))
    state = dict(trainer.state_dict(), update_count=0)
    other, _ = regression(mode)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="is nan"):
        other.step([DATA * math.nan, TARGET])
    square = other.state.accumulators["w_mean_square"].get_value()
    np.testing.assert_array_equal(square, 1)


# Data of other kinds


@pytest.mark.parametrize("kind", ["csr_array", "csr_matrix", "csc_array"])
def test_sparse_data_for_a_sparse_input(kind, mode):
    """scipy's new arrays multiply elementwise where PyTensor expects a matrix product."""
    x, y = pytensor.sparse.csr_matrix("x", dtype="float64"), pt.vector("y")
    w = pytensor.shared(np.zeros((3, 1)), name="w")
    loss = pt.sqr(pytensor.sparse.structured_dot(x, w)[:, 0] - y).mean()
    trainer = Trainer(loss, inputs=[x, y], mode=mode)
    data = getattr(scipy.sparse, kind)(np.where(DATA > 0.5, DATA, 0))
    before = trainer.evaluate([data, TARGET])["loss"]
    assert before == pytest.approx(np.mean(TARGET**2))
    trainer.minimize([data, TARGET], learning_rate=0.05, max_epochs=20)
    assert trainer.best.loss < before / 2


# The front door


def test_minimize_and_build():
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    loss = pt.sqr(x - w).mean()
    train, valid = downhill_rms.minimize(
        loss, [np.full(64, 2.0)], learning_rate=0.02, batch_size=16, train_batches=50, max_epochs=20
    )
    assert list(train) == list(valid) == ["loss"]
    assert float(w.get_value()) == pytest.approx(2, abs=0.1)
    assert downhill_rms.RMSProp is Trainer
    assert isinstance(downhill_rms.build("rmsprop", loss), Trainer)
    with pytest.raises(ValueError, match="algo is 'adam'"):
        downhill_rms.build("adam", loss)


@pytest.mark.parametrize("keyword", ["batch_size", "train_batches"])
def test_a_dataset_keeps_its_own_sizes(keyword):
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    with pytest.raises(ValueError, match="a Dataset that has its own sizes"):
        downhill_rms.minimize(pt.sqr(x - w).mean(), Dataset(np.ones(8)), **{keyword: 4})


def test_the_log_tells_of_compiling_and_of_every_epoch(mode, caplog):
    trainer, _ = regression(mode)
    with caplog.at_level(logging.INFO, logger="downhill_rms"):
        trainer.minimize([DATA, TARGET], max_epochs=2)
        trainer.minimize([DATA, TARGET], max_epochs=2)
    messages = [record.getMessage() for record in caplog.records]
    assert sum(m.startswith("compiling the RMSProp update (once") for m in messages) == 1
    assert sum(m.startswith("compiled the RMSProp update in ") for m in messages) == 1
    assert sum(m.startswith("epoch ") for m in messages) == 4
    assert messages[-1] == "stopped: max_epochs"


def test_float32_stays_float32(mode):
    x = pt.fvector("x")
    w = pytensor.shared(np.float32(1), name="w")
    trainer = Trainer(pt.sqr(x - w).mean(), mode=mode)
    trainer.minimize(
        np.zeros(40), max_epochs=2, momentum=0.5, weight_decay=0.1, learning_rate=lambda t: 0.1 / t
    )
    assert w.get_value().dtype == "float32"
    assert {v.get_value().dtype.name for v in trainer.state.accumulators.values()} == {"float32"}


def test_lists_of_numpy_scalars_are_arrays(mode):
    """list(array) holds scalars that have a shape of their own."""
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    trainer = Trainer(pt.sqr(x - w).mean(), mode=mode)
    values = np.arange(5.0)
    assert trainer.evaluate([list(values)])["loss"] == pytest.approx(np.mean(values**2))


def test_minimize_has_the_signature_of_iterate():
    """Editors complete it; its bar is its one difference."""
    own, theirs = (inspect.signature(f).parameters for f in (Trainer.minimize, Trainer.iterate))
    assert list(own) == list(theirs)
    different = {name for name in own if own[name] != theirs[name]}
    assert different == {"progress"}


def test_what_iterate_takes_is_known_by_name():
    named = [p.name for p in inspect.signature(Trainer.iterate).parameters.values()]
    assert set(OPTIONS) == set(named) - {"self", "hyperparameters"}


def test_a_seed_makes_the_order(mode):
    def losses(**options):
        x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
        trainer = Trainer(pt.sqr(x - w).mean(), mode=mode)
        data = np.arange(20.0)
        return [
            train["loss"]
            for train, _ in trainer.iterate(data, batch_size=3, max_epochs=3, **options)
        ]

    assert losses(seed=1) == losses(seed=1)
    assert losses(seed=1) != losses(seed=2)
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    with pytest.raises(ValueError, match="seed=1 is given with dataset, a Dataset"):
        Trainer(pt.sqr(x - w).mean(), mode=mode).minimize(Dataset(np.ones(4)), seed=1)
    downhill_rms.minimize(pt.sqr(x - w).mean(), np.ones(4), seed=1, max_epochs=1, mode=mode)
