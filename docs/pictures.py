"""The pictures of the documentation, drawn anew by every build."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

from downhill_rms import Dataset, Trainer, plots
from downhill_rms.command.demos import run_demo

NUMBER = re.compile(r"[\d.]+")


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


def growth():
    """How costs grow, as ``python -m tests.benchmarks.growth docs/growth.json`` measured it."""
    curves = json.loads((Path(__file__).parent / "growth.json").read_text())
    figure = Figure(figsize=(9, 7), layout="constrained")
    names = {"ours": "downhill_rms", "torch": "PyTorch", "optax": "optax"}
    for index, (what, measured) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(2, 2, index)
        for name, milliseconds in measured["milliseconds"].items():
            axes.loglog(measured["sizes"], milliseconds, marker="o", label=names[name])
        axes.set_xlabel(what)
        axes.set_ylabel("ms in all" if what == "epochs" else "ms an update")
        axes.legend()
    return figure


def depth():
    """What compiling takes by layers, as ``tests.benchmarks.depth`` measured it."""
    found = json.loads((Path(__file__).parent / "depth.json").read_text())
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    names = {"ours": "downhill_rms", "optax": "optax", "ours:plain": "PyTensor's own mode"}
    for index, what in enumerate(("layers", "encoder"), start=1):
        axes = figure.add_subplot(1, 2, index)
        rungs = {int(rung.split()[-1]): costs for rung, costs in found.items() if what in rung}
        for name, label in names.items():
            curve = {
                size: costs[name]["empty"]["processor"]
                for size, costs in sorted(rungs.items())
                if name in costs
            }
            if curve:
                axes.plot(list(curve), list(curve.values()), marker="o", label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layers of 128 units" if what == "layers" else "layers of an encoder")
        axes.set_ylabel("processor seconds, empty cache")
        axes.legend()
    return figure


def ratios():
    """The others' figures by ours, with quartiles, as ``tests.benchmarks.table`` wrote them."""
    with (Path(__file__).parent / "tables" / "zen4.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.add_subplot()
    names = {"torch": "PyTorch", "optax": "optax", "scikit-learn": "scikit-learn"}
    for number, (name, label) in enumerate(names.items()):
        drawn = [(place, row[name]) for place, row in enumerate(rows) if row[name]]
        figures = np.array([[float(n) for n in NUMBER.findall(cell)] for _, cell in drawn])
        middle, low, high = figures.T
        places = np.array([place for place, _ in drawn]) + 0.3 * (number - 1)
        whiskers = [middle - low, high - middle]
        axes.barh(places, middle - 1, 0.3, left=1, xerr=whiskers, label=label, ecolor="0.4")
    axes.set_yticks(range(len(rows)), [row["rung"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axes.axvline(1, color="0.2", linewidth=1)
    axes.set_xlabel("the other's figure by ours")
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
        for name in ("rosenbrock", "quadratic", "regression"):
            run_demo(name, progress=False).figure().savefig(folder / f"{name}.png")
        plots.decay_coefficients().savefig(folder / "decay_coefficients.png")
        update_ratios().savefig(folder / "update_ratios.png")
        growth().savefig(folder / "growth.png")
        depth().savefig(folder / "depth.png")
        ratios().savefig(folder / "ratios.png")
