"""Operations in place: all that may be, and none that may not."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.aliasing import Supervisor
from pytensor.compile.mode import Mode
from pytensor.graph.destroyhandler import DestroyHandler
from pytensor.graph.features import ReplaceValidate
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.utils import InconsistencyError
from pytensor.link.vm import VMLinker
from pytensor.scalar.basic import add
from pytensor.tensor.elemwise import Elemwise

from downhill_rms.compiling import pieces
from downhill_rms.compiling.inplace import OverwriteLastRead, QuickSupervisor
from downhill_rms.compiling.internals import IN_PLACE
from downhill_rms.compiling.modes import REWRITTEN, training_mode

OVERWRITE = Elemwise(add, {0: 0})


def shared(*values):
    return [pytensor.shared(np.full(3, value, "float32")) for value in values]


def compiled(updates, inputs=()):
    return pytensor.function(
        list(inputs), [], updates=updates, mode=training_mode(REWRITTEN), trust_input=True
    )


def overwritten(function):
    """Which inputs are overwritten."""
    graph = function.maker.fgraph
    return {
        graph.inputs.index(node.inputs[index])
        for node in graph.apply_nodes
        for indices in node.op.destroy_map.values()
        for index in indices
        if node.inputs[index] in graph.inputs
    }


def test_all_updates_work_in_place():
    variables = shared(*range(30))
    x = pt.fvector("x")
    updates = [(variable, 2 * variable - pt.exp(x)) for variable in variables]
    function = compiled(updates, [x])
    assert len(overwritten(function)) == 30
    before = [variable.get_value(borrow=True) for variable in variables]
    function(np.zeros(3, "float32"))
    for index, (variable, array) in enumerate(zip(variables, before, strict=True)):
        np.testing.assert_array_equal(variable.get_value(borrow=True), np.full(3, 2 * index - 1))
        assert np.shares_memory(variable.get_value(borrow=True), array)


def test_updates_that_need_each_others_old_values_do_not_work_in_place_both():
    a, b, *others = shared(1, 2, 3, 4, 5, 6)
    updates = [(a, a + 2 * b), (b, b + 3 * a), *((other, other * 2) for other in others)]
    function = compiled(updates)
    function()
    np.testing.assert_array_equal(a.get_value(), np.full(3, 5))
    np.testing.assert_array_equal(b.get_value(), np.full(3, 5))
    for index, other in enumerate(others):
        np.testing.assert_array_equal(other.get_value(), np.full(3, 2 * (index + 3)))
    assert len(overwritten(function)) >= 4


def test_an_update_of_whose_shape_more_is_known():
    (variable,) = shared(1)
    x = pt.tensor("x", dtype="float32", shape=(3,))
    function = compiled([(variable, variable + 2 * x)], [x])
    assert len(overwritten(function)) == 1
    function(np.ones(3, "float32"))
    np.testing.assert_array_equal(variable.get_value(), np.full(3, 3))
    variable.set_value(np.zeros(1, "float32"))
    with pytest.raises(ValueError, match=r"shape|dimension"):
        function(np.ones(3, "float32"))


def test_an_update_from_another_update():
    x = pt.fvector("x")
    velocity, weight = shared(1, 10)
    faster = 2 * velocity + x
    total = faster.sum()  # keeps both from being fused into one loop
    function = compiled([(velocity, faster), (weight, weight - faster * total)], [x])
    assert len(overwritten(function)) == 2
    function(np.ones(3, "float32"))
    np.testing.assert_array_equal(velocity.get_value(), np.full(3, 3))
    np.testing.assert_array_equal(weight.get_value(), np.full(3, 10 - 3 * 9))


def test_an_update_whose_old_value_is_an_output():
    (a,) = shared(1)
    function = pytensor.function([], [a], updates=[(a, a + 1)], mode=training_mode(REWRITTEN))
    np.testing.assert_array_equal(function()[0], np.ones(3))
    np.testing.assert_array_equal(a.get_value(), np.full(3, 2))


def test_inputs_of_the_caller_are_not_overwritten():
    x = pt.fvector("x")
    function = pytensor.function([x], x * 2 + 1, mode=training_mode(REWRITTEN))
    array = np.ones(3, "float32")
    np.testing.assert_array_equal(function(array), np.full(3, 3))
    np.testing.assert_array_equal(array, np.ones(3))


@pytest.mark.parametrize("kind", [Supervisor, QuickSupervisor])
def test_the_quick_supervisor_refuses_what_pytensors_refuses(kind):
    x, y, z = pt.fvector("x"), pt.fvector("y"), pt.fvector("z")
    total = y + z
    product = total * x
    graph = FunctionGraph([x, y, z], [product, x[::-1] + y], clone=False)
    for feature in (DestroyHandler(), ReplaceValidate(), kind([x])):
        graph.attach_feature(feature)
    graph.validate()
    # Of an input that may be overwritten.
    graph.replace_all_validate([(total, OVERWRITE(z, y))])
    # Of one that may not, by itself or through a view, and of an output.
    with pytest.raises(InconsistencyError):
        graph.replace_all_validate([(product, OVERWRITE(x, y))])
    with pytest.raises(InconsistencyError):
        graph.replace_all_validate([(product, OVERWRITE(x[1:], y[1:]))])
    with pytest.raises(InconsistencyError):
        graph.replace_all_validate([(graph.outputs[1], OVERWRITE(product, y))])
    graph.validate()
    assert graph.outputs[0] is product


def chain(lib, x):
    return [lib.tanh(lib.exp(x) + 1)]


def read_later(lib, x):
    a = lib.exp(x)
    return [(a + 1) @ a]


def read_later_through_a_view(lib, x):
    a = lib.exp(x)
    return [(a + 1) @ a.T]


def output(lib, x):
    a = lib.exp(x)
    return [a, a * 2]


def view_that_is_an_output(lib, x):
    a = lib.exp(x)
    return [a.T, a * 2]


def twice(lib, x):
    a = lib.exp(x)
    return [a + a.T]


def part(lib, x):
    return [lib.exp(x)[1:] * 2]


def other_type(lib, x):
    return [lib.exp(x).astype("float32") * 2]


def input_of_the_caller(lib, x):
    return [x.T * 2]


def fork(lib, x):
    a, b = lib.exp(x), lib.tanh(x)
    return [lib.tanh(b * a) + b]


@pytest.mark.parametrize(
    ("build", "number"),
    [
        (chain, 2),
        (read_later, 0),
        (read_later_through_a_view, 0),
        (output, 0),
        (view_that_is_an_output, 0),
        (twice, 0),
        (part, 1),
        (other_type, 1),
        (input_of_the_caller, 0),
        (fork, 3),
    ],
)
def test_what_is_read_for_the_last_time_is_overwritten(build, number, monkeypatch):
    monkeypatch.setattr(pieces, "SMALL", 0)
    x = pt.dmatrix("x")
    mode = Mode(VMLinker(use_cloop=False, c_thunks=False), None)
    function = pytensor.function(
        [x], build(pt, x), mode=mode.register((OverwriteLastRead(), IN_PLACE))
    )
    nodes = function.maker.fgraph.apply_nodes
    assert sum(len(node.op.destroy_map) for node in nodes) == number
    array = np.random.default_rng(0).normal(size=(3, 3))
    for got, wanted in zip(function(array.copy()), build(np, array), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_rewriting_asks_about_the_whole_graph_as_often_for_many_layers(monkeypatch):
    """It had asked after each of a network's operations."""
    monkeypatch.setattr(pieces, "SMALL", 40)
    asked = []
    monkeypatch.setattr(
        DestroyHandler,
        "orderings",
        lambda self, *args, asks=DestroyHandler.orderings, **kwargs: (
            asked.append(0) or asks(self, *args, **kwargs)
        ),
    )

    def count(layers):
        asked.clear()
        x, weights = (
            pt.fmatrix("x"),
            [pytensor.shared(np.eye(3, dtype="float32")) for _ in range(layers)],
        )
        h = x
        for weight in weights:
            h = pt.tanh(h @ weight)
        gradients = pt.grad((h**2).sum(), weights)
        updates = [(w, w - g) for w, g in zip(weights, gradients, strict=True)]
        compiled(updates, [x])
        return len(asked)

    with pytensor.config.change_flags(
        numba__cache=False
    ):  # where one of them may be found rewritten
        assert count(16) == count(32)
