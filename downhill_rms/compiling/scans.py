"""Scans taken apart, put together again, and parts of a step computed for all steps at once.

A scan is a loop over a step, a graph of its own. PyTensor names what a step is given and returns
by the way that it is kept. Here these are: sequences, of which each step is given one row;
states, which a step returns and later steps are given (mit-sot and sit-sot); traces, which it
only returns (nit-sot); and constants, which are the same for all steps (non-sequences).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace, vectorize_graph
from pytensor.graph.traversal import toposort
from pytensor.tensor.math import dot
from pytensor.tensor.type import DenseTensorType

from downhill_rms.compiling.internals import (
    Blockwise,
    Dot,
    MergeOptimizer,
    Scan,
    ScanInfo,
    WalkingGraphRewriter,
    node_rewriter,
)


@dataclass(eq=False)
class Given:
    """A sequence or a constant: its name in the step, and what the scan is given."""

    inner: Any
    outer: Any


@dataclass(eq=False)
class State:
    """A state: its names in the step, one for each tap, and the result that is its next value.

    ``outer`` holds the first values and room for the others, ``output`` all of them.
    """

    taps: tuple[int, ...]
    inner: list[Any]
    result: Any
    outer: Any
    output: Any = None

    @property
    def order(self) -> int:
        """How many steps back the step looks."""
        return -min(self.taps)


@dataclass(eq=False)
class Trace:
    """A result of the step that no step is given."""

    result: Any
    output: Any = None


@dataclass(eq=False)
class Loop:
    """A scan taken apart, or the parts of one that is to be.

    Attributes
    ----------
    n_steps : Variable
        The number of steps.
    sequences, constants : list of Given
    states : list of State
    traces : list of Trace
    like : Scan
        What has the mode, the name and the other options.
    """

    n_steps: Any
    sequences: list[Given]
    states: list[State]
    traces: list[Trace]
    constants: list[Given]
    like: Any

    @classmethod
    def of(cls, op: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Loop:
        """Take a scan apart that `is_understood`."""
        info = op.info
        given, results = map(iter, _open(op))
        outer, output = iter(inputs), iter(outputs)
        n_steps = next(outer)
        sequences = [Given(next(given), next(outer)) for _ in range(info.n_seqs)]
        states = [
            State(taps, [next(given) for _ in taps], next(results), next(outer), next(output))
            for taps in (*info.mit_sot_in_slices, *info.sit_sot_in_slices)
        ]
        traces = [Trace(next(results), next(output)) for _ in range(info.n_nit_sot)]
        outer = iter(list(outer)[info.n_nit_sot :])  # without the length of each trace
        constants = [Given(inner, value) for inner, value in zip(given, outer, strict=True)]
        return cls(n_steps, sequences, states, traces, constants, op)

    @property
    def inner(self) -> list[Any]:
        """What the step is given, in PyTensor's order."""
        return [
            *(part.inner for part in self.sequences),
            *(variable for state in self.states for variable in state.inner),
            *(part.inner for part in self.constants),
        ]

    @property
    def varying(self) -> list[Any]:
        """What the step is given that is another array in each step."""
        return self.inner[: len(self.inner) - len(self.constants)]

    @property
    def parts(self) -> list[State | Trace]:
        """What has results, in PyTensor's order."""
        return [*self.states, *self.traces]

    @property
    def results(self) -> list[Any]:
        """What the step returns, in PyTensor's order."""
        return [part.result for part in self.parts]

    @property
    def dtype(self) -> str:
        """The floating-point dtype of the step."""
        return str(next(v.type.dtype for v in (*self.inner, *self.results) if is_floating(v)))

    def set_results(self, results: Sequence[Any]) -> None:
        """Have the step return other variables."""
        for part, result in zip(self.parts, results, strict=True):
            part.result = result

    def nodes(self) -> list[Any]:
        """What the step computes, in an order in which it can be computed."""
        return in_order(self.results, self.inner)

    def replace(self, replacements: Mapping[Any, Any]) -> None:
        """Replace variables of the step."""
        if replacements:
            self.set_results(clone_replace(self.results, dict(replacements)))

    def stacks(self) -> dict[Any, Any]:
        """All that is known of all steps outside, by the step's variables.

        Outputs are those of the scan that was taken apart, and after `build` the new ones.
        """
        n_steps = self.n_steps
        known = {part.inner: part.outer for part in self.constants}
        known |= {part.inner: part.outer[:n_steps] for part in self.sequences}
        for state in self.states:
            known.setdefault(state.result, state.output[state.order :])
            for tap, inner in zip(state.taps, state.inner, strict=True):
                known[inner] = state.output[state.order + tap : tap]
        for trace in self.traces:
            known.setdefault(trace.result, trace.output)
        return known

    def trace(self, variable: Any) -> None:
        """Have a variable of all steps outside, as a trace if it is not there anyway."""
        if variable not in {*self.inner, *self.results}:
            self.traces.append(Trace(variable))

    def build(self, kind: type[Any] = Scan) -> dict[Any, Any]:
        """Put the scan together.

        Returns
        -------
        dict of Variable to Variable
            What replaces each output of the scan that was taken apart. The parts know the new
            ones afterwards.
        """
        self.states.sort(key=lambda state: len(state.taps) == 1)  # stable: the order PyTensor wants
        several = [state.taps for state in self.states if len(state.taps) > 1]
        info = ScanInfo(
            n_seqs=len(self.sequences),
            mit_mot_in_slices=(),
            mit_mot_out_slices=(),
            mit_sot_in_slices=tuple(several),
            sit_sot_in_slices=tuple(state.taps for state in self.states[len(several) :]),
            n_nit_sot=len(self.traces),
            n_untraced_sit_sot=0,
            n_non_seqs=len(self.constants),
            as_while=False,
        )
        options = {name: getattr(self.like, name) for name in ("mode", "profile", "allow_gc")}
        op = kind(self.inner, self.results, info, name=self.like.name, **options)
        outer = [
            *(part.outer for part in self.sequences),
            *(state.outer for state in self.states),
            *(self.n_steps for _ in self.traces),
            *(part.outer for part in self.constants),
        ]
        outputs = op.make_node(self.n_steps, *outer).outputs
        replacements = {}
        for part, output in zip(self.parts, outputs, strict=True):
            if part.output is not None:
                replacements[part.output] = output
            part.output = output
        return replacements


