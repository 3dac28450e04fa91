"""Every Python program in README and docs runs as it is printed."""

import doctest
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest

import downhill_rms
from downhill_rms.command.cli import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PEERS = {
    "PyTorch": "torch",
    "Keras": "keras",
    "skorch": "skorch",
    "optax": "optax",
    "PyMC": "pymc",
    "downhill": "theano",
}
OTHERS = ("from pymc_extras",)  # a program of a library that the tests do not install


def blocks(path):
    """The Python blocks of a page, in order, each with its caption."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return [("", block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    found = re.finditer(
        r"^( *)\.\. code-block:: python\n(?:\1 +:caption: (.*)\n)?\n((?:(?:\1 +.*)?\n)+)",
        text,
        re.MULTILINE,
    )
    return [(match[2] or "", textwrap.dedent(match[3])) for match in found]


def programs(path):
    """What a reader of a page runs with this library."""
    return [
        block
        for caption, block in blocks(path)
        if caption not in PEERS and not any(other in block for other in OTHERS)
    ]


PAGES = [ROOT / "README.md", *sorted(DOCS.glob("[!f]*.rst"))]  # not those from_..., see below


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("page", [p for p in PAGES if programs(p)], ids=lambda p: p.stem)
def test_programs_run(page, tmp_path, monkeypatch, capsys):
    needs_pymc("".join(programs(page)))
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in programs(page):
        exec(compile(block, str(page), "exec"), names)


def needs_pymc(program):
    """Skip where it is not: there is none for Python 3.11."""
    if "import pymc" in program:
        pytest.importorskip("pymc", reason="PyMC is not installed: it needs Python 3.12")


NEWCOMERS = [
    pytest.param(page, *found, id=f"{page.stem}-{found[0][0]}")
    for page in sorted(DOCS.glob("from_*.rst"))
    for found in itertools.pairwise(blocks(page))
    if found[0][0] in PEERS
]


@pytest.mark.parametrize(("page", "theirs", "ours"), NEWCOMERS)
def test_two_programs_beside_each_other_learn_the_same(
    page, theirs, ours, tmp_path, monkeypatch, capsys
):
    """Theirs runs where their library is; what both print last is close."""
    assert ours[0] == "downhill_rms"
    needs_pymc(ours[1])
    monkeypatch.chdir(tmp_path)
    learnt = [last_number(ours[1], capsys)]
    tolerance = {"from_downhill": 0.3, "from_pymc": 0.1}.get(page.stem, 0.01)
    if page.stem == "from_pymc":
        assert learnt[0] == pytest.approx(0.3, abs=tolerance)
    elif page.stem != "from_downhill":
        assert learnt[0] < tolerance  # the squared error of what can be fitted exactly
    pytest.importorskip(PEERS[theirs[0]], reason=f"{theirs[0]} is not installed")
    learnt.append(last_number(theirs[1], capsys))
    assert learnt[1] == pytest.approx(learnt[0], abs=tolerance)


def last_number(program, capsys):
    """The last line that a program prints, a number."""
    np.random.seed(0)  # programs that draw from NumPy's own generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' deprecations
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
    return float(capsys.readouterr().out.split()[-1])


def test_a_trained_model_is_used_by_a_second_process(tmp_path):
    """The page's two programs share nothing but the file."""
    flags = f"{os.environ.get('PYTENSOR_FLAGS', '')},mode=FAST_COMPILE,cxx=".lstrip(",")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTENSOR_FLAGS=flags)
    printed = []
    for block in programs(ROOT / "docs" / "trained_model.rst"):
        command = [sys.executable, "-c", block]
        options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
        done = subprocess.run(command, timeout=120, check=True, **options)
        printed.append(done.stdout)
    training, predicting = printed
    assert float(training.split()[-1]) > 0.9
    rows = [[float(n) for n in row.split()] for row in re.findall(r"[\d][\d. ]+", predicting)]
    assert [row.index(max(row)) for row in rows] == [0, 1, 2]


