"""Telemetry against the rule in NumPy: how far each update goes, and what it is divided by."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Trainer

X = np.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.5, 0.0]])


def make(mode, dtype="float64", **keywords):
    x = pt.matrix("x", dtype=dtype)
    w = pytensor.shared(np.array([3.0, 1.0], dtype=dtype), name="w")
    b = pytensor.shared(np.array(0.0, dtype=dtype), name="b")
    loss = pt.sqr(x @ w + b).mean()
    return Trainer(loss, inputs=[x], mode=mode, **keywords), w, b


def root_mean_square(values):
    return np.sqrt(np.mean(np.square(values)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "rule", [{}, {"momentum": 0.9, "nesterov": True}, {"centered": False}, {"max_update": 1e-3}]
)
def test_the_ratio_is_the_update_over_the_new_value(rule, dtype, mode):
    trainer, w, b = make(mode, dtype, monitor_updates=True)
    for _ in range(5):
        before = [p.get_value() for p in (w, b)]
        values = trainer.step([X.astype(dtype)], learning_rate=0.01, **rule)
        for name, p_tm1, p_t in zip("wb", before, (w.get_value(), b.get_value()), strict=True):
            expected = root_mean_square(p_t - p_tm1) / root_mean_square(p_t)
            np.testing.assert_allclose(
                values[f"update_ratio({name})"],
                expected,
                rtol=1e-10 if dtype == "float64" else 1e-4,
            )


@pytest.mark.parametrize("regularize", ["variance", "rms"])
@pytest.mark.parametrize("centered", [True, False])
def test_the_share_at_the_floor_counts_coordinates(regularize, centered, mode):
    # The second feature is 0: its gradient never varies, and its denominator is the regularizer.
    trainer, _, _ = make(mode, monitor_updates=True)
    rule = {"regularize": regularize, "centered": centered, "rms_regularizer": 1e-3}
    values = trainer.step([X], **rule)
    assert values["at_floor(w)"] == 0.5
    assert values["at_floor(b)"] == 0.0


def test_the_regularizer_draws_the_line(mode):
    """One update from rest: s = w (1 - w) g^2, compared on both sides of the regularizer."""
    trainer, w, b = make(mode, monitor_updates=True)
    residual = X @ w.get_value() + b.get_value()
    gradient = 2 * (residual[:, None] * X).mean(axis=0)[0]
    weight = 1 - np.exp(-np.log(2) / 14)
    variance = weight * (1 - weight) * gradient**2
    state = trainer.state_dict()
    assert trainer.step([X], rms_regularizer=variance * 0.999)["at_floor(w)"] == 0.5
    trainer.load_state_dict(state)
    assert trainer.step([X], rms_regularizer=variance * 1.001)["at_floor(w)"] == 1.0


def test_a_parameter_that_stays_zero_has_ratio_zero(mode):
    x = pt.matrix("x")
    w = pytensor.shared(np.zeros(2), name="w")
    trainer = Trainer(pt.sqr(x @ w - 0).mean(), inputs=[x], mode=mode, monitor_updates=True)
    assert trainer.step([X])["update_ratio(w)"] == 0.0


def test_it_is_reported_for_training_only(mode):
    trainer, _, _ = make(mode, monitor_updates=True)
    train, valid = trainer.minimize([X], max_epochs=1)
    names = ["update_ratio(w)", "update_ratio(b)", "at_floor(w)", "at_floor(b)"]
    assert list(train) == ["loss", *names]
    assert list(valid) == ["loss"]


def test_it_changes_no_parameter_by_a_bit(mode):
    values = []
    for watched in (False, True):
        trainer, w, b = make(mode, monitor_updates=watched)
        trainer.minimize([X], max_epochs=20, learning_rate=0.01, momentum=0.5)
        values.append((w.get_value().tobytes(), b.get_value().tobytes()))
    assert values[0] == values[1]


def test_it_is_off_by_default(mode):
    trainer, _, _ = make(mode)
    assert list(trainer.step([X])) == ["loss"]
