"""Random arguments for every public signature: a clear error that names the argument, or none.

What an argument takes is written down here a second time, apart from the package: a value is known
to be right (the call must succeed), known to be wrong (it must end in a ValueError or TypeError
whose text has the argument's name), or left open (either of the two).
"""

import inspect
import math
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from downhill_rms.history import History, HistoryFile, Record
from downhill_rms.observers import MLflow, TensorBoard
from downhill_rms.statefile import read_state, write_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import downhill_rms as dr
from downhill_rms.problem import load_problem, problem_name

X = np.random.default_rng(0).normal(size=(8, 3))
Y = X @ [1.0, -2.0, 0.5]
EXAMPLES = int(os.environ.get("BAD_CALLS", "20"))  # of each callable
RECORD = Record(1, 8, 0.5, {"loss": 2.0, "update_ratio(w)": 0.1, "at_floor(w)": 0.0}, {"loss": 3.0})


class Thing:
    """Nothing that any argument could be."""

    def __repr__(self):
        return "<thing>"


def oddities():
    """Values of kinds that hypothesis has no strategy for, made anew for every example."""
    return [
        *(10**400, -(10**400), 1j, np.float32(0.5), np.float64("nan"), np.int64(3), np.True_),
        *(np.complex64(1j), np.array(0.5), np.array([1, 2]), np.array([[0.5]]), np.array("a")),
        *(np.array([Thing()]), np.zeros((0, 3)), np.ones((2, 3)) * 1j, range(3), slice(None)),
        *(pt.scalar("s"), pt.vector("v"), pytensor.shared(0.5), pytensor.shared(np.ones(2))),
        *(pytensor.shared(np.random.default_rng(0)), pt.constant(1.0), pytensor.shared(1j)),
        *(Thing(), Thing, ..., type, len, math.sqrt, History(), np.random.default_rng(0)),
        *(lambda *_: None, lambda *_: "a", lambda *_: -1.0, lambda *_: 1.0, lambda *_: math.nan),
        *(lambda: 1.0, lambda *_: [1.0, 2.0], [len], [Thing()], [X], [X, Y[:3]], [X.T, Y], [X, X]),
        *([[X, Y]], [[X, Y[:3]]], {"x": X}, {"x": X, "y": "a"}, {1: X, 2: Y}, [(Thing(), X)]),
        *([np.array([Thing()]), Y], [[1.0, [2.0]], Y], iter([X]), (len, len), {len: 1}, b"a"),
        *(Path("there"), "a\0b", "best", "rms", "NUMBA", "stop", "loss", {"loss": len}, [None]),
    ]


TEXT = st.text(alphabet="ab0 '{é", max_size=4)  # no path leads out of the directory of the test
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-3, 12), st.floats(width=64), TEXT),
    st.complex_numbers(max_magnitude=3),
)
VALUES = st.one_of(
    *(SCALARS, st.deferred(lambda: st.sampled_from(range(len(oddities()))).map(Odd))),
    *(st.lists(SCALARS, max_size=3), st.lists(SCALARS, max_size=2).map(tuple)),
    st.dictionaries(
        st.one_of(TEXT, st.integers(0, 2), st.sampled_from("xyw")), SCALARS, max_size=2
    ),
)


class Odd:
    """One of the oddities, by its place."""

    def __init__(self, place):
        self.place = place

    def __repr__(self):
        return f"oddities()[{self.place}]"


# What an argument takes: True, False, or None where it is left open.


def anything(value):
    return None


def whatever(value):
    return True


def flag(value):
    return isinstance(value, bool | np.bool_)


def _plain(value):
    return type(value) in (int, float)


def number(low=0.0, high=math.inf, *, open_low=False, closed_high=False):
    def takes(value):
        if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0:
            return None if np.asarray(value).dtype.kind in "iuf" else False
        if not _plain(value) or value != value:
            return False
        inside = (low < value if open_low else low <= value) and value < high
        held = abs(value) < 1e308
        return (inside and held) or (closed_high and value >= high)

    return takes


def count(low=1):
    def takes(value):
        if isinstance(value, np.ndarray) and value.ndim == 0:
            return None
        kinds = int | np.integer
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value < 2**63

    return takes


def one_of(*words):
    return lambda value: isinstance(value, str) and value in words


def path(value):
    good = isinstance(value, str | Path) and "\0" not in str(value)
    return None if good else False  # what is there may be a directory, or no file of ours


def functions(value):
    if isinstance(value, str | bytes) or not hasattr(type(value), "__iter__"):
        return False
    try:
        return all(map(callable, value)) if not hasattr(value, "__next__") else None
    except TypeError:
        return False


