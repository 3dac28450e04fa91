"""The examples, run as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from scipy.signal import correlate2d

from downhill_rms import Trainer
from downhill_rms.compiling.modes import REWRITTEN, training_mode
from examples import convnet, d2l, text, transformer

ROOT = Path(__file__).parent.parent
FAST = "cxx=,mode=FAST_COMPILE"


def run(name, *arguments, flags=FAST):
    flags = ",".join(filter(None, [os.environ.get("PYTENSOR_FLAGS"), flags]))
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", ROOT / "examples" / f"{name}.py", *arguments],
        env=dict(os.environ, PYTENSOR_FLAGS=flags, PYTHONPATH=str(ROOT), PYTHONIOENCODING="utf-8"),
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_digits_with_the_default_backend():
    """Nothing is changed here: this is PyTensor and the library as they come."""
    output = run("digits", flags="")
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", output).group(1))
    assert accuracy > 96


def test_convnet_multiplies_each_neighbourhood():
    rng = np.random.default_rng(0)
    images, filters = rng.normal(size=(2, 16, 3)), rng.normal(size=(3, 3, 3, 5))
    found = convnet.convolution(images, filters.reshape(27, 5), side=4).eval()
    for sample, filter_ in np.ndindex(2, 5):
        channels = zip(images[sample].T, filters[..., filter_].transpose(2, 0, 1), strict=True)
        wanted = sum(correlate2d(image.reshape(4, 4), f, "same") for image, f in channels)
        np.testing.assert_allclose(found[sample, :, filter_], wanted.ravel(), rtol=1e-12)


@pytest.mark.slow
def test_convnet_with_the_default_backend():
    problem = convnet.problem()
    mode = training_mode(REWRITTEN)
    trainer = Trainer(problem.loss, inputs=problem.inputs, monitors=problem.monitors, mode=mode)
    trainer.minimize(problem.train, problem.valid, learning_rate=2e-3, batch_size=32, max_epochs=3)
    assert trainer.best.monitors["error"] < 0.1


def test_quickstart():
    output = run("quickstart")
    losses = [float(v) for v in re.findall(r"loss (\d\.\d+)", output)]
    assert losses == sorted(losses, reverse=True)
    first, last = re.findall(r"'loss': ([\d.]+)", output)
    assert float(last) < float(first) / 4


def test_streaming_goes_on_in_the_middle_of_a_pass(tmp_path):
    pytest.importorskip("pyarrow", reason="the example reads Parquet files")
    output = run("streaming", "--rows", "20000", "--directory", tmp_path)
    assert re.findall(r"after (\d+) updates of Dataset.*window=(\d+)", output) == [
        ("133", "2000"),
        ("200", "2000"),
    ]
    w, b = re.search(r"w = \[(.*)\], b = (.*)", output).groups()
    np.testing.assert_allclose([*map(float, w.split()), float(b)], [0.5, -1, 2, 1], atol=0.1)


def test_step_loop():
    errors = [float(v) for v in re.findall(r"error: ([\d.]+)", run("step_loop"))]
    assert len(errors) == 20
    assert errors[-1] < errors[0] / 10


def test_pymc_advi_judges_held_out_samples():
    """A coin would have -0.69, and knowing the share of each class -0.66."""
    pytest.importorskip("pymc", reason="PyMC is not installed: it needs Python 3.12")
    output = run("pymc_advi")
    assert float(re.search(r"held out: (-[\d.]+)", output).group(1)) > -0.15
    assert output.count("+-") == 5


def test_d2l_prints_the_books_numbers(tmp_path):
    """On diabetes data in the airfoil file's form; the airfoil data are not in the project."""
    features, target = d2l.load()
    np.savetxt(tmp_path / "data.dat", np.column_stack([features, target]), delimiter="\t")
    output = run("d2l", str(tmp_path / "data.dat"))
    assert "epoch 20, x1: -0.010599, x2: 0.000000" in output
    assert output.count("gamma = ") == 4
    loss = float(re.search(r"loss: ([\d.]+)", output).group(1))
    best = np.linalg.lstsq(features, target, rcond=None)[0]
    least = np.mean((features @ best - target) ** 2) / 2
    assert least < loss < 1.1 * least


