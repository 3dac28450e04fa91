"""Functions in single precision, and the mode that puts them into a compiled graph."""

import os
import re
import subprocess
import sys

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import get_mode
from scipy import special
from scipy.special import expit

from downhill_rms.compiling import float32
from downhill_rms.compiling.modes import REWRITTEN, training_mode

# In double precision, and the relative error that the docstrings promise.
FUNCTIONS = {
    "tanh": (np.tanh, 2e-7),
    "exp": (np.exp, 1.5e-7),
    "sigmoid": (expit, 2e-7),
    "log1p": (np.log1p, 2e-7),
    "softplus": (lambda x: np.logaddexp(0, x), 2e-7),
}

# Every 4099th of all float32 numbers, NaN and denormal ones included, and many near 0.
EVERYWHERE = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32).view(np.float32)
EDGES = np.array([0, np.inf, np.nan, 1, 1e-45, 1e-38, 88.72284, 103.97208, 3.4e38], dtype="float32")
X = np.concatenate([EVERYWHERE, np.linspace(-110, 110, 400_001, dtype="float32"), EDGES, -EDGES])

SMALLEST_NORMAL = np.finfo("float32").tiny


@pytest.fixture(scope="module", params=FUNCTIONS)
def computed(request):
    """A function's name, its values as compiled and in double precision."""
    compiled = numba.vectorize(["float32(float32)"])(getattr(float32, request.param))
    with np.errstate(all="ignore"):
        return request.param, compiled(X), FUNCTIONS[request.param][0](X.astype("float64"))


def test_relative_error(computed):
    name, values, exact = computed
    with np.errstate(over="ignore", invalid="ignore"):
        normal = np.isfinite(exact.astype("float32")) & (abs(exact) >= SMALLEST_NORMAL)
    error = abs(values[normal] / exact[normal] - 1)
    assert error.max() < FUNCTIONS[name][1]


def test_infinite_values_and_nans_are_where_they_should_be(computed):
    _, values, exact = computed
    with np.errstate(over="ignore", invalid="ignore"):
        exact = exact.astype("float32")
    np.testing.assert_array_equal(np.isnan(values), np.isnan(exact))
    infinite = np.isinf(exact) | np.isinf(values)
    np.testing.assert_array_equal(values[infinite], exact[infinite])


def test_denormal_values(computed):
    _, values, exact = computed
    denormal = abs(exact) < SMALLEST_NORMAL
    # 1 / (1 + exp(-x)) is 0 as soon as exp(-x) is infinite, in PyTensor's sigmoid too.
    assert abs(values[denormal] - exact[denormal]).max() < SMALLEST_NORMAL / 4


def test_zero_keeps_its_sign(computed):
    _, values, exact = computed
    zero = X == 0
    np.testing.assert_array_equal(np.signbit(values[zero]), np.signbit(exact[zero]))


def test_bounded_functions_stay_in_their_bounds_and_never_turn_back(computed):
    name, values, _ = computed
    low, high = {"tanh": (-1, 1), "sigmoid": (0, 1), "exp": (0, np.inf)}.get(
        name, (-np.inf, np.inf)
    )
    finite = np.isfinite(values)
    assert low <= values[finite].min()
    assert values[finite].max() <= high
    if name in ("tanh", "sigmoid", "exp"):
        assert np.diff(values[finite][np.argsort(X[finite])]).min() >= 0


def operations(function):
    """Names of the types of all operations of a compiled graph, inner graphs included."""
    graphs, found = [function.maker.fgraph], []
    while graphs:
        for node in graphs.pop().toposort():
            op = getattr(node.op, "scalar_op", node.op)
            found.append(type(op).__name__)
            if hasattr(op, "fgraph"):
                graphs.append(op.fgraph)
    return found


def compiled_graph(inputs, outputs, mode=REWRITTEN):
    return operations(pytensor.function(inputs, outputs, mode=training_mode(mode)))