def optional(takes):
    return lambda value: value is None or takes(value)


def text(value):
    return isinstance(value, str)


def learning_rate(value):
    if callable(value) or hasattr(value, "get_value"):
        return None
    return number()(value)


HYPERPARAMETERS = {
    "learning_rate": learning_rate,
    "rms_halflife": optional(number(open_low=True)),
    "decay": optional(number(0, 1)),
    "rms_regularizer": number(open_low=True),
    "momentum": number(0, 1),
    **dict.fromkeys(("nesterov", "centered", "bias_correction", "decoupled_weight_decay"), flag),
    "regularize": one_of("variance", "rms"),
    "initial_accumulator": number(),
    "average": optional(one_of("ema", "tail")),
    "average_halflife": number(open_low=True),
    "average_start": number(),
    "weight_decay": number(),
    **dict.fromkeys(("max_gradient_elem", "max_gradient_norm", "max_global_norm"), number()),
    "max_update": number(),
}
ITERATE = {
    "train": anything,
    "valid": anything,
    "max_updates": optional(count()),
    "max_epochs": optional(count()),
    "validate_every": count(),
    "patience": number(closed_high=True),
    "min_improvement": number(),
    "monitor": one_of("loss"),
    "higher_is_better": flag,
    "restore_best": flag,
    "on_divergence": one_of("stop", "raise", "rollback"),
    "batch_size": lambda value: None if type(value) is int else optional(count(-99))(value),
    "checkpoint": optional(path),
    "run_directory": optional(path),
    "resume": flag,
    "save_batch": flag,
    "progress": optional(flag),
    "seed": anything,
    "observers": functions,
    "updates_per_call": count(),
    **HYPERPARAMETERS,
}
TRAINER = {
    "loss": anything,
    "params": anything,
    "inputs": anything,
    "updates": anything,
    "monitors": anything,
    "monitor_gradients": flag,
    "carried": anything,
    "monitor_updates": flag,
    "mode": anything,
    "devices": anything,
    "shard_above": lambda value: value is None,
}


def model():
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(3), name="w")
    return {"loss": pt.sqr(x @ w - y).mean(), "inputs": [x, y]}


