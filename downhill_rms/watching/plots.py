"""Pictures of training, drawn by matplotlib (extra ``plot``).

Each function returns the figure that it drew in, shows nothing and changes no setting of
matplotlib. ``ax=`` draws in axes of one's own instead of a new figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from downhill_rms.rule import check_count, check_list, check_number, shown
from downhill_rms.watching.figures import (
    COLOURS,
    MARKERS,
    choose_scale,
    colours_by,
    count_epochs,
    draw_line,
    explain,
    finish,
    is_logarithmic,
    line_style,
    open_panels,
    scale_logarithmically,
)
from downhill_rms.watching.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "0.35"
CURVES: dict[str, dict[str, Any]] = {
    "train": {"label": "training", "linestyle": "--", "linewidth": 1.2, "alpha": 0.6},
    "valid": {"label": "validation"},
}
LONGEST_NAME = 40  # characters of a run's name in a legend
RATIO = "update_ratio("  # and the name of a parameter, and a bracket
GRID, LEVELS, LOWEST = 301, 12, 0.002  # of contours; the lowest is this quantile of the values


def learning_curves(
    histories: History | Mapping[str, History],
    monitors: str | Sequence[str] = ("loss",),
    *,
    colour_by: tuple[str, Mapping[str, float]] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw monitors against epochs, over training and validation data.

    A panel has a logarithmic axis if all its values are positive and span more than a decade.
    Values that are not finite leave gaps. The last epoch that was the best of its run is marked.

    Parameters
    ----------
    histories : History or mapping of str to History
        One run, or runs by name. A run without an epoch is named in the legend.
    monitors : str or sequence of str
        What is drawn, one panel each.
    colour_by : tuple of str and mapping of str to float, optional
        A number for each run and what it is called, such as its learning rate: a scale of colours
        takes the place of the runs' names, which suits many runs.
    ax : Axes, optional
        Where to draw; it takes one monitor.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If there is no run or no monitor, a run has no such monitor or no number, or ``ax`` is
        given with several monitors.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from downhill_rms.history import Record
    >>> history = History()
    >>> history.append(Record(1, 10, 0.5, {"loss": 2.0}, {"loss": 3.0}))
    >>> len(learning_curves(history).axes)
    1
    """
    names = [monitors] if isinstance(monitors, str) else check_list("monitors", monitors, "names")
    runs = _named_runs(histories)
    _check_monitors(runs, names, ax)
    _check_colour_by(colour_by)
    if colour_by is not None and (without := [run for run in runs if run not in colour_by[1]]):
        raise ValueError(
            f"colour_by has no {colour_by[0]} for {', '.join(map(repr, without))}. Every run has "
            "one: add it, or leave these runs out."
        )
    panels = open_panels(len(names), ax)
    for panel, name in zip(panels, names, strict=True):
        _draw_curves(panel, runs, name, not isinstance(histories, History), colour_by)
    return finish(panels, ax)


def decay_coefficients(
    decays: Sequence[float] = (0.95, 0.9, 0.8, 0.7), steps: int = 40, *, ax: Axes | None = None
) -> Figure:
    r"""Draw how much past gradients weigh in the averages of RMSProp.

    The gradient of :math:`t` updates ago has the weight :math:`(1 - \gamma) \gamma^t`.

    Parameters
    ----------
    decays : sequence of float
        Values of :math:`\gamma`, in [0, 1).
    steps : int
        Updates to look back on, at least 1.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a decay or the number of steps is out of range.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> figure = decay_coefficients([0.9, 0.99])
    >>> len(figure.axes)
    1
    """
    given = check_list("decays", decays, "numbers")
    decays = [check_number(f"decays[{i}]", decay, 0, 1) for i, decay in enumerate(given)]
    if not decays:
        raise ValueError("decays is empty: there is one at least. Give numbers in [0, 1).")
    age = np.arange(check_count("steps", steps))
    panels = open_panels(1, ax)
    lines = [
        draw_line(
            panels[0], age, (1 - decay) * np.power(float(decay), age), index, f"γ = {decay:g}"
        )
        for index, decay in enumerate(decays)
    ]
    panels[0].set_xlabel("age of the gradient (updates)")
    panels[0].set_ylabel("weight in the average")
    panels[0].set_ylim(bottom=0)
    explain(panels[0], lines)
    return finish(panels, ax)


