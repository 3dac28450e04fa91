"""Pictures: what their artists hold, that nothing overlaps, and that no screen is needed."""

import io
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from downhill_rms.rule.telemetry import telemetry_names
from downhill_rms.watching.history import History, Record
from downhill_rms.watching.plots import decay_coefficients, learning_curves, trace_2d, update_ratios

ROOT = Path(__file__).parents[2]


def make_history(losses, valid=None, every=1, **monitors):
    """A history with these training losses; validation losses are theirs and a tenth."""
    history, best, latest = History(), math.inf, {}
    for epoch, loss in enumerate(losses, 1):
        validated = epoch % every == 0
        if validated:
            latest = {"loss": 1.1 * loss if valid is None else valid[epoch - 1]}
        is_best = validated and latest["loss"] < best
        best = latest["loss"] if is_best else best
        train = {"loss": loss, **{name: values[epoch - 1] for name, values in monitors.items()}}
        history.append(Record(epoch, 5 * epoch, 0.1 * epoch, train, latest, validated, is_best))
    return history


def rosenbrock(x1, x2):
    return (1 - x1) ** 2 + 100 * (x2 - x1**2) ** 2


def quadratic(x1, x2):
    return 0.1 * x1**2 + 2 * x2**2


def line_named(ax, label):
    drawn = [line for line in ax.lines if len(line.get_xdata())]
    (line,) = [line for line in drawn if line.get_label().startswith(label)]
    return line


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


FALLING = [4.0, 3.0, 2.0, 1.5, 1.2, 1.0]
LONG = "/somewhere/deep/in/a/tree/of/directories/with/long/names/run"
TELEMETRY = {
    name: np.geomspace(1e-2, 1e-3, 6) if name.startswith("update_ratio") else np.linspace(0, 1, 6)
    for name in telemetry_names(["w", "b", "$v$", "_u"])
}
VALLEY = [(-1.2, 1.0), (-0.5, 0.3), (0.0, 0.0), (0.5, 0.25), (1.0, 1.0)]
PICTURES = {
    "one run": lambda **ax: learning_curves(make_history(FALLING), **ax),
    "no epoch": lambda **ax: learning_curves(History(), **ax),
    "one epoch": lambda **ax: learning_curves(make_history([2.0]), **ax),
    "decades": lambda **ax: learning_curves(make_history(np.geomspace(1e6, 1e-6, 300)), **ax),
    "three runs": lambda **ax: learning_curves(
        {name: make_history(FALLING) for name in ("a", "b", "_c$1$")}, **ax
    ),
    "decay": decay_coefficients,
    "valley": lambda **ax: trace_2d(rosenbrock, VALLEY, **ax),
    "ratios": lambda **ax: update_ratios(make_history(FALLING, **TELEMETRY), **ax),
}
LARGE_PICTURES = {
    "two monitors": lambda: learning_curves(make_history(FALLING, e=FALLING), ("loss", "e")),
    "many runs": lambda: learning_curves(
        {f"{LONG}-{index}": make_history(FALLING) for index in range(12)}
    ),
}


# Learning curves


def test_the_curves_are_the_history():
    history = make_history(FALLING, every=2)
    (ax,) = learning_curves(history).axes
    train, valid = line_named(ax, "training"), line_named(ax, "validation")
    np.testing.assert_array_equal(train.get_xdata(), [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(train.get_ydata(), FALLING)
    np.testing.assert_array_equal(valid.get_xdata(), [2, 4, 6])
    np.testing.assert_allclose(valid.get_ydata(), np.multiply(1.1, [3.0, 1.5, 1.0]))
    assert (train.get_linestyle(), valid.get_linestyle()) == ("--", "-")
    assert train.get_alpha() < 1
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([50.0, 5.0, 0.5], "log"),
        ([5.0, 4.0, 3.0], "linear"),
        ([50.0, 5.0, 0.0], "linear"),
        ([50.0, 5.0, -0.5], "linear"),
        ([50.0, math.nan, 0.5], "log"),
        ([50.0, math.inf, 40.0], "linear"),
        ([math.nan, math.nan], "linear"),
    ],
)
def test_the_scale_is_logarithmic_where_it_helps(losses, scale):
    (ax,) = learning_curves(make_history(losses)).axes
    assert ax.get_yscale() == scale


