"""What the project's pictures have in common: panels, lines, scales and legends."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from downhill_rms.rule import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart too; yellow is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SCALE = "viridis"  # of more lines than there are colours
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH, HEIGHT, PANEL_HEIGHT = 6.4, 4.8, 3.2  # inches; of a figure, and of one panel of several
ROW_HEIGHT, FREE_ROWS = 0.19, 2  # inches of a legend's row, and rows that need no more height
LEGEND_WIDTH, HANDLE_WIDTH = 84, 7  # of a legend, and of what is beside a label, in characters
CHARACTER_WIDTH = 0.075  # inches, of a legend's labels
ABOVE = 10  # entries of a legend above the panel; more stand beside it
FEW = 30  # points of a line that are marked one by one


def open_panels(count: int, ax: Axes | None) -> list[Any]:
    """Axes one above another in a new figure, or the caller's."""
    if ax is not None and not hasattr(ax, "transAxes"):
        raise TypeError(f"ax is {shown(ax)}: it takes axes of matplotlib's. Give one, or None.")
    panels = [ax] if ax else list(_new_figure().subplots(count, squeeze=False)[:, 0])
    for panel in panels:
        panel.grid(True, color="0.88", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return panels


def _new_figure() -> Figure:
    """A figure that is not of pyplot's, which would choose a backend and keep it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "matplotlib is not installed. Pictures are drawn by it. "
            'Run pip install "downhill_rms[plot]".'
        ) from error

    figure = Figure(layout="constrained")
    # A notebook shows it at the end of a cell, whatever backend is chosen there.
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def finish(panels: Sequence[Any], ax: Axes | None) -> Figure:
    """Give a figure of ours the size that its panels and legends need."""
    figure: Figure = panels[0].figure.figure  # of a subfigure, too
    if ax is None:
        height = HEIGHT if len(panels) == 1 else PANEL_HEIGHT * len(panels)
        rows = sum(max(0, _legend_rows(panel) - FREE_ROWS) for panel in panels)
        beside = max(map(_legend_width, panels))
        figure.set_size_inches(WIDTH + beside, height + ROW_HEIGHT * rows)
    return figure


def line_style(index: int, count: int = 1) -> dict[str, Any]:
    """The colour of one of several lines, which no other has."""
    if count <= len(COLOURS):
        return {"color": COLOURS[index]}
    return {"color": _scale()(index / (count - 1))}


def colours_by(panel: Axes, label: str, values: Sequence[float]) -> list[Any]:
    """A colour for each value, and a scale beside the panel that explains them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    low, high = min(values), max(values)
    kind = LogNorm if 0 < 10 * low <= high else Normalize
    mappable = ScalarMappable(kind(low, high), _scale())
    panel.figure.colorbar(mappable, ax=panel, label=label)
    return list(mappable.to_rgba(np.asarray(values, dtype=float)))


def _scale() -> Any:
    """Colours from dark to light, without the lightest, which is too faint on white."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    part = colormaps[SCALE](np.linspace(0, 0.9, 256))
    return LinearSegmentedColormap.from_list(f"dark {SCALE}", part)


def draw_line(panel: Axes, x: Any, y: np.ndarray, index: int, label: str = "", **style: Any) -> Any:
    """Draw a line; its points are marked if they are few, or have no neighbours."""
    gaps = np.isnan(np.concatenate([[math.nan], y, [math.nan]]))
    marked = (gaps[:-2] & gaps[2:]) | (np.count_nonzero(~gaps) <= FEW)
    dots = {"marker": "o", "markersize": 3.5, "markevery": marked} if marked.any() else {}
    own = {} if "color" in style else line_style(index)
    look = {**own, "linewidth": 1.6, "label": label, **dots, **style}
    return panel.plot(x, y, **look)[0]


def choose_scale(panel: Axes, curves: Sequence[np.ndarray]) -> None:
    """Choose a logarithmic axis where it helps."""
    values = np.concatenate([*curves, [math.nan]])
    values = values[np.isfinite(values)]
    if is_logarithmic(values):
        scale_logarithmically(panel, values)


def is_logarithmic(values: np.ndarray) -> bool:
    """Whether finite values are positive and span more than a decade."""
    return bool(values.size) and bool(0 < 10 * values.min() < values.max())


def scale_logarithmically(panel: Axes, values: np.ndarray) -> None:
    """Make the axis logarithmic, with plain numbers on it if it is short."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    values = values[values > 0]
    if not values.size:
        return
    panel.set_yscale("log", nonpositive="mask")
    if values.max() < 1000 * values.min():
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def count_epochs(panel: Axes) -> None:
    """Name the axis of epochs, which has whole numbers."""
    from matplotlib.ticker import MaxNLocator

    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def explain(panel: Axes, handles: Sequence[Any]) -> None:
    """Explain the lines above the panel, or beside it if they are many: where no data are."""
    if not handles:
        return
    labels = [handle.get_label() for handle in handles]
    if len(handles) > ABOVE:
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
        columns = _columns_beside(panel, labels)
    else:
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1)}
        columns = _columns(labels)
    legend = panel.legend(handles=handles, **place, ncols=columns, frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name with $ is not a formula


def _columns(labels: Sequence[str]) -> int:
    """As many columns as there is room for; a legend is filled column by column."""

    def width(columns: int) -> int:
        parts = np.array_split([len(label) + HANDLE_WIDTH for label in labels], columns)
        return sum(max(part) for part in parts)

    counts = range(len(labels), 1, -1)
    return next((count for count in counts if width(count) <= LEGEND_WIDTH), 1)


def _columns_beside(panel: Axes, labels: Sequence[str]) -> int:
    """As few columns as are not higher than the panel."""
    height = HEIGHT if len(panel.figure.axes) == 1 else PANEL_HEIGHT
    return math.ceil(len(labels) / math.floor((height - 0.5) / ROW_HEIGHT))


def _labels(panel: Axes) -> list[str]:
    legend = panel.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def _legend_rows(panel: Axes) -> int:
    """Rows that a legend takes above the panel."""
    labels = _labels(panel)
    return math.ceil(len(labels) / _columns(labels)) if 0 < len(labels) <= ABOVE else 0


def _legend_width(panel: Axes) -> float:
    """Inches that a legend takes beside the panel."""
    labels = _labels(panel)
    if len(labels) <= ABOVE:
        return 0.0
    columns = np.array_split(labels, _columns_beside(panel, labels))
    return sum(max(map(len, part)) + HANDLE_WIDTH for part in columns) * CHARACTER_WIDTH
