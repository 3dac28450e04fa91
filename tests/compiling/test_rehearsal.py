"""A graph is computed uncompiled, changes nothing, and its failing operation is told."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms.compiling import evaluator, rehearse

X = pt.matrix("x")
W = pytensor.shared(np.ones(3), name="w")
NAMES = {X: "input 'x'", W: "parameter 'w'"}


def test_nothing_is_said_of_what_fits():
    assert rehearse([X], [(X @ W).sum()], [np.ones((4, 3))], NAMES) is None


def test_the_first_operation_that_fails_is_told_with_what_it_was_given():
    loss = pt.tanh((X * 2) @ W).sum()
    conflict = rehearse([X], [loss], [np.ones((4, 5))], NAMES)
    assert conflict.operation == "Dot"
    assert conflict.operands == ("Mul(x, 2) of shape (4, 5)", "parameter 'w' of shape (3,)")
    assert conflict.reason == "5 columns meet 3 rows"


def test_what_python_cannot_compute_says_nothing_of_the_data():
    class Unknown(pytensor.graph.op.Op):
        def make_node(self, x):
            return pytensor.graph.basic.Apply(self, [x], [x.type()])

        def perform(self, node, inputs, output_storage):
            raise NotImplementedError

    assert rehearse([X], [Unknown()(X).sum()], [np.ones((4, 5))], NAMES) is None


def test_neither_generators_nor_counters_advance():
    rng = pt.random.shared_rng(seed=1, name="rng")
    _, noise = rng.normal(size=3)
    count = pytensor.shared(0, name="count")
    with pytest.warns(DeprecationWarning, match="default_update"):
        count.default_update = count + 1
    before = rng.get_value().bit_generator.state
    function = evaluator([X], [(X @ (W + noise)).sum() + count])
    first, second = function(np.ones((4, 3))), function(np.ones((4, 3)))
    assert first == second
    assert rehearse([X], [(X @ (W + noise)).sum() + count], [np.ones((4, 2))], NAMES)
    assert rng.get_value().bit_generator.state == before
    assert int(count.get_value()) == 0
