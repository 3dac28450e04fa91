"""What one minibatch hands to the next: a pass begins anew, and nothing else disturbs it."""

import json
import math

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import downhill_rms as dr
from downhill_rms import Checkpoint, Dataset, StopReason, Trainer, sequences
from downhill_rms.saving import read_checkpoint, read_state
from tests.oracle import Oracle
from tests.training.test_resume import assert_equal, outcome

RNG = np.random.default_rng(5)
WAVE = np.sin(0.4 * np.arange(64)) + 0.1 * RNG.normal(size=64)
OTHER = np.cos(0.3 * np.arange(43))
ROWS, UNITS, LENGTH = 3, 4, 6
START = {
    "w": RNG.normal(size=UNITS),
    "u": 0.5 * RNG.normal(size=(UNITS, UNITS)),
    "v": RNG.normal(size=UNITS),
}
BEGINNING = 0.1 * RNG.normal(size=(ROWS, UNITS))
RULE = {"learning_rate": 0.01, "momentum": 0.9, "rms_regularizer": 1e-2}
OPTIONS = {**RULE, "max_epochs": 3, "validate_every": 1, "restore_best": False}


def network(start=BEGINNING):
    """A vanilla network that foretells the next value, and its hidden values."""
    x, y = pt.matrix("x"), pt.matrix("y")
    w, u, v = (pytensor.shared(value, name=name) for name, value in START.items())
    before = pytensor.shared(start, name="hidden")
    hidden = pytensor.scan(
        lambda x_t, h_tm1, w, u: pt.tanh(x_t[:, None] * w + h_tm1 @ u),
        sequences=[x],
        outputs_info=[before],
        non_sequences=[w, u],
        return_updates=False,
    )
    loss = pt.sqr(hidden @ v - y).mean()
    return {"loss": loss, "inputs": [x, y], "carried": {before: hidden[-1]}}, hidden


def make(mode=None, start=BEGINNING):
    return Trainer(**network(start)[0], mode=mode)


def train_data(**options):
    return sequences(WAVE, LENGTH, ROWS, **options)


def valid_data():
    return sequences(OTHER, LENGTH, ROWS)


def hidden(trainer):
    (variable,) = trainer.graph.carried
    return np.array(variable.get_value())


class ByHand:
    """The same network in NumPy float64, its gradients by backpropagation through time."""

    def __init__(self):
        self.oracle = Oracle(list(START.values()), **RULE)

    def windows(self, series):
        """Inputs and targets of each minibatch, as (steps, rows)."""
        steps = (len(series) - 1) // ROWS
        rows = [series[row * steps : (row + 1) * steps + 1] for row in range(ROWS)]
        for first in range(0, steps, LENGTH):
            last = min(first + LENGTH, steps)
            yield (
                np.array([row[first:last] for row in rows]).T,
                np.array([row[first + 1 : last + 1] for row in rows]).T,
            )

    def run(self, x, y, h):
        """Loss, gradients and the last hidden values."""
        w, u, v = self.oracle.params
        states = [h]
        for x_t in x:
            states.append(np.tanh(np.outer(x_t, w) + states[-1] @ u))
        error = np.array([s @ v for s in states[1:]]) - y
        grads = [np.zeros_like(p) for p in (w, u, v)]
        back = np.zeros_like(h)
        for t in reversed(range(len(x))):
            d = 2 * error[t] / error.size
            grads[2] += d @ states[t + 1]
            z = (np.outer(d, v) + back) * (1 - states[t + 1] ** 2)
            grads[0] += x[t] @ z
            grads[1] += states[t].T @ z
            back = z @ u.T
        return np.mean(error**2), grads, states[-1]

    def epoch(self, series, train):
        """The mean loss over all steps of a pass that begins anew."""
        h, total, steps = BEGINNING, 0.0, 0
        for x, y in self.windows(series):
            loss, grads, h = self.run(x, y, h)
            total, steps = total + loss * len(x), steps + len(x)
            if train:
                self.oracle.update(grads)
        self.hidden = h
        return total / steps


