"""Effective steps: how far an update moves each parameter, and what its denominator is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytensor.tensor as pt

from downhill_rms.rule.graph import Update
from downhill_rms.rule.hyperparameters import Hyperparameters
from downhill_rms.rule.rmsprop import State


def telemetry_names(param_names: Sequence[str]) -> list[str]:
    """Names of what `update_telemetry` returns."""
    return [f"{kind}({name})" for kind in ("update_ratio", "at_floor") for name in param_names]


def update_telemetry(
    updates: Sequence[Update], hyperparameters: Hyperparameters, state: State
) -> list[Any]:
    r"""Build the numbers that tell a bad learning rate or regularizer.

    For each parameter, the root mean square of its update over that of its new value,

    .. math::

        \sqrt{\overline{(p_t - p_{t-1})^2}} \, / \sqrt{\overline{p_t^2}},

    and the share of its coordinates whose denominator is at the regularizer's floor: where
    :math:`s_t \le \epsilon` (``regularize="variance"``) or :math:`\sqrt{s_t} \le \epsilon`
    (``"rms"``), with :math:`r_t` in place of :math:`s_t` if not centered. There the centered form
    takes steps of up to :math:`\eta g / \sqrt{\epsilon}`, however large the gradient is.

    Parameters
    ----------
    updates : sequence of (SharedVariable, Variable)
        What `rmsprop_updates` returned.
    hyperparameters : Hyperparameters
        The rule's choices.
    state : State
        The rule's accumulators and numbers.

    Returns
    -------
    list of Variable
        Scalars, named by ``telemetry_names``. The ratio of a parameter that stays 0 is 0.
    """
    new = dict(updates)
    ratios = [_ratio(param, new[param]) for param in state.names]
    shares = [_share_at_floor(param, new, hyperparameters, state) for param in state.names]
    return [*ratios, *shares]


def _ratio(param_tm1: Any, param_t: Any) -> Any:
    step = _root_mean_square(param_t - param_tm1)
    return pt.switch(pt.eq(step, 0), 0, step / _root_mean_square(param_t))


def _root_mean_square(values: Any) -> Any:
    return pt.sqrt(pt.sqr(values).mean())


def _share_at_floor(
    param: Any, new: Mapping[Any, Any], hyperparameters: Hyperparameters, state: State
) -> Any:
    kind = "variance" if hyperparameters.centered else "mean_square"
    variance_t = new[state.accumulators[f"{state.names[param]}_{kind}"]]
    epsilon = state.numbers["rms_regularizer"].astype(param.type.dtype)
    inside = hyperparameters.regularize == "variance"
    at_floor = (variance_t if inside else pt.sqrt(variance_t)) <= epsilon
    return at_floor.astype(param.type.dtype).mean()
