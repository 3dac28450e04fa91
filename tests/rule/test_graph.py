"""What the graph reader finds, and each thing that it refuses or warns of."""

import subprocess
import sys
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Trainer
from downhill_rms.rule.graph import read_graph

X, Y = pt.matrix("x"), pt.vector("y")


def shared(value, name=None, dtype=None):
    return pytensor.shared(np.asarray(value, dtype=dtype), name=name)


def names(variables):
    return [v.name for v in variables]


def regression():
    w, b = shared(np.zeros(5), "w"), shared(0.0, "b")
    return ((X @ w + b - Y) ** 2).mean(), w, b


def test_inputs_and_parameters_come_in_order_of_first_use():
    loss, _, _ = regression()
    graph = read_graph(loss)
    assert names(graph.inputs) == ["x", "y"]
    assert names(graph.params) == ["w", "b"]


def test_order_is_the_same_in_every_process():
    """downhill walked sets, whose order changes from process to process."""
    program = (
        "import pytensor, pytensor.tensor as pt\n"
        "from downhill_rms.rule.graph import read_graph\n"
        "inputs = [pt.scalar(f'x{i}') for i in range(8)]\n"
        "params = [pytensor.shared(0.0, name=f'p{i}') for i in range(8)]\n"
        "graph = read_graph(sum(x * p for x, p in zip(inputs, params)))\n"
        "print(*(v.name for v in graph.inputs + graph.params))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": str(seed), "PYTENSOR_FLAGS": "cxx=", "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in (1, 2, 3)
    }
    expected = [f"x{i}" for i in range(8)] + [f"p{i}" for i in range(8)]
    assert outputs == {" ".join(expected)}


def test_what_is_no_parameter():
    """downhill took random generators for parameters."""
    w = shared([1.0, 2.0], "w")
    count, running = shared(3, "count"), shared(0.0, "running")
    rng = pt.random.shared_rng(seed=1, name="rng")
    _, noise = rng.normal(size=2)
    graph = read_graph(((w + noise) ** 2).sum() * count + running, updates=[(running, running + 1)])
    assert names(graph.params) == ["w"]


def test_inputs_of_monitors_come_after_those_of_the_loss():
    z = pt.scalar("z")
    loss, _, _ = regression()
    assert names(read_graph(loss, monitored=[z * Y.sum()]).inputs) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (3.0, "loss is 3.0: it is a symbolic PyTensor scalar"),
        ((X @ shared(np.ones(3), "w")), "loss is .* of 1 dimensions: .* Reduce it"),
        (shared(2, "n") * pt.iscalar("k"), "dtype int.*: it is real floating point"),
        (pt.zscalar("c") * shared(1.0, "w"), "dtype complex.*: it is real floating point"),
    ],
)
def test_losses_that_are_none(loss, message):
    with pytest.raises(TypeError, match=message):
        read_graph(loss)


def test_no_parameter():
    with pytest.raises(ValueError, match="no floating-point shared variable"):
        read_graph(X.sum())


def test_parameter_that_is_not_connected():
    loss, w, _ = regression()
    with pytest.raises(ValueError, match="'other' .* not part of the loss"):
        read_graph(loss, params=[w, shared(1.0, "other")])


def test_parameter_that_is_connected_by_its_shape_only():
    w, v = shared(np.ones(3), "w"), shared(1.0, "v")
    with pytest.raises(ValueError, match="'w' .* is not"):
        Trainer(v * w.shape[0], params=[w, v])


@pytest.mark.parametrize(
    ("param", "message"),
    [
        (shared(3, "count"), "'count' .*int64"),
        (pt.random.shared_rng(seed=1, name="rng"), "'rng' .* a random generator"),
        (X, "params has 'x' .* a parameter is a shared variable"),
        (np.ones(3), "params has .* a parameter is a shared variable"),
    ],
)
def test_things_that_are_no_parameters(param, message):
    loss, w, _ = regression()
    with pytest.raises(TypeError, match=message):
        read_graph(loss, params=[w, param])


def test_parameter_given_twice():
    loss, w, _ = regression()
    with pytest.raises(ValueError, match="params has 'w' .* twice"):
        read_graph(loss, params=[w, w])


def test_parameter_that_an_update_assigns():
    loss, w, _ = regression()
    with pytest.raises(ValueError, match="'w' .* which an update assigns too"):
        read_graph(loss, params=[w], updates=[(w, w + 1)])


