"""PyTensor's last fusions in a large graph: the same ones, and none that are not allowed."""

from collections import Counter

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import get_mode
from pytensor.graph.destroyhandler import DestroyHandler
from pytensor.graph.features import ReplaceValidate
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.graph.utils import InconsistencyError
from pytensor.scalar.basic import add
from pytensor.tensor.elemwise import Elemwise

from downhill_rms.compiling import pieces
from downhill_rms.compiling.fusing import FuseTogether
from downhill_rms.compiling.internals import BEFORE_FUSION, last_fusions


@pytest.fixture(autouse=True)
def _every_graph_is_large(monkeypatch):
    monkeypatch.setattr(pieces, "SMALL", 0)


class Note(GraphRewriter):
    """Notes the operations of a graph, by their kinds."""

    def apply(self, fgraph):
        self.found = kinds(fgraph)


def kinds(fgraph):
    return Counter(type(node.op).__name__ for node in fgraph.apply_nodes)


def embedding():
    """An update of rows that indices choose, with sums and numbers."""
    table = pytensor.shared(np.ones((5, 3)), name="table")
    rows = pt.ivector("rows")
    chosen = pt.tanh(table[rows]) * 2
    loss = chosen.sum() / rows.size
    gradient = pt.grad(loss, table)
    return [rows], [loss, pt.exp(chosen).sum()], [(table, table - gradient / (1 + abs(loss)))]


@pytest.mark.skipif(not last_fusions(get_mode("NUMBA")), reason="this PyTensor has no last fusions")
def test_what_is_fused_together_is_what_pytensor_fuses():
    inputs, outputs, updates = embedding()
    numba, note = get_mode("NUMBA"), Note()
    together = numba.register(
        (FuseTogether(last_fusions(numba)), BEFORE_FUSION), (note, BEFORE_FUSION + 0.01)
    )
    ours, theirs = (
        pytensor.function(inputs, outputs, updates=updates, mode=mode).maker.fgraph
        for mode in (together, numba)
    )
    assert kinds(ours) == kinds(theirs)
    fused = {"FusedElemwise", "IndexedElemwise"}
    assert sum(note.found[kind] for kind in fused) == sum(kinds(theirs)[kind] for kind in fused) > 0


class OverwriteTooMuch(GraphRewriter):
    """Overwrites what the graph still reads, and believes that it may."""

    def __init__(self, sort):
        self.sort = sort

    def apply(self, fgraph):
        for node in list(fgraph.apply_nodes):
            if node.op == Elemwise(add):
                fgraph.replace_all_validate(
                    [(node.outputs[0], Elemwise(add, {0: 0})(*node.inputs))]
                )
        if self.sort:  # as PyTensor's fusions do, before they are through
            fgraph.toposort()


@pytest.mark.parametrize("sort", [False, True])
def test_a_graph_that_does_not_allow_all_of_it_is_as_before(sort):
    x = pt.dvector("x")
    squares = pt.exp(x)
    graph = FunctionGraph([x], [(squares + 1) * (squares + 2)], clone=False)
    for feature in (DestroyHandler(), ReplaceValidate()):
        graph.attach_feature(feature)
    before = pytensor.printing.debugprint(graph, file="str")
    FuseTogether(OverwriteTooMuch(sort)).apply(graph)
    assert pytensor.printing.debugprint(graph, file="str") == before
    graph.validate()
    with pytest.raises(InconsistencyError):  # looked at again after each replacement
        OverwriteTooMuch(sort).apply(graph)
