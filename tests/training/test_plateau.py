"""Plateaus: torch's learning rates, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytensor
import pytest

import downhill_rms as dr
from downhill_rms.training.plateau import reduce_on_plateau
from downhill_rms.watching import Record

with np.load(Path(__file__).parents[1] / "goldens" / "schedules.npz") as file:
    LOSSES = file["plateau_losses"]
    CASES = list(zip(json.loads(str(file["plateaus"])), file["plateau_rates"], strict=True))

OURS = {"threshold": "min_improvement", "min_lr": "min_learning_rate"}


@pytest.fixture
def trainer(mode):
    trainer = dr.Trainer(pytensor.shared(1.0, name="w") ** 2, mode=mode)
    trainer.set_hyperparameters(learning_rate=0.1)
    return trainer


def record(epoch, value, validated=True):
    return Record(epoch, epoch, 0.0, {"loss": 1.0}, {"loss": value}, validated)


@pytest.mark.parametrize(("arguments", "rates"), CASES, ids=str)
def test_torch_has_the_same_rates(arguments, rates, trainer):
    ours = {OURS.get(name, name): value for name, value in arguments.items()}
    ours["higher_is_better"] = ours.pop("mode", "min") == "max"
    observe = reduce_on_plateau(trainer, **{"patience": 10, **ours})
    found = []
    for epoch, loss in enumerate(LOSSES):
        observe(record(epoch, loss))
        observe(record(epoch, 0.0, validated=False))  # counts for nothing
        found.append(trainer.hyperparameters.learning_rate)
    np.testing.assert_allclose(found, rates, rtol=1e-12)


def test_a_run_comes_closer_with_lower_rates(mode):
    best = []
    for observed in (False, True):
        trainer = dr.Trainer(pytensor.shared(1.0, name="w") ** 2, mode=mode)
        trainer.minimize(
            learning_rate=1.0,  # it jumps to and fro
            observers=[reduce_on_plateau(trainer, factor=0.5, patience=1)] if observed else [],
            validate_every=1,
            patience=100,
            max_epochs=60,
        )
        best.append(trainer.best.loss)
        rates = {record.learning_rate for record in trainer.history}
    assert rates == {0.5**n for n in range(len(rates))}
    assert len(rates) > 1
    assert best[1] < best[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, r"factor is 1.0: it lies in \(0, 1\)"),
        ({"cooldown": -1}, "cooldown is -1: it is at least 0"),
        ({"min_learning_rate": -1}, "min_learning_rate is -1: it lies in"),
        ({"patience": -1}, "patience is -1: it lies in"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message, trainer):
    with pytest.raises(ValueError, match=message):
        reduce_on_plateau(trainer, **options)


def test_what_cannot_be_reduced_or_judged_is_refused(trainer):
    with pytest.raises(ValueError, match="monitor='accuracy' is none of this trainer's: loss"):
        reduce_on_plateau(trainer, monitor="accuracy")(record(1, 1.0))
    trainer.set_hyperparameters(learning_rate=lambda t: 0.1 / t)
    observe = reduce_on_plateau(trainer, patience=0)
    observe(record(1, 1.0))
    with pytest.raises(
        ValueError, match="learning_rate is <function .*: one that is reduced is a number"
    ):
        observe(record(2, 1.0))