class Calls:
    """The public callables, each called with good arguments but one; ``mode`` compiles nothing."""

    def __init__(self, mode):
        self.mode = mode
        self.trainer = dr.Trainer(**model(), mode=mode)
        self.start = self.trainer.state_dict()

    def fresh(self):
        self.trainer.load_state_dict(self.start)
        self.trainer.loop.pending = {}
        return self.trainer

    def iterate(self, **bad):
        return list(
            self.fresh().iterate(**{"train": [X, Y], "max_updates": 1, "max_epochs": 1, **bad})
        )

    def minimize(self, **bad):
        return self.fresh().minimize(**{"train": [X, Y], "max_updates": 1, "max_epochs": 1, **bad})

    def minimize_at_once(self, **bad):
        return dr.minimize(
            **{
                **model(),
                "train": [X, Y],
                "max_updates": 1,
                "max_epochs": 1,
                "mode": self.mode,
                **bad,
            }
        )

    def make_trainer(self, **bad):
        return dr.Trainer(**{**model(), "mode": self.mode, **bad}).step([X, Y])

    def build(self, **bad):
        arguments = {"algo": "rmsprop", **model(), "mode": self.mode, **bad}
        return dr.build(arguments.pop("algo"), arguments.pop("loss"), **arguments)

    def step(self, **bad):
        return self.fresh().step(**{"batch": [X, Y], **bad})

    def evaluate(self, **bad):
        return self.fresh().evaluate(**{"dataset": [X, Y], **bad})

    def predict(self, **bad):
        x = self.fresh().graph.inputs[0]
        return self.trainer.predict(**{"outputs": x, "data": X, **bad})

    def get_updates(self, **bad):
        return self.fresh().get_updates(**bad)

    def updates(self, **bad):
        params = self.fresh().graph.params
        return dr.updates(**{"params": params, "gradients": [p * 1 for p in params], **bad})

    def set_hyperparameters(self, **bad):
        self.fresh().set_hyperparameters(**bad)

    def set_params(self, **bad):
        self.fresh().set_params(**{"targets": [np.ones(3)], **bad})

    def load_state_dict(self, **bad):
        self.fresh().load_state_dict(**{"state": self.start, **bad})

    def save(self, **bad):
        self.fresh().save(**{"path": "saved.npz", **bad})

    def save_parameters(self, **bad):
        self.fresh().save_parameters(**bad)

    def load_parameters(self, **bad):
        self.fresh().load_parameters(**bad)

    def load(self, **bad):
        self.fresh().load(**bad)

    def dataset(self, **bad):
        data = dr.Dataset(**{"inputs": [X, Y], **bad})
        next(iter(data))

    def sequences(self, **bad):
        data = dr.sequences(**{"series": X, "length": 2, "batch_size": 3, **bad})
        next(iter(data))

    def checkpoint(self, **bad):
        dr.Checkpoint(**{"directory": "checkpoints", **bad})

    def preset(self, **bad):
        return dr.preset("torch", **bad)

    def preset_name(self, name):
        return dr.preset(name)

    def keras(self, **bad):
        return dr.preset("keras", **bad)

    def hyperparameters(self, **bad):
        return dr.Hyperparameters(**bad)

    def learning_curves(self, **bad):
        return dr.plots.learning_curves(**{"histories": History([RECORD]), **bad})

    def decay_coefficients(self, **bad):
        return dr.plots.decay_coefficients(**bad)

    def trace_2d(self, **bad):
        good = {"function": lambda x1, x2: x1**2 + x2**2, "trace": [(1.0, 2.0), (0.0, 0.5)]}
        return dr.plots.trace_2d(**good | bad)

    def update_ratios(self, **bad):
        return dr.plots.update_ratios(**{"history": History([RECORD]), **bad})

    def to_jsonl(self, **bad):
        History([RECORD]).to_jsonl(**bad)

    def from_jsonl(self, **bad):
        History.from_jsonl(**bad)

    def to_csv(self, **bad):
        History([RECORD]).to_csv(**bad)

    def from_csv(self, **bad):
        History.from_csv(**bad)

    def history_file(self, **bad):
        with HistoryFile(**bad) as write:
            write(RECORD)

    def tensorboard(self, **bad):
        TensorBoard(**bad).close()

    def mlflow(self, **bad):
        MLflow(**{"tracking_uri": "sqlite:///mlflow.db", **bad}).close()

    def load_problem(self, **bad):
        Path("line.py").write_text("import tests.test_bad_calls as t\nloss = t.model()['loss']\n")
        return load_problem(**{"spec": "line.py", **bad})

    def problem_name(self, **bad):
        return problem_name(**bad)

    def write_state(self, **bad):
        write_state(**{"path": "state.npz", "state": {"w": X}, **bad})

    def read_state(self, **bad):
        read_state(**bad)