@pytest.mark.parametrize("together", [1, 2, 3])
def test_training_is_that_of_the_network_by_hand(together, mode):
    expected, trainer = ByHand(), make(mode)
    data, judge = train_data(), valid_data()
    for train, valid in trainer.iterate(data, judge, updates_per_call=together, **OPTIONS):
        np.testing.assert_allclose(train["loss"], expected.epoch(WAVE, train=True), rtol=1e-11)
        np.testing.assert_allclose(valid["loss"], expected.epoch(OTHER, train=False), rtol=1e-11)
    assert trainer.update_count == 3 * 4
    for value, wanted in zip(
        trainer.parameters.copy().values(), expected.oracle.params, strict=True
    ):
        np.testing.assert_allclose(value, wanted, rtol=1e-10)
    np.testing.assert_allclose(trainer.evaluate(judge)["loss"], expected.epoch(OTHER, train=False))


def test_it_is_carried_within_a_pass_and_not_between_two(mode):
    trainer, expected = make(mode), ByHand()
    x, y = next(expected.windows(WAVE))
    np.testing.assert_array_equal(hidden(trainer), BEGINNING)
    _, grads, after = expected.run(x, y, BEGINNING)
    trainer.step([x, y], **RULE)
    np.testing.assert_allclose(hidden(trainer), after, rtol=1e-12)
    expected.oracle.update(grads)
    *_, further = expected.run(x, y, after)
    trainer.step([x, y])
    np.testing.assert_allclose(hidden(trainer), further, rtol=1e-12)
    trainer.minimize(train_data(), **OPTIONS)
    np.testing.assert_array_equal(hidden(trainer), BEGINNING)  # of the next pass


def test_evaluation_and_prediction_leave_it_where_it_was(mode):
    definition, states = network()
    trainer = Trainer(**definition, mode=mode)
    expected = ByHand()
    x, y = next(expected.windows(WAVE))
    trainer.step([x, y], learning_rate=0.0)
    before = hidden(trainer)
    loss = trainer.evaluate(train_data())["loss"]
    np.testing.assert_allclose(loss, expected.epoch(WAVE, train=False), rtol=1e-11)
    values = trainer.predict(states, sequences([WAVE[:-1]], LENGTH, ROWS))
    np.testing.assert_array_equal(hidden(trainer), before)
    assert values.shape == (21, ROWS, UNITS)
    np.testing.assert_allclose(values[-1], expected.hidden, rtol=1e-10)


def test_a_prediction_carries_what_its_outputs_depend_on_alone(mode):
    definition, _ = network()
    x, y = definition["inputs"]
    total = pytensor.shared(0.0, name="sum")
    definition["carried"][total] = total + y.sum()
    trainer = Trainer(**definition, monitors={"sum": total}, mode=mode)
    (series,) = trainer.predict([x], sequences([WAVE[:-1]], LENGTH, ROWS))  # no y is asked for
    assert series.shape == (21, ROWS)
    sums = trainer.predict([y + total], {"y": np.ones((64, ROWS))})[0]
    np.testing.assert_array_equal(sums[[0, 32], 0], [1, 1 + 32 * ROWS])


def test_an_epoch_of_several_passes_begins_each_anew(mode):
    """And one of half a pass goes on where the last one ended."""
    losses = []
    for size in (4, 8, 2):
        trainer = make(mode)
        data = Dataset(
            [array.values for array in train_data().source.columns],
            batch_size=LENGTH,
            shuffle=None,
            iteration_size=size,
        )
        trainer.minimize(data, max_updates=16, patience=math.inf, learning_rate=0.01)
        losses.append(trainer.evaluate(train_data())["loss"])
    assert losses[0] == losses[1] == losses[2]


