"""Scalars that data feed: the right one at every update, whatever the way through the loop."""

import math
import os
import signal

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Checkpoint, Dataset, StopReason, Trainer
from tests.oracle import Oracle
from tests.training.test_resume import assert_equal, outcome

RNG = np.random.default_rng(3)
X = RNG.normal(size=(22, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.1 * RNG.normal(size=22)
RULE = {"learning_rate": 0.05, "momentum": 0.9, "rms_regularizer": 1.0}
OPTIONS = {**RULE, "max_epochs": 4, "validate_every": 1, "restore_best": False}
VALID = {"x": X, "y": Y, "beta": 1.0}


def anneal(epoch):
    return min(1.0, epoch / 3)


def make(mode, dtype="float64"):
    """A regression with a penalty by a factor that is fed; the factor is a monitor."""
    x, y, beta = pt.matrix("x"), pt.vector("y"), pt.scalar("beta", dtype=dtype)
    w = pytensor.shared(np.zeros(3), name="w")
    loss = pt.sqr(x @ w - y).mean() + beta * pt.sqr(w).sum()
    return Trainer(loss, inputs=[x, y, beta], monitors={"beta": beta * 1.0}, mode=mode)


def data(beta=anneal, **options):
    return Dataset([X, Y, beta], **{"batch_size": 8, "rng": 4, **options})


def by_hand(factor, epochs, batch_size=8, seed=4):
    """The parameters after some epochs, in NumPy, from the gradient written by hand."""
    oracle = Oracle([np.zeros(3)], **RULE)
    order = Dataset(np.arange(22), batch_size=batch_size, rng=seed).bind(None)
    for epoch in range(epochs):
        for (rows,), _ in order.epoch():
            (w,) = oracle.params
            error = X[rows] @ w - Y[rows]
            grad = 2 * X[rows].T @ error / len(rows) + 2 * factor(epoch) * w
            oracle.update([grad])
    return oracle.params[0]


def found(trainer):
    return trainer.parameters.copy()["w"]


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("together", [1, 2, 100])
def test_a_schedule_is_followed_epoch_by_epoch(together, prefetch, mode):
    trainer = make(mode)
    dataset = data(prefetch=prefetch)
    betas = [
        train["beta"]
        for train, _ in trainer.iterate(dataset, VALID, updates_per_call=together, **OPTIONS)
    ]
    np.testing.assert_allclose(betas, [anneal(epoch) for epoch in range(4)])
    np.testing.assert_allclose(found(trainer), by_hand(anneal, 4), rtol=1e-11)


def test_a_number_is_the_same_in_every_epoch(mode):
    trainer = make(mode, "float32")
    trainer.minimize(data(0.5), **OPTIONS)
    np.testing.assert_allclose(found(trainer), by_hand(lambda epoch: 0.5, 4), rtol=1e-11)


def test_a_shared_scalar_is_changed_by_the_user_s_loop(mode):
    beta = pytensor.shared(0.0, name="beta")
    trainer = make(mode)
    for epoch, _ in enumerate(trainer.iterate(data(beta, prefetch=3), VALID, **OPTIONS)):
        beta.set_value(anneal(epoch + 1))
    np.testing.assert_allclose(found(trainer), by_hand(anneal, 4), rtol=1e-11)


def test_it_is_called_once_an_epoch(mode):
    calls = []

    def schedule(epoch):
        calls.append(epoch)
        return 0.5

    trainer = make(mode)
    trainer.minimize(data(schedule), VALID, **OPTIONS)
    assert calls == [0, 1, 2, 3]
    trainer.minimize(data(schedule), VALID, **OPTIONS)
    assert calls == list(range(8))  # epochs of the trainer, not of the call


def test_validation_has_the_number_of_epochs_trained(mode):
    trainer = make(mode)
    with pytest.warns(UserWarning, match="valid feeds 'beta' .* from a function of the epoch"):
        epochs = trainer.iterate(data(0.0), [X, Y, lambda epoch: epoch], **OPTIONS)
    before = trainer.evaluate([X, Y, lambda epoch: epoch])["beta"]
    assert [before, *(valid["beta"] for _, valid in epochs)] == [0, 1, 2, 3, 4]
    assert trainer.evaluate([X, Y, lambda epoch: epoch])["beta"] == 4
    assert trainer.step([X, Y, lambda epoch: epoch])["beta"] == 4
    assert trainer.step({"x": X, "beta": pytensor.shared(0.25), "y": Y})["beta"] == 0.25
    x, _, beta = trainer.graph.inputs
    values = trainer.predict(x[:, 0] * 0 + beta, {"x": X, "beta": lambda epoch: epoch})
    np.testing.assert_array_equal(values, np.full(22, 4.0))


def test_a_judge_that_moves_is_warned_of(mode):
    """Validations by a growing penalty would find the first the best."""
    trainer = make(mode)
    with pytest.warns(UserWarning, match="dataset feeds 'beta'.*'loss' depends on it"):
        trainer.minimize(data(), **OPTIONS)
    quiet = {"patience": math.inf, "restore_best": False}
    trainer.minimize(data(), **OPTIONS | quiet)
    x, y, beta = trainer.graph.inputs
    (w,) = trainer.graph.params
    error = pt.sqr(x @ w - y).mean()
    other = Trainer(error + beta * w.sum(), inputs=[x, y, beta], monitors={"e": error}, mode=mode)
    other.minimize(data(), monitor="e", **OPTIONS)


class Interrupting:
    """A schedule's data whose n-th minibatch comes with a Ctrl-C."""

    def __init__(self, updates):
        self.left, self.shape, self.ndim, self.dtype = updates, X.shape, 2, X.dtype

    def __getitem__(self, selection):
        if selection.stop - selection.start < len(X):  # one of training's
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)
        return X[selection]


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 7, 9, 11])
def test_a_run_that_is_taken_up_has_the_epoch_it_was_in(updates, mode):
    def stream(x):
        # Shuffled by batches: each is read in one slice.
        return Dataset([x, Y, anneal], batch_size=8, rng=4, shuffle="batches")

    valid = Dataset([X, Y, 1.0], batch_size=0)
    whole, trainer, other = make(mode), make(mode), make(mode)
    whole.minimize(stream(X), valid, **OPTIONS)
    # The first minibatch is read once more, when data are compared with the loss.
    trainer.minimize(stream(Interrupting(updates + 1)), valid, **OPTIONS)
    assert trainer.stop_reason is StopReason.INTERRUPTED
    assert 0 < trainer.update_count < 12
    other.load_state_dict(trainer.state_dict())
    other.minimize(stream(X), valid, **OPTIONS)
    assert_equal(outcome(other), outcome(whole))


