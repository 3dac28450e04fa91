"""The gradient of a scan: a loop that goes back through the steps and computes nothing twice.

PyTensor's own gradient of a scan computes most of each step again, products included, and adds
the gradients of constants up step by step. Here

- a scan keeps what its gradient needs and what takes long to compute, in traces of its own;
- a matrix's gradient is one product over the rows of all steps, after the loop, wherever a step
  multiplies with it, and a bias's is one sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType, disconnected_type, grad
from pytensor.graph.traversal import explicit_graph_inputs
from pytensor.tensor.math import dot

from downhill_rms.compiling import internals
from downhill_rms.compiling.internals import (
    DimShuffle,
    Dot,
    Elemwise,
    ScalarFromTensor,
    Scan,
    Shape,
    Shape_i,
    SpecifyShape,
    Subtensor,
    Sum,
    expand_empty,
)
from downhill_rms.compiling.products import is_transpose
from downhill_rms.compiling.scanproducts import use_both_layouts
from downhill_rms.compiling.scans import (
    Given,
    Loop,
    State,
    Trace,
    dependent,
    in_order,
    is_floating,
    merged,
    outermost,
)

# What is computed again rather than kept: it takes no longer than to read its result.
CHEAP = (*internals.QUICK, internals.TrueDiv, internals.Reciprocal)
VIEWS = (DimShuffle, ScalarFromTensor, SpecifyShape, Subtensor, Shape, Shape_i)

Term = Callable[[], Any]  # gives an expression once the loop is built


class KeepingScan(Scan):  # type: ignore[misc]
    """A scan among whose traces is what its gradient needs."""

    def pullback(
        self, inputs: Sequence[Any], outputs: Sequence[Any], output_gradients: Sequence[Any]
    ) -> list[Any]:
        """The gradients by what the scan is given, from those by what it returns."""
        loop = Loop.of(self, inputs, outputs)
        connected = [not isinstance(g.type, DisconnectedType) for g in output_gradients]
        parts = zip(loop.parts, output_gradients, connected, strict=True)
        gradients = Backward(loop, {p: g for p, g, c in parts if c}).gradients()
        pattern = self.connection_pattern(outputs[0].owner)
        for index, (given, reaches) in enumerate(zip(inputs, pattern, strict=True)):
            if not any(r and c for r, c in zip(reaches, connected, strict=True)):
                gradients[index] = disconnected_type()
            elif gradients[index] is None:
                dtype = given.type.dtype if is_floating(given) else loop.dtype
                gradients[index] = pt.zeros_like(given, dtype=dtype)
        return gradients


def keep_for_gradient(loop: Loop) -> None:
    """Trace what the gradient of a loop needs and what takes longer to compute than to read.

    What has more dimensions than the states is computed again instead: the weights of attention,
    by which each step looks at all rows of another sequence, would take memory for their product.
    """
    step = StepGradient(loop, [part for part in loop.parts if is_floating(part.result)])
    there = {*loop.inner, *loop.results}
    ndim = max((state.result.type.ndim for state in loop.states), default=0)

    def is_wanted(variable: Any) -> bool:
        return variable in there or (is_heavy(variable) and variable.type.ndim <= ndim)

    for variable in step.read(step.gradients.values(), is_wanted):
        loop.trace(variable)


def is_heavy(variable: Any) -> bool:
    """Whether it takes longer to compute a variable than to read it."""
    node = variable.owner
    if node is None or isinstance(node.op, VIEWS):
        return False
    return not (isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, CHEAP))


class StepGradient:
    """The gradient of one step.

    Parameters
    ----------
    loop : Loop
        What its step computes twice is merged.
    parts : iterable of State and Trace
        Those by whose results the gradients are given.

    Attributes
    ----------
    totals : dict of Variable
        By these parts, the gradients by their results.
    gradients : dict of Variable
        By what the step is given, the gradients by it; those that are 0 are left out.
    """

    def __init__(self, loop: Loop, parts: Iterable[State | Trace]) -> None:
        self.totals = {part: part.result.type() for part in parts}
        known: dict[Any, Any] = {}
        for part, total in self.totals.items():
            known[part.result] = known[part.result] + total if part.result in known else total
        wrt = [variable for variable in loop.inner if is_floating(variable)]
        # A copy lies behind no other result, and is nothing that the step is given.
        found = grad(
            None,
            wrt,
            known_grads={result.copy(): total for result, total in known.items()},
            disconnected_inputs="ignore",
            return_disconnected="none",
        )
        gradients = {v: g for v, g in zip(wrt, found, strict=True) if g is not None}
        given, count = [*loop.inner, *self.totals.values()], len(loop.parts)
        variables = merged(given, [*loop.results, *gradients.values()])
        loop.set_results(variables[:count])
        self.gradients = dict(zip(gradients, variables[count:], strict=True))
        nodes = in_order(variables, given)
        self._of_totals = dependent(self.totals.values(), nodes)
        self._of_steps = dependent(loop.varying, nodes) | self._of_totals

    def read(self, results: Iterable[Any], is_wanted: Callable[[Any], bool]) -> list[Any]:
        """What ``results`` need of the step that went forward and is wanted."""
        forward = self._of_steps - self._of_totals
        return outermost(results, lambda v: v in forward and is_wanted(v))

    def varies(self, variable: Any) -> bool:
        """Whether a variable is another one in each step."""
        return variable in self._of_steps


class Backward:
    """The loop that goes back through the steps.

    Parameters
    ----------
    forward : Loop
        The loop that went forward.
    gradients : mapping of Variable
        By its parts, the gradients by their outputs.
    """

    def __init__(self, forward: Loop, gradients: Mapping[State | Trace, Any]) -> None:
        self.forward, self.given = forward, gradients
        self.step = StepGradient(forward, _reached(forward, gradients))
        self.known = forward.stacks()
        self._index = pt.lscalar()  # that went forward, and which this one goes back through
        steps = Given(self._index, pt.arange(forward.n_steps, dtype="int64")[::-1])
        self.loop = Loop(forward.n_steps, [steps], [], [], [], forward.like)
        self.carried: dict[State, list[State]] = {}
        # Variables of the step that went forward, and of its gradient, to those of the loop.
        self.replacements = {total: self._total(part) for part, total in self.step.totals.items()}

    def _total(self, part: State | Trace) -> Any:
        """The gradient by a result: what comes from outside and what later steps carry back."""
        terms = []
        if isinstance(part, State):
            terms.append(self._carry(part))
        if part in self.given:
            rows = self.given[part]
            if isinstance(part, State):
                rows = rows[part.order :]
            terms.append(self._row(part.result, rows.astype(self.forward.dtype)))
        return terms[0] + terms[1] if len(terms) == 2 else terms[0]

    def _row(self, variable: Any, stack: Any) -> Any:
        """What a step that went forward had, from what holds it for all steps.

        The loop is given the whole array and indexes it itself: rows of a reversed array are not
        known to be contiguous, and what Numba makes of loops over them is slow.
        """
        inner = stack.type()
        self.loop.constants.append(Given(inner, stack))
        return variable.type.filter_variable(inner[self._index])

    def _carry(self, state: State) -> Any:
        """Carry back the gradients by a state's value in this step, the one before and so on.

        Returns what later steps have added to that by its value in this step.
        """
        by_tap = dict(zip(state.taps, state.inner, strict=True))
        zeros = pt.zeros_like(state.output[0])
        inner = [state.result.type() for _ in range(state.order)]
        self.carried[state] = []
        for lag in range(state.order):
            terms = inner[lag + 1 : lag + 2]
            gradient = self.step.gradients.get(by_tap.get(-1 - lag))
            if gradient is not None:
                terms.append(gradient)
            self.carried[state].append(self._accumulator(inner[lag], terms, zeros))
        return inner[0]

    def _accumulator(self, inner: Any, terms: Sequence[Any], start: Any) -> State:
        """A state of the loop that is the sum of some variables in the next step."""
        result = sum(terms[1:], terms[0]) if terms else pt.zeros_like(inner)
        result = inner.type.filter_variable(result)
        outer = expand_empty(pt.shape_padleft(start), self.loop.n_steps)
        state = State((-1,), [inner], result, outer)
        self.loop.states.append(state)
        return state

    def gradients(self) -> list[Any]:
        """Gradients by what the scan that went forward is given, in order; None for 0."""
        found = self.step.gradients
        traces = [
            self._trace(found[part.inner]) if part.inner in found else None
            for part in self.forward.sequences
        ]
        sums = [
            self._sum(part, found[part.inner]) if part.inner in found else []
            for part in self.forward.constants
        ]
        self._give()
        use_both_layouts(self.loop)
        self.loop.build()
        return [
            None,
            *(None if trace is None else trace.output[::-1] for trace in traces),
            *(self._by_first_values(state) for state in self.forward.states),
            *(None for _ in self.forward.traces),
            *(reduce(add, (term() for term in terms)) if terms else None for terms in sums),
        ]

    def _trace(self, variable: Any) -> Trace:
        """Return a variable of every step from the loop."""
        for trace in self.loop.traces:
            if trace.result is variable:
                return trace
        self.loop.traces.append(Trace(variable))
        return self.loop.traces[-1]

    def _give(self) -> None:
        """Give the loop what it needs of the steps that went forward, and of the constants."""
        for variable in self.step.read(self.loop.results, lambda v: v in self.known):
            self.replacements[variable] = self._row(variable, self.known[variable])
        self.loop.replace(self.replacements)
        used = set(explicit_graph_inputs(self.loop.results))
        self.loop.constants += [part for part in self.forward.constants if part.inner in used]

    def _by_first_values(self, state: State) -> Any:
        """The gradient by what holds the first values of a state and room for the others."""
        terms = []
        if state in self.given:
            terms.append(self.given[state][: state.order])
        if state in self.carried:
            terms.append(pt.stack([carried.output[-1] for carried in self.carried[state][::-1]]))
        if not terms:
            return None
        return pt.set_subtensor(pt.zeros_like(state.outer)[: state.order], reduce(add, terms))

    def _sum(self, part: Given, gradient: Any) -> list[Term]:
        """The sum over all steps of a gradient by a constant, as terms."""
        later, here = [], []
        for term in _terms(gradient):
            after = self._after(term)
            if after is None:
                here.append(term)
            else:
                later.append(after)
        if here:
            inner = part.inner.type()
            state = self._accumulator(inner, [inner, *here], pt.zeros_like(part.outer))
            later.append(lambda: state.output[-1])
        return later

    def _after(self, term: Any) -> Term | None:
        """The sum over all steps of a product or a sum, computed after the loop."""
        shapes = []
        while term.owner is not None and isinstance(term.owner.op, DimShuffle | SpecifyShape):
            shapes.append(term.owner)
            term = term.owner.inputs[0]
        if term.owner is None or not all(map(self.step.varies, term.owner.inputs)):
            return None
        if isinstance(term.owner.op, Dot):
            total = self._product(*term.owner.inputs)
        elif isinstance(term.owner.op, Sum):
            total = self._total_of(term.owner)
        else:
            return None

        def shaped() -> Any:
            value = total()
            for node in reversed(shapes):
                value = node.clone_with_new_inputs([value, *node.inputs[1:]]).outputs[0]
            return value

        return shaped

    def _product(self, left: Any, right: Any) -> Term:
        """The sum over all steps of products, as one product of what is below each other."""
        turned = is_transpose(left), is_transpose(right)
        stacks = [
            self._stack(v.owner.inputs[0] if t else v)
            for v, t in zip((left, right), turned, strict=True)
        ]

        def product() -> Any:
            x, y = (stack() for stack in stacks)
            x = x if turned[0] else x.dimshuffle(0, 2, 1)
            y = y.dimshuffle(0, 2, 1) if turned[1] else y
            return dot(_rows(x).T, _rows(y))

        return product

    def _total_of(self, node: Any) -> Term:
        """The sum over all steps of sums."""
        stack, op = self._stack(node.inputs[0]), node.op
        axes = range(node.inputs[0].type.ndim) if op.axis is None else op.axis
        total = Sum((0, *(axis + 1 for axis in axes)), dtype=op.dtype, acc_dtype=op.acc_dtype)
        return lambda: total(stack())

    def _stack(self, variable: Any) -> Term:
        """A variable of all steps, the last step first."""
        if variable in self.known:
            return lambda: self.known[variable][::-1]
        trace = self._trace(variable)
        return lambda: trace.output


def _rows(stack: Any) -> Any:
    """The rows of all steps below each other."""
    return stack.reshape((-1, stack.shape[2]))


def _terms(gradient: Any) -> list[Any]:
    """What a gradient is the sum of."""
    node = gradient.owner
    if (
        node is None
        or not isinstance(node.op, Elemwise)
        or not isinstance(node.op.scalar_op, internals.Add)
        or any(v.type.broadcastable != gradient.type.broadcastable for v in node.inputs)
    ):
        return [gradient]
    return [term for variable in node.inputs for term in _terms(variable)]


def _reached(loop: Loop, gradients: Iterable[State | Trace]) -> list[State | Trace]:
    """The parts of a loop by which there is a gradient: states, also by way of later steps."""
    reached = set(gradients)
    while True:
        behind = {v for part in reached for v in explicit_graph_inputs([part.result])}
        new = {s for s in loop.states if is_floating(s.result) and not behind.isdisjoint(s.inner)}
        if new <= reached:
            return [part for part in loop.parts if part in reached]
        reached |= new