def test_a_pass_that_a_limit_cut_short_goes_on_with_the_same_data(mode):
    whole, parts = make(mode), make(mode)
    whole.minimize(train_data(), max_updates=7, restore_best=False, **RULE)
    data = train_data()
    for updates in (1, 2, 3, 1):
        parts.minimize(data, max_updates=updates, restore_best=False, **RULE)
        parts.evaluate(valid_data())
    assert_equal(parts.parameters.copy(), whole.parameters.copy())
    np.testing.assert_array_equal(hidden(parts), hidden(whole))


def test_ready_batches_begin_anew_with_every_epoch(mode):
    batches = list(ByHand().windows(WAVE))
    whole, other = make(mode), make(mode)
    whole.minimize(train_data(), **OPTIONS)
    other.minimize(batches, sequences(WAVE, LENGTH, ROWS), **OPTIONS)
    np.testing.assert_allclose(  # means weight their batches by the rows
        list(other.parameters.copy().values())[1], list(whole.parameters.copy().values())[1]
    )


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("together", [1, 2])
def test_a_run_goes_on_from_every_checkpoint(prefetch, together, mode, tmp_path):
    whole = make(mode)
    options = OPTIONS | {"updates_per_call": together}
    whole.minimize(
        train_data(prefetch=prefetch),
        valid_data(),
        checkpoint=Checkpoint(tmp_path, every_updates=1, keep=99),
        **options,
    )
    steps = Checkpoint(tmp_path).steps()
    assert len(steps) == {1: 12, 2: 9}[together]
    for path in steps:
        other = make(mode)
        other.load(path)
        other.minimize(train_data(prefetch=prefetch), valid_data(), **options)
        assert_equal(outcome(other), outcome(whole))


def test_it_is_in_the_state_and_not_in_the_best(mode):
    trainer = make(mode)
    trainer.minimize(train_data(), max_updates=2, **RULE)
    state = trainer.state_dict()
    np.testing.assert_array_equal(state["carried/hidden"], hidden(trainer))
    assert not np.array_equal(hidden(trainer), BEGINNING)
    assert not any("hidden" in name for name in state if name.startswith("best/"))
    before = hidden(trainer)
    trainer.set_params("best")
    np.testing.assert_array_equal(hidden(trainer), before)
    other = make(mode)
    other.load_state_dict(state)
    np.testing.assert_array_equal(hidden(other), before)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("carried/hidden", np.zeros((2, UNITS)), r"carried/hidden is \(2, 4\)"),
        ("carried/other", np.zeros(3), "carried/other is unknown"),
        ("carried/hidden", None, "carried/hidden is missing"),
    ],
)
def test_another_than_the_states_is_refused(field, value, message, mode):
    state = make(mode).state_dict() | {field: value}
    if value is None:
        del state[field]
    other = make(mode)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    np.testing.assert_array_equal(hidden(other), BEGINNING)


def test_a_state_of_a_trainer_that_carries_nothing_is_refused(mode):
    definition, _ = network()
    definition.pop("carried")
    plain = Trainer(**definition, mode=mode)
    with pytest.raises(ValueError, match="carried are"):
        make(mode).load_state_dict(plain.state_dict())


def test_the_state_of_a_trainer_that_carries_nothing_is_as_it_was_before(mode):
    """So that files of earlier releases load, and theirs read ours."""
    definition, _ = network()
    definition.pop("carried")
    state = Trainer(**definition, mode=mode).state_dict()
    assert sorted(json.loads(state["signature"])) == ["assigned", "inputs", "monitors", "params"]
    assert not any("carried" in name for name in state)


def test_a_changed_network_does_not_go_on_with_the_pass(mode, tmp_path):
    trainer = make(mode)
    trainer.minimize(train_data(), max_updates=2, checkpoint=Checkpoint(tmp_path), **RULE)
    wider = make(mode, start=np.zeros((5, UNITS)))
    data = sequences(WAVE, LENGTH, 5)
    with pytest.raises(ValueError, match="carried/hidden"):
        wider.minimize(data, checkpoint=Checkpoint(tmp_path), resume=True, **OPTIONS)
    wider.minimize(data, checkpoint=Checkpoint(tmp_path), resume="changed", **OPTIONS)
    assert wider.stop_reason is StopReason.MAX_EPOCHS
    assert wider.update_count == 2 + 2 * 2  # the epoch that was cut short counts