def test_update_of_something_that_is_not_shared():
    loss, _, _ = regression()
    with pytest.raises(TypeError, match="updates assigns 'x'"):
        read_graph(loss, updates=[(X, X + 1)])


def test_missing_input():
    loss, _, _ = regression()
    with pytest.raises(ValueError, match="'y' .* is missing from inputs"):
        read_graph(loss, inputs=[X])


def test_unused_input_warns():
    loss, _, _ = regression()
    with pytest.warns(UserWarning, match="'z' .* is listed, but neither"):
        graph = read_graph(loss, inputs=[X, Y, pt.scalar("z")])
    assert names(graph.inputs) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([X, X, Y], ValueError, "inputs has 'x' .* twice"),
        ([X, Y, shared(1.0, "w")], TypeError, "'w' .* has a value already"),
        ([X + 1, X, Y], TypeError, "an input is a free symbolic variable"),
    ],
)
def test_things_that_are_no_inputs(inputs, error, message):
    loss, _, _ = regression()
    with pytest.raises(error, match=message):
        read_graph(loss, inputs=inputs)


def test_two_parameters_of_one_name_warn_and_are_told_apart():
    a, b = shared(1.0, "w"), shared(2.0, "w")
    with pytest.warns(UserWarning, match="two are called 'w'"):
        graph = read_graph(a**2 + b**2)
    assert graph.param_names == ("w", "w_1")


def test_unnamed_parameters_have_names():
    assert read_graph(shared(1.0) ** 2 + shared(2.0) ** 2).param_names == ("param0", "param1")


def column_minus_vector():
    w = shared(np.ones((5, 1)), "w")
    return ((X @ w - Y) ** 2).mean()


def test_column_minus_vector_warns():
    """(N, 1) - (N,) is (N, N): the regression learns nothing, silently."""
    with pytest.warns(UserWarning, match=r"column .* and a vector 'y'"):
        read_graph(column_minus_vector())


def test_column_data_minus_vector_warns_at_the_first_minibatch(mode):
    """The shape of an input is known when data arrive, before anything is compiled.

    The broadcast is refused as PyTensor would do it; the warning says what to do about it.
    """
    w, target = shared(np.ones(5), "w"), pt.matrix("target")
    trainer = Trainer(((target - X @ w) ** 2).mean(), inputs=[X, target], mode=mode)
    with (
        pytest.warns(UserWarning, match="column 'target'"),
        pytest.raises(ValueError, match=r"'target' of shape \(7, 1\) meets .* of shape \(7,\)"),
    ):
        trainer.step([np.ones((7, 5)), np.ones((7, 1))])


@pytest.mark.parametrize("name", ["c16", "float64", "int"])
def test_a_name_may_be_that_of_a_dtype(name):
    """It had ended in PyTensor's refusal of such a name for a new variable."""
    x, w = pt.dmatrix("bool"), pytensor.shared(np.ones(3), name=name)
    assert list(read_graph(pt.sqr(x @ w).mean()).param_names) == [name]


@pytest.mark.parametrize(
    "loss",
    [
        lambda: ((X @ shared(np.ones((5, 1)), "w") - Y[:, None]) ** 2).mean(),
        lambda: ((X @ shared(np.ones((5, 3)), "w") + shared(np.ones(3), "b")) ** 2).mean(),
        lambda: ((X @ shared(np.ones((5, 1)), "w") + shared(np.ones(1), "b")) ** 2).mean(),
        lambda: ((Y[:, None] - shared(np.ones(4), "centres")[None, :]) ** 2).mean(),
        lambda: (X * shared(np.ones(3), "w") - X.mean(axis=1, keepdims=True)).sum(),
        lambda: (pt.eq(Y.reshape((-1, 1)), pt.arange(4)) * shared(np.ones(4), "w")).sum(),
    ],
)
def test_broadcasts_that_are_meant_do_not_warn(loss):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_graph(loss())


def test_updates_apply_in_training_but_not_in_evaluation(mode):
    w, count = shared(1.0, "w"), shared(0, "count")
    trainer = Trainer(w**2, updates=[(count, count + 1)], mode=mode)
    trainer.step()
    trainer.evaluate(None)
    assert int(count.get_value()) == 1


def test_default_updates_apply_in_training(mode):
    w, count = shared(1.0, "w"), shared(0, "count")
    with pytest.warns(DeprecationWarning, match="default_update"):
        count.default_update = count + 1
    trainer = Trainer(w**2 * (count + 1), mode=mode)
    trainer.step()
    trainer.evaluate(None)
    trainer.step()
    assert int(count.get_value()) == 2
