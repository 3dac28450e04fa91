"""RMSProp: the update rule as symbolic expressions.

This module knows no loop, no data and no compiler. From gradients and hyperparameters it builds
pairs (shared variable, next value), which any ``pytensor.function`` can apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from downhill_rms.rule.checks import shown
from downhill_rms.rule.gradients import CLIPS, add_weight_decay
from downhill_rms.rule.graph import Update
from downhill_rms.rule.hyperparameters import Hyperparameters
from downhill_rms.rule.traversal import describe

KINDS = ("mean", "variance", "mean_square", "velocity", "average")  # of accumulators
STARTED = ("variance", "mean_square")  # those that start at ``initial_accumulator``


def needed_kinds(hyperparameters: Hyperparameters) -> tuple[str, ...]:
    """The accumulators that a rule keeps for each parameter."""
    kinds = ("mean", "variance") if hyperparameters.centered else ("mean_square",)
    if hyperparameters.momentum:
        kinds = (*kinds, "velocity")
    return (*kinds, "average") if hyperparameters.average else kinds


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
        ``w_mean``, ``w_variance``, ``w_mean_square``, ``w_velocity`` and ``w_average`` for a
        parameter ``w``, as the rule needs them; each of its parameter's shape and dtype.
    numbers : dict of str to SharedVariable
        The hyperparameters in force, scalars of the widest dtype among the parameters.
    update_count : SharedVariable
        Updates made, an int64 scalar; only bias correction, averages of parameters and
        schedules advance it.
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
            value = self._start(param, kind, start)
            self.accumulators[name] = pytensor.shared(value, name=name, shape=param.type.shape)
        return self.accumulators[name]

    @staticmethod
    def _start(param: Any, kind: str, start: float) -> np.ndarray:
        """An average of parameters starts at the parameter, the others at one number."""
        value = np.asarray(param.get_value(borrow=True))
        return value.copy() if kind == "average" else np.full_like(value, start, order="C")

    def averages(self) -> dict[str, Any]:
        """The averages of parameters, by the parameter's name; empty where none are kept."""
        named = {name: self.accumulators.get(f"{name}_average") for name in self.names.values()}
        return {name: average for name, average in named.items() if average is not None}

    def reset(self) -> None:
        """Put all accumulators and the update count back to their start."""
        for param, name in self.names.items():
            for kind in KINDS:
                key = f"{name}_{kind}"
                if key in self.accumulators:
                    start = self._start(param, kind, self.starts[key])
                    self.accumulators[key].set_value(start, borrow=True)
        self.update_count.set_value(np.array(0, dtype="int64"))

    def values(self, hyperparameters: Hyperparameters) -> dict[str, np.ndarray]:
        """The numbers of ``hyperparameters`` as the graph holds them, checked."""
        values = {
            name: np.array(number, dtype=self.dtype)
            for name, number in hyperparameters.numbers.items()
        }
        if values["rms_regularizer"] == 0:
            raise ValueError(
                f"rms_regularizer is {hyperparameters.rms_regularizer}, which is 0 in the "
                f"parameters' dtype {self.dtype}. Give a larger value."
            )
        return values

    def assign(self, hyperparameters: Hyperparameters) -> None:
        """Put the numbers of ``hyperparameters`` in force."""
        for name, value in self.values(hyperparameters).items():
            if name in self.numbers:
                self.numbers[name].set_value(value)
            else:
                self.numbers[name] = pytensor.shared(value, name=name)