ELEMENTWISE = {
    "Tanh": pt.tanh,
    "Exp": pt.exp,
    "Sigmoid": pt.sigmoid,
    "Log1p": pt.log1p,
    "Softplus": pt.softplus,
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_single_precision_alone_is_replaced(name):
    single, double = pt.fmatrix("single"), pt.dmatrix("double")
    function = ELEMENTWISE[name]
    found = compiled_graph([single, double], [function(single), function(double)])
    assert found.count(f"{name}32") == 1
    assert found.count(name) == 1


def test_integers_and_mixed_dtypes_are_left_alone():
    integers, single, double = pt.lmatrix("i"), pt.fmatrix("s"), pt.dmatrix("d")
    outputs = [integers @ integers, single @ double, pt.tanh(integers)]
    found = compiled_graph([integers, single, double], outputs)
    assert "PlainDot" not in found
    assert "Tanh32" not in found


def test_gradients_are_rewritten_too():
    x, w = pt.fmatrix("x"), pytensor.shared(np.ones((3, 2), dtype="float32"), name="w")
    gradient = pt.grad(pt.tanh(x @ w).sum(), w)
    found = compiled_graph([x], [gradient])
    assert found.count("PlainDot") == 2
    assert found.count("Dot") == 0
    assert "Tanh32" in found


ROWS = {
    "ordinary": [[0.5, -1, 2], [3, 3, 3]],
    "large": [[1e30, -1e30, 3e38], [200, 201, 90]],
    "signed zeros": [[0.0, -0.0, -1e-45], [-0.0, -5, -7]],
    "minus infinity": [[-np.inf, 0, 1], [-np.inf, -np.inf, 2]],
    "not finite": [[np.nan, 0, 1], [-np.inf, -np.inf, -np.inf]],
}


@pytest.mark.parametrize("function", [special.softmax, special.log_softmax])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("turned", [False, True])
def test_softmax(function, rows, turned):
    x = pt.fmatrix("x")
    own = getattr(pt.special, function.__name__)(x.T if turned else x, axis=1)
    compiled = pytensor.function([x], own, mode=training_mode(REWRITTEN))
    assert "Softmax32" in operations(compiled)
    array = np.array(rows, "float32")
    with np.errstate(all="ignore"):
        exact = function((array.T if turned else array).astype("float64"), axis=1)
    found = compiled(array)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=3e-7)


def test_softmax_of_many_rows():
    x = pt.ftensor3("x")
    outputs = [pt.special.softmax(x, axis=-1), pt.special.log_softmax(x, axis=2)]
    compiled = pytensor.function([x], outputs, mode=training_mode(REWRITTEN))
    array = np.random.default_rng(0).normal(0, 10, (3, 5, 301)).astype("float32")
    for found, function in zip(
        compiled(array), (special.softmax, special.log_softmax), strict=True
    ):
        exact = function(array.astype("float64"), axis=-1)
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=3e-7)


def test_softmax_along_another_axis_or_in_double_precision_is_left_alone():
    x, y = pt.fmatrix("x"), pt.dmatrix("y")
    outputs = [pt.special.softmax(x, axis=0), pt.special.softmax(y, axis=1)]
    assert "Softmax32" not in compiled_graph([x, y], outputs)


def test_transposed_matrices_are_multiplied_as_they_are():
    x, y = pt.fmatrix("x"), pt.fmatrix("y")
    products = [x @ y, x.T @ y, x @ y.T, x.T @ y.T]
    function = pytensor.function([x, y], products, mode=training_mode(REWRITTEN))
    assert "DimShuffle" not in operations(function)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 3)).astype("float32")
    exact = [p @ q for p in (a.astype(float), a.T.astype(float)) for q in (b, b.T)]
    for got, want in zip(function(a, b), (exact[0], exact[2], exact[1], exact[3]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_graph_inside_a_scan_is_rewritten_too():
    x, w = pt.fmatrix("x"), pt.fmatrix("w")
    h = pytensor.scan(
        lambda x, h: pt.tanh(x + h @ w),
        sequences=[x],
        outputs_info=[pt.zeros(3, dtype="float32")],
        return_updates=False,
    )
    found = compiled_graph([x, w], [h])
    assert "Scan" in found
    assert "PlainDot" in found
    assert "Tanh32" in found
    assert not {"Dot", "Tanh"} & set(found)


def test_log_of_a_sigmoid_is_stabilized_first():
    x = pt.fvector("x")
    found = compiled_graph([x], [pt.log(pt.sigmoid(x))])
    assert "Softplus32" in found
    assert "Log" not in found


def test_explicit_modes_of_compilers_are_left_as_they_are():
    mode = get_mode("FAST_RUN")
    assert training_mode("NUMBA") == "NUMBA"
    assert training_mode(mode) is mode


def test_pytensors_python_code_is_right_inside_a_scan():
    """PyTensor 3.0's own rewrites for C leave the first element of a sum of squares unsquared."""
    x, b = pt.matrix("x"), pt.scalar("b")
    sums = pytensor.scan(
        lambda row, b: pt.sqr(row * b).sum(), sequences=[x], non_sequences=[b], return_updates=False
    )
    gradient = pytensor.function([x, b], pt.grad(sums.sum(), b), mode=training_mode("FAST_COMPILE"))
    data = np.arange(1.0, 13).reshape(4, 3)
    np.testing.assert_allclose(gradient(data, 2.0), 4 * (data**2).sum(), rtol=1e-12)


def test_pytensors_default_is_rewritten():
    x = pt.fvector("x")
    with pytensor.config.change_flags(mode="Mode"):
        assert "Tanh32" in compiled_graph([x], [pt.tanh(x)], mode=None)
        assert "Tanh" in operations(pytensor.function([x], [pt.tanh(x)]))
        assert training_mode(None) is training_mode(None)


def called(function):
    """Names of everything that the compiled code of a graph calls."""
    (dispatcher,) = function.vm.jit_fn.dispatchers
    code = "\n".join(dispatcher.inspect_llvm().values())
    return set(re.findall(r"call [^\n]*?@\"?([^\s(\"]+)", code))


def compiled_by_numba(inputs, outputs, **kwargs):
    """A function of this graph, rewritten, whose compiled code can be looked at."""
    with pytensor.config.change_flags(numba__cache=False):  # code from the cache is not shown
        return pytensor.function(inputs, outputs, mode=training_mode(REWRITTEN), **kwargs)


def assert_close(got, want):
    assert got.dtype == "float32"
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 7, 33)).astype("float32")
INTEGERS = RNG.integers(-3, 4, (7, 33)).astype("int8")
WIDE_A, WIDE_B = A.astype("float64"), B.astype("float64")


