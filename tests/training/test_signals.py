"""Handlers that take note, and give back what they replaced."""

import os
import signal

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from downhill_rms import StopReason, Trainer
from downhill_rms.training.signals import StopSignals


@pytest.fixture
def signals():
    signals = StopSignals()
    yield signals
    signals.remove()


def test_the_first_is_noted_and_the_second_acts(signals):
    signals.install()
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_the_user_come_back(signals):
    seen = []

    def own(number, frame):
        seen.append(number)

    former = signal.signal(signal.SIGTERM, own)
    try:
        signals.install()
        signals.install()  # does nothing more
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == []
        signals.remove()
        assert signal.getsignal(signal.SIGTERM) is own
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_ignored_stays_ignored(signals, number):
    former = signal.signal(number, signal.SIG_IGN)
    try:
        signals.install()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert signals.received is None
        signals.remove()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, former)


def test_the_second_reaches_the_users_handler(signals):
    seen = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        signals.install()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)


class SignalBetweenEpochs(Trainer):
    """Has a signal come where `minimize` goes from one epoch to the next."""

    def iterate(self, *args, **kwargs):
        for values in super().iterate(*args, **kwargs):
            signal.raise_signal(signal.SIGTERM)
            yield values


def test_a_signal_between_two_epochs_of_minimize_ends_the_run():
    """It had met the caller's handler, by default one that kills the process unsaved."""
    x, w = pt.dvector("x"), pytensor.shared(1.0, name="w")
    trainer = SignalBetweenEpochs(((w - x) ** 2).mean(), inputs=[x])
    seen = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        trainer.minimize([np.arange(8.0)], max_epochs=5)
        assert seen == []
        assert trainer.stop_reason is StopReason.TERMINATED
        assert trainer.epoch_count == 1
        for _ in trainer.iterate([np.arange(8.0)], max_epochs=2):
            break
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)


class Interrupting(Op):
    """A copy of a number, with Ctrl-C meanwhile."""

    __props__ = ("times",)

    def __init__(self, times=1):
        self.times = times

    def make_node(self, x):
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        outputs[0][0] = np.array(inputs[0])
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)

    def pullback(self, inputs, outputs, gradients):
        return gradients

    grad = pullback  # before PyTensor 3.1


def test_ctrl_c_acts_after_an_update_and_not_in_it():
    x, w = pt.dscalar("x"), pytensor.shared(1.0, name="w")
    trainer = Trainer((Interrupting()(w) - x) ** 2, inputs=[x])
    with pytest.raises(KeyboardInterrupt):
        trainer.step(3.0, learning_rate=0.1)
    assert trainer.update_count == 1
    assert w.get_value() > 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_acts_in_an_update():
    x, w = pt.dscalar("x"), pytensor.shared(1.0, name="w")
    trainer = Trainer((Interrupting(2)(w) - x) ** 2, inputs=[x])
    with pytest.raises(KeyboardInterrupt):
        trainer.step(3.0, learning_rate=0.1)
    assert trainer.update_count == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_users_acts_in_an_update():
    x, w = pt.dscalar("x"), pytensor.shared(1.0, name="w")
    trainer = Trainer((Interrupting()(w) - x) ** 2, inputs=[x])
    seen = []
    former = signal.signal(signal.SIGINT, lambda number, frame: seen.append(trainer.update_count))
    try:
        trainer.step(3.0, learning_rate=0.1)
    finally:
        signal.signal(signal.SIGINT, former)
    assert seen == [0]
    assert trainer.update_count == 1
