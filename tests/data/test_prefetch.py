"""Reading ahead: the same minibatches in the same order, and a place that checkpoints can keep."""

import contextlib
import threading

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Checkpoint, Dataset, Trainer

X = np.arange(46.0).reshape(23, 2)


def batches(data, epochs=1):
    bound = data.bind(None)
    return [(batch[0].tolist(), n) for _ in range(epochs) for batch, n in bound.epoch()]


def no_thread_is_left():
    """Whether every thread that reads ahead ends; one may have been given a last window to read."""
    threads = [t for t in threading.enumerate() if "prefetch" in t.name]
    for thread in threads:
        thread.join(timeout=10)
    return not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("shuffle", ["samples", "batches", None])
@pytest.mark.parametrize("iteration_size", [None, 3, 9])
@pytest.mark.parametrize("prefetch", [1, 4, 100])
def test_arrays_come_in_the_same_order(shuffle, iteration_size, prefetch):
    keywords = {"batch_size": 5, "iteration_size": iteration_size, "shuffle": shuffle}
    plain = batches(Dataset([X], rng=0, **keywords), epochs=4)
    assert batches(Dataset([X], rng=0, prefetch=prefetch, **keywords), epochs=4) == plain
    assert no_thread_is_left()


def test_ready_batches_come_in_the_same_order():
    ready = [[X[i : i + 5]] for i in range(0, 23, 5)]
    assert batches(Dataset(ready, prefetch=2), 2) == batches(Dataset(ready), 2)


def test_a_callable_is_called_once_for_each_minibatch_of_an_epoch():
    calls = []

    def read():
        calls.append(threading.current_thread().name)
        return [X]

    assert len(batches(Dataset(read, iteration_size=6, prefetch=3), 2)) == 12
    assert len(calls) == 12
    assert all("prefetch" in name for name in calls)


def test_an_error_of_the_reader_comes_where_its_minibatch_would():
    def read():
        if len(seen) == 3:
            raise OSError("the disk is gone")
        return [X]

    seen = []
    bound = Dataset(read, iteration_size=9, prefetch=1).bind(None)
    epoch = bound.epoch()
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(batch for batch, _ in epoch)
    assert len(seen) >= 3
    assert no_thread_is_left()


def test_leaving_an_epoch_ends_the_thread():
    epoch = Dataset([X], batch_size=2, prefetch=3).bind(None).epoch()
    next(epoch)
    epoch.close()
    assert no_thread_is_left()


def make(mode):
    x = pt.matrix("x")
    w = pytensor.shared(np.zeros(2), name="w")
    return Trainer(pt.sqr(x - w).mean(), mode=mode), w


def test_a_run_that_reads_ahead_resumes_bit_for_bit(tmp_path, mode):
    def data():
        return Dataset([X], batch_size=4, rng=3, prefetch=3)

    whole, expected = make(mode)
    whole.minimize(data(), [X], max_epochs=4, learning_rate=0.1)
    options = {"max_epochs": 4, "learning_rate": 0.1, "resume": True}
    for saves in (8, 10):  # in the middle of the second epoch, and of the third
        trainer, _ = make(mode)
        with pytest.raises(RuntimeError, match="cut off"):
            trainer.minimize(data(), [X], checkpoint=Cut(tmp_path, saves), **options)
    trainer, w = make(mode)
    trainer.minimize(data(), [X], checkpoint=Checkpoint(tmp_path), **options)
    assert trainer.update_count == 24
    assert w.get_value().tobytes() == expected.get_value().tobytes()


class Cut(Checkpoint):
    """A run's directory that fails after some checkpoints, one an update."""

    def __init__(self, directory, saves):
        super().__init__(directory, every_updates=1)
        self.saves = saves

    def save(self, state, update, metadata=None):
        path = super().save(state, update, metadata)
        self.saves -= 1
        if self.saves == 0:
            raise RuntimeError("cut off")
        return path


def test_the_next_minibatch_is_read_while_one_is_in_use():
    second = threading.Event()

    def read():
        if seen:
            second.set()
        seen.append(1)
        return [X]

    seen = []
    with contextlib.closing(
        Dataset(read, iteration_size=9, prefetch=1).bind(None).epoch()
    ) as epoch:
        next(epoch)
        assert second.wait(60)


@pytest.mark.parametrize("prefetch", [-1, 1.5, True])
def test_prefetch_is_a_count(prefetch):
    with pytest.raises((TypeError, ValueError), match="prefetch is"):
        Dataset([X], prefetch=prefetch)
