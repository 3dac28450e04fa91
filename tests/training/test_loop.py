"""What the loop writes down of each epoch, and who is told."""

import logging

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Checkpoint, Dataset, StopReason, Trainer
from downhill_rms.compiling.machine import findings

DATA = [np.arange(12.0)]


def make(mode, **keywords):
    x = pt.vector("x")
    w = pytensor.shared(0.0, name="w")
    return Trainer(pt.sqr(x - w).mean(), mode=mode, **keywords)


def rates(trainer):
    return [record.learning_rate for record in trainer.history]


# The learning rate in force


def test_a_number_is_recorded(mode):
    trainer = make(mode)
    for _ in trainer.iterate(DATA, max_epochs=4, learning_rate=0.5):
        trainer.set_hyperparameters(learning_rate=trainer.hyperparameters.learning_rate / 2)
    assert rates(trainer) == [0.5, 0.25, 0.125, 0.0625]


def test_a_schedule_is_recorded_at_the_last_update_of_the_epoch(mode):
    trainer = make(mode)
    data = Dataset(DATA, batch_size=4)
    trainer.minimize(data, max_epochs=3, learning_rate=lambda t: 1.0 / t)
    np.testing.assert_allclose(rates(trainer), [1 / 3, 1 / 6, 1 / 9], rtol=1e-12)


def test_a_schedule_may_use_shared_variables(mode):
    trainer, scale = make(mode), pytensor.shared(2.0, name="scale")
    epochs = trainer.iterate(DATA, max_epochs=2, learning_rate=lambda t: scale / t)
    next(epochs)
    scale.set_value(8.0)
    list(epochs)
    np.testing.assert_allclose(rates(trainer), [2.0, 4.0])


def test_a_constant_schedule_is_recorded(mode):
    trainer = make(mode)
    trainer.minimize(DATA, max_epochs=1, learning_rate=lambda t: 0.25)
    assert rates(trainer) == [0.25]


def test_a_shared_variable_is_recorded(mode):
    trainer, rate = make(mode), pytensor.shared(0.5, name="rate")
    for _ in trainer.iterate(DATA, max_epochs=2, learning_rate=rate):
        rate.set_value(0.125)
    assert rates(trainer) == [0.5, 0.125]


# Observers


def test_observers_are_given_each_record(mode):
    trainer, first, second = make(mode), [], []
    trainer.minimize(DATA, max_epochs=3, observers=[first.append, second.append])
    assert first == second == list(trainer.history)


def test_an_observer_sees_a_record_before_the_loop_goes_on(mode):
    trainer, seen = make(mode), []
    for _ in trainer.iterate(DATA, max_epochs=3, observers=[seen.append]):
        assert seen[-1] is trainer.history[-1]


def test_an_observer_that_fails_ends_the_run_with_the_best_in_place(mode):
    trainer = make(mode)

    def fail(record):
        if record.epoch == 2:
            raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError, match="the server is gone"):
        trainer.minimize(DATA, max_epochs=5, learning_rate=1e3, observers=[fail])
    assert trainer.stop_reason is StopReason.ERROR
    assert trainer.graph.params[0].get_value() == trainer.best.params["w"]


def test_what_is_no_observer_is_refused_at_once(mode):
    with pytest.raises(TypeError, match=r"observers has 'file': an observer is a callable"):
        make(mode).iterate(DATA, observers=["file"])


# What slows training down


def test_the_machines_findings_are_debug_lines(mode, caplog):
    texts = [finding.text for finding in findings(mode)]
    for level, expected in ((logging.INFO, []), (logging.DEBUG, texts)):
        caplog.clear()
        with caplog.at_level(level, logger="downhill_rms"):
            make(mode).minimize(DATA, max_epochs=1)
        found = [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG]
        assert found == expected


# Taking up a run


def test_the_clock_goes_on_with_a_resumed_run(tmp_path, mode):
    checkpoint = Checkpoint(tmp_path)
    trainer = make(mode)
    trainer.minimize(DATA, max_epochs=3, checkpoint=checkpoint)
    resumed = make(mode)
    resumed.minimize(DATA, max_epochs=6, checkpoint=checkpoint, resume=True)
    seconds = [record.seconds for record in resumed.history]
    assert len(seconds) == 6
    assert seconds == sorted(seconds)


def test_other_monitors_in_the_middle_of_an_epoch_are_refused(tmp_path, mode):
    calls = []

    def batches():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("cut off")
        return DATA

    data, checkpoint = Dataset(batches, iteration_size=5), Checkpoint(tmp_path, every_updates=2)
    with pytest.raises(RuntimeError, match="cut off"):
        make(mode).minimize(data, DATA, checkpoint=checkpoint)
    watched = make(mode, monitor_updates=True)
    with pytest.raises(ValueError, match=r"epoch/sums has 1 monitors instead of 3"):
        watched.minimize(data, DATA, checkpoint=checkpoint, resume=True)


@pytest.mark.parametrize("given", [True, False])
def test_records_say_whether_the_training_data_were_validated_on(given, mode):
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    trainer = Trainer(pt.sqr(x - w).mean(), mode=mode)
    trainer.minimize(np.ones(4), np.ones(4) if given else None, max_epochs=2)
    assert [record.valid_is_train for record in trainer.history] == [not given] * 2