def trace_2d(
    function: Callable[[Any, Any], Any],
    trace: Any,
    *,
    names: tuple[str, str] = ("x1", "x2"),
    ax: Axes | None = None,
) -> Figure:
    """Draw the path of two parameters over the contours of their loss.

    The levels of the contours are spaced logarithmically above the lowest value in sight, so
    that a valley shows at its bottom as well as on its slopes.

    Parameters
    ----------
    function : callable
        The loss of two arrays, element by element.
    trace : array_like, shape (n, 2)
        The parameters before the first update and after each. Points that are not finite leave
        gaps.
    names : tuple of two str
        What the axes are called.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If ``trace`` has another shape, or no finite point.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> figure = trace_2d(lambda a, b: a**2 + b**2, [(2, 1), (1, 0.5), (0, 0)], names=("a", "b"))
    >>> figure.axes[0].get_xlabel()
    'a'
    """
    points = _as_points(trace)
    first, second = _axis_names(names)
    finite = np.isfinite(points).all(axis=-1) if points.ndim == 2 else np.zeros(0, dtype=bool)
    if points.ndim != 2 or points.shape[1] != 2 or not finite.any():
        raise ValueError(
            f"trace has shape {points.shape} with {int(finite.sum())} finite points: it is an "
            "array of shape (n, 2) with one at least. Give a row for each update."
        )
    points[~finite] = np.nan
    panels = open_panels(1, ax)
    panels[0].grid(False)
    _draw_contours(panels[0], function, points[finite])
    _draw_path(panels[0], points, points[finite])
    panels[0].set_xlabel(first, parse_math=False)
    panels[0].set_ylabel(second, parse_math=False)
    return finish(panels, ax)


def _as_points(trace: Any) -> np.ndarray:
    try:
        return np.array(trace, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"trace is {shown(trace)}: it is an array of numbers ({error}). Give a row of two for "
            "each update."
        ) from error


def _axis_names(names: Any) -> tuple[str, str]:
    if not (isinstance(names, tuple | list) and [type(n) for n in names] == [str, str]):
        raise TypeError(f"names is {shown(names)}: it takes two texts. Give ('x1', 'x2').")
    return names[0], names[1]


def update_ratios(history: History, *, ax: Axes | None = None) -> Figure:
    """Draw how far updates move each parameter, and how much of it steps at the floor.

    The upper panel has the root mean square of a parameter's update over that of its value, the
    lower one the share of its coordinates whose denominator is at the regularizer's floor.

    Parameters
    ----------
    history : History
        Of a trainer with ``monitor_updates=True``.
    ax : Axes, optional
        Where to draw; it takes the upper panel alone.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If the history has no such monitors.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from downhill_rms.history import Record
    >>> history = History()
    >>> values = {"update_ratio(w)": 1e-3, "at_floor(w)": 0.2}
    >>> history.append(Record(1, 10, 0.5, values, values))
    >>> len(update_ratios(history).axes)
    2
    """
    if not isinstance(history, History):
        raise TypeError(f"history is {shown(history)}: it takes a History. Give trainer.history.")
    monitors = dict.fromkeys(name for record in history for name in record.train)
    params = [name[len(RATIO) : -1] for name in monitors if name.startswith(RATIO)]
    if not params:
        raise ValueError(
            f"history has the monitors {', '.join(monitors) or 'none'}, and no update ratios. "
            "Train with Trainer(..., monitor_updates=True)."
        )
    panels = open_panels(2, ax)
    for kind, panel in zip(("update_ratio", "at_floor"), panels, strict=False):
        lines = [
            draw_line(panel, *_series(history, "train", f"{kind}({name})"), index, name)
            for index, name in enumerate(params)
        ]
        count_epochs(panel)
        if panel is panels[0]:
            explain(panel, lines)
    ratios = [_series(history, "train", f"{RATIO}{name})")[1] for name in params]
    scale_logarithmically(panels[0], np.concatenate(ratios))
    panels[0].set_ylabel("update / value (RMS)")
    if len(panels) > 1:
        panels[1].set_ylabel("share at the floor")
        panels[1].set_ylim(-0.05, 1.05)
        panels[0].set_xlabel("")
    return finish(panels, ax)