def spoilt_at(update):
    """The windows of the wave as a callable, one of whose values becomes NaN at a call."""
    windows, calls = list(ByHand().windows(WAVE)), []

    def give():
        calls.append(1)
        x, y = windows[(len(calls) - 1) % len(windows)]
        return [x * (math.nan if len(calls) == update else 1), y]

    return Dataset(give, iteration_size=len(windows), axis=0)


def test_a_first_update_that_is_taken_back_leaves_it(mode):
    trainer = make(mode)
    x, y = next(ByHand().windows(WAVE))
    with pytest.raises(ValueError, match="finite before training starts"):
        trainer.step([x * math.nan, y])
    np.testing.assert_array_equal(hidden(trainer), BEGINNING)


def test_a_guilty_minibatch_is_replayed_with_what_came_before_it(mode, tmp_path):
    trainer = make(mode)
    options = OPTIONS | {"checkpoint": Checkpoint(tmp_path), "save_batch": True}
    trainer.minimize(spoilt_at(3), valid_data(), **options)
    assert trainer.stop_reason is StopReason.DIVERGED
    assert "variable 'hidden'" in str(trainer.divergence)
    state = read_state(tmp_path / "diverged-000000003.npz")
    expected = make(mode)
    for batch in list(ByHand().windows(WAVE))[:2]:
        expected.step(batch, **RULE)
    np.testing.assert_array_equal(state["carried/hidden"], hidden(expected))


def test_a_rollback_returns_it_too(mode, tmp_path):
    trainer = make(mode)
    trainer.minimize(
        spoilt_at(4),
        valid_data(),
        checkpoint=Checkpoint(tmp_path, every_updates=2, keep=9),
        on_divergence="rollback",
        **OPTIONS,
    )
    assert trainer.stop_reason is StopReason.MAX_EPOCHS
    assert trainer.update_count == 12
    assert all(
        np.isfinite(read_checkpoint(path)["carried/hidden"]).all()
        for path in Checkpoint(tmp_path).steps()
    )


def test_random_draws_behind_it_advance(mode):
    """Noise that enters what is carried alone is drawn anew at every call."""
    x = pt.vector("x")
    w, before = pytensor.shared(1.0, name="w"), pytensor.shared(np.zeros(2), name="before")
    _, noise = pt.random.shared_rng(seed=1, name="noise").normal(size=(2,))
    loss = pt.sqr(x * w - before).mean()
    trainer = Trainer(loss, inputs=[x], carried={before: noise}, mode=mode)
    seen = []
    for _ in range(2):
        trainer.step([np.ones(2)])
        seen.append(np.array(before.get_value()))
    assert not np.array_equal(*seen)
    assert trainer.evaluate([[np.ones(2)], [np.ones(2)]])["loss"] > 0
    np.testing.assert_array_equal(before.get_value(), seen[1])


def test_it_is_no_parameter_and_updates_has_it(mode):
    trainer = make(mode)
    assert trainer.graph.param_names == ("w", "u", "v")
    assert trainer.graph.assigned == ()
    assert trainer.graph.carried_names == ("hidden",)
    assert trainer.graph.carried[0] in dict(trainer.get_updates())


def test_minimize_and_build_take_it(mode):
    definition, _ = network()
    assert dr.build("rmsprop", **definition, mode=mode).graph.carried_names == ("hidden",)
    dr.minimize(**definition, train=train_data(), max_epochs=1, mode=mode)


