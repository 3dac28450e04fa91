"""A run that is stopped anywhere and taken up elsewhere is the run that was never stopped."""

import copy
import json
import math
import os
import pickle
import signal
import threading

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Dataset, StopReason, Trainer

RNG = np.random.default_rng(8)
DATA = RNG.normal(size=(26, 3))
TARGET = DATA @ [1.0, -2.0, 0.5] + 0.1 * RNG.normal(size=26)
OPTIONS = {
    "learning_rate": 0.05,
    "momentum": 0.9,
    "nesterov": True,
    "rms_regularizer": 1.0,
    "bias_correction": True,
    "max_epochs": 3,
    "validate_every": 1,
    "restore_best": False,
}


def make(mode):
    """A regression with dropout, monitors, and two generators."""
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(3), name="w")
    _, mask = pt.random.shared_rng(seed=1, name="dropout").bernoulli(0.8, size=x.shape)
    _, noise = pt.random.shared_rng(seed=2, name="noise").normal(size=y.shape)
    loss = pt.sqr((x * mask) @ w - y + 0.01 * noise).mean()
    return Trainer(loss, inputs=[x, y], monitors={"|w|": abs(w).sum()}, mode=mode)


def data(**kwargs):
    return Dataset([DATA, TARGET], batch_size=8, rng=4, **kwargs)


def outcome(trainer):
    """Everything that a run leaves, but for the wall time."""
    state = trainer.state_dict()
    records = json.loads(state.pop("history"))
    for record in records:
        record.pop("seconds")
    return state | {"records": json.dumps(records)}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value, err_msg=name)
            assert found[name].dtype == value.dtype
        else:
            assert found[name] == value or (value != value and found[name] != found[name]), name


class StopAfter:
    """Data whose n-th minibatch comes with a Ctrl-C."""

    def __init__(self, dataset, monkeypatch, updates):
        take, calls = dataset.source.__class__.take, []

        def take_and_signal(source, selection):
            if isinstance(selection, np.ndarray):  # training; validation takes slices
                calls.append(1)
                if len(calls) == updates:
                    os.kill(os.getpid(), signal.SIGINT)
            return take(source, selection)

        monkeypatch.setattr(dataset.source.__class__, "take", take_and_signal)


def whole_run(mode):
    trainer = make(mode)
    trainer.minimize(data(), **OPTIONS)
    return outcome(trainer)


@pytest.mark.parametrize("way", ["in memory", "pickle", "JSON and npz"])
@pytest.mark.parametrize("updates", range(1, 13))
def test_exact_resume_from_every_update(updates, way, mode, monkeypatch, tmp_path):
    expected = whole_run(mode)
    trainer, dataset = make(mode), data()
    with monkeypatch.context() as patch:
        StopAfter(dataset, patch, updates)
        trainer.minimize(dataset, **OPTIONS)
    assert trainer.update_count == updates
    if updates < 12:
        assert trainer.stop_reason is StopReason.INTERRUPTED
    state = carry(trainer.state_dict(), way, tmp_path)

    other = make(mode)
    other.load_state_dict(state)
    assert_equal(outcome(other), outcome(trainer))
    other.minimize(Dataset([DATA, TARGET], batch_size=8, rng=99), **OPTIONS)
    assert_equal(outcome(other), expected)


def carry(state, way, tmp_path):
    if way == "pickle":
        return pickle.loads(pickle.dumps(state))
    if way == "JSON and npz":
        arrays = {k: v for k, v in state.items() if isinstance(v, np.ndarray)}
        plain = {k: v for k, v in state.items() if k not in arrays}
        np.savez(tmp_path / "state.npz", **{k.replace("/", "|"): v for k, v in arrays.items()})
        with np.load(tmp_path / "state.npz") as file:
            return json.loads(json.dumps(plain)) | {k.replace("|", "/"): file[k] for k in file}
    return state


def test_a_state_from_the_consumers_loop_goes_on_with_the_run(mode):
    expected = whole_run(mode)
    trainer = make(mode)
    for state in [trainer.state_dict() for _ in trainer.iterate(data(), **OPTIONS)]:
        other = make(mode)
        other.load_state_dict(state)
        other.minimize(data(), **OPTIONS)
        assert_equal(outcome(other), expected)


def test_after_a_finished_run_the_next_is_a_new_one(mode):
    trainer = make(mode)
    dataset = data()
    trainer.minimize(dataset, **OPTIONS)
    other = make(mode)
    other.load_state_dict(trainer.state_dict())
    trainer.minimize(dataset, **OPTIONS)
    other.minimize(data(), **OPTIONS)
    assert_equal(outcome(other), outcome(trainer))
    assert other.update_count == 24