@pytest.mark.parametrize("together", [1, 2])
def test_checkpoints_go_on_in_the_epoch_they_were_made_in(together, mode, tmp_path):
    whole, other = make(mode), make(mode)
    options = OPTIONS | {"updates_per_call": together}
    checkpoint = Checkpoint(tmp_path, every_updates=1, keep=99)
    whole.minimize(data(), VALID, checkpoint=checkpoint, **options)
    steps = Checkpoint(tmp_path).steps()
    assert len(steps) > 5
    for path in steps:
        other = make(mode)
        other.load(path)
        other.minimize(data(), VALID, **options)
        np.testing.assert_array_equal(found(other), found(whole))
        assert [r.train for r in other.history] == [r.train for r in whole.history]


@pytest.mark.parametrize("together", [1, 5])
def test_scalars_without_arrays(together, mode):
    """A fit of one number to another: an epoch is one update, or as many as are asked for."""
    beta = pt.scalar("beta")
    w = pytensor.shared(0.0, name="w")
    trainer = Trainer(pt.sqr(w - beta), mode=mode)
    trainer.minimize({"beta": 2.0}, max_epochs=7, updates_per_call=together)
    assert trainer.update_count == 7
    dataset = Dataset({"beta": 2.0}, iteration_size=10)
    trainer.minimize(dataset, max_epochs=20, learning_rate=0.05, updates_per_call=together)
    assert trainer.update_count == 207
    assert abs(w.get_value() - 2) < 0.5
    assert trainer.evaluate(2.0)["loss"] == pytest.approx((w.get_value() - 2) ** 2)


