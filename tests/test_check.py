"""What ``check`` says of a problem, against what there is."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Dataset, Hyperparameters
from downhill_rms.check import check
from downhill_rms.problem import Problem

X, Y = np.zeros((50, 3)), np.zeros(50)


def line(dtype="float64", **keywords):
    """A linear regression."""
    x, y = pt.matrix("x", dtype=dtype), pt.vector("y", dtype=dtype)
    w = pytensor.shared(np.zeros((3,), dtype=dtype), name="w")
    b = pytensor.shared(np.array(0.0, dtype=dtype), name="b")
    loss = pt.sqr(x @ w + b - y).mean()
    return Problem(loss=loss, inputs=[x, y], **keywords)


def section(report, title):
    """The lines of the section whose title begins so, as words."""
    (rows,) = (rows for name, rows in report.sections.items() if name.startswith(title))
    return [row.split() for row in rows]


def test_parameters_are_counted():
    report = check(line(train=[X, Y]), Hyperparameters())
    assert section(report, "parameters (4 numbers)") == [
        ["w", "(3,)", "float64", "3"],
        ["b", "()", "float64", "1"],
    ]
    assert report.trainable


@pytest.mark.parametrize(
    ("rule", "arrays"), [({}, 2), ({"momentum": 0.9}, 3), ({"centered": False}, 1)]
)
def test_memory_is_that_of_the_parameters_and_the_accumulators(rule, arrays):
    w = pytensor.shared(np.zeros((1024, 1024), dtype="float32"), name="w")
    report = check(Problem(loss=pt.sqr(w).mean()), Hyperparameters(**rule))
    params, state = section(report, "memory")
    assert params[-2:] == ["4.0", "MiB"]
    assert [float(state[2]), state[3]] == [4.0 * arrays, "MiB"]


def test_data_are_described():
    report = check(line(train=[X, Y], valid=[X[:10], Y[:10]]), Hyperparameters(), batch_size=20)
    train, valid = (" ".join(words) for words in section(report, "data"))
    assert train == "train 50 samples 3 minibatches of 20 an epoch, the last of 10"
    assert valid.startswith("valid 10 samples 1 minibatch")
    report = check(line(train=Dataset([X, Y], batch_size=5)), Hyperparameters())
    assert "10 minibatches of 5" in " ".join(section(report, "data")[0])


def test_generators_and_monitors_are_listed():
    rng = pytensor.shared(np.random.default_rng(0), name="rng")
    w = pytensor.shared(np.zeros(3), name="w")
    noise = pt.random.normal(size=(3,), rng=rng, return_next_rng=True)[1]
    problem = Problem(loss=pt.sqr(w + noise).mean(), monitors={"|w|": abs(w).sum()})
    report = check(problem, Hyperparameters())
    assert section(report, "random generators")[0][0].startswith("rng")
    assert section(report, "monitors") == [["loss"], ["|w|"]]


def test_changed_hyperparameters_are_marked():
    report = check(line(), Hyperparameters(momentum=0.9, nesterov=True))
    rows = {words[0]: " ".join(words[1:]) for words in section(report, "hyperparameters")}
    assert rows["momentum"] == "0.9 changed from 0.0"
    assert rows["nesterov"] == "True changed from False"
    assert rows["centered"] == "True"


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (lambda: Problem(loss=3), "symbolic PyTensor scalar: received 3"),
        (lambda: Problem(loss=pt.vector("x").sum()), "at least one parameter"),
        (lambda: line(train=[X, Y[:10]]), "same number of samples"),
        (lambda: line(train=[X[:, 0], Y]), "number of dimensions"),
        (lambda: line(train=[X]), "input"),
        (lambda: line(), "--train"),
        (lambda: line(monitors={"loss": pt.scalar()}), "none of them 'loss'"),
    ],
)
def test_what_prevents_training_is_a_problem(problem, message):
    report = check(problem(), Hyperparameters())
    assert not report.trainable
    assert any(message in text for text in report.problems)


def test_a_schedule_that_is_none_prevents_training():
    report = check(line(), Hyperparameters(learning_rate=lambda t: pt.ones(3) / t))
    assert not report.trainable


def test_an_unknown_mode_prevents_training():
    report = check(line(), Hyperparameters(), mode="FAST")
    assert not report.trainable
    assert "'FAST'" in report.problems[0]


def test_a_warning_of_the_graph_is_a_problem_that_can_be_trained():
    x, y = pt.tensor("x", shape=(None, 1), dtype="float64"), pt.vector("y")
    w = pytensor.shared(np.zeros((1, 1)), name="w")
    loss, data = pt.sqr(x @ w - y).mean(), [X[:, :1], Y]
    report = check(Problem(loss=loss, inputs=[x, y], train=data), Hyperparameters())
    assert report.trainable
    assert "square matrix" in report.problems[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_problem_is_found_where_there_is_none(dtype):
    data = [X.astype(dtype), Y.astype(dtype)]
    assert check(line(dtype, train=data), Hyperparameters()).problems == []


@pytest.mark.parametrize("culprit", ["tenth", "n"])
def test_float64_among_float32_is_named(culprit):
    x, n = pt.fmatrix("x"), pt.lvector("n")
    w = pytensor.shared(np.zeros(3, dtype="float32"), name="w")
    factor = {"tenth": pt.constant(np.full(5, 0.1), name="tenth"), "n": n}[culprit]
    data = {"x": X.astype("float32"), "n": np.ones(50, "int64")}
    data = data if culprit == "n" else data["x"][:5]
    loss = pt.sqr((x @ w) * factor).mean()
    report = check(Problem(loss=loss, train=data), Hyperparameters())
    (found,) = report.problems
    assert "float64" in found
    assert culprit in found


def test_float64_parameters_for_float32_data_are_named():
    data = [X.astype("float32"), Y.astype("float32")]
    (found,) = check(line("float64", train=data), Hyperparameters()).problems
    assert "float32" in found
    assert "float64" in found


def test_lines_fit_a_terminal():
    report = check(line("float64", train=[X.astype("float32"), Y]), Hyperparameters())
    assert max(map(len, report.lines)) <= 80


def test_nothing_is_compiled(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("check compiled a function")

    monkeypatch.setattr(pytensor, "function", refuse)
    assert check(line(train=[X, Y]), Hyperparameters()).trainable
