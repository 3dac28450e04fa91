"""Many updates in one call: the same bits for any number, and single updates to rounding."""

import math

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Checkpoint, Dataset, StopReason, Trainer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(47, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.1 * RNG.normal(size=47)


def make(mode, dropout=False, **keywords):
    x, y = pt.matrix("x"), pt.vector("y")
    w, b = pytensor.shared(np.zeros(3), name="w"), pytensor.shared(0.0, name="b")
    inputs = x
    if dropout:
        _, mask = pt.random.shared_rng(seed=1).bernoulli(0.5, size=x.shape)
        inputs = x * mask
    loss = pt.sqr(inputs @ w + b - y).mean()
    return Trainer(loss, inputs=[x, y], monitors={"|w|": abs(w).sum()}, mode=mode, **keywords)


def data():
    return Dataset([X, Y], batch_size=5, rng=3)  # ten minibatches an epoch, the last of two


def outcome(trainer):
    """Everything that training has changed, exactly; without the time."""
    state = trainer.state_dict()
    return {
        **{n: np.asarray(v).tobytes() for n, v in state.items() if n.startswith(("param/", "acc"))},
        "records": [(r.epoch, r.updates, r.train, r.valid) for r in trainer.history],
        "generators": [v for n, v in state.items() if n.startswith("generator")],
        "update_count": trainer.update_count,
    }


RULES = [
    {},
    {"momentum": 0.9, "nesterov": True, "centered": False},
    {"bias_correction": True, "max_global_norm": 1.0, "rms_regularizer": 0.01},
    {"learning_rate": lambda t: 0.01 / pt.sqrt(t)},
]


def assert_close(many, single):
    """Two trainers differ by rounding alone."""
    states = many.state_dict(), single.state_dict()
    for name in (n for n in states[0] if n.startswith(("param/", "accumulator/"))):
        np.testing.assert_allclose(states[0][name], states[1][name], rtol=1e-8, atol=1e-12)
    exact = ("generators", "update_count")
    assert [outcome(many)[n] for n in exact] == [outcome(single)[n] for n in exact]
    assert many.history[-1].train == pytest.approx(single.history[-1].train, rel=1e-8)


@pytest.mark.parametrize("rule", RULES, ids=range(len(RULES)))
def test_results_do_not_depend_on_the_number(rule, mode):
    options = {"max_epochs": 3, "validate_every": 1, "learning_rate": 0.05, **rule}
    outcomes = []
    for updates_per_call in (1, 2, 7, 10, 1000):
        trainer = make(mode)
        trainer.minimize(data(), [X, Y], updates_per_call=updates_per_call, **options)
        outcomes.append(outcome(trainer))
        if updates_per_call == 1:
            single = trainer
    assert outcomes[1] == outcomes[2] == outcomes[3] == outcomes[4]
    assert_close(trainer, single)


def test_random_graphs_and_telemetry_are_the_same(mode):
    options = {"max_epochs": 3, "learning_rate": 0.05}
    keywords = {"dropout": True, "monitor_gradients": True, "monitor_updates": True}
    trainers = {}
    for updates_per_call in (1, 3, 4):
        trainers[updates_per_call] = make(mode, **keywords)
        trainers[updates_per_call].minimize(
            data(), [X, Y], updates_per_call=updates_per_call, **options
        )
    assert outcome(trainers[3]) == outcome(trainers[4])
    assert_close(trainers[4], trainers[1])


@pytest.mark.parametrize("max_updates", [1, 3, 4, 13])
def test_limits_are_exact(max_updates, mode):
    trainer = make(mode)
    trainer.minimize(data(), [X, Y], max_updates=max_updates, updates_per_call=4)
    assert trainer.update_count == max_updates
    assert trainer.stop_reason is StopReason.MAX_UPDATES


def test_single_updates_and_many_can_follow_each_other(mode):
    single, mixed = make(mode), make(mode)
    single.minimize(data(), [X, Y], max_epochs=1, learning_rate=0.05, restore_best=False)
    single.minimize(data(), [X, Y], max_epochs=1, restore_best=False)
    many = {"updates_per_call": 4, "restore_best": False}
    mixed.minimize(data(), [X, Y], max_epochs=1, learning_rate=0.05, **many)
    mixed.minimize(data(), [X, Y], max_epochs=1, restore_best=False)
    assert_close(mixed, single)


def test_a_run_resumes_between_two_calls(tmp_path, mode):
    options = {"max_epochs": 3, "learning_rate": 0.05, "updates_per_call": 4}
    whole = make(mode)
    whole.minimize(data(), [X, Y], **options)

    class Cut(Checkpoint):
        def save(self, state, update, metadata=None):
            super().save(state, update, metadata)
            if update > 10:
                raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        make(mode).minimize(data(), [X, Y], checkpoint=Cut(tmp_path, every_updates=3), **options)
    resumed = make(mode)
    resumed.minimize(data(), [X, Y], checkpoint=Checkpoint(tmp_path), resume=True, **options)
    assert outcome(resumed) == outcome(whole)


def test_a_divergence_is_seen_in_its_call(mode):
    bad = X.copy()
    bad[-1] = np.nan
    trainer = make(mode)
    batches = [(bad[i : i + 5], Y[i : i + 5]) for i in range(0, len(X), 5)]
    trainer.minimize(batches, [X, Y], max_epochs=3, updates_per_call=4)
    assert trainer.stop_reason is StopReason.DIVERGED
    assert trainer.divergence.batch == len(batches) - 1
    assert "input 'x'" in str(trainer.divergence)
    assert np.isfinite(trainer.graph.params[0].get_value()).all()


def test_a_loss_that_is_not_finite_at_first_changes_nothing(mode):
    trainer = make(mode)
    with pytest.raises(ValueError, match="first training batch"):
        trainer.minimize([(X * np.nan, Y)], [X, Y], updates_per_call=4)
    assert (trainer.graph.params[0].get_value() == 0).all()


def test_one_minibatch_can_be_given_as_before(mode):
    single, many = make(mode), make(mode)
    single.minimize(data(), [X, Y], max_epochs=1, restore_best=False)
    many.minimize(data(), [X, Y], max_epochs=1, updates_per_call=4, restore_best=False)
    assert many.step([X, Y]) == pytest.approx(single.step([X, Y]), rel=1e-8)


@pytest.mark.parametrize(("first", "second"), [(4, 1), (1, 4)])
def test_a_run_goes_on_after_one_with_another_number(first, second, mode):
    trainer = make(mode)
    epochs = trainer.iterate(data(), [X, Y], updates_per_call=first, restore_best=False)
    next(epochs)
    trainer.minimize(data(), [X, Y], max_epochs=1, updates_per_call=second)
    next(epochs)
    assert trainer.update_count == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"updates_per_call": 0}, "updates_per_call is 0: it is at least 1"),
        ({"updates_per_call": None}, "updates_per_call is None: it takes an integer"),
        ({"updates_per_call": 2.5}, "updates_per_call is 2.5: it takes an integer"),
    ],
)
def test_it_is_a_count(options, message, mode):
    with pytest.raises((TypeError, ValueError), match=message):
        make(mode).iterate(data(), [X, Y], **options)


