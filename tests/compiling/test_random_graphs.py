"""Random graphs: every mode computes what NumPy does, and what the graph says of dtypes.

``pytest tests/compiling/test_random_graphs.py --random-graphs 500`` tries as many others.
"""

import functools

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pytensor.compile.mode import get_mode
from scipy.special import expit

from downhill_rms.compiling import pieces
from downhill_rms.compiling.modes import REWRITTEN, training_mode

FLOATS = ["float32", "float64"]
FEW = 4
ROWS = np.array([0, 3, 1, 1])  # one is named twice
NEAR = np.array([1, 0, 0, 1])


class Symbolic:
    """What the operations below are called in PyTensor."""

    tanh, exp, sigmoid, log1p = pt.tanh, pt.exp, pt.sigmoid, pt.log1p
    softplus, sqrt, maximum, where = pt.softplus, pt.sqrt, pt.maximum, pt.where
    sum, mean, cumsum = pt.sum, pt.mean, pt.cumsum

    @staticmethod
    def cast(h, dtype):
        return h.astype(dtype)

    @staticmethod
    def set_row(h, row):
        return pt.set_subtensor(h[1], row.astype(h.dtype))

    @staticmethod
    def add_to_rows(h, rows, added):
        return pt.inc_subtensor(h[rows], added.astype(h.dtype))

    @staticmethod
    def scan(step, h, state, *fixed):
        dtype = np.result_type(h.dtype, *(variable.dtype for variable in fixed)).name
        return pytensor.scan(
            step,
            sequences=[h],
            outputs_info=[pt.zeros(3, dtype=dtype)],
            non_sequences=list(fixed),
            return_updates=False,
        )


class Numeric:
    """The same in NumPy's double precision."""

    tanh, exp, sigmoid, log1p = np.tanh, np.exp, expit, np.log1p
    sqrt, maximum, where = np.sqrt, np.maximum, np.where
    sum, mean, cumsum = np.sum, np.mean, np.cumsum

    @staticmethod
    def softplus(h):
        return np.logaddexp(0, h)

    @staticmethod
    def cast(h, dtype):
        return h

    @staticmethod
    def set_row(h, row):
        return np.concatenate([h[:1], row[None], h[2:]])

    @staticmethod
    def add_to_rows(h, rows, added):
        h = h.copy()
        np.add.at(h, rows, added)
        return h

    @staticmethod
    def scan(step, h, state, *fixed):
        states = [np.zeros(3)]
        for row in h:
            states.append(step(row, states[-1], *fixed))
        return np.stack(states[1:])


def attended(m, h, o):
    return (m.tanh(h @ o.transpose(0, 2, 1)) @ h).reshape((4, 3))


# Each takes the module, the latest value h, another one o, both (4, 3), and what a model has.
OPERATIONS = {
    "tanh of a product": lambda m, h, o, g: m.tanh(h * o),
    "gate": lambda m, h, o, g: m.sigmoid(h) * o + m.tanh(h),
    "softplus": lambda m, h, o, g: m.softplus(h) - m.log1p(m.exp(-o * o)),
    "maximum": lambda m, h, o, g: m.maximum(h, o) * 0.5,
    "quotient": lambda m, h, o, g: h / (1 + o * o),
    "where": lambda m, h, o, g: m.where(h > o, m.tanh(h), o - 0.1),
    "layer": lambda m, h, o, g: h @ g["w"] + g["b"],
    "transposed layer": lambda m, h, o, g: m.tanh(h @ g["w"].T),
    "gram": lambda m, h, o, g: m.tanh(h @ o.T) @ h,
    "centred": lambda m, h, o, g: h - m.mean(h, axis=0, keepdims=True),
    "normed": lambda m, h, o, g: h / m.sqrt(1 + m.sum(o * o, axis=1, keepdims=True)),
    "summed": lambda m, h, o, g: m.tanh(h) + m.sum(m.tanh(h * o), axis=0),
    "cumulated": lambda m, h, o, g: m.tanh(m.cumsum(h, axis=0)),
    "reversed": lambda m, h, o, g: h[::-1, :] * o,
    "rows": lambda m, h, o, g: m.tanh(h[g["rows"]]) + o,
    "embedding": lambda m, h, o, g: m.tanh(g["e"][g["rows"]] * h),
    "row set": lambda m, h, o, g: m.set_row(h, m.tanh(g["b"])) * o,
    "added to rows": lambda m, h, o, g: m.add_to_rows(h, g["rows"], m.tanh(o) * m.sigmoid(h)),
    "integers": lambda m, h, o, g: h * g["rows"][:, None] + o / 2,
    "single": lambda m, h, o, g: m.tanh(m.cast(h, "float32")),
    "double": lambda m, h, o, g: m.cast(o, "float64") * 0.5 + h,
    "dropout": lambda m, h, o, g: h * (g["mask"] + 0.5),
    "batch": lambda m, h, o, g: m.tanh((h.reshape((2, 2, 3)) @ g["w"]).reshape((4, 3)) * o),
    "attention": lambda m, h, o, g: attended(m, h.reshape((2, 2, 3)), o.reshape((2, 2, 3))),
    "neighbours": lambda m, h, o, g: m.sum(
        m.tanh(h.reshape((2, 2, 3))[:, NEAR]).reshape((2, 2, 2, 3)), axis=2
    ).reshape((4, 3)),
    "recurrent": lambda m, h, o, g: m.scan(lambda x, s, w: m.tanh(x + s @ w), h, o, g["w"]),
    "scan of sums": lambda m, h, o, g: m.scan(
        lambda x, s, b: s * 0.5 + m.tanh(m.mean(x * x) + x * b), h, o, g["b"]
    ),
}
LOSSES = {
    "mean": lambda m, h: m.mean(h * h),
    "sum": lambda m, h: m.sum(m.tanh(h)),
    "norm": lambda m, h: m.sqrt(m.sum(h * h) + 1),
}
SHAPES = {"x": (4, 3), "w": (3, 3), "b": (3,), "e": (5, 3)}

