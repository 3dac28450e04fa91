"""A run goes on with its own loss, unless another is taken up on purpose."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Checkpoint, StopReason, Trainer
from tests.training.test_resume import OPTIONS, assert_equal, data, outcome


def make(mode, decay=0.0, power=2):
    """A regression, edited."""
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(3), name="w")
    loss = (abs(x @ w - y) ** power).mean() + decay * pt.sqr(w).sum()
    return Trainer(loss, inputs=[x, y], mode=mode)


def train(trainer, directory, epochs=3, **options):
    options = OPTIONS | {"max_epochs": epochs} | options
    trainer.minimize(data(), checkpoint=Checkpoint(directory), **options)


@pytest.mark.parametrize(
    ("edit", "difference"),
    [
        ({"decay": 0.1}, "constant 0.1 0 times before and 1 now"),
        ({"power": 3}, "constant 3 0 times before and 1 now"),
    ],
)
def test_another_loss_is_refused_with_the_difference_named(edit, difference, mode, tmp_path):
    train(make(mode), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.npz")}
    other = make(mode, **edit)
    found = outcome(other)
    with pytest.raises(ValueError, match=f"another loss: .*{difference}.*resume='changed'"):
        train(other, tmp_path, epochs=4, resume=True)
    assert other.update_count == 0
    np.testing.assert_array_equal(other.parameters.copy()["w"], found["param/w"])
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.npz")} == before


def test_the_same_loss_built_again_goes_on(mode, tmp_path):
    whole = make(mode)
    whole.minimize(data(), **OPTIONS | {"max_epochs": 4})
    train(make(mode), tmp_path)
    other = make(mode)
    train(other, tmp_path, epochs=4, resume=True)
    assert_equal(outcome(other), outcome(whole))


def test_a_changed_loss_is_taken_up_on_purpose_with_a_new_best(mode, tmp_path):
    first = make(mode)
    train(first, tmp_path)
    other = make(mode, decay=100.0)
    train(other, tmp_path, epochs=5, resume="changed", restore_best=True)
    assert other.stop_reason is StopReason.MAX_EPOCHS
    assert (other.update_count, other.epoch_count, len(other.history)) == (20, 5, 5)
    # The old best would be unbeatable: its loss had no decay.
    assert other.best.update >= 12
    assert other.best.loss > first.best.loss
    again = make(mode, decay=100.0)
    train(again, tmp_path, epochs=6, resume=True)
    assert again.update_count == 24


def test_with_changed_other_data_and_another_rule_are_taken_too(mode, tmp_path):
    train(make(mode), tmp_path)
    other = make(mode)
    rng = np.random.default_rng(0)
    others = [rng.normal(size=(16, 3)), rng.normal(size=16)]
    options = OPTIONS | {"max_epochs": 4, "resume": "changed", "momentum": 0.0}
    other.minimize(others, batch_size=8, checkpoint=Checkpoint(tmp_path), **options)
    assert (other.update_count, other.epoch_count) == (14, 4)


def test_a_state_of_another_loss_is_loaded_only_on_purpose(mode):
    first = make(mode)
    first.minimize(data(), **OPTIONS)
    state, other = first.state_dict(), make(mode, power=3)
    with pytest.raises(ValueError, match=r"another loss.*changed=True"):
        other.load_state_dict(state)
    other.load_state_dict(state, changed=True)
    assert other.best is None
    np.testing.assert_array_equal(other.parameters.copy()["w"], first.parameters.copy()["w"])


def test_another_value_of_resume_is_refused(mode, tmp_path):
    with pytest.raises(ValueError, match="resume is .*: it takes True, False or 'changed'"):
        train(make(mode), tmp_path, resume="yes")