def hyperparameter_effects(
    table: Sequence[Mapping[str, Any]],
    names: str | Sequence[str],
    value: str = "best loss",
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw what the runs of a sweep came to against each hyperparameter.

    Every run is a point, and the median of each value's runs a line. An axis is logarithmic where
    values are positive and span more than a decade. Runs without a finite value are left out.

    Parameters
    ----------
    table : sequence of mapping
        A record for each run, as ``Sweep.table`` returns them.
    names : str or sequence of str
        The hyperparameters, one panel each.
    value : str
        What is drawn.
    ax : Axes, optional
        Where to draw; it takes one hyperparameter.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If there is no run or no hyperparameter, a record lacks one, or ``ax`` is given with
        several.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> table = [{"learning_rate": 10.0**-k, "best loss": (k - 2) ** 2 + 1.0} for k in range(5)]
    >>> len(hyperparameter_effects(table, "learning_rate").axes)
    1
    """
    given = [names] if isinstance(names, str) else check_list("names", names, "hyperparameters")
    if not table or not given or (ax is not None and len(given) > 1):
        raise ValueError(
            f"table has {len(table)} runs and names {len(given)} hyperparameters: a picture has "
            "one of each at least, and axes of one's own take one. Give one."
        )
    if lacking := [name for name in (*given, value) if any(name not in row for row in table)]:
        raise ValueError(
            f"table has no {shown(lacking[0])} in some record, only {', '.join(table[0])}. Give "
            "one of these."
        )
    panels = open_panels(len(given), ax)
    for panel, name in zip(panels, given, strict=True):
        _draw_effect(panel, table, name, value)
    return finish(panels, ax)


def _draw_effect(panel: Axes, table: Sequence[Mapping[str, Any]], name: str, value: str) -> None:
    """Draw one hyperparameter's runs and the median of each of its values."""
    pairs = [(row[name], float(row[value])) for row in table if math.isfinite(row[value])]
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x, _ in pairs)
    values = sorted({x for x, _ in pairs}) if numeric else list(dict.fromkeys(x for x, _ in pairs))
    places = {x: x if numeric else place for place, x in enumerate(values)}
    x, y = np.array([places[x] for x, _ in pairs]), np.array([y for _, y in pairs])
    medians = [float(np.median(y[x == places[one]])) for one in values]
    dots = panel.plot(x, y, "o", color=GREY, markersize=4, alpha=0.7, label="run")
    line = draw_line(panel, [places[one] for one in values], np.array(medians), 0, "median")
    choose_scale(panel, [y])
    if not numeric:
        panel.set_xticks(range(len(values)), [str(one) for one in values], parse_math=False)
    elif is_logarithmic(x.astype(float)):
        panel.set_xscale("log")
    panel.set_xlabel(name, parse_math=False)
    panel.set_ylabel(value, parse_math=False)
    explain(panel, [*dots, line])


def rate_range(test: Any, *, ax: Axes | None = None) -> Figure:
    """Draw a test of the learning rate's range.

    Parameters
    ----------
    test : RateTest
        What `find_rate` returned.
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from downhill_rms.sweeping import RateTest
    >>> test = RateTest(np.geomspace(1e-3, 1, 3), np.array([2, 1, 3]), np.array([2, 1, 2]), 3e-3)
    >>> len(rate_range(test).axes)
    1
    """
    panels = open_panels(1, ax)
    panel = panels[0]
    dots = panel.plot(test.rates, test.losses, ".", color=GREY, alpha=0.6, label="minibatch")
    lines = [*dots, draw_line(panel, test.rates, test.smoothed, 0, "running mean")]
    panel.set_xscale("log")
    choose_scale(panel, [test.losses])
    if math.isfinite(test.suggestion):
        label = f"suggested: {test.suggestion:.3g}"
        lines.append(panel.axvline(test.suggestion, color=COLOURS[1], linestyle="--", label=label))
    panel.set_xlabel("learning rate")
    panel.set_ylabel("loss")
    explain(panel, lines)
    return finish(panels, ax)


