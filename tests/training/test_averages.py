"""Averages of parameters in training: judged, best, saved and taken up again."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Checkpoint, Dataset, Trainer

RNG = np.random.default_rng(5)
DATA = RNG.normal(loc=3.0, size=(64,))


def make(mode):
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    return Trainer(pt.sqr(x - w).mean(), inputs=[x], mode=mode)


def data():
    return Dataset(DATA, batch_size=4, rng=0)


@pytest.mark.parametrize(
    "options", [{"average": "ema", "average_halflife": 20.0}, {"average": "tail"}]
)
def test_validations_judge_the_average_and_leave_training_where_it_was(options, mode):
    plain, averaged = make(mode), make(mode)
    plain.minimize(data(), max_epochs=3, learning_rate=0.3, restore_best=False)
    seen = []
    for _, valid in averaged.iterate(
        data(), max_epochs=3, validate_every=1, learning_rate=0.3, restore_best=False, **options
    ):
        average = float(averaged.state.averages()["w"].get_value())
        seen.append((valid["loss"], ((DATA - average) ** 2).mean()))
    assert [v for v, _ in seen] == pytest.approx([e for _, e in seen], rel=1e-12)
    np.testing.assert_array_equal(averaged.parameters.copy()["w"], plain.parameters.copy()["w"])


def test_the_best_is_an_average_and_is_left_in_place(mode):
    trainer = make(mode)
    trainer.minimize(data(), max_epochs=5, validate_every=1, learning_rate=0.3, average="ema")
    w = float(trainer.parameters.copy()["w"])
    assert trainer.best.loss == pytest.approx(((DATA - w) ** 2).mean(), rel=1e-12)
    assert trainer.evaluate(DATA)["loss"] == pytest.approx(trainer.best.loss, rel=1e-12)


def test_a_noisy_loss_ends_nearer_to_its_minimum(mode):
    """The reason for averages: a fixed learning rate wanders around the minimum."""
    distance = {}
    for average in (None, "tail"):
        trainer = make(mode)
        trainer.minimize(
            data(),
            max_epochs=60,
            learning_rate=0.3,
            average=average,
            average_start=200,
            patience=100,
        )
        values = trainer.state.averages() or trainer.parameters.variables
        distance[average] = abs(float(values["w"].get_value()) - DATA.mean())
    assert distance["tail"] < 0.01


def test_a_run_with_averages_goes_on_bit_for_bit(mode, tmp_path):
    options = {"learning_rate": 0.1, "average": "ema", "validate_every": 1}
    whole = make(mode)
    whole.minimize(data(), max_updates=40, **options)
    checkpoint = Checkpoint(tmp_path / "run", every_updates=5)
    make(mode).minimize(data(), max_updates=23, checkpoint=checkpoint, **options)
    resumed = make(mode)
    again = Checkpoint(tmp_path / "run", every_updates=5)
    resumed.minimize(data(), max_updates=40, checkpoint=again, resume=True, **options)
    for name, value in whole.state.accumulators.items():
        np.testing.assert_array_equal(
            value.get_value(), resumed.state.accumulators[name].get_value()
        )
    assert resumed.best.loss == whole.best.loss
    other = make(mode)
    other.load_parameters(tmp_path / "run" / "best.npz")
    np.testing.assert_array_equal(other.parameters.copy()["w"], resumed.best.params["w"])
