"""The rule for other people's loops: updates from gradients that need not be a loss's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytensor.graph.basic import Variable

from downhill_rms.rule.checks import check_list, shown
from downhill_rms.rule.graph import Update, check_params, unique_names
from downhill_rms.rule.hyperparameters import Hyperparameters
from downhill_rms.rule.rmsprop import State, rmsprop_updates
from downhill_rms.rule.traversal import describe


def updates(
    params: Sequence[Any], gradients: Sequence[Any], **hyperparameters: Any
) -> list[Update]:
    """Build the updates of one RMSProp step from gradients that are given.

    They may be any expressions of the parameters' shapes: natural gradients, gradients that were
    accumulated, or those that another program computes. `Trainer.get_updates` does the same for
    the gradients of a loss.

    Parameters
    ----------
    params : sequence of SharedVariable
        What to adjust, floating-point tensors.
    gradients : sequence of Variable
        One for each parameter, of its number of dimensions and real.
    **hyperparameters
        As for `Hyperparameters`.

    Returns
    -------
    list of (SharedVariable, Variable)
        Next values of the parameters and of new accumulators, which start afresh at every call:
        for ``pytensor.function(..., updates=...)``.

    Raises
    ------
    TypeError
        For a parameter or a gradient of a kind that cannot serve as one, or an unknown
        hyperparameter.
    ValueError
        If there are not as many gradients as parameters, or a hyperparameter is out of range.

    Examples
    --------
    >>> import pytensor
    >>> import pytensor.tensor as pt
    >>> w, g = pytensor.shared(0.0, name="w"), pt.scalar("g")
    >>> step = pytensor.function(
    ...     [g], updates=updates([w], [g], learning_rate=0.5, decay=0.0, centered=False)
    ... )
    >>> _ = step(3.0)
    >>> float(w.get_value().round(6))
    -0.5
    """
    params = check_list("params", params, "shared variables")
    if not params:
        raise ValueError("params is empty: there is one at least. Give a shared variable.")
    check_params(params)
    gradients = check_list("gradients", gradients, "symbolic expressions")
    if len(gradients) != len(params):
        raise ValueError(
            f"gradients has {len(gradients)} for {len(params)} parameters: there is one for each. "
            "Give as many, in the parameters' order."
        )
    for param, gradient in zip(params, gradients, strict=True):
        _check_gradient(param, gradient)
    state = State(params, unique_names(params))
    return rmsprop_updates(params, gradients, Hyperparameters(**hyperparameters), state)


def _check_gradient(param: Any, gradient: Any) -> None:
    kind: Any = getattr(gradient, "type", None)
    if not isinstance(gradient, Variable) or not hasattr(kind, "ndim"):
        raise TypeError(
            f"gradients has {shown(gradient)} for {describe(param)}: a gradient is a symbolic "
            "tensor. Give an expression, as pytensor.grad returns it."
        )
    if kind.ndim != param.type.ndim:
        raise ValueError(
            f"gradients has {describe(gradient)} of {kind.ndim} dimensions for {describe(param)} "
            f"of {param.type.ndim}: a gradient has its parameter's shape. Give them in one order."
        )
    if not kind.dtype.startswith(("float", "int", "uint")):
        raise TypeError(
            f"gradients has {describe(gradient)} of dtype {kind.dtype} for {describe(param)}: a "
            "gradient is real. Give its real part, or leave the parameter out."
        )
