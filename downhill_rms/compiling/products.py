"""Products of matrices, each as the cheapest that computes the same.

- A product of two matrices is a plain ``np.dot`` that takes transposed matrices as they are.
- The sum over a batch of products is one product of long matrices: such is the gradient of a matrix
  that a batch of matrices is multiplied with.
- A product with a one-hot matrix takes rows of the other one, or adds rows up.
- A product of few rows with a large matrix, the same in all steps of a loop, is computed turned:
  OpenBLAS takes half the time for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.op import Op

from downhill_rms.compiling.internals import (
    EQ,
    Cast,
    DimShuffle,
    Dot,
    Elemwise,
    Reshape,
    Shape_i,
    Sum,
    disconnected_type,
    node_rewriter,
)

FLOATS = {"float32", "float64"}


def is_transpose(matrix: Any) -> bool:
    """Whether a matrix is the transpose of a variable."""
    node = matrix.owner
    return (
        node is not None
        and isinstance(node.op, DimShuffle)
        and tuple(node.op.new_order) == (1, 0)
        and node.inputs[0].type.ndim == 2  # and not more, of which one is left out
    )


class PlainDot(Op):  # type: ignore[misc]
    """A product of two matrices by ``np.dot``.

    PyTensor's transpose makes ``np.dot`` copy a matrix first; NumPy's own does not.

    Parameters
    ----------
    transposed : tuple of bool
        Whether the first and the second matrix are transposed before.
    """

    __props__ = ("transposed",)

    def __init__(self, transposed: tuple[bool, ...]) -> None:
        self.transposed = transposed

    def make_node(self, *matrices: Any) -> Any:
        """The product of these matrices, given as they are before they are transposed."""
        x, y = self._factors(matrices)
        return Apply(self, list(matrices), [pt.dot(x, y).type()])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        output_storage[0][0] = np.dot(*self._factors(inputs))

    def _factors(self, matrices: Sequence[Any]) -> list[Any]:
        return [m.T if t else m for m, t in zip(matrices, self.transposed, strict=True)]


class OneHotDot(Op):  # type: ignore[misc]
    """A product with a matrix of which each row is 1 in one column, or nowhere.

    Parameters
    ----------
    classes : int
        The columns of the one-hot matrix.
    transposed : bool
        Whether it is transposed before it is multiplied with the other matrix.
    """

    __props__ = ("classes", "transposed")

    def __init__(self, classes: int, transposed: bool) -> None:
        self.classes, self.transposed = classes, transposed

    def make_node(self, hot: Any, matrix: Any) -> Any:
        """The product, of the column that is 1 for each row, and of the other matrix."""
        rows = self.classes if self.transposed else hot.type.shape[0]
        result = pt.tensor(dtype=matrix.type.dtype, shape=(rows, matrix.type.shape[1]))
        return Apply(self, [hot, matrix], [result])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        hot, matrix = inputs
        one_hot = np.equal(hot[:, None], np.arange(self.classes)).astype(matrix.dtype)
        output_storage[0][0] = (one_hot.T if self.transposed else one_hot) @ matrix


class ThinDot(Op):  # type: ignore[misc]
    """A product of two matrices, of which the first may have few rows.

    The second matrix is given transposed too. Where the first has few rows, the product is the
    transpose of a product with this one, which OpenBLAS computes in half the time.
    """

    __props__ = ()

    def make_node(self, x: Any, y: Any, transposed: Any) -> Any:
        """The product of ``x`` and ``y``."""
        return Apply(self, [x, y, transposed], [pt.dot(x, y).type()])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        output_storage[0][0] = np.dot(*inputs[:2])

    def pullback(
        self, inputs: Sequence[Any], outputs: Sequence[Any], output_gradients: Sequence[Any]
    ) -> list[Any]:
        """The gradients by both; the transpose counts as another name of the second."""
        (x, y, _), (gradient,) = inputs, output_gradients
        return [pt.dot(gradient, y.T), pt.dot(x.T, gradient), disconnected_type()]

    def connection_pattern(self, node: Any) -> list[list[bool]]:
        """Which inputs have a gradient."""
        return [[True], [True], [False]]


@node_rewriter([Dot])  # type: ignore[untyped-decorator]
def replace_dot(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace a product of two matrices of one floating-point dtype."""
    dtypes = {variable.type.dtype for variable in (*node.inputs, *node.outputs)}
    if type(node.op) is not Dot or len(dtypes) > 1 or not dtypes <= FLOATS:
        return None
    transposed = tuple(map(is_transpose, node.inputs))
    matrices = [v.owner.inputs[0] if t else v for v, t in zip(node.inputs, transposed, strict=True)]
    hot = one_hot(matrices[0])
    if hot is not None and not transposed[1]:
        product = OneHotDot(hot[1], transposed[0])(hot[0], matrices[1])
        return [node.outputs[0].type.filter_variable(product)]
    return [PlainDot(transposed)(*matrices)]