def test_a_callable_goes_on_after_the_batches_that_it_gave(mode):
    def batches():
        return [DATA, TARGET]

    def run(trainer, **options):
        trainer.minimize(Dataset(batches, iteration_size=5), max_epochs=2, **options)

    whole, halves = make(mode), make(mode)
    run(whole, restore_best=False)
    run(halves, max_updates=3, restore_best=False)
    assert halves.update_count == 3
    assert whole.update_count == 10


@pytest.mark.filterwarnings("ignore:Skipping", "ignore:The RandomType SharedVariables")
def test_jax_keeps_its_generators_too():
    pytest.importorskip("jax")
    trainer, options = make("JAX"), OPTIONS | {"max_epochs": 2}
    first, _ = [trainer.state_dict() for _ in trainer.iterate(data(), **options)]
    other = make("JAX")
    other.load_state_dict(first)
    other.minimize(data(), **options)
    assert_equal(outcome(other), outcome(trainer))


@pytest.mark.filterwarnings("ignore:Skipping", "ignore:The RandomType SharedVariables")
def test_jax_resumes_in_the_middle_of_an_epoch(monkeypatch):
    pytest.importorskip("jax")
    options = OPTIONS | {"max_epochs": 2}
    whole, trainer, other = make("JAX"), make("JAX"), make("JAX")
    whole.minimize(data(), **options)
    dataset = data()
    with monkeypatch.context() as patch:
        StopAfter(dataset, patch, 6)
        trainer.minimize(dataset, **options)
    assert trainer.update_count == 6
    other.load_state_dict(trainer.state_dict())
    other.minimize(data(), **options)
    assert_equal(outcome(other), outcome(whole))


def test_other_training_data_are_refused(mode):
    trainer = make(mode)
    for _ in trainer.iterate(data(), **OPTIONS):
        state = trainer.state_dict()
    other = make(mode)
    other.load_state_dict(state | {"run/finished": False})
    with pytest.raises(ValueError, match="n_samples is 20 instead of 26"):
        other.minimize([DATA[:20], TARGET[:20]], batch_size=8)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("param/w", np.zeros(4), r"param/w is \(4,\)"),
        ("param/w", np.zeros(3, dtype="float32"), "float32 instead of .* float64"),
        ("param/v", np.zeros(3), "param/v is unknown"),
        ("accumulator/w_mean", np.zeros(2), r"accumulator/w_mean is \(2,\)"),
        ("signature", '{"inputs": [], "params": [], "monitors": []}', "monitors are .* instead"),
        ("signature", None, "signature cannot be read"),
        ("hyperparameter/momentum", 2.0, r"momentum is 2.0: it lies in \[0, 1\)"),
        ("update_count", -1, "update_count is -1"),
        ("history", "[", "JSONDecodeError"),
        ("best/monitors", 3, "TypeError"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(field, value, message, mode):
    trainer = make(mode)
    trainer.minimize(data(), **OPTIONS)
    before = outcome(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.load_state_dict(trainer.state_dict() | {field: value})
    assert_equal(outcome(trainer), before)


@pytest.mark.parametrize(
    "field", ["param/w", "accumulator/w_velocity", "generator/0_dropout", "hyperparameter/decay"]
)
def test_a_missing_field_is_named(field, mode):
    trainer = make(mode)
    trainer.minimize(data(), **OPTIONS)
    state = trainer.state_dict()
    del state[field]
    with pytest.raises(ValueError, match=f"{field} is missing"):
        make(mode).load_state_dict(state)


# Signals


def test_handlers_are_there_only_while_the_trainer_works(mode):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    seen = []

    def batches():
        seen.append(signal.getsignal(signal.SIGINT))
        return [DATA, TARGET]

    trainer = make(mode)
    for _ in trainer.iterate(Dataset(batches, iteration_size=1), max_epochs=3):
        assert signal.getsignal(signal.SIGINT) is before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert seen
    assert all(handler is not before[0] for handler in seen)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGINT, StopReason.INTERRUPTED), (signal.SIGTERM, StopReason.TERMINATED)],
)
def test_a_signal_ends_the_run_on_an_update_boundary(number, reason, mode):
    calls = []

    def batches():
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), number)
        return [DATA, TARGET]

    trainer = make(mode)
    trainer.minimize(Dataset(batches, iteration_size=5), [DATA, TARGET], max_epochs=9)
    assert trainer.stop_reason is reason
    assert trainer.update_count == 8
    assert len(trainer.history) == 1


def test_the_second_signal_acts_at_once(mode):
    def batches():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second Ctrl-C had no effect")

    trainer = make(mode)
    trainer.minimize(Dataset(batches, iteration_size=5), [DATA, TARGET], max_epochs=9)
    assert trainer.stop_reason is StopReason.INTERRUPTED
    assert trainer.update_count == 0