class TestMistakes:
    @pytest.mark.parametrize("rows", [1, 2, 5])
    def test_rows_that_do_not_fit_are_refused_before_training(self, rows, mode):
        trainer = make(mode)
        match = r"rows of what is carried: hidden \(3, 4\)"
        for call in (trainer.minimize, trainer.evaluate):
            with pytest.raises(ValueError, match=match):
                call(sequences(WAVE, LENGTH, rows))
        with pytest.raises(ValueError, match=match):
            trainer.step([np.zeros((LENGTH, rows))] * 2)
        with pytest.raises(ValueError, match=match):
            trainer.minimize(train_data(), sequences(WAVE, LENGTH, rows))
        assert trainer.update_count == 0

    def test_a_short_last_batch_of_rows_is_refused(self, mode):
        x, y = pt.matrix("x"), pt.vector("y")
        w, h = pytensor.shared(np.zeros(3), name="w"), pytensor.shared(np.zeros(4), name="h")
        output = x @ w + 0.5 * h
        trainer = Trainer(pt.sqr(output - y).mean(), inputs=[x, y], carried={h: output}, mode=mode)
        arrays = [np.ones((10, 3)), np.ones(10)]
        for size, shape in ((4, 2), (5, 5)):
            with pytest.raises(ValueError, match=rf"shape \({shape},\).*what is carried: h \(4,"):
                trainer.minimize(Dataset(arrays, batch_size=size, shuffle=None), max_epochs=1)
        batches = [[a[:4] for a in arrays], [a[:3] for a in arrays]]
        with pytest.raises(ValueError, match=r"batch 1 of train .*what is carried"):
            trainer.minimize(batches, [a[:4] for a in arrays], max_epochs=1)
        with pytest.raises(ValueError, match="what is carried"):
            trainer.predict(output, arrays[0], batch_size=5)

    def test_a_value_of_another_shape_is_refused(self, mode):
        definition, states = network()
        (variable,) = definition["carried"]
        definition["carried"] = {variable: states[-1, :, :2]}
        trainer = Trainer(**definition, mode=mode)
        match = r"'hidden' of shape \(3, 4\) is given the value of shape \(3, 2\)"
        with pytest.raises(ValueError, match=match):
            trainer.minimize(train_data(), max_epochs=1)

    def test_shuffled_data_are_warned_of(self, mode):
        trainer = make(mode)
        arrays = [column.values for column in train_data().source.columns]
        with pytest.warns(UserWarning, match="train is shuffled, and hidden is carried"):
            trainer.minimize(arrays, batch_size=7, max_epochs=1)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda h, w, x: {"carried": h}, TypeError, "carried is .* list of pairs"),
            (lambda h, w, x: {"carried": [h]}, TypeError, "carried has .* pairs"),
            (lambda h, w, x: {"carried": {x: h}}, TypeError, "carried assigns 'x'"),
            (lambda h, w, x: {"carried": {h: x}}, TypeError, "carried gives 'h'"),
            (lambda h, w, x: {"carried": [(h, h), (h, h)]}, ValueError, "carried has 'h' .* twice"),
            (
                lambda h, w, x: {"updates": {h: h + 1}},
                ValueError,
                "carried has 'h' .* updates assigns",
            ),
            (lambda h, w, x: {"params": [h, w]}, ValueError, "params has 'h' .* carried"),
            (
                lambda h, w, x: {"carried": {pytensor.shared(0.0, name="k"): x[0]}},
                ValueError,
                "carried has 'k' .* nothing reads",
            ),
            (
                lambda h, w, x: {
                    "carried": {pytensor.shared(np.random.default_rng(), name="g"): pt.scalar()}
                },
                TypeError,
                "carried gives 'g'",
            ),
        ],
    )
    def test_what_cannot_be_carried_is_refused(self, change, error, message, mode):
        x, h, w = pt.vector("x"), pytensor.shared(0.0, name="h"), pytensor.shared(1.0, name="w")
        definition = {"loss": pt.sqr(x * w + h).mean(), "carried": {h: x[-1]}}
        with pytest.raises(error, match=message):
            Trainer(**definition | change(h, w, x), mode=mode)