def test_the_best_epoch_is_marked_and_named():
    history = make_history(FALLING, valid=[3.0, 2.0, 1.0, 1.25, 2.5, 4.0])
    (ax,) = learning_curves(history).axes
    mark = line_named(ax, "best")
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([3], [1.0])
    assert mark.get_marker() not in ("", "None", None)
    assert legend_texts(ax) == ["training", "validation", "best epoch 3: 1"]


def test_the_last_of_several_bests_counts():
    """As in a trainer that ran twice, the second time from a worse start."""
    history = make_history([2.0, 1.0])
    for record in make_history([4.0, 3.0]):
        history.append(record)
    (ax,) = learning_curves(history).axes
    np.testing.assert_allclose(line_named(ax, "best").get_ydata(), [3.3])


def test_nothing_is_marked_where_nothing_was_best():
    history = make_history([2.0, 1.0], valid=[math.nan, math.nan])
    (ax,) = learning_curves(history).axes
    assert legend_texts(ax) == ["training"]


def test_values_that_are_not_finite_leave_gaps():
    (ax,) = learning_curves(make_history([3.0, math.nan, 2.0, math.inf, 1.0, -math.inf])).axes
    for part in ("training", "validation"):
        missing = np.isnan(line_named(ax, part).get_ydata())
        np.testing.assert_array_equal(missing, [False, True, False, True, False, True])


@pytest.mark.parametrize(
    "losses", [[1.0], [*[1.0] * 40, math.nan, 5.0, math.nan, *[1.0] * 40], [math.nan, 2.0]]
)
def test_a_point_without_neighbours_is_seen(losses):
    """Pixels of the training line's colour, where only a marker can be."""
    (ax,) = learning_curves(make_history(losses)).axes
    line = line_named(ax, "training")
    for other in set(ax.lines) - {line}:
        other.remove()
    figure, epoch = ax.figure, int(np.nanargmax(losses)) + 1
    image = io.BytesIO()
    figure.savefig(image, format="rgba", dpi=100)
    width, height = figure.canvas.get_width_height()
    pixels = np.frombuffer(image.getvalue(), np.uint8).reshape(height, width, 4)[..., :3] / 255
    x, y = ax.transData.transform((epoch, max(losses[epoch - 1], 0))).round().astype(int)
    around = pixels[height - y - 3 : height - y + 3, x - 3 : x + 3]
    blended = line.get_alpha() * np.array(to_rgb(line.get_color())) + 1 - line.get_alpha()
    assert (np.abs(around - blended).max(axis=-1) < 0.1).sum() >= 4


def test_each_run_has_its_colour():
    runs = {"one": make_history(FALLING), "two": make_history([2.0, 1.5]), "none": History()}
    (ax,) = learning_curves(runs).axes
    drawn = [line for line in ax.lines if len(line.get_xdata())]
    by_run = [drawn[:3], drawn[3:]]  # training, validation, best
    colours = [{line.get_color() for line in lines} for lines in by_run]
    assert [len(some) for some in colours] == [1, 1]
    assert colours[0] != colours[1]
    np.testing.assert_array_equal(by_run[1][0].get_ydata(), [2.0, 1.5])
    assert legend_texts(ax) == [
        *("training", "validation", "one, best epoch 6: 1.1", "two, best epoch 2: 1.65"),
        "none, no epoch yet",
    ]


def test_no_two_of_twenty_runs_look_the_same():
    (ax,) = learning_curves({f"run{i}": make_history(FALLING) for i in range(20)}).axes
    looks = [
        (line.get_color(), line.get_linestyle(), line.get_marker())
        for line in ax.get_legend().get_lines()
        if line.get_marker() != "None"
    ]
    assert len(set(looks)) == len(looks) == 20
    assert len({look[:2] for look in looks}) == 20  # without the markers, too


@pytest.mark.parametrize("count", [12, 40, 100])
def test_many_runs_have_a_legend_beside_a_picture_of_one_screens_height(count):
    figure = learning_curves({f"runs/digits-{i}": make_history(FALLING) for i in range(count)})
    figure.set_dpi(100)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    legend = ax.get_legend().get_window_extent()
    assert figure.get_size_inches()[1] <= 9
    assert not legend.overlaps(ax.bbox)
    assert legend.x0 >= ax.bbox.x1
    assert legend.x1 <= figure.bbox.x1
    assert legend.y0 >= figure.bbox.y0
    assert ax.bbox.width > 300
    colours = {line.get_color() for line in ax.get_legend().get_lines()[2:]}
    assert len(colours) == count


