"""What ``check`` says of a problem, against what there is."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Dataset, Hyperparameters, preset
from downhill_rms.command.check import check
from downhill_rms.compiling import threads
from downhill_rms.compiling.machine import loaded_openblas
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


def test_scalars_among_data_are_described():
    x, y = pt.fmatrix("x"), pt.fvector("y")
    rate, beta, gamma = pt.fscalar("rate"), pt.fscalar("beta"), pt.fscalar("gamma")
    w = pytensor.shared(np.zeros(3, dtype="float32"), name="w")
    loss = pt.sqr(x @ w * rate - y).mean() + beta * pt.sqr(w).sum() + gamma * w.sum()
    inputs = [x, y, rate, beta, gamma]
    train = [X, Y, 0.5, pytensor.shared(0.25, name="b"), lambda epoch: 1 + epoch]
    problem = Problem(loss=loss, inputs=inputs, train=train, valid=[X, Y, 0.5, 0.25, 1])
    report = check(problem, Hyperparameters())
    assert report.trainable
    assert report.problems == []
    found = [" ".join(words) for words in section(report, "inputs")]
    assert found[2] == "'rate' (0-dimensional float32) the number 0.5"
    assert found[3] == "'beta' (0-dimensional float32) shared variable b, now 0.25"
    assert found[4] == "'gamma' (0-dimensional float32) function of the epoch, 1 for epoch 0"
    assert section(report, "data")[0][:3] == ["train", "50", "samples"]
    report = check(Problem(loss=loss, inputs=inputs, train=train), Hyperparameters())
    (problem_found,) = report.problems
    assert problem_found.startswith("train feeds 'gamma' (0-dimensional float32) from a function")


@pytest.mark.parametrize(("size", "updates"), [(None, "one update"), (5, "5 updates")])
@pytest.mark.parametrize("data", [None, {"beta": 0.5}])
def test_an_epoch_without_samples_is_described(data, size, updates):
    w, beta = pytensor.shared(1.0, name="w"), pt.scalar("beta")
    loss = pt.sqr(w - beta) if data else pt.sqr(w)
    problem = Problem(loss=loss, train=Dataset(data, iteration_size=size))
    words = " ".join(section(check(problem, Hyperparameters()), "data")[0])
    assert words == f"train none needed an epoch is {updates}"


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
        (lambda: Problem(loss=3), "loss is 3: it is a symbolic PyTensor scalar"),
        (lambda: Problem(loss=pt.vector("x").sum()), "there is no parameter to train"),
        (lambda: line(train=[X, Y[:10]]), "same number of samples"),
        (lambda: line(train=[X[:, 0], Y]), "number of dimensions"),
        (lambda: line(train=[X]), "input"),
        (lambda: line(), "--train"),
        (lambda: line(monitors={"loss": pt.scalar()}), "monitors has 'loss' again"),
    ],
)
def test_what_prevents_training_is_a_problem(problem, message):
    report = check(problem(), Hyperparameters())
    assert not report.trainable
    assert any(message in text for text in report.problems)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([X[:, :2], Y], r"input 'x' of shape (32, 2) meets parameter 'w' of shape (3,) in Dot"),
        ([X[:, :0], Y], r"input 'x' of shape (32, 0) meets parameter 'w' of shape (3,) in Dot"),
        ([X * np.nan, Y], "train, row 0, column 0 of input 'x' is nan"),
        ([np.ma.masked_less(X, 1), Y], "150 of 150 values for 'x'"),
        (
            [(X[:, :2], Y)],
            "batch 0 of train does not fit the loss: input 'x' of shape (50, 2)",
        ),
    ],
)
def test_data_that_do_not_fit_prevent_training(train, message):
    report = check(line(train=train), Hyperparameters())
    assert not report.trainable
    assert any(message in text for text in report.problems), report.problems


def test_labels_out_of_range_prevent_training():
    x, y = pt.matrix("x"), pt.lvector("y")
    w = pytensor.shared(np.zeros((3, 2)), name="w")
    loss = pt.log(pt.special.softmax(x @ w, axis=1))[pt.arange(y.shape[0]), y].mean()
    train = [X, np.arange(50) // 49 * 2]
    report = check(Problem(loss=loss, inputs=[x, y], train=train), Hyperparameters())
    assert not report.trainable
    assert any("train, row 49: input 'y' is 2" in text for text in report.problems)


def test_a_schedule_that_is_none_prevents_training():
    report = check(line(), Hyperparameters(learning_rate=lambda t: pt.ones(3) / t))
    assert not report.trainable


def test_an_unknown_mode_prevents_training():
    report = check(line(), Hyperparameters(), mode="FAST")
    assert not report.trainable
    assert "'FAST'" in report.problems[0]


def test_a_warning_of_the_graph_is_a_problem_that_can_be_trained():
    x, y = pt.tensor("x", shape=(None, 1), dtype="float64"), pt.vector("y")
    w = pytensor.shared(np.zeros((1, 1)), name="w", shape=(1, 1))
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
    function = pytensor.function

    def refuse(*arguments, mode=None, **keywords):
        assert not mode.linker.c_thunks
        assert pytensor.config.cxx == ""
        return function(*arguments, mode=mode, **keywords)

    monkeypatch.setattr(pytensor, "function", refuse)
    assert check(line(train=[X, Y]), Hyperparameters()).trainable


def layers(**changes):
    """Float32 throughout but for what is changed: input, mask, bias, factor."""
    x = changes.get("x", pt.fmatrix("x"))
    w = pytensor.shared(np.zeros((3, 2), dtype="float32"), name="w")
    b = pytensor.shared(np.array(0.0, dtype=changes.get("bias", "float32")), name="b")
    h = (x * changes.get("mask", np.float32(1))) @ w + b
    loss = changes.get("loss", lambda x, h, w: pt.sqr(h).mean())(x, h, w)
    return Problem(loss=loss, train=[np.zeros((8, 3), dtype="float32")])


def draw(dtype):
    rng = pt.random.shared_rng(seed=0, name="rng")
    return rng.bernoulli(p=0.5, size=(3,))[1].astype(dtype)


@pytest.mark.parametrize(
    ("changes", "beginnings"),
    [
        ({}, []),
        ({"mask": draw("float32")}, []),
        ({"mask": draw("int64")}, ["Cast bernoulli(rng, "]),  # a mask is int64 unless it is cast
        ({"x": pt.dmatrix("x")}, ["Make x float32"]),
        ({"bias": "float64"}, ["Make b float32"]),
        ({"bias": "float64", "mask": draw("int64")}, ["Cast bernoulli(rng, ", "Make b float32"]),
        ({"loss": lambda x, h, w: (h * 0.1).mean()}, ["Write 0.1 as np.float32"]),
        ({"loss": lambda x, h, w: (h * 0.5).mean(axis=0).std()}, []),
        ({"loss": lambda x, h, w: (h / x.shape[0]).sum()}, ["Cast Subtensor(Shape(x), 0)"]),
        ({"loss": lambda x, h, w: h.sum() / x.shape[0]}, []),  # a scalar: free
        ({"loss": lambda x, h, w: h.mean() + 0.1 * pt.sqr(w).sum()}, []),
        ({"loss": lambda x, h, w: h.astype("float64").mean()}, ["Cast Cast(Add("]),
        ({"loss": lambda x, h, w: pt.sqr(h - pt.zeros_like(h)).mean()}, []),
    ],
)
def test_everything_that_makes_float64_of_float32_is_named_once(changes, beginnings):
    found = check(layers(**changes), Hyperparameters()).problems
    assert [text[: len(b)] for text, b in zip(found, beginnings, strict=True)] == beginnings


def test_float64_for_float64_data_is_meant():
    assert check(line("float64", train=[X, Y]), Hyperparameters()).problems == []


def test_an_expression_of_any_depth_has_a_short_name():
    """Each level uses the one before twice: written out, there would be 2**60 names."""
    x = pt.fmatrix("x")
    w = pytensor.shared(np.zeros((3, 3), dtype="float32"), name="w")
    h = x @ w
    for _ in range(60):
        h = h + pt.tanh(h)
    loss = (h * np.arange(3.0)).mean()
    (found,) = check(
        Problem(loss=loss, train=[np.zeros((5, 3), "float32")]), Hyperparameters()
    ).problems
    assert len(found) < 250


def test_the_first_of_ready_batches_is_looked_at():
    problem = line(train=lambda: [X[:7], Y[:7]], options={"batch_size": 7})
    report = check(problem, Hyperparameters())
    assert " ".join(section(report, "data")[0]).startswith("train 7 samples in the first batch")
    assert not check(line(train=lambda: [X[:7, 0], Y[:7]]), Hyperparameters()).trainable


def test_the_data_show_what_broadcasts():
    """Neither the types nor the parameters tell that the prediction is a column.

    PyTensor repeats no column that does not say so: what is one by chance ends training.
    """
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(1.0, name="w")
    loss = pt.sqr(x * w - y).mean()
    square = check(
        Problem(loss=loss, train=[np.zeros((50, 50)), Y]), Hyperparameters(), batch_size=50
    )
    assert square.trainable
    assert not square.problems
    column = check(Problem(loss=loss, train=[X[:, :1], Y]), Hyperparameters())
    assert not column.trainable
    assert "input 'y' of shape (32,) in Sub: a length of 1 is repeated" in column.problems[0]
    assert "broadcast to a square matrix" in column.problems[1]


@pytest.mark.parametrize("error", [OSError("disk gone"), ValueError("bad\nrow")])
def test_an_error_of_the_users_data_is_a_problem(error):
    def batch():
        raise error

    report = check(line(train=batch), Hyperparameters())
    (found,) = report.problems
    assert not report.trainable
    assert found == ("bad row" if isinstance(error, ValueError) else "OSError: disk gone")


def test_a_parameter_without_a_gradient_prevents_training():
    w, v = (pytensor.shared(np.zeros(3), name=name) for name in "wv")
    loss = (w * pt.floor(v).shape[0]).sum()
    report = check(Problem(loss=loss, params=[w, v]), Hyperparameters())
    assert not report.trainable
    assert "'v'" in report.problems[0]


def test_a_regularizer_that_float32_cannot_hold_prevents_training():
    data = [X.astype("float32"), Y.astype("float32")]
    for epsilon, trainable in ((1e-60, False), (1e-8, True)):
        report = check(line("float32", train=data), Hyperparameters(rms_regularizer=epsilon))
        assert report.trainable == trainable


@pytest.mark.parametrize("clip", ["max_gradient_elem", "max_gradient_norm", "max_global_norm"])
def test_clips_are_no_problem(clip):
    assert check(line(train=[X, Y]), Hyperparameters(**{clip: 1.0})).problems == []


def test_a_check_leaves_the_order_and_the_values_as_they_are():
    data = Dataset([X, Y], rng=3)
    before = data.sampler.state_dict()
    problem = line(train=data)
    assert check(problem, Hyperparameters()).trainable
    assert data.sampler.state_dict() == before


def test_the_tiered_mode_is_judged_as_numba():
    problem = line(train=[X, Y])
    tiered, numba = (check(problem, Hyperparameters(), mode=m) for m in ("tiered", "NUMBA"))
    assert tiered.trainable
    # The first line is of threads, which loops in PyTensor's own mode have not.
    assert tiered.machine[1:] == numba.machine[1:]


def test_what_computes_is_told(monkeypatch):
    problem = line(train=[X, Y])
    blas = loaded_openblas()
    first = check(problem, Hyperparameters(), mode="NUMBA").machine[0]
    if blas is None:
        assert first.startswith("Matrix products: not by OpenBLAS")
    else:
        assert first.startswith(f"Matrix products: OpenBLAS, {blas.kernel} kernels, ")
        assert first.endswith("Loops over large arrays: one thread.")
        if threads.are_shared():
            number = min(blas.threads, threads.most_threads())
            expected = "one thread" if number == 1 else f"{number} threads"
            found = check(problem, Hyperparameters(), mode="tiered").machine[0]
            assert found.endswith(f"Loops over large arrays: {expected}.")
    monkeypatch.setenv("DOWNHILL_RMS_THREADS", "some")
    report = check(problem, Hyperparameters(), mode="tiered")
    assert not report.trainable
    assert any("DOWNHILL_RMS_THREADS=some" in text for text in report.problems)


def sequence_loss(reduce):
    x, w = pt.tensor3("x"), pytensor.shared(np.zeros(2), name="w")
    return reduce(pt.sqr(x @ w - 1)) + 0.1 * pt.sqr(w).sum()


@pytest.mark.parametrize(
    ("reduce", "rule", "pointed_out"),
    [
        (lambda e: e.mean(), preset("graves", learning_rate=1e-3), True),
        (lambda e: -(-e).mean(), preset("graves"), True),
        (lambda e: e.sum(axis=0).mean(), preset("graves"), False),
        (lambda e: (-e.sum(axis=0)).mean(), preset("graves"), False),
        (lambda e: e.sum(), preset("graves"), False),
        (lambda e: e.mean(), preset("downhill"), False),
    ],
)
def test_graves_regularizer_with_a_mean_over_time_is_pointed_out(reduce, rule, pointed_out):
    problem = Problem(loss=sequence_loss(reduce), train=[np.ones((5, 4, 2))])
    report = check(problem, rule)
    assert any("summed over time" in text for text in report.problems) == pointed_out
    assert report.trainable