def test_it_excludes_the_saving_of_minibatches(tmp_path, mode):
    options = {"checkpoint": Checkpoint(tmp_path), "save_batch": True, "updates_per_call": 4}
    with pytest.raises(ValueError, match="save_batch is given with updates_per_call=4"):
        make(mode).iterate(data(), [X, Y], **options)


@pytest.mark.parametrize("rule", RULES, ids=range(len(RULES)))
def test_a_loss_without_inputs(rule, mode):
    """Epochs of several updates are asked for by a data set of nothing; None is one update."""
    trainers = {}
    for updates_per_call in (1, 2, 4, 50):
        w = pytensor.shared(np.array([3.0, -1.0]), name="w")
        noise = pt.random.shared_rng(seed=2).normal(size=2)[1]
        trainer = Trainer(pt.sqr(w - 0.1 * noise).sum(), monitors={"w": w[0]}, mode=mode)
        nothing = Dataset(None, iteration_size=7)
        limits = {"max_updates": 17, "restore_best": False, "patience": math.inf}
        trainer.minimize(nothing, updates_per_call=updates_per_call, **limits, **rule)
        limits["max_updates"] = 3
        trainer.minimize(updates_per_call=updates_per_call, **limits)
        assert (trainer.update_count, trainer.epoch_count) == (20, 6)  # the third of 7 is cut
        trainer.step()
        assert trainer.update_count == 21
        trainers[updates_per_call] = trainer
    assert outcome(trainers[2]) == outcome(trainers[4]) == outcome(trainers[50])
    assert_close(trainers[4], trainers[1])


def test_a_divergence_without_inputs_is_found_at_its_update(mode):
    w = pytensor.shared(4.0, name="w")
    trainer = Trainer(pt.sqrt(w), mode=mode)  # below 0 it is NaN
    trainer.minimize(
        Dataset(None, iteration_size=50), max_updates=50, learning_rate=1.0, updates_per_call=10
    )
    assert trainer.stop_reason is StopReason.DIVERGED
    assert "loss is nan" in str(trainer.divergence)


def test_hyperparameters_change_between_calls(mode):
    single, many = make(mode), make(mode)
    for trainer, updates_per_call in ((single, 1), (many, 4)):
        for _ in trainer.iterate(
            data(), [X, Y], max_epochs=3, updates_per_call=updates_per_call, restore_best=False
        ):
            trainer.set_hyperparameters(momentum=0.5, learning_rate=0.01)  # another structure
    assert_close(many, single)


@pytest.mark.parametrize("step", [1, 4])
def test_a_step_between_two_epochs_is_one_update(step, mode):
    trainer = make(mode)
    epochs = trainer.iterate(data(), [X, Y], updates_per_call=step, restore_best=False)
    next(epochs)
    trainer.step([X, Y])
    assert trainer.update_count == 11
    next(epochs)
    assert trainer.update_count == 21