def test_the_page_of_commands_shows_what_they_print(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    transcripts = importlib.import_module("transcripts")
    page = transcripts.on_page(transcripts.PAGE.read_text(encoding="utf-8"))
    assert {command.split()[0] for command in page} == set(main.commands)
    for (command, shown), lines in zip(page.items(), transcripts.printed(list(page)), strict=True):
        printed = transcripts.as_shown(lines, shown)
        assert transcripts.still(command, shown) == transcripts.still(command, printed)


SEARCHED = {
    "predict": {"trained_model"},
    "save": {"trained_model"},
    "early stopping": {"guide"},
    "learning rate": {"guide"},
    "cosine": {"guide"},
    "accuracy": {"guide"},
    "softmax": {"gallery/digits"},
    "Keras": {"from_keras"},
    "optax": {"from_optax"},
    "PyTorch": {"from_torch"},
    "Theano": {"from_downhill"},
    "DataFrame": {"guide"},
    "GPU": {"guide"},
    "LSTM": {"recurrent"},
    "PyMC": {"pymc"},
    "sweep": {"sweeps"},
    "distributed": {"many_devices"},
    "SLURM": {"many_devices"},
    "NaN": {"reliability"},
    "resume": {"guide", "reliability"},
    "TensorBoard": {"watching"},
    "Parquet": {"larger_than_memory"},
}


def found_first(index, words):
    """The pages that Sphinx's search shows first: titles and index entries, by its own score."""
    words, scores = words.lower(), {}
    for weight, entries in ((15, index["alltitles"]), (100, index["indexentries"])):
        for title, places in entries.items():
            if words in title.lower() and 2 * len(words) >= len(title):
                for number, *_ in places:
                    page = index["docnames"][number]
                    score = round(weight * len(words) / len(title))
                    scores[page] = max(scores.get(page, 0), score)
    best = max(scores.values(), default=0)
    return {page for page, score in scores.items() if score == best}


@pytest.mark.slow
def test_the_site_is_whole_found_in_and_alone(tmp_path):
    """It builds as strictly as in CI, its search knows the words, and it needs no other machine.

    Without the runs of its examples, which the build itself makes in CI.
    """
    pytest.importorskip("pydata_sphinx_theme", reason="the extra docs is not installed")
    site, command = tmp_path / "html", [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html"]
    command += ["-D", "plot_gallery=0", "-d", tmp_path / "doctrees", DOCS, site]
    options = {"capture_output": True, "text": True, "check": False, "timeout": 500}
    done = subprocess.run(command, env=dict(os.environ, PYTHONPATH=str(ROOT)), **options)
    assert done.returncode == 0, done.stderr

    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").rstrip().removesuffix(")"))
    found = {words: found_first(index, words) for words in SEARCHED}
    assert all(found.values()), found
    assert {words: pages for words, pages in found.items() if not pages <= SEARCHED[words]} == {}

    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img)[^>]* src=\"https?:[^\"]*", text), page
        assert not re.findall(r"<link[^>]* rel=\"stylesheet\"[^>]* href=\"https?:", text), page
    assert "<math " in (site / "mathematics.html").read_text(encoding="utf-8")


def test_charts_show_what_the_tables_hold(monkeypatch):
    pytest.importorskip("sphinx_gallery", reason="the extra docs is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    pictures = importlib.import_module("pictures")
    _, by_units = pictures.recurrent().axes[1:]
    assert by_units.get_xlabel() == "units"
    assert by_units.lines[1].get_xydata().tolist() == [[32, 1.21], [128, 1.65], [512, 1.56]]
    wide = pictures.devices().axes[1]
    assert wide.lines[0].get_xydata().tolist() == [[1, 15.1], [2, 22.0], [4, 38.0]]
    many = pictures.runs().axes[0]
    assert many.lines[0].get_xydata().tolist() == [[1, 25.2], [8, 2.24], [32, 1.75]]
    deep = pictures.depth().axes[0]
    assert [line.get_xdata().tolist() for line in deep.lines[::2]] == [
        [2, 5, 10, 20, 50],
        [2, 5, 10, 20],
    ]


def test_the_release_is_the_same_everywhere():
    """The version is that of the package; what people cite and read beside it agrees."""
    cited = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    released = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert [*cited, released[1]] == [downhill_rms.__version__] * 2


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "downhill_rms").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
# Made by the library and not by its users, or shown on a page of their own.
WITHOUT_EXAMPLE = {
    "AdviProblem", "Best", "CheckReport", "CheckpointError", "DataFileError", "Divergence",
    "DivergenceError", "HistoryError", "LossGraph", "MLflow", "ModelProblem", "ProblemError",
    "RateTest", "Sweep", "SweepDirectoryError", "SweptRun",
    "State", "TensorBoard", "advi_problem", "check", "load_problem", "map_problem",
    "read_checkpoint", "read_data", "read_graph", "rmsprop_updates", "update_telemetry",
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed


def documented():
    """What reference.rst describes, and its docstring."""
    module = "downhill_rms"
    for line in (DOCS / "reference.rst").read_text(encoding="utf-8").splitlines():
        if line.startswith(".. currentmodule:: "):
            module = line.split()[-1]
        elif line.startswith((".. autofunction:: ", ".. autoclass:: ")):
            name = line.split()[-1]
            full = name if name.startswith("downhill_rms.") else f"{module}.{name}"
            if full.startswith("downhill_rms.pymc"):
                continue
            holder, _, short = full.rpartition(".")
            yield short, getattr(importlib.import_module(holder), short).__doc__


def test_every_public_object_has_an_example():
    without = {name for name, text in documented() if ">>> " not in (text or "")}
    assert without <= WITHOUT_EXAMPLE
    assert {name for name, _ in documented()} >= set(downhill_rms.__all__) - {
        "RMSProp",
        "__version__",
    }