def is_understood(node: Any) -> bool:
    """Whether a node is a scan that can be taken apart here.

    It makes a number of steps that is known before, its gradient goes back through all of them,
    and the step is made of arrays of one floating-point dtype, integers and booleans, and holds
    no loop: in a loop of loops the outer one's gradient computes the inner one again, which is
    how memory is saved where sequences are very long.
    """
    if not isinstance(node.op, Scan):
        return False
    op = node.op
    variables = [*op.inner_inputs, *op.inner_outputs]
    if not all(isinstance(variable.type, DenseTensorType) for variable in variables):
        return False
    dtypes = {v.type.dtype for v in variables}
    floating = {dtype for dtype in dtypes if dtype.startswith(("float", "complex"))}
    return (
        not op.info.as_while
        and op.truncate_gradient == -1
        and not op.info.mit_mot_in_slices
        and not op.info.n_untraced_sit_sot
        and len(floating) == 1
        and floating <= {"float32", "float64"}
        and all(max(taps) < 0 for taps in op.info.mit_sot_in_slices)
        and not any(isinstance(inner.op, Scan) for inner in op.fgraph.apply_nodes)
    )


def _open(op: Any) -> tuple[list[Any], list[Any]]:
    """A copy of the graph of a step, with nothing computed twice: what it is given, and returns."""
    if hasattr(op.fgraph, "unfreeze"):  # since PyTensor 3.1
        memo = op.fgraph.unfreeze(return_memo=True)[1]
        given, results = ([memo[v] for v in vs] for vs in (op.inner_inputs, op.inner_outputs))
    else:
        given = [variable.type() for variable in op.inner_inputs]
        results = clone_replace(op.inner_outputs, dict(zip(op.inner_inputs, given, strict=True)))
    return given, merged(given, results)


def merged(given: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    """The same results with nothing computed twice, and products of matrices as `Dot`."""
    graph = FunctionGraph(list(given), list(results), clone=False)
    for rewriter in (MergeOptimizer(), WalkingGraphRewriter(_matmul_to_dot), MergeOptimizer()):
        rewriter.rewrite(graph)
    return list(graph.outputs)


@node_rewriter([Blockwise])  # type: ignore[untyped-decorator]
def _matmul_to_dot(fgraph: Any, node: Any) -> list[Any] | None:
    """PyTensor does this late, after its gradients are taken."""
    if not isinstance(node.op.core_op, Dot) or any(v.type.ndim != 2 for v in node.inputs):
        return None
    return [node.outputs[0].type.filter_variable(dot(*node.inputs))]


def in_order(results: Iterable[Any], given: Iterable[Any] = ()) -> list[Any]:
    """Nodes that compute ``results`` from what is given, each after those it needs."""
    return list(toposort(list(results), blockers=list(given)))


def is_floating(variable: Any) -> bool:
    """Whether a variable has a gradient."""
    return str(variable.type.dtype).startswith("float")


def outermost(results: Iterable[Any], is_wanted: Callable[[Any], bool]) -> list[Any]:
    """The variables behind ``results`` that are wanted, but not those that are behind these."""
    found, waiting, seen = [], list(results), set()
    while waiting:
        variable = waiting.pop()
        if variable in seen:
            continue
        seen.add(variable)
        if is_wanted(variable):
            found.append(variable)
        elif variable.owner is not None:
            waiting.extend(variable.owner.inputs)
    return found


def dependent(variables: Iterable[Any], nodes: Iterable[Any]) -> set[Any]:
    """These variables, and all that is computed from them by ``nodes``, given in order."""
    found = set(variables)
    for node in nodes:
        if not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found


def stacked(variables: Sequence[Any], known: Mapping[Any, Any]) -> list[Any]:
    """Variables of a step for all steps at once.

    Parameters
    ----------
    variables : sequence of Variable
        What is computed, by elementwise operations, sums and the like, and by products with
        matrices that are the same in all steps.
    known : mapping
        Variables of the step to what is outside: arrays with all steps, one below the other, or
        the same array for all.

    Returns
    -------
    list of Variable
    """
    known = dict(known)
    for node in in_order(variables, known):
        inputs = [known.get(variable, variable) for variable in node.inputs]
        if all(new.type.ndim == v.type.ndim for new, v in zip(inputs, node.inputs, strict=True)):
            outputs = node.clone_with_new_inputs(inputs, strict=False).outputs
        elif isinstance(node.op, Dot):
            outputs = [_product(*inputs)]
        else:
            outputs = vectorize_graph(node.outputs, dict(zip(node.inputs, inputs, strict=True)))
        known.update(zip(node.outputs, outputs, strict=True))
    return [known[variable] for variable in variables]


def _product(left: Any, right: Any) -> Any:
    """Products of all steps with a fixed matrix, as one."""
    if right.type.ndim == 3:  # with a fixed matrix on the left
        return _product(right.dimshuffle(0, 2, 1), left.T).dimshuffle(0, 2, 1)
    rows = left.reshape((-1, left.shape[2]))
    return dot(rows, right).reshape((left.shape[0], left.shape[1], right.shape[1]))
