"""A function that is compiled when it is first called."""

import logging

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms.compiling.compiled import CompiledFunction, check_mode


def test_compiled_at_first_use_and_only_then(mode, caplog):
    x, total = pt.vector("x"), pytensor.shared(0.0, name="total")
    unused = pt.scalar("unused")
    function = CompiledFunction("sum", [x, unused], [x.sum()], [(total, total + x.sum())], mode)
    assert function.function is None
    with caplog.at_level(logging.INFO, logger="downhill_rms"):
        for expected in (3.0, 6.0):
            assert function(np.ones(3), np.float64(0)) == [3.0]
            assert total.get_value() == expected
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "compiling the sum (once; PyTensor caches the result on disk)"
    assert len(messages) == 2
    assert function.function.trust_input


def test_a_function_that_fails_to_compile_can_be_tried_again(mode):
    x = pt.vector("x")
    function = CompiledFunction("sum", [], [x.sum()], [], mode)
    for _ in range(2):
        try:
            function()
        except pytensor.graph.utils.MissingInputError:
            assert function.function is None
        else:
            raise AssertionError("a function without its input was compiled")


def test_an_unknown_mode_is_refused_before_anything_is_built():
    with pytest.raises(ValueError, match=r"mode is 'FAST': .* Give one of .*NUMBA"):
        check_mode("FAST")
    for unknown in (3, [], True, object()):
        with pytest.raises(ValueError, match="mode is .* Give one of"):
            check_mode(unknown)


@pytest.mark.parametrize("known", [None, "NUMBA", "FAST_COMPILE"])
def test_known_modes_pass(known, mode):
    check_mode(known)
    check_mode(mode)