def test_ready_batches_carry_their_own(mode):
    trainer, other = make(mode), make(mode)
    order = Dataset([X, Y], batch_size=8, shuffle=None)
    batches = [[x, y, 0.5] for x, y in order]
    for together in (1, 2):
        trainer.minimize(batches, VALID, updates_per_call=together, **OPTIONS)
        other.minimize(
            data(0.5, shuffle=None, rng=None), VALID, updates_per_call=together, **OPTIONS
        )
    np.testing.assert_array_equal(found(trainer), found(other))


def test_an_index_that_is_fed_stays_in_range(mode):
    """Numba reads foreign memory behind it."""
    x, k = pt.matrix("x"), pt.iscalar("k")
    w = pytensor.shared(np.zeros((4, 3)), name="w")
    trainer = Trainer(pt.sqr(x @ w[k] - 1).mean(), inputs=[x, k], mode=mode)
    with pytest.raises(ValueError, match=r"^train: .* input 'k' is 4, and axis 0 .* has 4 entries"):
        trainer.minimize([X, 4], max_epochs=1)
    with pytest.raises(ValueError, match="'k' is -5"):
        trainer.step([X, -5])
    trainer.minimize([X, lambda epoch: epoch], [X, 0], max_epochs=4, restore_best=False)
    assert (abs(w.get_value()).sum(axis=1) > 0).all()
    with pytest.raises(ValueError, match=r"batch 0 of train: .*input 'k' is 4"):
        trainer.minimize([X, lambda epoch: epoch - 1], [X, 0], max_epochs=2)
    chosen = pytensor.shared(np.int32(1))
    epochs = trainer.iterate([X, chosen], [X, 0], max_epochs=3)
    next(epochs)
    chosen.set_value(7)
    with pytest.raises(ValueError, match=r"batch 0 of train: .*input 'k' is 7"):
        next(epochs)


def test_data_are_looked_through_beside_scalars(mode):
    bad = X.copy()
    bad[17, 1] = np.nan
    with pytest.raises(ValueError, match="train, row 17, column 1 of input 'x' is nan"):
        make(mode).minimize([bad, Y, 0.5], max_epochs=1)
    with pytest.raises(ValueError, match=r"does not fit the loss"):
        make(mode).minimize([X[:, :2], Y, 0.5], max_epochs=1)


MISTAKES = [
    ([X, Y, Y], r"train: An array of shape \(22,\) is given for 'beta' .* one number"),
    ([X, 0.5, 0.5], r"train: 0.5 is given for 'y' \(1-dimensional float64\)"),
    ([anneal, Y, 0.5], "train: A function is given for 'x' .*as Dataset.function"),
    ([X, Y, lambda: 0.5], "train: The function for 'beta' .* fails for epoch 0"),
    ([X, Y], "A batch has 2 arrays for 3 inputs"),
    ({"x": X, "y": Y, "betta": 0.5}, "'betta'"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_told_at_the_call(given, message, mode):
    trainer = make(mode)
    with pytest.raises(ValueError, match=message):
        trainer.iterate(given, VALID)
    with pytest.raises(ValueError, match=message.removeprefix("train: ")):
        trainer.step(given)


def test_a_state_fits_whatever_feeds_the_scalar(mode):
    """A run that was begun with a number may go on with a function of the epoch."""
    trainer, other = make(mode), make(mode)
    states = [trainer.state_dict() for _ in trainer.iterate(data(0.25), VALID, **OPTIONS)]
    other.load_state_dict(states[1])
    other.minimize(data(lambda epoch: epoch), VALID, **OPTIONS)
    assert [record.train["beta"] for record in other.history] == [0.25, 0.25, 2, 3]
