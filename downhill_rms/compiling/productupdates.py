"""A weight's gradient and its update in one pass.

Where a gradient is one product of matrices, and nothing but its parameter's update wants it, each
thread computes some rows of it and updates these rows of the parameter. The whole of a gradient is
as large as its parameter, and is not read back from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from downhill_rms.compiling.inplace import InPlace, replace_together
from downhill_rms.compiling.internals import Elemwise, shared_size
from downhill_rms.compiling.products import FLOATS, PlainDot
from downhill_rms.compiling.selfcheck import source_key
from downhill_rms.compiling.tiledloops import LARGE, names, plain_loop

WORK = 2**21  # multiplications of a thread at the least: OpenBLAS computes small products otherwise
PART = 2**22  # numbers of a gradient that a thread has at once, at the most


class UpdateByProduct(Op):  # type: ignore[misc]
    """An elementwise operation in place, one of whose inputs is a product of two matrices.

    Parameters
    ----------
    elementwise : Elemwise
        The operation, all of whose results are in place.
    place : int
        Which of its inputs is the product.
    transposed : tuple of bool
        Whether the first and the second matrix are transposed before.
    """

    __props__ = ("elementwise", "place", "transposed")

    def __init__(self, elementwise: Any, place: int, transposed: tuple[bool, ...]) -> None:
        self.elementwise, self.place, self.transposed = elementwise, place, transposed
        # The matrices come first, and the product is no input.
        self.destroy_map = {
            output: [index + 2 - (index > place)]
            for output, index in elementwise.inplace_pattern.items()
        }

    def make_node(self, *inputs: Any) -> Any:
        """The two matrices as they are before they are transposed, and the other inputs."""
        return Apply(self, list(inputs), [v.type() for v in self.parts(inputs)[1].outputs])

    def parts(self, inputs: Sequence[Any]) -> tuple[Any, Any]:
        """The product, and the elementwise operation."""
        product = PlainDot(self.transposed).make_node(*inputs[:2])
        others = list(inputs[2:])
        others.insert(self.place, product.outputs[0])
        return product, self.elementwise.make_node(*others)

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        product, elementwise = self.parts(node.inputs)
        gradient: list[list[Any]] = [[None]]
        product.op.perform(product, inputs[:2], gradient)
        others = list(inputs[2:])
        others.insert(self.place, gradient[0][0])
        elementwise.op.perform(elementwise, others, output_storage)


class UpdateWithProducts(InPlace):
    """Has updates compute the gradients that nothing else wants."""

    def apply(self, fgraph: Any) -> None:
        """Replace the operations, as many as the graph allows."""
        found = []
        for node in fgraph.toposort():
            place = _place_of_product(fgraph, node)
            if place is not None:
                product = node.inputs[place].owner
                others = [*node.inputs[:place], *node.inputs[place + 1 :]]
                op = UpdateByProduct(node.op, place, product.op.transposed)
                found.append((node, op, [*product.inputs, *others]))
        replace_together(fgraph, found, "update_by_product")


def _place_of_product(fgraph: Any, node: Any) -> int | None:
    """Which input of an elementwise operation is a product that is for it alone."""
    if type(node.op) is not Elemwise or len(node.op.inplace_pattern) < len(node.outputs):
        return None
    if any(v.type.ndim != 2 or any(v.type.broadcastable) for v in node.outputs):
        return None
    overwritten = [node.inputs[index] for index in node.op.inplace_pattern.values()]
    if max(map(shared_size, overwritten)) < LARGE:  # as it is now
        return None
    for place, variable in enumerate(node.inputs):
        if (
            variable.owner is not None
            and isinstance(variable.owner.op, PlainDot)
            and variable.type.dtype in FLOATS
            and variable.type.broadcastable == (False, False)
            and place not in node.op.inplace_pattern.values()
            and len(fgraph.clients[variable]) == 1
            and not {*variable.owner.inputs} & {*node.inputs}
        ):
            return place
    return None


def register(numba: Any) -> None:
    """Tell PyTensor how Numba computes it."""
    from downhill_rms.compiling import rowproducts, threads

    if threads.are_shared():
        rowproducts.add_symbols()

    @numba.register(UpdateByProduct)  # type: ignore[untyped-decorator]
    def funcify_update(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str | None]:
        product, elementwise = op.parts(node.inputs)
        dot, _ = numba.funcify(product.op, node=product)
        whole, key = plain_loop(elementwise)
        key = key and f"update_{op.transposed}_{op.place}_{key}_{source_key()}"
        inputs = names(len(elementwise.inputs))
        given = ["left", "right", *inputs[: op.place], *inputs[op.place + 1 :]]
        first = f"def update({', '.join(given)}):"
        last = [f"{inputs[op.place]} = dot(left, right)", f"return whole({', '.join(inputs)})"]
        scope = {"dot": dot, "whole": whole}
        alone = numba.function_of_source("\n    ".join([first, *last]), "update", scope)
        if not threads.are_shared():
            return numba.njit(alone), key
        scope |= _kernel(numba, op, elementwise, ", ".join(given))
        lines = [first, *_in_tiles(op, elementwise, ", ".join(given)), *last]
        tiled = numba.function_of_source("\n    ".join(lines), "update", scope)
        full = _are_full(node.inputs)
        return _by_layout(numba, given, full, tiled, alone), key


def _in_tiles(op: Any, elementwise: Any, given: str) -> list[str]:
    """The lines that compute it in tiles, if it is large enough for that, and return."""
    results = _results(elementwise)
    first = results[0]
    rows, columns, depth = (
        f"{matrix}.shape[{axis}]"
        for matrix, axis in (
            ("left", int(op.transposed[0])),
            ("right", 1 - op.transposed[1]),
            ("left", 1 - op.transposed[0]),
        )
    )
    fits = _fits(elementwise, first, op.place)
    return [
        "threads = thread_count()",
        f"length, columns, depth = {rows}, {columns}, {depth}",
        f"if (threads > 1 and {first}.size >= {LARGE}",
        f"        and {first}.size * depth >= {WORK} * threads",
        f"        and {first}.shape == (length, columns)",
        f"        and right.shape[{int(op.transposed[1])}] == depth and {fits}):",
        f"    parts = ({first}.size - 1) // ({PART} * threads) + 1",
        "    rows = (length - 1) // min(parts * threads, length) + 1",
        "    tiles = (length - 1) // rows + 1",
        "    had = set_blas_threads(1)",
        f"    failed = run_tiles(tile, (rows, {given}), tiles, min(threads, tiles))",
        "    set_blas_threads(had)",
        "    if failed:",
        "        raise RuntimeError('a part of an update failed')",
        f"    return {results[0] if len(results) == 1 else '(' + ', '.join(results) + ')'}",
    ]


def _kernel(numba: Any, op: Any, elementwise: Any, given: str) -> dict[str, Any]:
    """The function that computes some rows of the product, and updates as many, with its names."""
    from downhill_rms.compiling.loopcode import some_rows
    from downhill_rms.compiling.rowproducts import multiply_rows
    from downhill_rms.compiling.threads import run_tiles, set_blas_threads, thread_count

    inputs = names(len(elementwise.inputs))
    first = _results(elementwise)[0]
    parts = _rows(elementwise)
    parts[op.place] = inputs[op.place]
    lines = [
        f"def tile(index, rows, {given}):",
        "first = index * rows",
        f"end = min({first}.shape[0], first + rows)",
        f"{inputs[op.place]} = np.empty((end - first, {first}.shape[1]), {first}.dtype)",
        f"multiply_rows(left, right, first, {inputs[op.place]})",
        f"loop({', '.join(parts)})",
    ]
    scope = {
        "np": np,
        "multiply_rows": multiply_rows(*op.transposed),
        "some_rows": some_rows,
        "loop": plain_loop(elementwise)[0],
    }
    kernel = numba.function_of_source("\n    ".join(lines), "tile", scope)
    return {
        "tile": numba.njit(kernel),
        "run_tiles": run_tiles,
        "set_blas_threads": set_blas_threads,
        "thread_count": thread_count,
    }


def _are_full(variables: Sequence[Any]) -> list[bool]:
    """Which of some inputs have more than one number."""
    return [not all(variable.type.broadcastable) for variable in variables]


def _by_layout(
    numba: Any, inputs: Sequence[str], full: Sequence[bool], tiled: Any, whole: Any
) -> Any:
    """A function that is the first one where all full arrays are known to be contiguous.

    Of another layout a tile would have another type than the whole, and Numba would compile the
    loop once more.
    """
    from numba.extending import overload

    def chosen(*kinds: Any) -> Any:
        arrays = [kind for kind, is_full in zip(kinds, full, strict=True) if is_full]
        return tiled if all(kind.layout == "C" for kind in arrays) else whole

    # An overload has its function's names of arguments.
    arguments = ", ".join(inputs)
    source = f"def elementwise({arguments}):\n    return chosen({arguments})"
    elementwise, choose = (
        numba.function_of_source(source, "elementwise", {"chosen": chosen}) for _ in range(2)
    )
    overload(elementwise)(choose)
    return elementwise


def _results(elementwise: Any) -> list[str]:
    """What the results of a node are called that works in place."""
    known = names(len(elementwise.inputs))
    return [
        known[elementwise.op.inplace_pattern[index]] for index in range(len(elementwise.outputs))
    ]


def _rows(elementwise: Any) -> list[str]:
    """The source of each input's rows from ``first`` to ``end``, or of all of its one row."""
    return [
        name if variable.type.broadcastable[0] else f"some_rows({name}, first, end)"
        for name, variable in zip(names(len(elementwise.inputs)), elementwise.inputs, strict=True)
    ]


def _fits(elementwise: Any, result: str, but: int) -> str:
    """Whether all inputs but one have the shapes that they must have; nobody else asks."""
    checks = [
        f"x{index}.shape[{axis}] == {'1' if one else f'{result}.shape[{axis}]'}"
        for index, variable in enumerate(elementwise.inputs)
        if index != but and f"x{index}" != result
        for axis, one in enumerate(variable.type.broadcastable)
    ]
    return " and ".join(checks) or "True"
