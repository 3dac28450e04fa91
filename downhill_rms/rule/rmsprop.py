"""RMSProp: the update rule as symbolic expressions.

This module knows no loop, no data and no compiler. From gradients and hyperparameters it builds
pairs (shared variable, next value), which any ``pytensor.function`` can apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from downhill_rms.rule.gradients import CLIPS, add_weight_decay
from downhill_rms.rule.graph import Update, describe
from downhill_rms.rule.hyperparameters import Hyperparameters

KINDS = ("mean", "variance", "mean_square", "velocity")  # of accumulators
STARTED = ("variance", "mean_square")  # those that start at ``initial_accumulator``


def needed_kinds(hyperparameters: Hyperparameters) -> tuple[str, ...]:
    """The accumulators that a rule keeps for each parameter."""
    kinds = ("mean", "variance") if hyperparameters.centered else ("mean_square",)
    return (*kinds, "velocity") if hyperparameters.momentum else kinds


class State:
    """What RMSProp remembers between updates: shared variables, by name.

    Parameters
    ----------
    params : sequence of SharedVariable
        The parameters.
    names : sequence of str
        Their names, all different.

    Attributes
    ----------
    accumulators : dict of str to SharedVariable
        ``w_mean``, ``w_variance``, ``w_mean_square`` and ``w_velocity`` for a parameter ``w``,
        as the rule needs them; each of its parameter's shape and dtype.
    numbers : dict of str to SharedVariable
        The hyperparameters in force, scalars of the widest dtype among the parameters.
    update_count : SharedVariable
        Updates made, an int64 scalar; only bias correction and schedules advance it.
    """

    def __init__(self, params: Sequence[Any], names: Sequence[str]) -> None:
        self.names = dict(zip(params, names, strict=True))
        self.dtype = np.result_type(*(p.type.dtype for p in params))
        self.accumulators: dict[str, Any] = {}
        self.starts: dict[str, float] = {}
        self.numbers: dict[str, Any] = {}
        self.update_count = pytensor.shared(np.array(0, dtype="int64"), name="update_count")

    def accumulator(self, param: Any, kind: str, start: float = 0.0) -> Any:
        """The accumulator of this kind for a parameter, made at first use."""
        name = f"{self.names[param]}_{kind}"
        if name not in self.accumulators:
            self.starts[name] = start
            shape = param.get_value(borrow=True).shape
            value = np.full(shape, start, dtype=param.type.dtype)
            self.accumulators[name] = pytensor.shared(value, name=name, shape=param.type.shape)
        return self.accumulators[name]

    def reset(self) -> None:
        """Put all accumulators and the update count back to their start."""
        for name, accumulator in self.accumulators.items():
            value = accumulator.get_value(borrow=True)
            start = np.full(value.shape, self.starts[name], dtype=accumulator.type.dtype)
            accumulator.set_value(start, borrow=True)
        self.update_count.set_value(np.array(0, dtype="int64"))

    def assign(self, hyperparameters: Hyperparameters) -> None:
        """Put the numbers of ``hyperparameters`` in force."""
        values = {
            name: np.array(number, dtype=self.dtype)
            for name, number in hyperparameters.numbers.items()
        }
        if values["rms_regularizer"] == 0:
            raise ValueError(
                "rms_regularizer is above 0 in the parameters' dtype: "
                f"{hyperparameters.rms_regularizer} is 0 in {self.dtype}. Give a larger value."
            )
        for name, value in values.items():
            if name in self.numbers:
                self.numbers[name].set_value(value)
            else:
                self.numbers[name] = pytensor.shared(value, name=name)


def rmsprop_updates(
    params: Sequence[Any],
    gradients: Sequence[Any],
    hyperparameters: Hyperparameters,
    state: State,
) -> list[Update]:
    r"""Build the expressions of one RMSProp update.

    With gradient g (clipped, with coupled weight decay added), w = 1 - gamma, learning rate
    :math:`\eta`, regularizer :math:`\epsilon` and momentum :math:`\mu`, centered:

    .. math::

        \delta &= g - m_{t-1} \\
        m_t &= m_{t-1} + w \delta \\
        s_t &= (1 - w)(s_{t-1} + w \delta^2) \\
        u &= \eta g / \sqrt{s_t + \epsilon}

    and uncentered, with :math:`r_t` in place of :math:`s_t`:

    .. math::

        r_t = (1 - w) r_{t-1} + w g^2

    With ``max_update``, u is then bounded to :math:`[-c, c]` element by element. Then, without
    momentum, with classical and with Nesterov's momentum:

    .. math::

        p_t &= p_{t-1} - u \\
        v_t &= \mu v_{t-1} - u, \quad p_t = p_{t-1} + v_t \\
        v_t &= \mu v_{t-1} - u, \quad p_t = p_{t-1} + \mu v_t - u

    Parameters
    ----------
    params : sequence of SharedVariable
        The parameters.
    gradients : sequence of Variable
        The gradient of each.
    hyperparameters : Hyperparameters
        The rule's choices; its numbers are put in force in ``state``.
    state : State
        Accumulators and numbers, extended as the rule needs.

    Returns
    -------
    list of (SharedVariable, Variable)
        Next values of the parameters, each of its parameter's dtype, and of the state.

    Notes
    -----
    Centered form: A. Graves, "Generating Sequences With Recurrent Neural Networks",
    arXiv:1308.0850 (2013), eq. 38-40. The recurrence of the variance: D. H. D. West, "Updating
    mean and variance estimates", Communications of the ACM 22(9), 1979; it equals
    :math:`E[g^2]_t - E[g]_t^2` and cannot cancel below 0. Uncentered form: T. Tieleman and
    G. Hinton, "Lecture 6.5: rmsprop", Coursera, 2012. Momentum: I. Sutskever et al., "On the
    importance of initialization and momentum in deep learning", ICML 2013.
    """
    state.assign(hyperparameters)
    numbers = state.numbers
    if hyperparameters.clip is not None:
        gradients = CLIPS[hyperparameters.clip](gradients, numbers["max_gradient"])
    coupled = hyperparameters.weight_decay > 0 and not hyperparameters.decoupled_weight_decay
    if coupled:
        gradients = add_weight_decay(gradients, params, numbers["weight_decay"])

    updates: list[Update] = []
    if hyperparameters.bias_correction or hyperparameters.has_schedule:
        updates.append((state.update_count, state.update_count + 1))
    learning_rate = _learning_rate(hyperparameters, state)
    w = _ewma_weight(hyperparameters, state)
    for param, g in zip(params, gradients, strict=True):
        updates += _update_parameter(param, g, learning_rate, w, hyperparameters, state)
    return updates


def _learning_rate(hyperparameters: Hyperparameters, state: State) -> Any:
    learning_rate = hyperparameters.learning_rate
    if isinstance(learning_rate, float):
        return state.numbers["learning_rate"]
    if hyperparameters.has_schedule:
        learning_rate = pt.as_tensor_variable(learning_rate(state.update_count + 1))
        if learning_rate.type.ndim != 0:
            raise ValueError(
                "A learning rate schedule returns a scalar of the update count: received "
                f"{describe(learning_rate)}. Return one number or a scalar expression."
            )
    return learning_rate


def _ewma_weight(hyperparameters: Hyperparameters, state: State) -> Any:
    if not hyperparameters.bias_correction:
        return state.numbers["ewma_weight"]
    # (1 - gamma) / (1 - gamma**t), without the cancellation of either difference.
    log_decay = state.numbers["log_decay"]
    t = (state.update_count + 1).astype(state.dtype)
    return pt.expm1(log_decay) / pt.expm1(t * log_decay)


def _update_parameter(
    param: Any,
    g: Any,
    learning_rate: Any,
    w: Any,
    hyperparameters: Hyperparameters,
    state: State,
) -> list[Update]:
    dtype = param.type.dtype
    g, learning_rate, w = (value.astype(dtype) for value in (g, learning_rate, w))
    epsilon, mu, decay = (
        state.numbers[name].astype(dtype)
        for name in ("rms_regularizer", "momentum", "weight_decay")
    )
    start = hyperparameters.initial_accumulator
    if hyperparameters.centered:
        mean_tm1 = state.accumulator(param, "mean")
        variance_tm1 = state.accumulator(param, "variance", start)
        delta = g - mean_tm1
        mean_t = mean_tm1 + w * delta
        variance_t = (1 - w) * (variance_tm1 + w * pt.sqr(delta))
        updates = [(mean_tm1, mean_t), (variance_tm1, variance_t)]
    else:
        mean_square_tm1 = state.accumulator(param, "mean_square", start)
        variance_t = (1 - w) * mean_square_tm1 + w * pt.sqr(g)
        updates = [(mean_square_tm1, variance_t)]
    if hyperparameters.regularize == "variance":
        denominator = pt.sqrt(variance_t + epsilon)
    else:
        denominator = pt.sqrt(variance_t) + epsilon
    u = learning_rate * g / denominator
    if hyperparameters.max_update:
        bound = state.numbers["max_update"].astype(dtype)
        u = pt.clip(u, -bound, bound)

    param_tm1 = param
    if hyperparameters.weight_decay > 0 and hyperparameters.decoupled_weight_decay:
        param_tm1 = param * (1 - learning_rate * decay)
    if not hyperparameters.momentum:
        param_t = param_tm1 - u
    else:
        velocity_tm1 = state.accumulator(param, "velocity")
        velocity_t = mu * velocity_tm1 - u
        updates.append((velocity_tm1, velocity_t))
        nesterov = hyperparameters.nesterov
        param_t = param_tm1 + (mu * velocity_t - u if nesterov else velocity_t)
    return [(variable, new.astype(dtype)) for variable, new in [*updates, (param, param_t)]]
