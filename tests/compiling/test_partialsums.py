"""Sums that another sum begins with are made once."""

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.fg import FunctionGraph

from downhill_rms.compiling.partialsums import SharePartialSums


def test_a_sum_of_which_another_is_a_part():
    a, b, c, d = inputs = pt.dvectors("abcd")
    outputs = [
        pt.add(c, a, d, b, d),  # d + d, and the next
        pt.add(b, a, c),  # c, and the next
        pt.add(a, b),
        pt.add(a, a, d),  # a is in none of them twice
        pt.mul(a, b, c),
    ]
    graph = FunctionGraph(inputs, outputs, clone=False)
    SharePartialSums().rewrite(graph)
    assert [len(v.owner.inputs) for v in graph.outputs] == [3, 2, 2, 3, 3]
    numbers = [np.array([float(10**k)]) for k in range(4)]
    with pytensor.config.change_flags(cxx="", mode="FAST_COMPILE"):
        values = pytensor.function(inputs, graph.outputs)(*numbers)
    assert [value[0] for value in values] == [2111, 111, 11, 1002, 1000]


def test_a_sum_that_would_have_another_type_stays():
    a, b = pt.dvector("a"), pt.tensor("b", dtype="float64", shape=(3,))
    c = pt.tensor("c", dtype="float64", shape=(None,))
    outputs = [pt.add(a, c), pt.add(a, b, c)]
    graph = FunctionGraph([a, b, c], outputs, clone=False)
    SharePartialSums().rewrite(graph)
    assert graph.outputs[1].type == outputs[1].type