DATA = ("x", "y", "w", "dataset")
# For each call: the signature that it makes, what each argument takes, and what an error may name
# in place of an argument: the input that the data are for.
CALLS = {
    "iterate": (dr.Trainer.iterate, ITERATE),
    "minimize": (dr.Trainer.iterate, ITERATE),
    "minimize_at_once": (
        dr.minimize,
        {
            **{k: v for k, v in ITERATE.items() if k != "observers"},
            **TRAINER,
            "algo": one_of("rmsprop"),
            "train_batches": optional(count()),
            "valid_batches": anything,
        },
    ),
    "make_trainer": (dr.Trainer, TRAINER),
    "build": (dr.build, {"algo": one_of("rmsprop"), **TRAINER}),
    "step": (dr.Trainer.step, {"batch": anything, **HYPERPARAMETERS}),
    "evaluate": (dr.Trainer.evaluate, {"dataset": anything}),
    "predict": (
        dr.Trainer.predict,
        {
            "outputs": anything,
            "data": anything,
            "progress": optional(flag),
            "batch_size": optional(count(-math.inf)),
        },
    ),
    "get_updates": (dr.Trainer.get_updates, {"batch_size": whatever, **HYPERPARAMETERS}),
    "updates": (dr.updates, {"params": anything, "gradients": anything, **HYPERPARAMETERS}),
    "set_hyperparameters": (dr.Trainer.set_hyperparameters, HYPERPARAMETERS),
    "set_params": (dr.Trainer.set_params, {"targets": anything}),
    "load_state_dict": (dr.Trainer.load_state_dict, {"state": anything, "changed": flag}),
    "save": (dr.Trainer.save, {"path": path}),
    "load": (dr.Trainer.load, {"path": path}),
    "save_parameters": (dr.Trainer.save_parameters, {"path": path}),
    "load_parameters": (dr.Trainer.load_parameters, {"path": path}),
    "dataset": (
        dr.Dataset,
        {
            "inputs": anything,
            "name": optional(text),
            "batch_size": count(-math.inf),
            "iteration_size": optional(count()),
            "axis": anything,
            "rng": lambda value: False if isinstance(value, str | float | bool) else None,
            "shuffle": optional(one_of("samples", "batches")),
            "prefetch": count(0),
            "window": optional(count()),
            "local": lambda value: None if flag(value) else False,
        },
    ),
    "sequences": (
        dr.sequences,
        {
            "series": anything,
            "length": count(),
            "batch_size": lambda value: False if not count()(value) else None,
            "name": optional(text),
            "axis": anything,
            "prefetch": count(0),
        },
    ),
    "checkpoint": (
        dr.Checkpoint,
        {
            "directory": path,
            "every_updates": optional(count()),
            "every_epochs": anything,
            "every_seconds": optional(number(open_low=True)),
            "keep": count(),
        },
    ),
    "preset_name": (dr.preset, {"name": anything}),
    "preset": (
        dr.presets.torch,
        {
            "lr": number(),
            "alpha": number(0, 1),
            "eps": number(open_low=True),
            "weight_decay": number(),
            "momentum": number(0, 1),
            "centered": flag,
            "capturable": flag,
            "foreach": optional(flag),
            "maximize": lambda v: v is False or v is np.False_,
            "differentiable": lambda v: v is False or v is np.False_,
        },
    ),
    "keras": (
        dr.presets.keras,
        {
            "learning_rate": number(),
            "rho": number(0, 1),
            "epsilon": number(open_low=True),
            "weight_decay": optional(number()),
            "momentum": number(0, 1),
            "centered": flag,
            **dict.fromkeys(("clipnorm", "clipvalue", "global_clipnorm"), optional(number())),
            "use_ema": lambda v: v is False or v is np.False_,
            "ema_momentum": anything,
            "ema_overwrite_frequency": anything,
            "name": anything,
            **{
                n: lambda v: v is None for n in ("loss_scale_factor", "gradient_accumulation_steps")
            },
        },
    ),
    "hyperparameters": (dr.Hyperparameters, HYPERPARAMETERS),
    "learning_curves": (
        dr.plots.learning_curves,
        {
            "histories": anything,
            "monitors": anything,
            "ax": lambda v: v is None,
            "colour_by": anything,
        },
    ),
    "decay_coefficients": (
        dr.plots.decay_coefficients,
        {"decays": anything, "steps": count(), "ax": lambda v: v is None},
    ),
    "trace_2d": (
        dr.plots.trace_2d,
        {"function": anything, "trace": anything, "names": anything, "ax": lambda v: v is None},
    ),
    "update_ratios": (dr.plots.update_ratios, {"history": anything, "ax": lambda v: v is None}),
    **{name: (getattr(History, name), {"path": path}) for name in ("to_jsonl", "from_jsonl")},
    **{name: (getattr(History, name), {"path": path}) for name in ("to_csv", "from_csv")},
    "history_file": (HistoryFile, {"path": path}),
    "tensorboard": (TensorBoard, {"directory": path}),
    "load_problem": (load_problem, {"spec": anything, "seed": optional(count(0))}),
    "problem_name": (problem_name, {"spec": anything}),
    "write_state": (write_state, {"path": path, "state": anything, "metadata": anything}),
    "read_state": (read_state, {"path": path}),
}
# Not that of the array or batch, but of the input, the parameter or the dataset's part.
ALSO = {
    **dict.fromkeys(("train", "valid", "dataset", "inputs", "batch", "targets"), DATA),
    **dict.fromkeys(("data", "outputs"), DATA),
    "state": ("w", "signature"),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_argument_is_called_badly(call):
    function, arguments = CALLS[call]
    named = inspect.signature(function).parameters.values()
    simple = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = {p.name for p in named if p.kind not in simple} - {"self"}
    assert known <= {*arguments, "observers"}


@pytest.mark.parametrize("call", CALLS)
def test_bad_calls_end_in_errors_that_name_the_argument(call, mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = Calls(mode)
    arguments = CALLS[call][1]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(arguments)), VALUES)
    def check(argument, value):
        if isinstance(value, Odd):
            value = oddities()[value.place]
        verdict = arguments[argument](value)
        error = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                getattr(calls, call)(**{argument: value})
        except (TypeError, ValueError) as caught:
            error = caught
        told = f"{argument}={value!r}: {type(error).__name__}: {error}"
        if error is not None:
            names = "|".join((argument, *ALSO.get(argument, ())))
            missing = arguments[argument] is path and str(value) in str(error)
            own = callable(value) and argument in ALSO  # what a callable of the user's raises
            assert own or missing or re.search(rf"\b({names})\b", str(error)), told
        assert verdict is None or verdict is (error is None), told

    check()