def test_runs_are_coloured_by_what_differs():
    rates = {f"run{i}": 10.0**-i for i in range(1, 6)}
    figure = learning_curves(
        {name: make_history(FALLING) for name in rates}, colour_by=("learning_rate", rates)
    )
    ax, scale = figure.axes
    assert scale.get_ylabel() == "learning_rate"
    assert scale.get_yscale() == "log"
    assert legend_texts(ax) == ["training", "validation"]
    lightness = [
        sum(to_rgb(line.get_color())) for line in ax.lines if line.get_label() == "validation"
    ]
    assert lightness[:5] == sorted(lightness[:5], reverse=True)  # from 0.1 down
    with pytest.raises(ValueError, match="colour_by has no learning_rate for 'other'"):
        learning_curves({"other": make_history(FALLING)}, colour_by=("learning_rate", rates))


def test_long_names_keep_their_ends():
    names = [f"{LONG}-{index}" for index in range(3)]
    (ax,) = learning_curves({name: make_history(FALLING) for name in names}).axes
    labels = legend_texts(ax)[2:]
    for index, label in enumerate(labels):
        assert label.startswith("…")
        assert f"names/run-{index}," in label


def test_several_monitors_have_a_panel_each():
    history = make_history(FALLING, error=[0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    first, second = learning_curves(history, ["loss", "error"]).axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("loss", "error")
    np.testing.assert_array_equal(
        line_named(second, "training").get_ydata(), [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )
    # It has no validation: the best epoch is marked where training stood.
    assert legend_texts(second) == ["training", "best epoch 6: 0.1"]
    assert learning_curves(history, "error").axes[0].get_ylabel() == "error"


@pytest.mark.parametrize(
    ("histories", "monitors", "message"),
    [
        (make_history([1.0]), ("error",), "'error': this history has only loss"),
        (
            {"a": make_history([1.0], e=[2.0]), "b": make_history([1.0])},
            ("e",),
            "'e': b has only loss",
        ),
        ({}, ("loss",), "histories has 0 runs and monitors 1"),
        (make_history([1.0]), (), "histories has 1 runs and monitors 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(histories, monitors, message):
    with pytest.raises(ValueError, match=message):
        learning_curves(histories, monitors)


def test_one_panel_takes_one_monitor():
    ax = Figure().subplots()
    with pytest.raises(ValueError, match=r"ax is given with 2 monitors \(loss, e\)"):
        learning_curves(make_history([1.0], e=[1.0]), ("loss", "e"), ax=ax)


# Decay


def test_the_decay_coefficients_are_those_of_the_average():
    """The response of the average itself to one gradient."""
    decays = (0.95, 0.7, 0.0)
    (ax,) = decay_coefficients(decays, steps=12).axes
    for decay, line in zip(decays, ax.lines, strict=True):
        average, weights = 0.0, []
        for gradient in [1.0] + [0.0] * 11:
            average = decay * average + (1 - decay) * gradient
            weights.append(average)
        np.testing.assert_allclose(line.get_ydata(), weights, rtol=1e-12)
        np.testing.assert_array_equal(line.get_xdata(), range(12))
    assert legend_texts(ax) == ["γ = 0.95", "γ = 0.7", "γ = 0"]
    assert "updates" in ax.get_xlabel()


@pytest.mark.parametrize("decays", [(1.0,), (0.9, -0.1), (math.nan,), ()])
def test_decays_are_in_range(decays):
    with pytest.raises(ValueError, match=r"decays.* \[0, 1\)"):
        decay_coefficients(decays)


def test_there_is_a_step():
    with pytest.raises(ValueError, match="steps is 0: it is at least 1"):
        decay_coefficients(steps=0)


# Traces


def contour_lines(ax):
    (contours,) = [c for c in ax.collections if hasattr(c, "levels") and not c.filled]
    return contours


@pytest.mark.parametrize(
    ("function", "path"), [(rosenbrock, VALLEY), (quadratic, [(-5, -2), (-3, -0.2), (0, 0)])]
)
def test_the_path_lies_over_contours_of_the_function(function, path):
    (ax,) = trace_2d(function, path, names=("u", "v")).axes
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), path)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("u", "v")
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert all(left < x1 < right and bottom < x2 < top for x1, x2 in path)
    contours = contour_lines(ax)
    grid = np.meshgrid(np.linspace(left, right, 301), np.linspace(bottom, top, 301))
    lowest, highest = np.min(function(*grid)), np.max(function(*grid))
    for level, lines in zip(contours.levels, contours.get_paths(), strict=True):
        if level > 1e-3 * highest:  # where linear interpolation is exact enough
            heights = function(*lines.vertices.T)
            np.testing.assert_allclose(heights, level + lowest, rtol=0.05)


@pytest.mark.parametrize(
    ("function", "path"), [(rosenbrock, VALLEY), (quadratic, [(-5, -2), (0, 0)])]
)
def test_the_levels_show_bottom_and_slopes(function, path):
    (ax,) = trace_2d(function, path).axes
    levels = contour_lines(ax).levels
    assert levels[-1] > 500 * levels[0]
    steps = [math.log(after / before) for before, after in pairwise(levels)]
    np.testing.assert_allclose(steps, steps[0])


def test_start_and_end_are_marked():
    (ax,) = trace_2d(quadratic, [(-5, -2), (-1, 1e-13), (-0.0105987, -1e-12)]).axes
    assert legend_texts(ax) == ["start (-5, -2)", "end (-0.0106, 0)"]
    start, end = ax.lines[1:]
    np.testing.assert_array_equal(start.get_xydata(), [(-5, -2)])
    np.testing.assert_array_equal(end.get_xydata(), [(-0.0105987, -1e-12)])


@pytest.mark.parametrize(
    "function",
    [
        lambda x1, x2: 0 * x1,
        lambda x1, x2: 3.0,
        lambda x1, x2: np.full_like(x1, math.nan),
        lambda x1, x2: np.log(x1) / x2,
        lambda x1, x2: np.where(x1 > 1, 1.0, 0.0),
    ],
)
@pytest.mark.parametrize(
    "path", [[(1, 1)], [(1, 1), (2, 1)], [(1, 1), (math.nan, 1), (1, math.inf), (2, 3)]]
)
def test_awkward_functions_and_paths_can_be_drawn(function, path):
    figure = trace_2d(function, path)
    figure.draw_without_rendering()
    np.testing.assert_array_equal(figure.axes[0].lines[-1].get_xydata(), [path[-1]])


@pytest.mark.parametrize(
    "trace", [[], [1.0, 2.0], [(1, 2, 3)], [(math.nan, 1.0)], np.zeros((2, 2, 2))]
)
def test_a_trace_has_two_columns(trace):
    with pytest.raises(ValueError, match=r"trace has shape .*: it is an array of shape \(n, 2\)"):
        trace_2d(quadratic, trace)


# Telemetry


def test_the_ratios_are_the_monitors():
    above, below = update_ratios(make_history(FALLING, **TELEMETRY)).axes
    for panel, kind in ((above, "update_ratio"), (below, "at_floor")):
        for line, name in zip(panel.lines, ("w", "b", "$v$", "_u"), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), TELEMETRY[f"{kind}({name})"])
    assert (above.get_yscale(), below.get_yscale()) == ("log", "linear")
    assert below.get_ylim()[0] < 0 < 1 < below.get_ylim()[1]
    assert legend_texts(above) == ["w", "b", "$v$", "_u"]


def test_parameters_that_do_not_move_can_be_drawn():
    still = {"update_ratio(w)": [0.0] * 3, "at_floor(w)": [1.0] * 3}
    update_ratios(make_history([1.0] * 3, **still)).draw_without_rendering()


@pytest.mark.parametrize("history", [History(), make_history([1.0])])
def test_a_history_without_telemetry_is_refused(history):
    with pytest.raises(ValueError, match="monitor_updates=True"):
        update_ratios(history)


# All of them


@pytest.mark.parametrize("name", [*PICTURES, *LARGE_PICTURES])
def test_nothing_overlaps(name):
    figure = (PICTURES | LARGE_PICTURES)[name]()
    figure.set_dpi(100)
    figure.draw_without_rendering()
    whole = figure.bbox
    for ax in figure.axes:
        assert ax.get_xlabel() or ax is not figure.axes[-1]
        assert ax.get_ylabel()
        assert ax.bbox.height > 150  # pixels for the data
        if ax.get_legend() is not None:
            legend = ax.get_legend().get_window_extent()
            assert not legend.overlaps(ax.bbox)
            assert whole.x0 <= legend.x0
            assert legend.x1 <= whole.x1
            assert legend.y1 <= whole.y1
        for axis in (ax.xaxis, ax.yaxis):
            ticks = [label.get_window_extent() for label in axis.get_ticklabels()]
            shown = [box for box in ticks if box.width and whole.overlaps(box)]
            assert not any(a.overlaps(b) for a, b in pairwise(shown))
    for one, other in combinations(figure.axes, 2):
        assert not one.get_tightbbox().overlaps(other.get_tightbbox())


@pytest.mark.parametrize("name", PICTURES)
def test_axes_of_ones_own_are_used(name):
    figure = Figure()
    left, right = figure.subfigures(1, 2)
    mine, other = left.subplots(), right.subplots()
    size = tuple(figure.get_size_inches())
    assert PICTURES[name](ax=mine) is figure
    assert mine.get_ylabel()
    assert not other.has_data()
    assert figure.axes == [mine, other]
    assert tuple(figure.get_size_inches()) == size


@pytest.mark.parametrize("name", PICTURES)
def test_a_legend_fits_above_axes_of_ones_own(name):
    ax = Figure().subplots()
    figure = PICTURES[name](ax=ax)
    figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert not legend.overlaps(ax.bbox)
    assert legend.y1 <= figure.bbox.y1


@pytest.mark.parametrize("name", ["three runs", "valley"])
def test_pictures_can_be_saved(name, tmp_path):
    figure = PICTURES[name]()
    for ending in ("png", "svg", "pdf"):
        figure.savefig(tmp_path / f"picture.{ending}")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (tmp_path / "picture.pdf").read_bytes().startswith(b"%PDF-")
    assert ElementTree.parse(tmp_path / "picture.svg").getroot().tag.endswith("svg")


def test_matplotlibs_settings_stay_as_they_were():
    before = dict(matplotlib.rcParams)
    for draw in PICTURES.values():
        draw()
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_when_a_picture_is_drawn_and_pyplot_never(tmp_path):
    program = (
        "import sys; from downhill_rms import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.decay_coefficients().savefig(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "decay.png"], check=True, cwd=ROOT)
    assert (tmp_path / "decay.png").stat().st_size > 1000


def test_a_missing_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "downhill_rms\[plot\]"'):
        decay_coefficients()


def epochs(count, first=1, **changes):
    """Epochs that were validated every second one."""
    records = []
    for epoch in range(first, first + count):
        values = {"train": {"loss": 10.0 - epoch}, "valid": {"loss": 9.0 - epoch}} | changes
        records.append(Record(epoch, epoch, 1.0 * epoch, validated=epoch % 2 == 0, **values))
    return records


def lines_of(figure):
    (panel,) = figure.axes
    return {line.get_label(): line for line in panel.lines}


def test_the_validation_before_the_first_update_is_at_epoch_0():
    line = lines_of(learning_curves(History(epochs(4))))["validation"]
    np.testing.assert_array_equal(line.get_xdata(), [0, 2, 4])
    np.testing.assert_array_equal(line.get_ydata(), [8, 7, 5])


def test_a_picture_without_validation_data_does_not_speak_of_validation():
    figure = learning_curves(History(epochs(4, valid_is_train=True)))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["training", "training, after the epoch"]


def test_a_picture_shows_where_a_run_diverged():
    records = [*epochs(4), Record(5, 5, 5.0, {"loss": math.nan}, {"loss": 5.0})]
    (panel,) = learning_curves(History(records)).axes
    assert [list(line.get_xdata()) for line in panel.lines if line.get_linestyle() == ":"] == [
        [5, 5]
    ]
    assert "diverged in epoch 5" in [text.get_text() for text in panel.texts]
    (panel,) = learning_curves(History(epochs(4))).axes
    assert not panel.texts
