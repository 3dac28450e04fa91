"""Values of outputs over a data set, and parameters that go from program to program."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Checkpoint, Dataset, Trainer
from downhill_rms.saving import CheckpointError

RNG = np.random.default_rng(3)
DATA, WEIGHTS = RNG.normal(size=(70, 3)), RNG.normal(size=(3, 2))


def softmax_trainer(mode, **options):
    x, y = pt.matrix("x"), pt.lvector("y")
    w = pytensor.shared(WEIGHTS, name="w")
    probabilities = pt.special.softmax(x @ w, axis=1)
    loss = -pt.log(probabilities)[pt.arange(y.shape[0]), y].mean()
    return Trainer(loss, inputs=[x, y], mode=mode, **options), probabilities


def softmax(values):
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "data",
    [
        DATA,
        [DATA],
        {"x": DATA},
        Dataset(DATA, batch_size=11, rng=0),
        [[DATA[:30]], [DATA[30:60]], [DATA[60:]]],
    ],
    ids=["array", "list", "dict", "dataset", "batches"],
)
def test_every_sample_in_order_with_only_the_inputs_that_the_output_needs(mode, data):
    trainer, probabilities = softmax_trainer(mode)
    found = trainer.predict(probabilities, data)
    np.testing.assert_allclose(found, softmax(DATA @ WEIGHTS), rtol=1e-12)


def test_outputs_come_back_as_they_were_given(mode):
    trainer, probabilities = softmax_trainer(mode)
    labels = probabilities.argmax(axis=1)
    expected = softmax(DATA @ WEIGHTS)
    several = trainer.predict([probabilities, labels], DATA)
    assert isinstance(several, list)
    np.testing.assert_array_equal(several[1], expected.argmax(axis=1))
    by_name = trainer.predict({"p": probabilities, "label": labels}, DATA)
    assert list(by_name) == ["p", "label"]
    np.testing.assert_array_equal(by_name["p"], several[0])


def test_it_uses_the_parameters_in_place_and_compiles_once(mode, caplog):
    trainer, probabilities = softmax_trainer(mode)
    first = trainer.predict(probabilities, DATA)
    trainer.set_params([2 * WEIGHTS])
    caplog.set_level("INFO", "downhill_rms")
    second = trainer.predict(probabilities, DATA)
    np.testing.assert_allclose(second, softmax(2 * DATA @ WEIGHTS), rtol=1e-12)
    assert not np.allclose(first, second)
    assert "compiling" not in caplog.text


def test_samples_along_another_axis(mode):
    x = pt.tensor3("x")
    w = pytensor.shared(2.0, name="w")
    trainer = Trainer(pt.sqr(x * w).mean(), mode=mode)
    values = RNG.normal(size=(4, 9, 2))
    found = trainer.predict(x.sum(axis=2) * w, Dataset(values, axis=1, batch_size=4))
    np.testing.assert_allclose(found, 2 * values.sum(axis=2), rtol=1e-12)


def test_an_input_that_the_loss_does_not_have(mode):
    trainer, _ = softmax_trainer(mode)
    scale = pt.vector("scale")
    x = trainer.graph.inputs[0]
    found = trainer.predict((x * scale[:, None]).sum(axis=1), {"scale": np.arange(70.0), "x": DATA})
    np.testing.assert_allclose(found, DATA.sum(axis=1) * np.arange(70.0), rtol=1e-12)


def test_random_outputs_advance(mode):
    trainer, _ = softmax_trainer(mode)
    x = trainer.graph.inputs[0]
    _, noise = pt.random.shared_rng(seed=1).normal(size=x.shape)
    noisy = x + noise
    first, second = (trainer.predict(noisy, DATA) for _ in range(2))
    assert not np.allclose(first, second)
    assert not np.allclose((first - DATA)[:32], (first - DATA)[32:64])


def test_what_cannot_be_predicted_is_refused(mode):
    trainer, probabilities = softmax_trainer(mode)
    with pytest.raises(ValueError, match=r"outputs\[0\] has shape \(\) for 32 samples"):
        trainer.predict(probabilities.sum(), DATA)
    with pytest.raises(TypeError, match=r"outputs has 3 at 'p'"):
        trainer.predict({"p": 3}, DATA)
    with pytest.raises(TypeError, match="outputs is empty"):
        trainer.predict([], DATA)
    with pytest.raises(ValueError, match="'x'"):
        trainer.predict(probabilities, [DATA, np.zeros(70, int)])


def test_parameters_go_from_trainer_to_trainer(mode, tmp_path):
    trainer, _ = softmax_trainer(mode)
    trainer.save_parameters(tmp_path / "model.npz")
    other, _ = softmax_trainer(mode, monitor_gradients=True)
    other.set_params([np.zeros((3, 2))])
    other.load_parameters(tmp_path / "model.npz")
    np.testing.assert_array_equal(other.parameters.copy()["w"], WEIGHTS)


def test_a_checkpoint_has_parameters_too(mode, tmp_path):
    trainer, _ = softmax_trainer(mode)
    labels = RNG.integers(0, 2, 70)
    trainer.minimize([DATA, labels], max_epochs=1, checkpoint=Checkpoint(tmp_path / "run"))
    trained = trainer.parameters.copy()["w"]
    other, _ = softmax_trainer(mode, monitor_gradients=True)
    other.load_parameters(tmp_path / "run" / "best.npz")
    np.testing.assert_array_equal(other.parameters.copy()["w"], trained)


def test_parameters_of_another_model_change_nothing(mode, tmp_path):
    trainer, _ = softmax_trainer(mode)
    x = pt.matrix("x")
    v = pytensor.shared(np.zeros((3, 2)), name="v")
    Trainer(pt.sqr(x @ v).mean(), mode=mode).save_parameters(tmp_path / "v.npz")
    with pytest.raises(ValueError, match=r"has parameters \['v'\].*has \['w'\]"):
        trainer.load_parameters(tmp_path / "v.npz")
    w = pytensor.shared(np.zeros((3, 5)), name="w")
    Trainer(pt.sqr(x @ w).mean(), mode=mode).save_parameters(tmp_path / "w.npz")
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        trainer.load_parameters(tmp_path / "w.npz")
    (tmp_path / "broken.npz").write_bytes(b"no file of ours")
    with pytest.raises(CheckpointError):
        trainer.load_parameters(tmp_path / "broken.npz")
    np.testing.assert_array_equal(trainer.parameters.copy()["w"], WEIGHTS)


def test_data_that_do_not_fit_are_said_in_the_users_words(mode):
    trainer, probabilities = softmax_trainer(mode)
    message = r"first batch of data .* input 'x' of shape \(32, 0\) meets parameter 'w'"
    with pytest.raises(ValueError, match=message):
        trainer.predict(probabilities, DATA[:, :0])
    i = pt.lvector("i")
    with pytest.raises(ValueError, match="data, row 1: input 'i' is 3, .* 'w' has 3 entries"):
        trainer.predict(trainer.graph.params[0][i], [[0, 3]])
