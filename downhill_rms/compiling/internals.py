"""What the library uses of PyTensor's internals, all of it, in one place.

PyTensor documents none of this for others and may change it in any release. What is here is
imported by `modes.own_mode` when a mode is first asked for, never with the package: a name that is
missing costs the rewrites, not the training. Beyond the names, the rewrites rely on these facts:

- ``Scan`` has the mode of the graph inside it as ``mode``, before 3.3; None is PyTensor's own.
- A function that Numba has compiled has its source as ``py_func``.
- Before 3.3 ``elemwise.store_core_outputs`` makes the body of a loop of an operation's function.
- In PyTensor's sequence of rewrites, position 47.5 is after every one that looks for the replaced
  operations, before elementwise operations are fused (48) and inner graphs are compiled (49.6).
- ``CAReduce`` has the dtype that it accumulates in as ``acc_dtype``.
- A ``Scan`` is given and returns what its ``info`` counts, in the order of its docstring; the graph
  of its step can be changed once it is unfrozen, since 3.3. ``pullback`` is its gradient.
- ``Elemwise`` calls the function of NumPy that ``nfunc_spec`` names.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

from pytensor.compile.mode import Mode, optdb, predefined_optimizers
from pytensor.gradient import disconnected_type
from pytensor.graph.rewriting.basic import (
    MergeOptimizer,
    SequentialGraphRewriter,
    WalkingGraphRewriter,
    node_rewriter,
)
from pytensor.link.vm import VMLinker
from pytensor.raise_op import CheckAndRaise
from pytensor.scalar.basic import (
    EQ,
    Abs,
    Add,
    BinaryBitOp,
    Cast,
    Clip,
    Composite,
    Exp,
    Identity,
    Log1p,
    LogicalComparison,
    Maximum,
    Minimum,
    Mul,
    Neg,
    Reciprocal,
    ScalarOp,
    ScalarType,
    Second,
    Sign,
    Sqr,
    Sub,
    Switch,
    Tanh,
    TrueDiv,
    UnaryBitOp,
)
from pytensor.scalar.math import Sigmoid, Softplus
from pytensor.scan.op import Scan, ScanInfo
from pytensor.scan.utils import expand_empty
from pytensor.tensor.basic import (
    Alloc,
    ARange,
    Join,
    MakeVector,
    ScalarFromTensor,
    Split,
    TensorFromScalar,
)
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.math import Dot, Sum
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape
from pytensor.tensor.special import LogSoftmax, Softmax
from pytensor.tensor.subtensor import IncSubtensor, Subtensor, indices_from_subtensor

__all__ = [
    "EQ",
    "POSITION",
    "ARange",
    "Abs",
    "Add",
    "Alloc",
    "BinaryBitOp",
    "Blockwise",
    "CAReduce",
    "Cast",
    "CheckAndRaise",
    "Clip",
    "Composite",
    "DimShuffle",
    "Dot",
    "Elemwise",
    "Exp",
    "Identity",
    "IncSubtensor",
    "Join",
    "Log1p",
    "LogSoftmax",
    "LogicalComparison",
    "MakeVector",
    "Maximum",
    "MergeOptimizer",
    "Minimum",
    "Mode",
    "Mul",
    "Neg",
    "Reciprocal",
    "Reshape",
    "ScalarFromTensor",
    "ScalarOp",
    "ScalarType",
    "Scan",
    "ScanInfo",
    "Second",
    "SequentialGraphRewriter",
    "Shape",
    "Shape_i",
    "Sigmoid",
    "Sign",
    "Softmax",
    "Softplus",
    "SpecifyShape",
    "Split",
    "Sqr",
    "Sub",
    "Subtensor",
    "Sum",
    "Switch",
    "Tanh",
    "TensorFromScalar",
    "TrueDiv",
    "UnaryBitOp",
    "VMLinker",
    "WalkingGraphRewriter",
    "disconnected_type",
    "expand_empty",
    "indices_from_subtensor",
    "jax_dispatch",
    "node_rewriter",
    "numba_dispatch",
    "optdb",
    "predefined_optimizers",
    "rewriter_of_scans",
    "with_rewriters",
]

POSITION = 47.5


@cache
def numba_dispatch() -> SimpleNamespace:
    """What tells PyTensor how Numba computes an operation; Numba takes a while to import."""
    from pytensor.link.numba.dispatch import elemwise
    from pytensor.link.numba.dispatch.basic import (
        numba_funcify_and_cache_key,
        numba_njit,
        register_funcify_and_cache_key,
        register_funcify_default_op_cache_key,
    )

    return SimpleNamespace(
        elemwise=elemwise,
        funcify=numba_funcify_and_cache_key,
        njit=numba_njit,
        register=register_funcify_and_cache_key,
        register_by_properties=register_funcify_default_op_cache_key,
    )


def jax_dispatch() -> Any:
    """What tells PyTensor how JAX computes an operation."""
    from pytensor.link.jax.dispatch.basic import jax_funcify

    return jax_funcify


def rewriter_of_scans(wanted: Callable[[Any], Any]) -> Any:
    """A rewriter that has the graphs inside scans compiled by another mode.

    Before PyTensor 3.3 the graph inside a scan is rewritten by a mode of the scan's own.

    Parameters
    ----------
    wanted : callable
        Takes the mode of a scan, None if it was given none, to the one that it is to have.
    """

    @node_rewriter([Scan])  # type: ignore[untyped-decorator]
    def rewrite(fgraph: Any, node: Any) -> list[Any] | None:
        mode = wanted(node.op.mode)
        if mode is node.op.mode:
            return None
        op = node.op.clone()
        if op is node.op:  # since 3.3, and it is the scan of the user's graph too
            op = copy(op)
            op._fn = None
        op.mode = mode
        return list(op(*node.inputs, return_list=True))

    return WalkingGraphRewriter(rewrite)


def with_rewriters(base: Any, *rewriters: Any) -> Any:
    """A mode with further rewriters, which take effect inside scans too."""
    scans = rewriter_of_scans(lambda given: mode if given is None else given)
    mode = base.register(*((rewriter, POSITION) for rewriter in (*rewriters, scans)))
    return mode