@pytest.mark.skipif("DOWNHILL_RMS_AIRFOIL" not in os.environ, reason="needs the airfoil data")
@pytest.mark.parametrize("seed", range(5))
def test_d2l_regression_on_airfoil_self_noise(seed):
    """Set DOWNHILL_RMS_AIRFOIL to the path of airfoil_self_noise.dat."""
    loss = d2l.regression(*d2l.load(os.environ["DOWNHILL_RMS_AIRFOIL"]), seed=seed)
    assert 0.242 <= loss <= 0.248


def test_text_learns_and_goes_on_where_it_was_stopped(tmp_path):
    """On a small text and network; the second call does no more than what is left."""
    (tmp_path / "text").write_text("the cat sat on the mat. a dog dug. é\n" * 300, encoding="utf-8")
    given = ["--text", tmp_path / "text", "--units", "8", "--directory", tmp_path / "run"]
    bits = []
    for epoch in (1, 2):
        output = run("text", *given, "--epochs", str(epoch))
        assert output.count("--\n") == 2  # around what was written after this epoch
        found = re.search(rf"([\d.]+) bits per letter after epoch {epoch}", output)
        bits.append(float(found.group(1)))
    assert bits[1] < bits[0]


@pytest.mark.slow
def test_text_with_the_default_backend(tmp_path):
    """Compiled and not, an epoch ends at the same loss."""
    (tmp_path / "text").write_text("the cat sat on the mat. a dog dug.\n" * 300, encoding="utf-8")
    given = ["--text", tmp_path / "text", "--units", "8", "--epochs", "1"]
    bits = [
        float(re.search(r"([\d.]+) bits per letter", run("text", *given, flags=flags)).group(1))
        for flags in (FAST, "")
    ]
    assert bits[0] == pytest.approx(bits[1], abs=2e-3)


def test_text_of_python_repeats_no_paragraph():
    paragraphs = text.python_help().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)
    assert len(text.python_help()) > 300_000


def test_text_computes_equations_7_to_11():
    """One step in NumPy float64, each gate by its formula."""
    rng = np.random.default_rng(0)
    writer = text.Writer(list("abcde"), units=3)
    for weights in (writer.x, writer.h, writer.c, writer.b):
        for variable in weights.values():
            value = rng.normal(size=variable.get_value().shape)
            variable.set_value(value.astype("float32"))
    w_x, w_h, w_c, b = (
        {gate: v.get_value().astype("float64") for gate, v in weights.items()}
        for weights in (writer.x, writer.h, writer.c, writer.b)
    )
    letters, h, c = np.array([4, 1], "int32"), rng.normal(size=(2, 3)), rng.normal(size=(2, 3))

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    one_hot = np.eye(5)[letters]
    i = sigmoid(one_hot @ w_x["i"] + h @ w_h["i"] + w_c["i"] * c + b["i"])
    f = sigmoid(one_hot @ w_x["f"] + h @ w_h["f"] + w_c["f"] * c + b["f"])
    c_t = f * c + i * np.tanh(one_hot @ w_x["c"] + h @ w_h["c"] + b["c"])
    o = sigmoid(one_hot @ w_x["o"] + h @ w_h["o"] + w_c["o"] * c_t + b["o"])
    found = pytensor.function([], writer.step(*writer.driven(letters), h, c))()
    np.testing.assert_allclose(found, [o * np.tanh(c_t), c_t], rtol=1e-5)