def rmsprop_updates(
    params: Sequence[Any],
    gradients: Sequence[Any],
    hyperparameters: Hyperparameters,
    state: State,
    *,
    from_new_mean: bool = False,
) -> list[Update]:
    r"""Build the expressions of one RMSProp update.

    With gradient g (clipped, with coupled weight decay added), w = 1 - gamma, learning rate
    :math:`\eta`, regularizer :math:`\epsilon` and momentum :math:`\mu`, centered:

    .. math::

        \delta &= g - m_{t-1} \\
        m_t &= m_{t-1} + w \delta \\
        s_t &= (1 - w)(s_{t-1} + w \delta^2) \\
        u &= \eta g / \sqrt{s_t + \epsilon}

    or, from the new mean alone, which is the same number,

    .. math::

        s_t = (1 - w) s_{t-1} + \frac{w}{1 - w} (g - m_t)^2

    for w < 1, and 0 for w = 1; and uncentered, with :math:`r_t` in place of :math:`s_t`:

    .. math::

        r_t = (1 - w) r_{t-1} + w g^2

    With ``max_update``, u is then bounded to :math:`[-c, c]` element by element. Then, without
    momentum, with classical and with Nesterov's momentum:

    .. math::

        p_t &= p_{t-1} - u \\
        v_t &= \mu v_{t-1} - u, \quad p_t = p_{t-1} + v_t \\
        v_t &= \mu v_{t-1} - u, \quad p_t = p_{t-1} + \mu v_t - u

    With ``average``, beside each parameter

    .. math::

        a_t = a_{t-1} + w^a_t (p_t - a_{t-1}),

    where :math:`w^a_t` is :math:`(1 - \alpha) / (1 - \alpha^t)` with
    :math:`\alpha = e^{-\ln 2 / h}` for the halflife h of ``"ema"``, and
    :math:`1 / \max(t - t_0, 1)` for ``"tail"``, which averages the updates after :math:`t_0`.

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
    from_new_mean : bool
        Whether the variance is computed from :math:`m_t` instead of :math:`m_{t-1}`. A compiler
        that makes one loop of an update can then overwrite the old mean; rounding differs.

    Returns
    -------
    list of (SharedVariable, Variable)
        Next values of the parameters, each of its parameter's dtype, and of the state.

    Notes
    -----
    Centered form: A. Graves, "Generating Sequences With Recurrent Neural Networks",
    arXiv:1308.0850 (2013), eq. 38-40. The recurrence of the variance: D. H. D. West, "Updating
    mean and variance estimates", Communications of the ACM 22(9), 1979; it equals
    :math:`E[g^2]_t - E[g]_t^2` and cannot cancel below 0, in either form:
    :math:`g - m_t = (1 - w) \delta`. Uncentered form: T. Tieleman and
    G. Hinton, "Lecture 6.5: rmsprop", Coursera, 2012. Momentum: I. Sutskever et al., "On the
    importance of initialization and momentum in deep learning", ICML 2013. Mean of the tail:
    B. T. Polyak and A. B. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM
    Journal on Control and Optimization 30(4), 1992.
    """
    state.assign(hyperparameters)
    numbers = state.numbers
    if hyperparameters.clip is not None:
        gradients = CLIPS[hyperparameters.clip](gradients, numbers["max_gradient"])
    coupled = hyperparameters.weight_decay > 0 and not hyperparameters.decoupled_weight_decay
    if coupled:
        gradients = add_weight_decay(gradients, params, numbers["weight_decay"])

    updates: list[Update] = []
    counts = hyperparameters.bias_correction or hyperparameters.average
    if counts or hyperparameters.has_schedule:
        updates.append((state.update_count, state.update_count + 1))
    learning_rate = _learning_rate(hyperparameters, state)
    w = _ewma_weight(hyperparameters, state)
    for param, g in zip(params, gradients, strict=True):
        updates += _update_parameter(
            param, g, learning_rate, w, hyperparameters, state, from_new_mean
        )
        if hyperparameters.average:
            _, param_t = updates[-1]
            updates.append(_update_average(param, param_t, hyperparameters, state))
    return updates


def _learning_rate(hyperparameters: Hyperparameters, state: State) -> Any:
    learning_rate = hyperparameters.learning_rate
    if isinstance(learning_rate, float):
        return state.numbers["learning_rate"]
    if hyperparameters.has_schedule:
        return scheduled(learning_rate, state.update_count + 1)
    return learning_rate


def scheduled(schedule: Callable[[Any], Any], t: Any) -> Any:
    """The learning rate that a schedule gives an update, as an expression.

    Raises
    ------
    ValueError
        If it raises an error, or returns no real scalar.
    """
    try:
        learning_rate = pt.as_tensor_variable(schedule(t))
    except Exception as error:  # the user's code, or what PyTensor has against its result
        raise ValueError(
            f"learning_rate is {shown(schedule)}, which cannot be called as a schedule "
            f"({type(error).__name__}: {error}). Give a function that takes the symbolic update "
            "count and returns a scalar expression."
        ) from error
    if learning_rate.type.ndim != 0 or learning_rate.type.dtype[:3] not in ("flo", "int", "uin"):
        raise ValueError(
            f"learning_rate is a schedule that returned {describe(learning_rate)}: it returns a "
            "real scalar. Return one number or a scalar expression of the update count."
        )
    return learning_rate


def _ewma_weight(hyperparameters: Hyperparameters, state: State) -> Any:
    if not hyperparameters.bias_correction:
        return state.numbers["ewma_weight"]
    return _corrected_weight(state.numbers["log_decay"], state)


def _corrected_weight(log_decay: Any, state: State) -> Any:
    """(1 - gamma) / (1 - gamma**t), without the cancellation of either difference."""
    t = (state.update_count + 1).astype(state.dtype)
    return pt.expm1(log_decay) / pt.expm1(t * log_decay)


def _update_average(
    param: Any, param_t: Any, hyperparameters: Hyperparameters, state: State
) -> Update:
    dtype = param.type.dtype
    if hyperparameters.average == "ema":
        w = _corrected_weight(state.numbers["average_log_decay"], state)
    else:
        t = (state.update_count + 1).astype(state.dtype)
        w = 1 / pt.maximum(t - state.numbers["average_start"], 1)
    average_tm1 = state.accumulator(param, "average")
    average_t = average_tm1 + w.astype(dtype) * (param_t - average_tm1)
    return average_tm1, average_t.astype(dtype)


def _update_parameter(
    param: Any,
    g: Any,
    learning_rate: Any,
    w: Any,
    hyperparameters: Hyperparameters,
    state: State,
    from_new_mean: bool,
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
        if from_new_mean:
            # Bias correction's first w is 1; there s_t is 0, and w / (1 - w) is no number.
            factor = pt.switch(w < 1, w / pt.maximum(1 - w, np.finfo(dtype).tiny), 0)
            variance_t = (1 - w) * variance_tm1 + factor.astype(dtype) * pt.sqr(g - mean_t)
        else:
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
