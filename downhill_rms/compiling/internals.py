"""What the library uses of PyTensor's internals, all of it, in one place.

PyTensor documents none of this for others and may change it in any release. What is here is
imported by `modes.own_mode` when a mode is first asked for, never with the package: a name that is
missing costs the rewrites, not the training. Beyond the names, the rewrites rely on these facts:

- In 3.0 the graph inside a ``Scan`` is rewritten by its ``mode`` when the scan is compiled; None is
  PyTensor's own. Since 3.1 it is frozen, PyTensor rewrites it together with the graph around it,
  and a copy of the scan can be given another one.
- A function that Numba has compiled has its source as ``py_func``.
- Before 3.3 ``elemwise.store_core_outputs`` makes the body of a loop of an operation's function.
- In PyTensor's sequence of rewrites, position 1.4 is after sums of sums have become one, at 1; 47.5
  is after every one that looks for the replaced operations, before elementwise operations are fused
  (48) and inner graphs are compiled (49.6); 50.45 is after both, just before elementwise operations
  are made to work in place (50.5); 99.9 is just before the last fusions, at 100, which there are
  since 3.1.
- ``CAReduce`` has the dtype that it accumulates in as ``acc_dtype``.
- A ``Scan`` is given and returns what its ``info`` counts, in the order of its docstring.
  ``pullback`` is its gradient.
- A linker knows the graph that it compiles as ``fgraph``, whose ``update_mapping`` takes the place
  of an output to that of the input that it is assigned to; ``create_jitable_thunk`` makes what a
  call runs, and calls ``fgraph_convert`` and ``jit_compile``.
- ``Elemwise`` calls the function of NumPy that ``nfunc_spec`` names.
- Numba's function of an elementwise operation returns the array that it overwrites; since 3.3 such
  an operation may be an ``Elemwise`` inside a ``FusedElemwise`` or ``ScalarizedElemwise``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
from pytensor.assumptions.core import AssumptionFeature, FactState
from pytensor.compile.aliasing import Supervisor
from pytensor.compile.builders import OpFromGraph
from pytensor.compile.mode import NUMBA, Mode, get_mode, optdb, predefined_optimizers
from pytensor.compile.ops import DeepCopyOp, ViewOp
from pytensor.gradient import disconnected_type
from pytensor.graph.destroyhandler import DestroyHandler
from pytensor.graph.features import AlreadyThere, FullHistory, ReplaceValidate
from pytensor.graph.fg import AbstractFunctionGraph
from pytensor.graph.op import HasInnerGraph
from pytensor.graph.rewriting.basic import (
    GraphRewriter,
    MergeOptimizer,
    SequentialGraphRewriter,
    WalkingGraphRewriter,
    node_rewriter,
)
from pytensor.graph.utils import InconsistencyError
from pytensor.link.jax.linker import JAXLinker
from pytensor.link.numba.linker import NumbaLinker
from pytensor.link.vm import VMLinker
from pytensor.misc.frozendict import frozendict
from pytensor.raise_op import Assert, CheckAndRaise
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
from pytensor.tensor.extra_ops import CumOp
from pytensor.tensor.math import Dot, Sum
from pytensor.tensor.pad import Pad
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.rewriting.elemwise import InplaceElemwiseOptimizer
from pytensor.tensor.rewriting.ofg import inline_ofg_node
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape
from pytensor.tensor.signal.conv import Convolve1d, Convolve2d
from pytensor.tensor.special import LogSoftmax, Softmax
from pytensor.tensor.subtensor import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    IncSubtensor,
    Subtensor,
    indices_from_subtensor,
)
from pytensor.tensor.type import DenseTensorType

__all__ = [
    "AFTER_IN_PLACE",
    "BEFORE_FUSION",
    "BEFORE_IN_PLACE",
    "CANONICAL",
    "EQ",
    "FIRST",
    "IN_PLACE",
    "POSITION",
    "QUICK",
    "ARange",
    "Abs",
    "AbstractFunctionGraph",
    "Add",
    "AdvancedIncSubtensor",
    "AdvancedSubtensor",
    "Alloc",
    "Assert",
    "AssumptionFeature",
    "BinaryBitOp",
    "Blockwise",
    "CAReduce",
    "Cast",
    "CheckAndRaise",
    "Clip",
    "Composite",
    "Convolve1d",
    "Convolve2d",
    "CumOp",
    "DeepCopyOp",
    "DenseTensorType",
    "DestroyHandler",
    "DimShuffle",
    "Dot",
    "Elemwise",
    "Exp",
    "FactState",
    "FullHistory",
    "GraphRewriter",
    "HasInnerGraph",
    "Identity",
    "IncSubtensor",
    "InconsistencyError",
    "InplaceElemwiseOptimizer",
    "JAXLinker",
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
    "NumbaLinker",
    "OpFromGraph",
    "Pad",
    "RandomType",
    "Reciprocal",
    "ReplaceValidate",
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
    "Supervisor",
    "Switch",
    "Tanh",
    "TensorFromScalar",
    "TrueDiv",
    "UnaryBitOp",
    "VMLinker",
    "ViewOp",
    "WalkingGraphRewriter",
    "attach",
    "disconnected_type",
    "expand_empty",
    "frozendict",
    "indices_from_subtensor",
    "inline_ofg_node",
    "jax_dispatch",
    "last_fusions",
    "node_rewriter",
    "numba_dispatch",
    "numba_internals",
    "optdb",
    "overwritten_input",
    "predefined_optimizers",
    "rewriter_of_scans",
    "rewritten_step",
    "scalarized_elemwise",
    "shared_size",
    "with_rewriters",
]

FIRST, CANONICAL, POSITION, BEFORE_IN_PLACE, IN_PLACE = -1.0, 1.4, 47.5, 50.45, 50.5
AFTER_IN_PLACE = 50.6
# Elementwise operations that take no longer than to read a number. Division takes longer.
QUICK = (
    *(Abs, Add, BinaryBitOp, Cast, Clip, Identity, LogicalComparison, Maximum, Minimum, Mul, Neg),
    *(Second, Sign, Sqr, Sub, Switch, UnaryBitOp),
)

BEFORE_FUSION, FUSION = 99.9, "fuse_indexed_into_elemwise"
SCANS_ARE_FROZEN = hasattr(Scan, "clone_with_inner_graph")  # since PyTensor 3.1

ELEMENTWISE = {"Elemwise", "FusedElemwise", "ScalarizedElemwise", "UpdateByProduct"}


@cache
def numba_dispatch() -> SimpleNamespace:
    """What tells PyTensor how Numba computes an operation; Numba takes a while to import."""
    from pytensor.link.numba.cache import compile_numba_function_src
    from pytensor.link.numba.dispatch import elemwise
    from pytensor.link.numba.dispatch.basic import (
        cache_key_for_constant,
        numba_funcify_and_cache_key,
        numba_njit,
        numba_typify,
        register_funcify_and_cache_key,
        register_funcify_default_op_cache_key,
    )

    return SimpleNamespace(
        constant=numba_typify,
        constant_key=cache_key_for_constant,
        elemwise=elemwise,
        funcify=numba_funcify_and_cache_key,
        function_of_source=compile_numba_function_src,
        njit=numba_njit,
        register=register_funcify_and_cache_key,
        register_by_properties=register_funcify_default_op_cache_key,
    )


def rewritten_step(scan: Any) -> Any:
    """The graph inside a scan, as Numba is to compile it; nothing in it is computed in place."""
    if SCANS_ARE_FROZEN:  # PyTensor has rewritten it
        return scan.fgraph
    step = scan.fgraph.clone()
    mode = get_mode(scan.mode).including("numba").excluding(*NUMBA._optimizer.exclude, "inplace")
    mode.optimizer.rewrite(step)
    return step


@cache
def numba_internals() -> SimpleNamespace:
    """How Numba makes native code."""
    from numba.core.codegen import JITCodeLibrary, RuntimeLinker
    from numba.core.compiler import Compiler

    return SimpleNamespace(
        Compiler=Compiler, JITCodeLibrary=JITCodeLibrary, RuntimeLinker=RuntimeLinker
    )


def shared_size(variable: Any) -> int:
    """How many numbers a shared variable of a graph has now; 0 for any other variable."""
    container = getattr(variable, "container", None)
    return 0 if container is None else int(np.size(container.data))


def scalarized_elemwise() -> Any:
    """The operation that gives numbers to an elementwise one inside it; None in older versions."""
    with suppress(ImportError):
        return import_module("pytensor.tensor.rewriting.scalarize").ScalarizedElemwise
    return None


def jax_dispatch() -> Any:
    """What tells PyTensor how JAX computes an operation."""
    from pytensor.link.jax.dispatch.basic import jax_funcify

    return jax_funcify


def rewriter_of_scans(wanted: Callable[[Any], Any]) -> Any:
    """A rewriter that has the graphs inside scans rewritten by another mode.

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
        if SCANS_ARE_FROZEN:
            step = node.op.fgraph.unfreeze()
            mode.optimizer.rewrite(step)
            op = node.op.clone_with_inner_graph(step)
            if op == node.op:
                return None
        else:
            op = node.op.clone()
            op.mode = mode
        return list(op(*node.inputs, return_list=True))

    return WalkingGraphRewriter(rewrite)