def test_transformer_attends_as_in_equation_1():
    """Query by query in NumPy, with the letters up to its own alone."""
    query, key, value = np.random.default_rng(0).normal(size=(3, 2, 5, 8))
    found = transformer.attention(*map(pt.as_tensor, (query, key, value)), heads=2).eval()
    for sample, place, head in np.ndindex(2, 5, 2):
        units = slice(4 * head, 4 * head + 4)
        scores = key[sample, : place + 1, units] @ query[sample, place, units] / 2
        weights = np.exp(scores) / np.exp(scores).sum()
        wanted = weights @ value[sample, : place + 1, units]
        np.testing.assert_allclose(found[sample, place, units], wanted, rtol=1e-12)


def test_transformer_normalises_each_place():
    h, scale, shift = np.random.default_rng(0).normal(size=(3, 2, 5, 8))
    found = transformer.normalised(*map(pt.as_tensor, (h, scale[0, 0], shift[0, 0]))).eval()
    centred = h - h.mean(axis=-1, keepdims=True)
    wanted = centred / np.sqrt(h.var(axis=-1, keepdims=True) + 1e-5) * scale[0, 0] + shift[0, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_transformer_does_not_look_ahead():
    """A letter is seen from its own place on, and from no place before it."""
    x, log_probability = transformer.network(np.random.default_rng(0), 10)
    function = pytensor.function([x], log_probability)
    letters = np.random.default_rng(1).integers(10, size=(1, transformer.LENGTH), dtype="int32")
    other = letters.copy()
    other[0, 40] = (letters[0, 40] + 1) % 10
    before, after = function(letters)[0], function(other)[0]
    np.testing.assert_array_equal(after[:40], before[:40])
    assert (np.abs(after[40:] - before[40:]).max(axis=1) > 1e-5).all()


def test_transformer_foretells_each_letter_once():
    x, y = transformer.windows(np.arange(3 * transformer.LENGTH + 2))
    np.testing.assert_array_equal(x.ravel(), np.arange(3 * transformer.LENGTH))
    np.testing.assert_array_equal(y, x + 1)


def test_transformer_writes_what_follows_the_last_letters():
    """From a function that is certain of the next letter, whatever stands after the last."""
    alphabet = np.array(list("abc"))
    count = 2 * transformer.LENGTH

    def function(letters):
        return np.where(np.eye(3)[(letters + 1) % 3] > 0, 0, -np.inf)

    assert transformer.write(function, alphabet, count) == ("bca" * count)[:count]


def test_transformer_is_float32():
    task = transformer.problem()
    assert task.loss.dtype == task.monitors["bits"].dtype == "float32"


@pytest.mark.slow
def test_transformer_with_the_default_backend(monkeypatch):
    """In two passes one layer learns more than how often each letter stands there."""
    monkeypatch.setattr(transformer, "LAYERS", 1)
    task = transformer.problem()
    mode = training_mode(REWRITTEN)
    trainer = Trainer(task.loss, inputs=task.inputs, monitors=task.monitors, mode=mode)
    options = {**task.options, "max_epochs": 2}
    trainer.minimize(task.train, task.valid, seed=0, **options, **task.hyperparameters)
    seen, held_out = (
        np.bincount(data[1].ravel(), minlength=200) for data in (task.train, task.valid)
    )
    frequencies = (seen + 0.1) / (seen + 0.1).sum()
    alone = -(held_out @ np.log2(frequencies)) / held_out.sum()
    assert trainer.best.monitors["bits"] < alone - 1


def test_torch_parity():
    pytest.importorskip("torch")
    differences = re.findall(r"difference (\S+)", run("torch_parity"))
    assert len(differences) == 5
    assert all(float(d) < 1e-6 for d in differences)


def test_sweep_finds_the_rate_and_its_spread():
    output = run("sweep")
    means = [float(m) for m in re.findall(r"mean loss ([\d.]+) \+-", output)]
    assert len(means) == 4
    assert means == sorted(means)
    assert means[0] < 0.75  # linear regression comes to 0.5 or so of the variance
    rates = re.findall(r"learning rate (\S+)", output)
    assert rates[-1] in ("0.0001", "0.1")