def test_a_fused_loop_with_several_functions_calls_nothing():
    a, b, c, d = (pt.fmatrix(name) for name in "abcd")
    outputs = [
        pt.sigmoid(a) * c + pt.sigmoid(b) * pt.tanh(d),
        pt.log1p(pt.exp(a) + pt.exp(b)) * pt.softplus(c) * pt.softplus(d),
    ]
    function = compiled_by_numba([a, b, c, d], outputs)
    state, product = function(A, B, A, B)
    assert_close(state, expit(WIDE_A) * WIDE_A + expit(WIDE_B) * np.tanh(WIDE_B))
    softplus = np.logaddexp(0, WIDE_A) * np.logaddexp(0, WIDE_B)
    assert_close(product, np.log1p(np.exp(WIDE_A) + np.exp(WIDE_B)) * softplus)
    inside = ("composite", "store_", "tanh", "exp", "sigmoid", "log1p", "softplus")
    assert not [name for name in called(function) if any(word in name for word in inside)]


def test_a_fused_loop_of_which_a_sum_is_taken_too():
    a, b = pt.fmatrix("a"), pt.fmatrix("b")
    product = pt.tanh(a) * pt.sigmoid(b)
    function = compiled_by_numba([a, b], [product, product.sum(axis=0)])
    exact = np.tanh(WIDE_A) * expit(WIDE_B)
    for got, want in zip(function(A, B), (exact, exact.sum(axis=0)), strict=True):
        assert_close(got, want)
    assert not [name for name in called(function) if "composite" in name or "store_" in name]


def test_a_fused_loop_that_adds_to_rows_of_which_some_are_named_twice():
    """As the gradient of an embedding does."""
    a, b, rows = pt.fmatrix("a"), pt.fmatrix("b"), pt.lvector("rows")
    product = pt.tanh(a * b) * pt.sigmoid(b)
    zeros = pt.zeros((4, a.shape[1]), dtype="float32")
    total = pytensor.shared(A[:4].copy(), name="total")
    update = pt.inc_subtensor(total[rows], product)
    added = pt.inc_subtensor(zeros[rows], product)
    function = compiled_by_numba([a, b, rows], added, updates=[(total, update)])
    chosen = np.array([0, 1, 1, 3, 3, 3, 0])
    exact = np.zeros((4, 33))
    np.add.at(exact, chosen, np.tanh(WIDE_A * WIDE_B) * expit(WIDE_B))
    assert_close(function(A, B, chosen), exact)
    assert_close(total.get_value(), WIDE_A[:4] + exact)


@pytest.mark.parametrize("reduce", [pt.sum, pt.max, pt.prod], ids=["sum", "max", "prod"])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_a_fused_loop_reduced_by_any_operation(reduce, axis):
    a, b = pt.fmatrix("a"), pt.fmatrix("b")
    product = pt.tanh(a * b)
    function = compiled_by_numba([a, b], [product, reduce(product, axis=axis)])
    exact = np.tanh(WIDE_A * WIDE_B)
    for got, want in zip(function(A, B), (exact, reduce(exact, axis).eval()), strict=True):
        assert_close(got, want)