def _named_runs(histories: Any) -> dict[str, History]:
    runs = {"": histories} if isinstance(histories, History) else histories
    if not (isinstance(runs, Mapping) and all(isinstance(run, History) for run in runs.values())):
        raise TypeError(
            f"histories is {shown(histories)}: it takes a History, or a dict of several by name. "
            "Give trainer.history."
        )
    return {str(name): run for name, run in runs.items()}


def _check_colour_by(value: Any) -> None:
    pair = value if isinstance(value, tuple | list) and len(value) == 2 else (None, None)
    if value is not None and not (isinstance(pair[0], str) and isinstance(pair[1], Mapping)):
        raise TypeError(
            f"colour_by is {shown(value)}: it takes a text and a mapping of runs to numbers. Give "
            "('learning rate', {...})."
        )


def _check_monitors(runs: Mapping[str, History], monitors: Sequence[str], ax: Axes | None) -> None:
    if not runs or not monitors:
        raise ValueError(
            f"histories has {len(runs)} runs and monitors {len(monitors)} names: a picture has one "
            "of each at least. Give one."
        )
    if ax is not None and len(monitors) > 1:
        raise ValueError(
            f"ax is given with {len(monitors)} monitors ({', '.join(map(str, monitors))}): one "
            "panel shows one. Give one, or leave ax out."
        )
    for run, history in runs.items():
        known = dict.fromkeys(name for record in history for name in (*record.train, *record.valid))
        unknown = [name for name in monitors if known and name not in known]
        if unknown:
            raise ValueError(
                f"monitors has {shown(unknown[0])}: {run or 'this history'} has only "
                f"{', '.join(known)}. Give one of these."
            )


def _draw_curves(
    panel: Axes,
    runs: Mapping[str, History],
    monitor: str,
    named: bool,
    colour_by: tuple[str, Mapping[str, float]] | None,
) -> None:
    """Draw one monitor of every run."""
    if colour_by is not None:
        colours = colours_by(panel, colour_by[0], [colour_by[1][run] for run in runs])
    else:
        colours = [line_style(index, len(runs))["color"] for index in range(len(runs))]
    kinds, bests, drawn = {}, [], []
    for index, (name, history) in enumerate(runs.items()):
        look = {"color": colours[index]}
        for part, style in CURVES.items():
            epochs, values = _series(history, part, monitor)
            if part == "valid" and any(record.valid_is_train for record in history):
                style = {**style, "label": "training, after the epoch"}
            if np.isfinite(values).any():
                kinds[part] = draw_line(panel, epochs, values, index, **style, **look)
                drawn.append(values)
        _mark_divergence(panel, history, monitor, look)
        look["marker"] = MARKERS[index % len(MARKERS)]
        bests += _mark_best(panel, history, monitor, name if named else None, look)
    choose_scale(panel, drawn)
    count_epochs(panel)
    panel.set_ylabel(monitor, parse_math=False)
    if named:  # colours tell the runs apart there
        kinds = {
            part: panel.plot([], [], color=GREY, **{**CURVES[part], "label": line.get_label()})[0]
            for part, line in kinds.items()
        }
    explain(panel, [*kinds.values(), *(bests if colour_by is None else [])])


