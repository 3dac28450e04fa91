"""Optuna beside sweeps: an observer prunes, and one trainer makes every trial."""

import numpy as np
import pytest

from downhill_rms import StopReason
from tests.sweeping.models import OPTIONS, TRAIN, VALID, regression

optuna = pytest.importorskip("optuna")


class PruneLargeLosses(optuna.pruners.BasePruner):
    """A pruner that decides by the loss alone."""

    def prune(self, study, trial):
        """Whether the latest loss is more than a half of the first."""
        values = list(trial.intermediate_values.values())
        return len(values) == 2 and values[1] > 0.5 * values[0]


def test_an_observer_prunes_a_trial():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trainer = regression()
    fresh = trainer.state_dict()
    epochs = {}

    def objective(trial):
        trainer.load_state_dict(fresh)

        def prune(record):
            trial.report(record.valid["loss"], record.epoch)
            return StopReason.OBSERVER if trial.should_prune() else None

        rate = trial.suggest_categorical("learning_rate", [1e-4, 0.5])
        trainer.minimize(TRAIN, VALID, learning_rate=rate, observers=[prune], **OPTIONS)
        epochs[rate] = len(trainer.history)
        if trainer.stop_reason is StopReason.OBSERVER:
            raise optuna.TrialPruned
        return trainer.best.loss

    space = {"learning_rate": [1e-4, 0.5]}
    sampler = optuna.samplers.GridSampler(space, seed=0)
    study = optuna.create_study(sampler=sampler, pruner=PruneLargeLosses())
    study.optimize(objective, n_trials=2)
    states = {trial.params["learning_rate"]: trial.state.name for trial in study.trials}
    assert states == {1e-4: "PRUNED", 0.5: "COMPLETE"}
    assert epochs[1e-4] == 2
    assert epochs[0.5] > 2
    np.testing.assert_allclose(study.best_params["learning_rate"], 0.5)