def test_off_the_main_thread_nothing_is_installed(mode):
    before, seen = signal.getsignal(signal.SIGINT), []

    def batches():
        seen.append(signal.getsignal(signal.SIGINT))
        return [DATA, TARGET]

    trainer = make(mode)
    dataset = Dataset(batches, iteration_size=2)
    with pytensor.config.change_flags(cxx="", mode="FAST_COMPILE"):
        thread = threading.Thread(target=trainer.minimize, args=[dataset], kwargs={"max_epochs": 2})
        thread.start()
        thread.join()
    assert trainer.stop_reason is StopReason.MAX_EPOCHS
    assert set(seen) == {before}


# Divergence


def test_divergence_can_raise_and_leaves_the_best(mode):
    from downhill_rms.training.divergence import DivergenceError

    calls = []

    def batches():
        calls.append(1)
        return [DATA * (math.nan if len(calls) == 4 else 1), TARGET]

    trainer = make(mode)
    with pytest.raises(DivergenceError, match=r"at update 4.*: loss is .*'w_mean'.*'w'"):
        trainer.minimize(Dataset(batches, iteration_size=9), [DATA, TARGET], on_divergence="raise")
    assert trainer.stop_reason is StopReason.DIVERGED
    np.testing.assert_array_equal(trainer.parameters.copy()["w"], trainer.best.params["w"])


def test_an_infinite_parameter_is_found_at_the_validation(mode):
    """The loss does not show it: it does not depend on this parameter's first value."""
    w = pytensor.shared(np.ones(2), name="w")
    trainer = Trainer(pt.sqr(w[1]) + 0.0 * pt.sqr(w[1]), params=[w], mode=mode)
    for epoch, _ in enumerate(trainer.iterate(max_epochs=9, validate_every=3)):
        if epoch == 1:
            w.set_value(np.array([math.nan, 0.0]))  # a better loss: NaN must not be the best
    assert trainer.stop_reason is StopReason.DIVERGED
    assert trainer.epoch_count == 3
    assert trainer.divergence.found == ("1 of 2 values of parameter 'w' are not finite",)
    assert np.isfinite(w.get_value()).all()


@pytest.mark.parametrize("k", [2, 5, 6])
def test_an_infinite_gradient_at_update_k_is_seen_by_the_next_loss(k, mode):
    """sqrt(|.|) has a finite value and an infinite slope at 0: the loss shows it one update on."""
    x, w = pt.vector("x"), pytensor.shared(np.ones(2), name="w")
    loss = pt.sqr(w - x[0]).sum() + pt.sqrt(x[1] * w[0])
    trainer, calls = Trainer(loss, mode=mode), []

    def batches():
        calls.append(1)
        return np.array([0.5, 0.0 if len(calls) == k else 1.0])

    options = {"validate_every": 1, "learning_rate": 1e-3, "restore_best": False}
    trainer.minimize(Dataset(batches, iteration_size=3), [np.array([0.5, 1.0])], **options)
    assert trainer.stop_reason is StopReason.DIVERGED
    assert trainer.update_count <= k + 1
    assert np.isfinite(w.get_value()).all()
    np.testing.assert_array_equal(w.get_value(), trainer.best.params["w"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("k", [2, 5])
def test_bad_data_at_update_k_stop_the_run_at_k(bad, k, mode):
    x, w = pt.vector("x"), pytensor.shared(np.ones(2), name="w")
    trainer, calls = Trainer(pt.sqr(w - x).sum(), mode=mode), []

    def batches():
        calls.append(1)
        return np.array([0.5, bad if len(calls) == k else 1.0])

    options = {"validate_every": 1, "learning_rate": 1e-3}
    trainer.minimize(Dataset(batches, iteration_size=3), [np.array([0.5, 1.0])], **options)
    assert trainer.stop_reason is StopReason.DIVERGED
    assert trainer.update_count == trainer.divergence.update == k
    assert "1 of 2 values of input 'x'" in str(trainer.divergence)
    assert np.isfinite(w.get_value()).all()


def test_states_are_copies(mode):
    trainer = make(mode)
    trainer.minimize(data(), **OPTIONS)
    state = trainer.state_dict()
    kept = copy.deepcopy(state)
    trainer.minimize(data(), **OPTIONS)
    assert_equal(state, kept)


def two_parameters(mode, order, names=("a", "b")):
    params = [pytensor.shared(np.ones(2), name=name) for name in names]
    loss = sum(pt.sqr(p).sum() for p in params)
    return Trainer(loss, params=[params[i] for i in order], mode=mode)


@pytest.mark.parametrize(
    ("order", "names", "message"),
    [
        ([1, 0], ("a", "b"), r"params are \[\['b'.*instead of \[\['a'"),
        ([0, 1], ("a", "c"), "param/b is unknown; param/c is missing"),
        ([0], ("a", "b"), "param/b is unknown"),
    ],
)
def test_reordered_and_renamed_parameters_are_named(order, names, message, mode):
    state = two_parameters(mode, [1, 0] if order == [1, 0] else [0, 1]).state_dict()
    other = two_parameters(mode, [0, 1] if order == [1, 0] else order, names)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
