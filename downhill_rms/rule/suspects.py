"""Shared variables that are taken for parameters and look as though they were none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import pytensor.scalar as ps
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import walk
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.shape import Shape, Shape_i

from downhill_rms.rule.graph import LossGraph
from downhill_rms.rule.traversal import nodes_in_order, warn

DEPTH = 40  # operations behind a gradient that are looked at for a zero


def warn_of_suspects(graph: LossGraph, gradients: Sequence[Any]) -> None:
    """Warn of what was taken for a parameter though the graph tells that it is hardly one.

    Parameters
    ----------
    graph : LossGraph
        The loss. Where the user has said what is trained, there is nothing to warn of.
    gradients : sequence of Variable
        One for each parameter.
    """
    if graph.params_said:
        return
    for param, gradient in zip(graph.params, gradients, strict=True):
        if _is_data_of_pymc(param):
            _warn(graph, param, "is a data container of PyMC")
        elif _is_zero(gradient):
            _warn(graph, param, "has a gradient that is zero whatever the data, as a switch has")
        elif param.type.ndim == 0 and _is_factor(param, gradient, graph.params):
            _warn(graph, param, "multiplies a term of the loss, and so would run without bound")


def warn_of_data(graph: LossGraph, n_samples: int | None, shapes: Iterable[Sequence[int]]) -> None:
    """Warn of what was taken for a parameter and has as many rows as the training data.

    A parameter for each sample, as in a matrix factorisation, is a penalty's business too: what
    the loss uses twice is none of data.

    Parameters
    ----------
    graph : LossGraph
        The loss.
    n_samples : int or None
        Samples of the training data, where they are known.
    shapes : iterable of sequence of int
        Of the arrays that hold them. Where one has that extent in two dimensions, its features
        may be as many as its samples by chance, and nothing is said.
    """
    rows = n_samples or 0
    if graph.params_said or rows < 2:  # one row says nothing
        return
    if any(list(shape).count(rows) > 1 for shape in shapes):
        return
    nodes = nodes_in_order([graph.loss])
    for param in graph.params:
        once = sum(param in node.inputs for node in nodes) == 1
        shape = param.get_value(borrow=True).shape
        if once and shape[:1] == (rows,):
            _warn(graph, param, "has as many rows as the training data")


def _warn(graph: LossGraph, param: Any, why: str) -> None:
    index = graph.params.index(param)
    name, shape = graph.param_names[index], param.get_value(borrow=True).shape
    others = ", ".join(other.name or "..." for other in graph.params if other is not param)
    warn(
        f"{name!r} of shape {shape} is trained and {why}. A parameter is what training should "
        f"adjust: say which ones are, for example params=[{others}]."
    )


def _is_data_of_pymc(param: Any) -> bool:
    """Whether pm.Data made it, as far as PyTensor has kept where a variable was made."""
    stacks = getattr(param.tag, "trace", None) or []
    files = [PurePath(str(frame[0])).parts[-2:] for stack in stacks for frame in stack]
    return ("pymc", "data.py") in files


def _is_zero(variable: Any, depth: int = DEPTH) -> bool:
    """Whether an expression is zero by how it is built."""
    if isinstance(variable, Constant):
        return not np.any(variable.data)
    node = variable.owner
    if node is None or depth == 0:
        return False
    if isinstance(node.op, DimShuffle | CAReduce):
        return _is_zero(node.inputs[0], depth - 1)
    if not isinstance(node.op, Elemwise):
        return False
    if isinstance(node.op.scalar_op, ps.Second):
        return _is_zero(node.inputs[1], depth - 1)
    if isinstance(node.op.scalar_op, ps.Mul):
        return any(_is_zero(operand, depth // 2) for operand in node.inputs)
    if isinstance(node.op.scalar_op, ps.Add | ps.Sub | ps.Neg | ps.Cast):
        return all(_is_zero(operand, depth - 1) for operand in node.inputs)
    return False


def _is_factor(param: Any, gradient: Any, params: Sequence[Any]) -> bool:
    """Whether the loss is linear in a scalar, with a slope that other parameters decide."""
    behind = set(walk([gradient], _values, bfs=False))
    return param not in behind and any(other in behind for other in params)


def _values(variable: Any) -> list[Any] | None:
    """What the value of a variable depends on, its shape apart."""
    node = variable.owner
    if node is None or isinstance(node.op, Shape | Shape_i):
        return None
    if isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, ps.Second):
        return list(node.inputs[1:])
    return list(node.inputs)