def _series(history: History, part: str, monitor: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and what a monitor was then; NaN for all that cannot be drawn.

    The validation before the first update belongs to the epoch before the first.
    """
    records = [record for record in history if part == "train" or record.validated]
    if part == "valid" and len(history) and history[0].valid and not history[0].validated:
        records.insert(0, replace(history[0], epoch=history[0].epoch - 1))
    values = np.array([getattr(record, part).get(monitor, math.nan) for record in records])
    values = np.where(np.isfinite(values), values, math.nan)
    return np.array([record.epoch for record in records]), values


def _mark_divergence(panel: Axes, history: History, monitor: str, look: Mapping[str, Any]) -> None:
    """Cross the axis of epochs where the run's loss was not finite."""
    lost = [r.epoch for r in history if not math.isfinite(r.train.get(monitor, 0.0))]
    for epoch in lost:
        panel.axvline(epoch, color=look["color"], linestyle=":", linewidth=1.2, zorder=1)
    if lost:
        text = f"diverged in epoch {lost[0]}"
        place = panel.get_xaxis_transform()
        panel.text(lost[0], 0.98, text, transform=place, rotation=90, va="top", ha="right")


def _mark_best(
    panel: Axes, history: History, monitor: str, name: str | None, look: Mapping[str, Any]
) -> list[Any]:
    """Mark the best epoch; what the legend says of it, and of a run with a name."""
    best = next((record for record in reversed(history.records) if record.best), None)
    value = math.nan
    if best is not None:
        value = best.valid.get(monitor, best.train.get(monitor, math.nan))
    epochs, values, text = [], [], "" if len(history) else "no epoch yet"
    if best is not None and math.isfinite(value):
        epochs, values, text = [best.epoch], [value], f"best epoch {best.epoch}: {value:.4g}"
    label = ", ".join(filter(None, [_shortened(name or ""), text]))
    style: dict[str, Any] = {**look, "markersize": 8, "markeredgecolor": "white"}
    if not name:
        style["linestyle"] = "none"
    return panel.plot(epochs, values, **style, zorder=3, label=label) if label else []


def _shortened(name: str) -> str:
    """The end of a long name, which tells paths apart."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def _draw_contours(panel: Axes, function: Callable[[Any, Any], Any], points: np.ndarray) -> None:
    """Draw a loss around some points."""
    low, high = points.min(axis=0), points.max(axis=0)
    span = high - low
    least = 0.25 * span.max() or 1.0  # a path along one axis, or one point, has room around it too
    margin = np.maximum(0.15 * span, (least - span) / 2)
    x1, x2 = (np.linspace(*ends, GRID) for ends in zip(low - margin, high + margin, strict=True))
    with np.errstate(all="ignore"):
        try:
            values = np.asarray(function(*np.meshgrid(x1, x2)), dtype=float)
            heights = np.ma.masked_invalid(np.broadcast_to(values, (GRID, GRID)))
        except Exception as error:  # the caller's code, or what it returned
            raise ValueError(
                f"function is {shown(function)}, which gave no loss of arrays of both parameters "
                f"({type(error).__name__}: {error}). Give one that computes elementwise."
            ) from error
    heights = heights - heights.min()
    above = heights.compressed()[heights.compressed() > 0]
    lowest = np.quantile(above, LOWEST) if above.size else math.inf
    if lowest < above.max(initial=0):  # a plain has no contours
        levels = np.geomspace(lowest, above.max(), LEVELS + 1)
        shades = [str(shade) for shade in np.linspace(1, 0.8, LEVELS + 1)]
        panel.contourf(x1, x2, heights, [0, *levels], colors=shades)
        panel.contour(x1, x2, heights, levels[:-1], colors="0.6", linewidths=0.5)
    panel.set_xlim(x1[0], x1[-1])
    panel.set_ylim(x2[0], x2[-1])


def _draw_path(panel: Axes, points: np.ndarray, finite: np.ndarray) -> None:
    """Draw a path, and mark where it starts and ends."""
    draw_line(panel, points[:, 0], points[:, 1], 1, linewidth=1.2)
    # What is less than a ten-thousandth of the path's extent is not seen.
    decimals = 4 - math.floor(math.log10(np.ptp(finite, axis=0).max() or 1))
    ends = []
    for label, point, marker, size, colour in (
        ("start", finite[0], "o", 9, COLOURS[0]),
        ("end", finite[-1], "*", 15, COLOURS[1]),
    ):
        x1, x2 = (f"{round(float(value), decimals) + 0.0:.6g}" for value in point)
        ends += panel.plot(
            *point[:, None],
            marker=marker,
            markersize=size,
            color=colour,
            markeredgecolor="white",
            linestyle="none",
            zorder=3,
            label=f"{label} ({x1}, {x2})",
        )
    explain(panel, ends)
