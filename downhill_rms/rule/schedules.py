"""Learning rates that follow the update count, ready-made.

Each function returns a `Schedule`, which is given as ``learning_rate``: an expression of the
symbolic update count, computed inside the update. Two with the same numbers are equal, so that
the second compiles nothing. Below, n counts the updates that were made before: 0 at the first.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytensor.tensor as pt

from downhill_rms.rule.checks import check_count, check_list, check_number
from downhill_rms.rule.keywords import refuse_unknown


@dataclass(frozen=True)
class Schedule:
    """A learning rate as a function of the update count.

    Parameters
    ----------
    formula : callable
        Given n as a float64 scalar, then the arguments; returns a scalar expression.
    arguments : tuple
        Those of the function that made it.

    Examples
    --------
    >>> cosine(0.01, 2000) == cosine(0.01, 2000)
    True
    """

    formula: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self, t: Any) -> Any:
        """The learning rate of update t, an integer scalar that is 1 at the first."""
        return self.after((t - 1).astype("float64"))

    def after(self, n: Any) -> Any:
        """The learning rate after n updates."""
        return self.formula(n, *self.arguments)

    def __repr__(self) -> str:
        name = self.formula.__name__.removeprefix("_")
        return f"{name}({', '.join(map(repr, self.arguments))})"


def cosine(start: float, updates: int, end: float = 0.0) -> Schedule:
    """Half a cosine from ``start`` down to ``end``, which then stays.

    ``end + (start - end) * (1 + cos(pi * n / updates)) / 2`` [1]_.

    Parameters
    ----------
    start, end : float
        Learning rates.
    updates : int
        Updates from one to the other.

    Returns
    -------
    Schedule

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
       ICLR 2017, equation 5 without restarts; optax's ``cosine_decay_schedule``.

    Examples
    --------
    >>> import pytensor.tensor as pt
    >>> rate = cosine(0.01, 100)
    >>> [round(float(rate(pt.constant(t)).eval()), 4) for t in (1, 51, 101)]
    [0.01, 0.005, 0.0]
    """
    first, last = check_number("start", start), check_number("end", end)
    return Schedule(_cosine, (first, check_count("updates", updates), last))


def _cosine(n: Any, start: float, updates: int, end: float) -> Any:
    return _between(start, end, n / updates)


def _between(start: Any, end: Any, part: Any) -> Any:
    """Half a cosine from one number to another, at a part of the way."""
    return end + (start - end) * (1 + pt.cos(math.pi * pt.minimum(part, 1))) / 2


def exponential(start: float, factor: float, updates: int) -> Schedule:
    """Decay by a factor in so many updates, smoothly: ``start * factor ** (n / updates)``.

    Parameters
    ----------
    start : float
        The first learning rate.
    factor : float
        What it is multiplied by in the course of ``updates`` updates, above 0.
    updates : int
        Updates.

    Returns
    -------
    Schedule

    Notes
    -----
    It is optax's ``exponential_decay(start, updates, factor)``.

    Examples
    --------
    >>> import pytensor.tensor as pt
    >>> rate = exponential(0.01, 0.1, 100)
    >>> [round(float(rate(pt.constant(t)).eval()), 4) for t in (1, 101)]
    [0.01, 0.001]
    """
    first, by = check_number("start", start), check_number("factor", factor, open_low=True)
    return Schedule(_exponential, (first, by, check_count("updates", updates)))


def _exponential(n: Any, start: float, factor: float, updates: int) -> Any:
    return start * pt.exp(math.log(factor) * n / updates)


def linear_warmup(then: float | Schedule, updates: int, start: float = 0.0) -> Schedule:
    """A straight line from ``start`` up to another learning rate, which then goes its own way.

    ``start + (peak - start) * n / updates``, where the peak is the number ``then``, or the first
    learning rate of the schedule ``then``, whose own n begins after the warm-up [1]_.

    Parameters
    ----------
    then : float or Schedule
        What follows: a constant, or a schedule such as ``cosine(0.01, 2000)``.
    updates : int
        Updates of the warm-up.
    start : float
        The learning rate of the first update.

    Returns
    -------
    Schedule

    References
    ----------
    .. [1] P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
       section 2.2; optax's ``join_schedules`` of a ``linear_schedule`` and what follows.

    Examples
    --------
    >>> import pytensor.tensor as pt
    >>> rate = linear_warmup(0.01, 100)
    >>> [round(float(rate(pt.constant(t)).eval()), 4) for t in (1, 51, 201)]
    [0.0, 0.005, 0.01]
    """
    following = then if isinstance(then, Schedule) else check_number("then", then)
    first = check_number("start", start)
    return Schedule(_linear_warmup, (following, check_count("updates", updates), first))


def _linear_warmup(n: Any, then: float | Schedule, updates: int, start: float) -> Any:
    later = pt.maximum(n - updates, 0)
    following = then.after(later) if isinstance(then, Schedule) else then
    peak = then.after(pt.zeros_like(n)) if isinstance(then, Schedule) else then
    return pt.switch(n < updates, start + (peak - start) * n / updates, following)


def one_cycle(
    peak: float,
    updates: int,
    warmup: float = 0.3,
    start_divisor: float = 25.0,
    end_divisor: float = 1e4,
) -> Schedule:
    """Half a cosine up to ``peak``, and another down to almost nothing [1]_.

    It begins at ``peak / start_divisor``, is at ``peak`` after ``int(warmup * updates)`` updates,
    and ends at ``peak / (start_divisor * end_divisor)``, which then stays.

    Parameters
    ----------
    peak : float
        The highest learning rate.
    updates : int
        Updates of the whole cycle.
    warmup : float
        Part of them that leads up, between 0 and 1.
    start_divisor, end_divisor : float
        What the peak is divided by at the start, and the start at the end; above 0.

    Returns
    -------
    Schedule

    References
    ----------
    .. [1] L. N. Smith and N. Topin, "Super-Convergence: Very Fast Training of Neural Networks
       Using Large Learning Rates", 2017; optax's ``cosine_onecycle_schedule``.

    Examples
    --------
    >>> import pytensor.tensor as pt
    >>> rate = one_cycle(0.01, 100)
    >>> [round(float(rate(pt.constant(t)).eval()), 4) for t in (1, 31, 101)]
    [0.0004, 0.01, 0.0]
    """
    highest, cycle = check_number("peak", peak), check_count("updates", updates)
    part = check_number("warmup", warmup, 0, 1)
    first = check_number("start_divisor", start_divisor, open_low=True)
    last = check_number("end_divisor", end_divisor, open_low=True)
    if not 1 <= int(part * cycle) < cycle:
        raise ValueError(
            f"warmup is {warmup} of {updates} updates: a cycle goes up and comes down. Give a part "
            "between 0 and 1 that is an update at least."
        )
    return Schedule(_one_cycle, (highest, cycle, part, first, last))


def _one_cycle(
    n: Any, peak: float, updates: int, warmup: float, start_divisor: float, end_divisor: float
) -> Any:
    top = int(warmup * updates)
    start = peak / start_divisor
    down = _between(peak, start / end_divisor, (n - top) / (updates - top))
    return pt.switch(n < top, _between(start, peak, n / top), down)


def inverse_sqrt(peak: float, warmup: int) -> Schedule:
    """A straight line up to ``peak``, then the inverse of the square root [1]_.

    ``peak * min(t / warmup, sqrt(warmup / t))`` at update t = n + 1, which is the paper's formula
    with ``peak = 1 / sqrt(d_model * warmup)``.

    Parameters
    ----------
    peak : float
        The learning rate of update ``warmup``, the highest.
    warmup : int
        Updates that lead up to it.

    Returns
    -------
    Schedule

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, equation 3.

    Examples
    --------
    >>> import pytensor.tensor as pt
    >>> rate = inverse_sqrt(0.01, 100)
    >>> [round(float(rate(pt.constant(t)).eval()), 4) for t in (100, 400)]
    [0.01, 0.005]
    """
    return Schedule(_inverse_sqrt, (check_number("peak", peak), check_count("warmup", warmup)))


def _inverse_sqrt(n: Any, peak: float, warmup: int) -> Any:
    t = n + 1
    return peak * pt.minimum(t / warmup, pt.sqrt(warmup / t))


def piecewise(values: Sequence[float], boundaries: Sequence[int]) -> Schedule:
    """Constants, one after the other.

    Parameters
    ----------
    values : sequence of float
        Learning rates, one more than there are boundaries.
    boundaries : sequence of int
        Updates after which the next value holds, ascending.

    Returns
    -------
    Schedule

    Notes
    -----
    It is optax's ``piecewise_constant_schedule``, which is given factors instead of values.

    Examples
    --------
    >>> import pytensor.tensor as pt
    >>> rate = piecewise([0.01, 0.001], [100])
    >>> [round(float(rate(pt.constant(t)).eval()), 4) for t in (100, 101)]
    [0.01, 0.001]
    """
    rates = tuple(
        check_number(f"values[{i}]", value)
        for i, value in enumerate(check_list("values", values, "learning rates"))
    )
    counts = tuple(
        check_count(f"boundaries[{i}]", boundary)
        for i, boundary in enumerate(check_list("boundaries", boundaries, "updates"))
    )
    if len(rates) != len(counts) + 1 or list(counts) != sorted(set(counts)):
        raise ValueError(
            f"boundaries is {list(counts)} for {len(rates)} values: they ascend, and are one fewer "
            "than the values. Give them in order."
        )
    return Schedule(_piecewise, (rates, counts))


def _piecewise(n: Any, values: tuple[float, ...], boundaries: tuple[int, ...]) -> Any:
    rate = pt.zeros_like(n) + values[-1]
    for value, boundary in reversed(list(zip(values, boundaries, strict=False))):
        rate = pt.switch(n < boundary, value, rate)
    return rate


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    schedule.__name__: schedule
    for schedule in (cosine, exponential, inverse_sqrt, linear_warmup, one_cycle, piecewise)
}


def parse_schedule(text: str) -> Schedule:
    """Read a schedule as it is written in a program: ``linear_warmup(cosine(1e-2, 2000), 100)``.

    The grammar knows the names of this module, numbers, lists of them and names of arguments.
    Nothing is evaluated.

    Parameters
    ----------
    text : str
        A schedule; the ``repr`` of one is read back as the same.

    Raises
    ------
    ValueError
        For anything else.

    Examples
    --------
    >>> parse_schedule("linear_warmup(cosine(1e-2, 2000), 100)")
    linear_warmup(cosine(0.01, 2000, 0.0), 100, 0.0)
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(text) from error
    value = _read(tree, text)
    if not isinstance(value, Schedule):
        raise _unreadable(text)
    return value


def _unreadable(text: str) -> ValueError:
    return ValueError(
        f"{text!r:.80} is no schedule. A schedule is a name with numbers in brackets: give one of "
        f"{', '.join(f'{name}(...)' for name in SCHEDULES)}."
    )


def _read(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_read(element, text) for element in elements]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            refuse_unknown([name], list(SCHEDULES))
            named = {str(one.arg): _read(one.value, text) for one in keywords}
            return _make(SCHEDULES[name], [_read(one, text) for one in arguments], named)
    raise _unreadable(text)


def _make(make: Callable[..., Schedule], arguments: list[Any], named: dict[str, Any]) -> Schedule:
    signature = inspect.signature(make)
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        wanted = ", ".join(map(str, signature.parameters))
        raise ValueError(
            f"{make.__name__} is given other arguments than {make.__name__}({wanted}): {error}. "
            "Give these, in order or by name."
        ) from error
    return make(*arguments, **named)