@node_rewriter([Sum])  # type: ignore[untyped-decorator]
def replace_sum_of_products(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace the sum over a batch of products ``x[i].T @ y[i]`` by a product of all rows."""
    (products,) = node.inputs
    if (
        node.op.axis != (0,)
        or not _is_batched_product(products)
        or len(fgraph.clients[products]) > 1
    ):
        return None
    turned, y = products.owner.inputs
    dtypes = {variable.type.dtype for variable in (turned, y, *node.outputs)}
    if len(dtypes) > 1 or not dtypes <= FLOATS or not _is_batch_of_transposes(turned):
        return None
    x = turned.owner.inputs[0]
    product = PlainDot((True, False))(_all_rows(x), _all_rows(y))
    return [node.outputs[0].type.filter_variable(product)]


def _is_batched_product(variable: Any) -> bool:
    # PyTensor has moved this operation from one module to another.
    return variable.owner is not None and type(variable.owner.op).__name__ == "BatchedDot"


def _is_batch_of_transposes(variable: Any) -> bool:
    node = variable.owner
    return (
        node is not None
        and isinstance(node.op, DimShuffle)
        and tuple(node.op.new_order) == (0, 2, 1)
        and node.inputs[0].type.ndim == 3
    )


def _all_rows(batch: Any) -> Any:
    """The rows of all matrices of a batch, one after the other."""
    n, rows, columns = (
        Shape_i(axis)(batch) if length is None else length
        for axis, length in enumerate(batch.type.shape)
    )
    return pt.reshape(batch, (n * rows, columns))


def one_hot(matrix: Any) -> tuple[Any, int] | None:
    """What a one-hot matrix is made of: the column that is 1 for each row, and how many there are.

    It is a comparison of integers, one dimension longer, with 0, 1, 2 and so on.
    """
    columns, node = matrix.type.shape[-1], matrix.owner
    # A sequence of comparisons becomes rows before or after it becomes floating-point numbers.
    while node is not None and (isinstance(node.op, Reshape) or _is_elementwise(node, Cast)):
        node = node.inputs[0].owner
    if node is None or not _is_elementwise(node, EQ) or node.outputs[0].type.shape[-1] != columns:
        return None
    for which, classes in (node.inputs, node.inputs[::-1]):
        if not isinstance(classes, Constant) or not _is_column(which):
            continue
        numbers = classes.data.reshape(-1)
        if classes.data.shape[-1] == numbers.size and (numbers == np.arange(numbers.size)).all():
            return which.flatten(), numbers.size
    return None


def _is_elementwise(node: Any, kind: type) -> bool:
    return isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, kind)


def _is_column(variable: Any) -> bool:
    """Whether a variable has integers, and one of them along the last dimension."""
    kind = variable.type
    return "int" in kind.dtype and kind.ndim > 1 and bool(kind.broadcastable[-1])


def register(numba: Any) -> None:
    """Tell PyTensor how Numba computes these products."""
    from downhill_rms.compiling.thin import thin_dot

    def same(x: Any) -> Any:
        return x

    def transpose(x: Any) -> Any:
        return x.T

    @numba.register_by_properties(PlainDot)  # type: ignore[untyped-decorator]
    def funcify_dot(op: Any, node: Any, **kwargs: Any) -> tuple[Any, int]:
        first, second = (numba.njit(transpose if t else same) for t in op.transposed)

        @numba.njit  # type: ignore[untyped-decorator]
        def plain_dot(x: Any, y: Any) -> Any:
            return np.dot(first(x), second(y))

        return plain_dot, 2

    @numba.register_by_properties(OneHotDot)  # type: ignore[untyped-decorator]
    def funcify_one_hot(op: Any, node: Any, **kwargs: Any) -> tuple[Any, int]:
        classes = op.classes

        @numba.njit  # type: ignore[untyped-decorator]
        def take_rows(hot: Any, matrix: Any) -> Any:
            result = np.empty((hot.size, matrix.shape[1]), matrix.dtype)
            for row in range(hot.size):
                if 0 <= hot[row] < classes:
                    result[row] = matrix[hot[row]]
                else:
                    result[row] = 0
            return result

        @numba.njit  # type: ignore[untyped-decorator]
        def add_rows(hot: Any, matrix: Any) -> Any:
            result = np.zeros((classes, matrix.shape[1]), matrix.dtype)
            for row in range(hot.size):
                if 0 <= hot[row] < classes:
                    result[hot[row]] += matrix[row]
            return result

        return (add_rows if op.transposed else take_rows), 1

    @numba.register_by_properties(ThinDot)  # type: ignore[untyped-decorator]
    def funcify_thin(op: Any, node: Any, **kwargs: Any) -> tuple[Any, int]:
        return thin_dot, 1