def overwritten_input(variable: Any) -> Any:
    """The variable whose array an elementwise operation has put this one into, if it has."""
    node = variable.owner
    if node is None or type(node.op).__name__ not in ELEMENTWISE:
        return None
    index = node.op.destroy_map.get(node.outputs.index(variable))
    return node.inputs[index[0]] if index else None


def attach(fgraph: Any, *features: Any) -> None:
    """Have a graph watched by features, but by one of a kind alone."""
    for feature in features:
        with suppress(AlreadyThere):
            fgraph.attach_feature(feature)


def last_fusions(mode: Any) -> Any:
    """The rewriter of a mode that fuses what has begun to work in place; None if it has none."""
    query = mode._optimizer
    return optdb[FUSION].query(query) if FUSION in optdb and FUSION not in query.exclude else None


def with_rewriters(base: Any, *rewriters: Any) -> Any:
    """A mode with further rewriters, which take effect inside scans too."""
    if not SCANS_ARE_FROZEN:  # since then PyTensor rewrites by the mode of the graph around them
        rewriters += (rewriter_of_scans(lambda given: mode if given is None else given),)
    # At one position PyTensor would go by their addresses.
    places = (POSITION + 1e-6 * index for index in range(len(rewriters)))
    mode = base.register(*zip(rewriters, places, strict=True))
    return mode