graphs = st.tuples(
    st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.booleans()), min_size=1, max_size=4),
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from([("float32",) * 4, ("float64",) * 4])
    | st.tuples(*(st.sampled_from(FLOATS) for _ in SHAPES)),
)


def build(m, steps, loss, given):
    """The latest value and the loss of a random program."""
    values = [given["x"]]
    for name, first in steps:
        values.append(OPERATIONS[name](m, values[-1], values[0 if first else -1], given))
    return values[-1], LOSSES[loss](m, values[-1])


def run(mode, steps, loss, arrays):
    """Outputs and new values, by name, and what dtype the graph says of each."""
    x, rows = pt.matrix("x", dtype=arrays["x"].dtype), pt.lvector("rows")
    params = {n: pytensor.shared(a, name=n) for n, a in arrays.items() if n != "x"}
    _, mask = pt.random.shared_rng(seed=1).bernoulli(0.5, size=(4, 3))
    mask = mask.astype(x.dtype)
    h, cost = build(Symbolic, steps, loss, {"x": x, "rows": rows, "mask": mask, **params})
    gradients = pt.grad(cost, list(params.values()), disconnected_inputs="ignore")
    mean = pytensor.shared(np.zeros(3, dtype=h.dtype), name="running mean")
    outputs = {"h": h, "loss": cost, "sum": h.sum(axis=1), "max": h.max(axis=0), "mask": mask}
    outputs |= {f"gradient of {n}": g for n, g in zip(params, gradients, strict=True)}
    updates = [
        (p, p - (0.1 * g).astype(p.dtype)) for p, g in zip(params.values(), gradients, strict=True)
    ]
    updates.append((mean, (mean / 2 + h.mean(axis=0)).astype(h.dtype)))
    function = pytensor.function(
        [x, rows], list(outputs.values()), updates=updates, mode=mode, on_unused_input="ignore"
    )
    results = dict(zip(outputs, function(arrays["x"], ROWS), strict=True))
    results |= {f"new {v.name}": v.get_value() for v, _ in updates}
    dtypes = {n: v.type.dtype for n, v in outputs.items()}
    dtypes |= {f"new {v.name}": v.type.dtype for v, _ in updates}
    return {n: np.asarray(value) for n, value in results.items()}, dtypes


def check(mode, steps, loss, arrays):
    """Compare a mode with NumPy; gradients with NumPy's differences in a random direction."""
    results, dtypes = run(mode, steps, loss, arrays)
    assert {name: value.dtype.name for name, value in results.items()} == dtypes
    numbers = {n: a.astype("float64") for n, a in arrays.items()}
    numbers |= {"rows": ROWS, "mask": results["mask"]}
    evaluate = functools.partial(build, Numeric, steps, loss)
    h, cost = evaluate(numbers)
    single = "float32" in dtypes.values() or any(name == "single" for name, _ in steps)
    tolerance = 2e-4 if single else 1e-9
    wanted = {"h": h, "loss": cost, "sum": h.sum(1), "max": h.max(0), "new running mean": h.mean(0)}
    for name in ("w", "b", "e"):
        wanted[f"new {name}"] = numbers[name] - 0.1 * results[f"gradient of {name}"]
        direction = np.random.default_rng(1).normal(size=SHAPES[name])
        up, down = (
            evaluate(numbers | {name: numbers[name] + step * direction})[1]
            for step in (1e-5, -1e-5)
        )
        gradient = results[f"gradient of {name}"].astype("float64")
        scale = 1 + abs(gradient * direction).sum()
        assert abs((gradient * direction).sum() - (up - down) / 2e-5) < 1e-3 * scale, name
    for name, exact in wanted.items():
        scale = max(1, abs(exact).max())
        np.testing.assert_allclose(results[name], exact, atol=tolerance * scale, err_msg=name)


# PyTensor tells which run-time checks JAX drops, and that JAX copies generators.
@pytest.mark.filterwarnings(
    "ignore:Skipping:UserWarning", "ignore:The RandomType SharedVariables:UserWarning"
)
@pytest.mark.parametrize("mode", [REWRITTEN, "in pieces", "FAST_COMPILE", "JAX"])
def test_random_graphs(mode, request, monkeypatch):
    if mode == "JAX":
        pytest.importorskip("jax")
    if mode == "in pieces":
        mode = REWRITTEN
        monkeypatch.setattr(pieces, "SMALL", 0)
        monkeypatch.setattr(pieces, "NODES", 3)

    number = request.config.getoption("--random-graphs")

    @settings(
        max_examples=number or FEW,
        deadline=None,
        derandomize=not number,  # so that compiled code is in the cache
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs)
    def check_graph(graph):
        steps, loss, dtypes = graph
        arrays = {
            name: np.random.default_rng(i).normal(size=shape).astype(dtype)
            for i, ((name, shape), dtype) in enumerate(zip(SHAPES.items(), dtypes, strict=True))
        }
        check(get_mode(training_mode(mode)), steps, loss, arrays)

    check_graph()
