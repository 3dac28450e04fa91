"""Symbolic gradients: differentiate, clip, add weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytensor.tensor as pt
from pytensor.gradient import grad

from downhill_rms.rule.draws import opened
from downhill_rms.rule.traversal import describe


def differentiate(loss: Any, params: Sequence[Any]) -> list[Any]:
    """Gradients of a scalar loss.

    Parameters
    ----------
    loss : Variable
        A real floating-point scalar.
    params : sequence of SharedVariable
        What to differentiate by.

    Returns
    -------
    list of Variable
        One gradient for each parameter, of its shape and dtype.

    Raises
    ------
    ValueError
        If no differentiable path leads from a parameter to the loss.
    """
    params = list(params)
    gradients = grad(
        opened(loss, params), params, disconnected_inputs="ignore", return_disconnected="none"
    )
    for param, gradient in zip(params, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"{describe(param)} is not connected to the loss by differentiable operations (its "
                "shape, or an expression held constant, does not count). Leave it out with params=."
            )
    return list(gradients)


def norm(gradients: Sequence[Any]) -> Any:
    """L2 norm over all the given gradients together, a scalar."""
    return pt.sqrt(sum(pt.sqr(g).sum() for g in gradients))


def clip_elements(gradients: Sequence[Any], bound: Any) -> list[Any]:
    """Bound every element to ``[-bound, bound]``."""
    return [pt.clip(g, -bound, bound) for g in gradients]


def clip_norms(gradients: Sequence[Any], bound: Any) -> list[Any]:
    """Scale each gradient whose own L2 norm is above ``bound`` down to it."""
    return [_scale_to(g, norm([g]), bound) for g in gradients]


def clip_global_norm(gradients: Sequence[Any], bound: Any) -> list[Any]:
    """Scale all gradients together if their common L2 norm is above ``bound``.

    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks",
    ICML 2013, algorithm 1.
    """
    common = norm(gradients)
    return [_scale_to(g, common, bound) for g in gradients]


def _scale_to(gradient: Any, length: Any, bound: Any) -> Any:
    # bound / max(length, bound) is exactly 1 below the bound, and never divides by zero.
    return gradient * (bound / pt.maximum(length, bound))


def add_weight_decay(
    gradients: Sequence[Any], params: Sequence[Any], weight_decay: Any
) -> list[Any]:
    """Add ``weight_decay * param`` to each gradient: L2 regularisation, coupled."""
    return [g + weight_decay * p for g, p in zip(gradients, params, strict=True)]


# The clips by the hyperparameter that holds their bound.
CLIPS = {
    "max_gradient_elem": clip_elements,
    "max_gradient_norm": clip_norms,
    "max_global_norm": clip_global_norm,
}
