"""Large graphs that were rewritten once are found on disk: the same graph, and no other."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op

from downhill_rms.compiling import graphcache, machine, pieces
from downhill_rms.compiling.flatgraph import flat
from downhill_rms.compiling.modes import REWRITTEN, training_mode


@pytest.fixture(autouse=True)
def small_graphs_too(monkeypatch, tmp_path):
    """A cache of the test's own, where every graph is large enough."""
    monkeypatch.setattr(pieces, "SMALL", 20)
    training_mode(REWRITTEN)  # checks itself, on a graph of its own
    monkeypatch.setattr(machine, "numba_cache", lambda: tmp_path)


@pytest.fixture
def rewritings(monkeypatch):
    """Where a graph was written that PyTensor has rewritten."""
    done = []
    write = graphcache._write

    def spy(path, content):
        done.append(path)
        write(path, content)

    monkeypatch.setattr(graphcache, "_write", spy)
    return done


def kept():
    return sorted(machine.numba_cache().glob("*.graph"))


def network(name="x", units=4, scale=2, start=0.5):
    """The update of a small network, with PyTensor's symbolic operations in it."""
    x = pt.fmatrix(name)
    w = pytensor.shared(np.full((units, units), start, "float32"), name="w")
    logits = pt.tanh(x @ w) * np.float32(scale) + x
    loss = -pt.special.log_softmax(logits, axis=-1)[:, 0].mean() + pt.special.softmax(x @ w)[0, 0]
    updates = [(w, w - np.float32(0.1) * pt.grad(loss, w))]
    return w, pytensor.function([x], loss, updates=updates, mode=training_mode(REWRITTEN))


def test_a_graph_is_rewritten_once(rewritings):
    w, first = network()
    v, second = network()
    assert (len(rewritings), len(kept())) == (1, 1)
    # The functions are the same too.
    assert first.vm.jit_fn.dispatchers == second.vm.jit_fn.dispatchers
    assert any(node.op.destroy_map for node in second.maker.fgraph.apply_nodes)
    batch = np.linspace(-1, 1, 12, dtype="float32").reshape(3, 4)
    losses = [first(batch) for _ in range(3)]
    assert losses[0] != losses[1]
    assert losses == [second(batch) for _ in range(3)]
    np.testing.assert_array_equal(w.get_value(), v.get_value())


@pytest.mark.parametrize("changed", [{"name": "y"}, {"scale": 3}])
def test_another_graph_is_rewritten(changed, rewritings):
    network()
    _, function = network(**changed)
    assert (len(rewritings), len(kept())) == (2, 2)
    assert function.maker.fgraph.inputs[0].name == changed.get("name", "x")


def test_an_operation_that_was_used_before_is_the_same():
    # PyTensor's own, which all graphs share, remember their hash when they are asked for it.
    x = pt.fvector("x")
    graph = FunctionGraph([x], [pt.maximum(x, 1)], clone=False)
    vars(pt.maximum.inplace_pattern)["_hash"] = None
    before = flat(graph)
    hash(pt.maximum)
    assert flat(graph) == before


def test_other_values_of_parameters_are_no_other_graph(rewritings):
    network()
    network(units=5, start=0.1)
    assert len(rewritings) == 1


def test_other_settings_and_other_rewrites_are_told_apart(rewritings):
    network()
    with pytensor.config.change_flags(numba__fastmath=not pytensor.config.numba__fastmath):
        network()
    assert len(kept()) == 2
    mode = training_mode(REWRITTEN).excluding("fusion")
    x = pt.fmatrix("x")
    for given in (mode, training_mode(REWRITTEN)):
        function = pytensor.function([x], pt.tanh(pt.exp(x) + 1) * pt.cos(x) - x, mode=given)
        loops = [n for n in function.maker.fgraph.apply_nodes if "Composite" in str(n.op)]
        assert bool(loops) is (given is not mode)


def test_an_input_that_may_be_overwritten_is_told_from_one_that_may_not():
    x = pt.fvector("x")
    value = pt.set_subtensor(x[0], 1)
    for _ in range(12):  # a sum keeps each step from being fused with the next
        value = pt.exp(-value) * np.float32(0.5) + value.sum()
    for mutable in (True, False):
        given = pytensor.In(x, mutable=mutable)
        graph = pytensor.function([given], value, mode=training_mode(REWRITTEN)).maker.fgraph
        overwritten = [
            node.inputs[index]
            for node in graph.apply_nodes
            for (index,) in node.op.destroy_map.values()
        ]
        assert (graph.inputs[0] in overwritten) is mutable
    assert len(kept()) == 2


@pytest.mark.parametrize("content", [b"", b"\x80", None])
def test_a_damaged_file_is_written_anew(content, rewritings):
    network()
    (path,) = kept()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    network()
    network()
    assert rewritings == [path, path]


class Foreign(Op):
    """An operation of somebody else's."""

    __props__ = ()

    def make_node(self, x):
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        outputs[0][0] = inputs[0] + 1


@pytest.mark.filterwarnings("ignore:Numba will use object mode:UserWarning")
def test_what_is_not_kept():
    x = pt.fvector("x")
    (states,) = [
        pytensor.scan(lambda x_t, h: pt.tanh(x_t + h), [x], [np.float32(0)], return_updates=False)
    ]
    large = pt.constant(np.ones(10**6, "float32"))
    for outputs in (Foreign()(x) * 2 - x.sum(), states.sum() * 2 - x, (large * x[0]).sum() - x):
        pytensor.function([x], outputs, mode=training_mode(REWRITTEN))
    with pytensor.config.change_flags(numba__cache=False):
        network()
    assert kept() == []


def test_the_oldest_go(monkeypatch):
    monkeypatch.setattr(graphcache, "KEPT", 2)
    paths = []
    for age, scale in enumerate((2, 3, 4)):
        network(scale=scale)
        (new,) = set(kept()).difference(paths)
        os.utime(new, (age, age))
        paths.append(new)
    assert kept() == sorted(paths[1:])


PROGRAM = """
import pytensor, pytensor.tensor as pt, numpy as np
from downhill_rms.compiling import pieces
from downhill_rms.compiling.modes import REWRITTEN, training_mode
pieces.SMALL = 20
x, w = pt.fmatrix("x"), pytensor.shared(np.ones((3, 3), "float32"), name="w")
loss = pt.special.log_softmax(pt.tanh(x @ w) * 2 + x, axis=-1).mean()
pytensor.function([x], loss, updates=[(w, w - pt.grad(loss, w))], mode=training_mode(REWRITTEN))
"""


def test_another_process_finds_it(tmp_path):
    """Also if it hashes in another order."""
    for seed in "12":
        flags = {"PYTENSOR_FLAGS": f"base_compiledir={tmp_path}", "PYTHONHASHSEED": seed}
        root = Path(__file__).parents[2]
        environment = {**os.environ, **flags, "PYTHONPATH": str(root)}
        subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment)
        graphs = list((tmp_path / "numba").glob("*.graph"))
        assert len({path.name for path in graphs}) == 1
