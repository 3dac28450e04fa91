"""The pictures of the documentation, drawn anew by every build."""

import csv
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from sphinx_gallery.scrapers import figure_rst

from downhill_rms import Dataset, Trainer, plots
from downhill_rms.command.demos import run_demo

NUMBER = re.compile(r"[\d.]+")
RATIO = "the other's time by ours"
DOTS = 160  # an inch, so that charts are sharp on any screen


def update_ratios():
    """What ``monitor_updates`` records of a regression whose features differ in scale."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 5)) * [1, 1, 1, 0.01, 0]
    Y = X @ [1.0, 2.0, 3.0, 4.0, 5.0] + 6 + 0.1 * rng.normal(size=400)
    x, y = pt.matrix("x"), pt.vector("y")
    w, b = pytensor.shared(np.ones(5), name="w"), pytensor.shared(1.0, name="b")
    loss = pt.sqr(x @ w + b - y).mean()
    trainer = Trainer(loss, inputs=[x, y], monitor_updates=True)
    data = Dataset([X, Y], rng=0)
    trainer.minimize(data, max_epochs=60, learning_rate=0.01, rms_regularizer=1e-3)
    return plots.update_ratios(trainer.history)


TABLES = Path(__file__).parent / "tables"
# A contestant's name in every chart, and its colour, which is the same in all of them.
NAMES = {"ours": "downhill_rms", "torch": "PyTorch", "optax": "optax"}
NAMES |= {"by hand": "JAX by hand", "sklearn": "scikit-learn", "ours:plain": "PyTensor's own mode"}
COLOURS = {label: f"C{number}" for number, label in enumerate(NAMES.values())}


def rows_of(table):
    """The rows of a table of the documentation, each a dict."""
    with (TABLES / table).open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(cell):
    """The numbers in a cell: one, or a median and quartiles."""
    return [float(number) for number in NUMBER.findall(cell.replace(",", ""))]


def curves(panels, columns=2):
    """Growth curves: a panel for each growing size.

    A panel has the labels of both axes, and for each contestant its sizes and figures; of three
    figures for a size the last two are quartiles, which are drawn as a band. Axes are logarithmic,
    so that a straight line is a power. Ratios have a line at 1, and share their axis.
    """
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7, 2.6 * rows + 0.3), layout="constrained")
    ratios = all(upwards == RATIO for _, upwards, _ in panels)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=ratios)
    labels = {}
    for axes, (across, upwards, contestants) in zip(grid.flat, panels, strict=True):
        for label, curve in contestants.items():
            sizes, figures = zip(*sorted(curve.items()), strict=True)
            middle, *spread = np.array(figures).reshape(len(sizes), -1).T
            colour = COLOURS[label]
            (labels[label],) = axes.loglog(sizes, middle, ".-", color=colour, markersize=8)
            if spread:
                axes.fill_between(sizes, *spread, color=colour, alpha=0.2, linewidth=0)
        grown = sorted({size for curve in contestants.values() for size in curve})
        axes.set_xticks(grown, map(readable, grown), fontsize=8)
        axes.set(xlabel=across, ylabel="" if ratios and axes is not grid.flat[0] else upwards)
        if upwards == RATIO:
            axes.axhline(1, color="0.2", linewidth=1)
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 50 * low else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    figure.legend(labels.values(), labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def readable(number):
    """A number on an axis: 0.5, 20, 1,000 or 10M."""
    return f"{number / 1e6:,.10g}M" if number >= 1e6 else f"{number:,.10g}"


def growth():
    """How costs grow, as ``python -m tests.benchmarks.growth docs/growth.json`` measured it."""
    found = json.loads((Path(__file__).parent / "growth.json").read_text())
    panels = []
    for what, measured in found.items():
        upwards = "ms in all" if what == "epochs" else "ms an update"
        named = {
            NAMES[name]: dict(zip(measured["sizes"], figures, strict=True))
            for name, figures in measured["milliseconds"].items()
        }
        panels.append((what, upwards, named))
    return curves(panels)


def depth():
    """What compiling takes by layers and arrays, as ``tests.benchmarks.depth`` measured it."""
    found = json.loads((Path(__file__).parent / "depth.json").read_text())
    grown = {
        "layers": "layers of 128 units",
        "parameters": "arrays of parameters",
        "convnet": "residual blocks of convolutions",
        "encoder": "layers of an encoder",
    }
    panels = []
    for kind, across in grown.items():
        rungs = {int(rung.split()[-1]): costs for rung, costs in found.items() if kind in rung}
        named = {
            NAMES[name]: {
                size: costs[name]["empty"]["processor"]
                for size, costs in rungs.items()
                if name in costs
            }
            for name in ("ours", "optax", "ours:plain")
        }
        named = {label: curve for label, curve in named.items() if curve}
        panels.append((across, "processor seconds", named))
    return curves(panels)


def recurrent():
    """An LSTM's ratios by its sizes, as ``tests.benchmarks.recurrent`` measured them."""
    rows = rows_of("recurrent.csv")
    middle = {"units": "128", "batch": "16", "length": "64"}
    panels = []
    for what in ("length", "batch", "units"):
        others = [size for size in middle if size != what]
        varied = [row for row in rows if all(row[other] == middle[other] for other in others)]
        named = {
            label: {int(row[what]): numbers(row[label]) for row in varied}
            for label in ("PyTorch", "optax")
        }
        panels.append((what, RATIO, named))
    return curves(panels, columns=3)