def test_a_fused_loop_broadcasts_and_takes_integers():
    a, integers, row, column = pt.fmatrix("a"), pt.bmatrix("i"), pt.fvector("r"), pt.fcol("c")
    scalar = pt.fscalar("s")
    fused = pt.tanh(a + row) * pt.sigmoid(column) + integers * pt.exp(scalar * 2) * pt.tanh(a)
    chosen = pt.switch(integers > 0, fused, pt.softplus(a) - pt.tanh(row))
    function = compiled_by_numba([a, integers, row, column, scalar], [fused, chosen > 0, chosen])
    values = function(A, INTEGERS, B[0], B[:, :1], np.float32(0.3))
    exact = np.tanh(WIDE_A + WIDE_B[0]) * expit(WIDE_B[:, :1])
    exact += INTEGERS * np.exp(2 * np.float64(np.float32(0.3))) * np.tanh(WIDE_A)
    choice = np.where(INTEGERS > 0, exact, np.logaddexp(0, WIDE_A) - np.tanh(WIDE_B[0]))
    assert_close(values[0], exact)
    assert values[1].dtype == "bool"
    np.testing.assert_array_equal(values[1], choice > 0)
    assert_close(values[2], choice)


def test_a_fused_loop_works_in_place():
    state, total = pytensor.shared(A.copy(), name="state"), pytensor.shared(B.copy(), name="total")
    x = pt.fmatrix("x")
    new_state = pt.sigmoid(x) * state + pt.tanh(x) * pt.exp(-abs(total))
    updates = [(state, new_state), (total, total + pt.tanh(new_state))]
    function = compiled_by_numba([x], [], updates=updates)
    nodes = function.maker.fgraph.apply_nodes
    assert any(getattr(node.op, "inplace_pattern", None) for node in nodes)
    function(B)
    exact = expit(WIDE_B) * WIDE_A + np.tanh(WIDE_B) * np.exp(-abs(WIDE_B))
    assert_close(state.get_value(), exact)
    assert_close(total.get_value(), WIDE_B + np.tanh(exact))


def test_a_fused_loop_inside_a_scan():
    x = pt.ftensor3("x")
    states = pytensor.scan(
        lambda x, h: pt.sigmoid(x) * h + pt.tanh(x) * pt.tanh(h),
        sequences=[x],
        outputs_info=[pt.ones((7, 33), dtype="float32")],
        return_updates=False,
    )
    function = compiled_by_numba([x], states)
    state = np.ones((7, 33))
    for step, got in zip((WIDE_A, WIDE_B), function(np.stack([A, B])), strict=True):
        state = expit(step) * state + np.tanh(step) * np.tanh(state)
        assert_close(got, state)
    assert not [name for name in called(function) if "composite" in name or "store_" in name]


SCRIPT = """
import sys
import numpy as np, pytensor, pytensor.tensor as pt
from downhill_rms.compiling.modes import REWRITTEN, training_mode

x, w = pt.fmatrix("x"), pt.fmatrix("w")
h = pt.sigmoid(x @ w)
start = pt.zeros(4, dtype="float32")
s = pytensor.scan(
    lambda h, s: pt.tanh(h + s) * pt.sigmoid(s),
    sequences=[h],
    outputs_info=[start],
    return_updates=False,
)
function = pytensor.function([x, w], [h, s], mode=training_mode(REWRITTEN))
data = np.load(sys.argv[1])
h, s = function(data["x"], data["w"])
np.savez(sys.argv[2], h=h, s=s)
"""


@pytest.mark.slow
def test_a_second_process_finds_everything_in_the_cache(tmp_path):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(5, 3)).astype("float32"), rng.normal(size=(3, 4)).astype("float32")
    np.savez(tmp_path / "data.npz", x=x, w=w)
    flags = f"base_compiledir={tmp_path / 'cache'}"
    caches = []
    for name in ("first.npz", "second.npz"):
        command = [sys.executable, "-c", SCRIPT, tmp_path / "data.npz", tmp_path / name]
        subprocess.run(command, check=True, env=os.environ | {"PYTENSOR_FLAGS": flags})
        caches.append({path.name for path in (tmp_path / "cache" / "numba").iterdir()})
        values = np.load(tmp_path / name)
        h = expit(x.astype("float64") @ w)
        np.testing.assert_allclose(values["h"], h, rtol=1e-6)
        state = np.zeros(4)
        for row, got in zip(h, values["s"], strict=True):
            state = np.tanh(row + state) * expit(state)
            np.testing.assert_allclose(got, state, rtol=1e-6)
    assert caches[0]
    assert caches[1] == caches[0]


def test_a_scan_is_given_contiguous_arrays():
    x, w = pt.ftensor3("x"), pt.fmatrix("w")
    states = pytensor.scan(
        lambda row, state: pt.tanh(row + state @ w.T),
        sequences=[x[:-1]],
        outputs_info=[pt.zeros_like(x[0])],
        return_updates=False,
    )
    found = compiled_graph([x, w], [states])
    assert found.count("Contiguous") == 2
