"""Updates of shared variables in place: all that may be, and none that may not."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.aliasing import Supervisor
from pytensor.graph.destroyhandler import DestroyHandler
from pytensor.graph.features import ReplaceValidate
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.utils import InconsistencyError
from pytensor.scalar.basic import add
from pytensor.tensor.elemwise import Elemwise

from downhill_rms.compiling.inplace import QuickSupervisor
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