def devices():
    """Updates on virtual devices, as ``python -m tests.benchmarks.devices`` measured them."""
    rows = [row for row in rows_of("devices.csv") if row["processes"] == "1"]
    panels = []
    for network in dict.fromkeys(row["network"] for row in rows):
        named = {
            label: {
                int(row["devices of each"]): [numbers(row[column])[0] / 1000]
                for row in rows
                if row["network"] == network
            }
            for label, column in (
                ("downhill_rms", "this library, us"),
                ("JAX by hand", "by hand, us"),
            )
        }
        panels.append((f"virtual devices, {network}", "ms an update", named))
    return curves(panels)


def runs():
    """Runs of the smallest network, as ``python -m tests.benchmarks.sweep`` measured them."""
    rows = [row for row in rows_of("sweeps.csv") if row["network"] == "5-1"]
    named = {
        label: {int(row["runs"]): numbers(row[column]) for row in rows}
        for label, column in (
            ("downhill_rms", "together, us"),
            ("optax", "optax, a minibatch a call, us"),
        )
    }
    return curves([("runs", "us for one run's update", named)], columns=1)


def ratios():
    """The others' figures by ours, with quartiles, as ``tests.benchmarks.table`` wrote them."""
    rows = rows_of("zen4.csv")
    figure = Figure(figsize=(7, 8), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        row["scikit-learn"] = row["others"] if row["others"].startswith("scikit-learn") else ""
    for number, name in enumerate(("PyTorch", "optax", "scikit-learn")):
        drawn = [(place, numbers(row[name])) for place, row in enumerate(rows) if row[name]]
        middle, low, high = np.array([figures for _, figures in drawn]).T
        places = np.array([place for place, _ in drawn]) + 0.3 * (number - 1)
        whiskers = [middle - low, high - middle]
        style = {"label": name, "color": COLOURS[name], "ecolor": "0.4"}
        axes.barh(places, middle - 1, 0.3, left=1, xerr=whiskers, **style)
    rungs = [textwrap.fill(row["rung"], 36) for row in rows]
    axes.set_yticks(range(len(rows)), rungs, fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axes.axvline(1, color="0.2", linewidth=1)
    axes.set_xlabel("the other's figure by ours")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.legend()
    return figure


def last_figure(block, block_vars, gallery_conf):
    """The figure that an example's block ends with, for the gallery, as a notebook shows it.

    Those of `downhill_rms.plots` are none of pyplot's, which the gallery finds by itself.
    """
    figure = block_vars["example_globals"].get("___")  # where the gallery keeps it
    if not isinstance(figure, Figure) or figure.get_gid() == "in the gallery":
        return ""
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path)
    figure.set_gid("in the gallery")  # it is the last one until another block has one
    return figure_rst([path], gallery_conf["src_dir"])


def draw(folder):
    """Draw all of them into a folder, without compiling anything."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    with pytensor.config.change_flags(mode="FAST_COMPILE", cxx=""):
        for name in ("quadratic", "regression"):
            run_demo(name, progress=False).figure().savefig(folder / f"{name}.png")
        plots.decay_coefficients().savefig(folder / "decay_coefficients.png")
        update_ratios().savefig(folder / "update_ratios.png")
        for chart in (growth, depth, recurrent, devices, runs, ratios):
            chart().savefig(folder / f"{chart.__name__}.png", dpi=DOTS)
