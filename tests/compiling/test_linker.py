"""Graphs as functions that Numba compiles, and native code of what is called alone."""

import ast
import warnings

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numba.core import event
from numba.core.registry import cpu_target
from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.tensor.variable import TensorConstant

from downhill_rms.compiling import linker, nativecode
from downhill_rms.compiling.compiled import is_cached
from downhill_rms.compiling.modes import REWRITTEN, training_mode

X = np.linspace(-1, 2, 12, dtype="float32").reshape(4, 3)


def compiled(inputs, outputs, **options):
    return pytensor.function(inputs, outputs, mode=training_mode(REWRITTEN), **options)


class Compilations(event.Listener):
    """Counts what Numba compiles."""

    def __init__(self):
        self.count = 0

    def on_start(self, event):
        self.count += 1

    def on_end(self, event):
        pass


@pytest.fixture
def compilations():
    listener = Compilations()
    event.register("numba:compile", listener)
    yield listener
    event.unregister("numba:compile", listener)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 256, 257, 1000])
def test_no_tuple_is_longer_than_python_makes_one_at_once(length):
    names = [f"name{index}" for index in range(length)]
    tree = ast.parse(linker.nested(names))
    tuples = [node for node in ast.walk(tree) if isinstance(node, ast.Tuple)]
    assert max(len(node.elts) for node in tuples) <= linker.GROUP
    values = {name: index for index, name in enumerate(names)}
    assert list(flatten(eval(linker.nested(names), values))) == list(range(length))


def flatten(nested):
    for member in nested:
        if isinstance(member, tuple):
            yield from flatten(member)
        else:
            yield member


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_outputs_are_in_their_order(count):
    x = pt.fmatrix("x")
    function = compiled([x], [pt.cos(x) + np.float32(index) for index in range(count)])
    found = function(X)
    assert len(found) == count
    for index, values in enumerate(found):
        np.testing.assert_allclose(values, np.cos(X) + index, rtol=1e-6)


def test_outputs_may_be_inputs_or_constants_or_the_same_twice():
    x = pt.fmatrix("x")
    constant = pt.constant(np.arange(3.0))
    total = x.sum()
    found = compiled([x], [x, constant, total, total, *[pt.exp(x)] * 20])(X)
    np.testing.assert_array_equal(found[0], X)
    np.testing.assert_array_equal(found[1], np.arange(3.0))
    np.testing.assert_allclose(found[2:4], X.sum(), rtol=1e-6)
    np.testing.assert_allclose(found[4:], [np.exp(X)] * 20, rtol=1e-6)


def test_a_graph_may_give_an_operation_more_than_once():
    x = pt.dscalar("x")
    first = x + 1
    second = first * 3
    third = second - x
    last = third * first
    nodes = [v.owner for v in (first, second, first, third, last)]
    source = linker.Source([x], nodes, "repeated")
    run = source.dispatcher(f"return {source.name_of(third)}, {source.name_of(last)}")
    value = np.array(2.0)
    wanted = 3 * (2 + 1) - 2
    got = run(value)
    np.testing.assert_allclose(got[0], wanted)
    np.testing.assert_allclose(got[1], wanted * (2 + 1))


def test_updates_and_no_outputs():
    shared = [pytensor.shared(np.full(3, index, "float32")) for index in range(20)]
    compiled([], [], updates=[(variable, variable * 2 + 1) for variable in shared])()
    for index, variable in enumerate(shared):
        np.testing.assert_array_equal(variable.get_value(), np.full(3, 2 * index + 1, "float32"))


def test_nothing_to_do():
    assert compiled([], [])() == []


def of_layers(count):
    """Layers of equal operations, and random arrays for them."""
    x = pt.fmatrix("x")
    weights = [pt.fmatrix(f"w{index}") for index in range(count)]
    result = x
    for weight in weights:
        result = pt.tanh(result @ weight)
    rng = np.random.default_rng(0)
    return [x, *weights], result, rng.normal(size=(count + 1, 3, 3)).astype("float32")


