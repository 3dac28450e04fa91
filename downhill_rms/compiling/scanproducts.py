"""Products inside the loop of a scan."""

from __future__ import annotations

from typing import Any

from pytensor.graph.fg import FunctionGraph

from downhill_rms.compiling.internals import Dot
from downhill_rms.compiling.products import FLOATS, ThinDot, is_transpose
from downhill_rms.compiling.scans import Given, Loop, dependent


def use_both_layouts(loop: Loop) -> None:
    """Give a loop the matrices that it multiplies with transposed too.

    Of a product of few rows with a large matrix the transpose is computed in half the time, and
    of all others the product itself. How many rows there are shows when the loop runs.
    """
    constants = {part.inner: part for part in loop.constants}
    nodes = loop.nodes()
    varying = dependent(loop.varying, nodes)
    turned: dict[Any, Any] = {}

    def transpose(matrix: Any) -> Any:
        if matrix not in turned:
            outer = constants[matrix].outer.T
            turned[matrix] = outer.type()
            loop.constants.append(Given(turned[matrix], outer))
        return turned[matrix]

    products = {}  # by nodes, the matrix that each multiplies with, and its transpose
    for node in nodes:
        if type(node.op) is not Dot or node.outputs[0].type.dtype not in FLOATS:
            continue
        rows, matrix = node.inputs
        if rows not in varying:
            continue
        if matrix in constants:
            products[node] = matrix, transpose(matrix)
        elif is_transpose(matrix) and matrix.owner.inputs[0] in constants:
            (matrix,) = matrix.owner.inputs
            products[node] = transpose(matrix), matrix
    graph = FunctionGraph(loop.inner, loop.results, clone=False)
    for node, matrices in products.items():
        product = ThinDot()(node.inputs[0], *matrices)
        graph.replace(node.outputs[0], product, import_missing=True)
    loop.set_results(graph.outputs)