def test_equal_operations_are_compiled_once(compilations):
    counts = []
    with pytensor.config.change_flags(numba__cache=False):
        for layers in (2, 3, 9):
            inputs, result, arrays = of_layers(layers)
            before = compilations.count
            found = compiled(inputs, result)(*arrays)
            counts.append(compilations.count - before)
            exact = arrays[0].astype("float64")
            for weight in arrays[1:]:
                exact = np.tanh(exact @ weight)
            np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)
    assert counts[1] == counts[2] <= counts[0]


def test_equal_operations_on_other_types_are_functions_of_their_own():
    single, double, integers = pt.fmatrix("s"), pt.dmatrix("d"), pt.lmatrix("i")
    row = pt.frow("row")
    outputs = [single + 1, double + 1, integers + 1, single + row, row + row, single + single]
    arrays = [X, X.astype("float64"), X.astype("int64"), X[:1]]
    found = compiled([single, double, integers, row], outputs)(*arrays)
    one, wide, whole, first = arrays
    exact = [one + 1, wide + 1, whole + 1, one + first, first + first, one + one]
    for got, want in zip(found, exact, strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_is_on_disk_is_not_compiled_again(compilations):
    def function():
        inputs, result, arrays = of_layers(3)
        function = compiled(inputs, [result + index for index in range(20)])
        assert is_cached(function)
        return function(*arrays)

    first = function()
    before = compilations.count
    linker._dispatchers.clear()
    np.testing.assert_array_equal(function(), first)
    assert compilations.count == before


@pytest.mark.parametrize(
    "values",
    [
        np.arange(262_144.0).reshape(-1, 4),
        np.broadcast_to(np.arange(3.0)[:, None], (3, 4)),
        np.arange(24.0).reshape(3, 8)[:, ::2],
    ],
    ids=["of_more_than_a_megabyte", "of_few_numbers_many_times", "part_of_another"],
)
def test_constants_that_are_kept_on_disk_with_the_function(values, compilations):
    x = pt.dvector("x", shape=(4,))

    def result():
        linker._dispatchers.clear()
        return compiled([x], [pt.constant(values) + x, pt.constant(values[::-1]) * x])

    for run in range(2):
        compilations.count = 0
        total, product = result()(np.arange(4.0))
        np.testing.assert_array_equal(total, values + np.arange(4.0))
        np.testing.assert_array_equal(product, values[::-1] * np.arange(4.0))
        assert run == 0 or compilations.count == 0


def test_graphs_that_differ_in_a_constant_are_told_apart():
    x = pt.fmatrix("x")
    for number in (2.0, 3.0):
        table = pt.constant(np.full((4, 3), number, "float32"))
        np.testing.assert_array_equal(compiled([x], x * table)(X), X * np.float32(number))


class InPython(Op):
    """An operation that Numba knows nothing of."""

    __props__ = ()

    def make_node(self, x):
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = np.flip(inputs[0])


def test_operations_that_run_in_python():
    x = pt.fmatrix("x")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numba will use object mode")
        function = compiled([x], [InPython()(pt.exp(x)), InPython()(x + 1)])
        found = function(X)
    assert not is_cached(function)
    np.testing.assert_allclose(found[0], np.flip(np.exp(X)), rtol=1e-6)
    np.testing.assert_array_equal(found[1], np.flip(X + 1))


def test_graphs_within_the_graph_are_linked_alike():
    x = pt.fmatrix("x")
    total = pytensor.scan(
        lambda row, total: pt.tanh(total + row.sum()),
        sequences=[x],
        outputs_info=[pt.zeros((), dtype="float32")],
        return_updates=False,
    )
    inner = pytensor.compile.builders.OpFromGraph([x], [pt.exp(x), x.sum(axis=0)])
    exponentials, sums = inner(x)
    found = compiled([x], [total, exponentials, sums, pt.switch(x.sum() > 0, x, -x)])(X)
    exact, value = [], 0.0
    for row in X.astype("float64"):
        value = np.tanh(value + row.sum())
        exact.append(value)
    np.testing.assert_allclose(found[0], exact, rtol=1e-6)
    np.testing.assert_allclose(found[1], np.exp(X), rtol=1e-6)
    np.testing.assert_allclose(found[2], X.sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found[3], X)


def test_pytensors_own_mode_is_as_it_was():
    x = pt.fmatrix("x")
    function = pytensor.function([x], x.sum(axis=0), mode="NUMBA")
    assert function.vm.jit_fn.py_func.__module__ != linker.__name__
    np.testing.assert_allclose(function(X), X.sum(axis=0), rtol=1e-6)
    assert not linker.is_linking()


def test_an_operation_that_cannot_be_linked_leaves_other_modes_alone():
    class Refused(InPython):
        pass

    def refuse(op, node, **kwargs):
        raise NotImplementedError("refused")

    linker.numba_dispatch().register(Refused)(refuse)
    x = pt.fmatrix("x")
    with pytest.raises(NotImplementedError, match="refused"):
        compiled([x], Refused()(x))
    assert not linker.is_linking()


def test_what_a_call_needs_can_be_compiled_without_a_call(compilations):
    x, shared = pt.fmatrix("x"), pytensor.shared(np.ones(3, "float32"))
    with pytensor.config.change_flags(numba__cache=False):
        function = compiled([x], [pt.exp(x), x.sum()], updates=[(shared, shared * 2)])
    function.vm.jit_fn.compile_for([X, np.ones(3, "float32")])
    before = compilations.count
    function(X)
    assert compilations.count == before
    np.testing.assert_array_equal(shared.get_value(), np.full(3, 2))


# --- Native code --------------------------------------------------------------------------------


def whole(function):
    return numba.njit(function, pipeline_class=nativecode.compiler())


def test_a_part_that_is_called_by_itself_has_native_code_as_well():
    @numba.njit
    def part(x):
        return 2 * x

    assert whole(lambda x: part(x) + 1)(3) == 7
    assert part(3) == 6


def test_a_part_that_calls_itself():
    @numba.njit
    def factorial(n):
        if n < 2:
            return 1
        return n * factorial(n - 1)

    assert whole(lambda n: factorial(n) + 1)(5) == 121
    assert factorial(5) == 120


def test_a_part_that_nobody_can_call_has_none():
    @numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
    def part(x):
        return 2 * x

    assert whole(lambda x: part(x) + 1)(3) == 7
    (overload,) = part.overloads.values()
    engine = cpu_target.target_context.codegen()._engine
    assert not engine.is_symbol_defined(overload.fndesc.llvm_cpython_wrapper_name)
    assert not overload.library._is_native


def test_a_part_that_is_in_another_function_too():
    @numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
    def part(x):
        if x < 0:
            raise ValueError("negative")
        return np.sqrt(x)

    first, second = whole(lambda x: part(x) + 1), numba.njit(lambda x: part(x) + 2)
    assert (first(4.0), second(4.0)) == (3, 4)
    for function in (first, second):
        with pytest.raises(ValueError, match="negative"):
            function(-1.0)


def test_numba_is_as_it_was_after_an_error():
    codegen = cpu_target.target_context.codegen()
    before = dict(vars(codegen))
    with pytest.raises(numba.TypingError):
        whole(lambda x: x.nothing)(3)
    assert vars(codegen) == before


def test_whether_equal_constants_are_one_is_no_difference():
    # In a graph that was read from disk they may be, or not, for the same operations.
    x, two = pt.dvector("x"), pt.constant(np.array([2.0, 3.0]))
    keys = set()
    for other in (two, TensorConstant(two.type, two.data), pt.constant(np.array([2.0, 3.5]))):
        graph = FunctionGraph([x], [(x + two) * (x - other) * x], clone=False)
        keys.add(linker.Source([x], graph.toposort(), "product").key("return"))
    assert None not in keys
    assert len(keys) == 2
