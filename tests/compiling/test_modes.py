"""Modes of the library's own, and what follows where they do not work."""

import ast
import importlib
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import get_mode
from pytensor.graph.traversal import ancestors
from pytensor.scan.op import Scan

from downhill_rms import Trainer
from downhill_rms.compiling import internals, jaxmode, modes, products, rewrites, selfcheck
from downhill_rms.compiling.modes import MAKERS, REWRITTEN, own_mode, training_mode, works
from tests.versions import NEWEST, VERSIONS

OURS = (
    *("internals", "nativecode", "pieces", "linker", "sums", "inplace", "copies", "products"),
    *(
        "scanloop",
        "softmax",
        "tiledloops",
        "threads",
        "rewrites",
        "lengths",
        "jaxmode",
        "pythonmode",
    ),
)


def imported_names():
    """Every name that `internals` imports from PyTensor, with its module."""
    for node in ast.walk(ast.parse(Path(internals.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("pytensor"):
            yield from ((node.module, alias.name) for alias in node.names)


NAMES = sorted(imported_names())


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """Nothing is known of modes that work, here or on disk, and what is broken stays in here."""
    monkeypatch.setattr(selfcheck, "marker", lambda *key: tmp_path / str(key[1]))
    monkeypatch.setattr(selfcheck, "TESTED", set())
    works.cache_clear()
    rewrites.teach_numba()  # what the interpreter keeps of it is not for a broken PyTensor to make
    yield
    works.cache_clear()


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_name_that_pytensor_has_no_more_costs_the_rewrites_and_no_more(
    module, name, anew, monkeypatch
):
    for ours in OURS:  # imported afresh, as in a new process
        monkeypatch.delitem(sys.modules, f"downhill_rms.compiling.{ours}", raising=False)
    theirs = importlib.import_module(module)
    if isinstance(getattr(theirs, name), type(sys)):
        monkeypatch.delitem(sys.modules, f"{module}.{name}", raising=False)
        monkeypatch.setitem(sys.modules, f"{module}.{name}", None)
    monkeypatch.delattr(theirs, name)
    mode, base = ("JAX", "JAX") if ".jax." in module else (REWRITTEN, "NUMBA")
    with pytest.warns(UserWarning, match=f"PyTensor {pytensor.__version__} .*{name}") as said:
        found = [training_mode(mode) for _ in range(2)]
    assert found == [get_mode(base)] * 2
    assert len(said) == 1


def test_every_import_from_pytensors_internals_is_in_one_place():
    """Other modules of the rewrites import what a graph is made of, and nothing else."""
    allowed = {"pytensor", "pytensor.tensor", "pytensor.graph.basic", "pytensor.graph.op"}
    for name in OURS[1:]:
        path = Path(internals.__file__).with_name(f"{name}.py")
        for node in ast.walk(ast.parse(path.read_text())):
            found = [node.module] if isinstance(node, ast.ImportFrom) else []
            found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in found:
                assert not module.startswith("pytensor") or module in allowed, f"{name}: {module}"


def takes_no_more(*arguments, **keywords):
    raise TypeError("an operation takes other arguments now")


# What a rewrite would do on a PyTensor that had changed under it, and what the warning tells.
BROKEN = {
    "a function is another": (
        *("Numba", rewrites, "SINGLE", {**rewrites.SINGLE, rewrites.Tanh: rewrites.Sigmoid32}),
        "a fused loop has other values",
    ),
    "an operation cannot be made": ("Numba", products, "PlainDot", takes_no_more, "takes other"),
    "a reduction keeps its dtype": (
        *("JAX", jaxmode, "cast_reduction", jaxmode.keep_constant, "is float64, not float32"),
    ),
    "a constant is a number": ("JAX", jaxmode, "_is_number", lambda v: False, "not float32"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_rewrite_that_is_wrong_is_found_out(name, anew, monkeypatch):
    kind, module, attribute, broken, text = BROKEN[name]
    if kind == "JAX":
        pytest.importorskip("jax")
    base = get_mode(MAKERS[kind][2])
    maker = getattr({"Numba": rewrites, "JAX": jaxmode}[kind], MAKERS[kind][1])
    maker.cache_clear()
    monkeypatch.setattr(module, attribute, broken)
    with pytest.warns(UserWarning, match=f"PyTensor {pytensor.__version__} .*{text}.* for {kind}"):
        assert own_mode(kind, base) is base
    maker.cache_clear()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_mode_that_works_is_tried_once(kind, anew, monkeypatch, tmp_path):
    if kind == "JAX":
        pytest.importorskip("jax")
    base = get_mode(MAKERS[kind][2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert own_mode(kind, base) is not base
    assert (tmp_path / kind).exists()
    works.cache_clear()
    monkeypatch.setattr(modes, "check_on_a_small_graph", None)
    monkeypatch.setattr(pytensor, "__version__", "3.0.0")
    assert works(kind)
    works.cache_clear()
    monkeypatch.setattr(pytensor, "__version__", "3.0.0+2.g1234567")  # the source may change
    with pytest.warns(UserWarning, match=r"3\.0\.0\+2"):
        assert not works(kind)


def test_versions_that_the_tests_are_run_with_are_not_checked_again(anew, monkeypatch, tmp_path):
    """On all others a rewrite that is wrong is found out, as above."""
    installed = (pytensor.__version__, version("numba"))
    monkeypatch.setattr(selfcheck, "TESTED", {installed})
    assert own_mode("Numba", get_mode("NUMBA")) is not get_mode("NUMBA")
    assert not (tmp_path / "Numba").exists()
    works.cache_clear()
    monkeypatch.setattr(selfcheck, "TESTED", {(installed[0], "0.0"), ("0.0", installed[1])})
    assert own_mode("Numba", get_mode("NUMBA")) is not get_mode("NUMBA")
    assert (tmp_path / "Numba").exists()


def test_these_versions_are_those_that_the_tests_are_run_with():
    numbas = dict(selfcheck.TESTED)
    assert {*VERSIONS} - {NEWEST} <= {*numbas}
    if pytensor.__version__ in numbas:
        assert version("numba") == numbas[pytensor.__version__]


def test_training_goes_on_where_nothing_works(anew, monkeypatch):
    """The oracle: the same training with every rewrite in place."""

    def train():
        x = pt.fmatrix("x")
        w = pytensor.shared(np.ones(3, dtype="float32"), name="w")
        trainer = Trainer(pt.tanh(x @ w).mean())
        trainer.step([np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3)], learning_rate=0.1)
        return w.get_value()

    with pytensor.config.change_flags(mode="Mode"):
        right = train()
        works.cache_clear()
        monkeypatch.setattr(modes, "_make", takes_no_more)
        with pytest.warns(UserWarning, match="training goes on in PyTensor's own mode"):
            found = train()
    np.testing.assert_allclose(found, right, rtol=1e-5)
    assert found.dtype == right.dtype


@pytest.mark.parametrize("kind", ["Python", "uncompiled"])
def test_a_mode_leaves_the_scans_of_a_graph_as_they_are(kind):
    """PyTensor 3.3 copies no scan: what is said of one is said of the user's loss too."""
    x = pt.matrix("x")
    states = pytensor.scan(
        lambda row, state: pt.tanh(row + state),
        sequences=[x],
        outputs_info=[pt.zeros(3)],
        return_updates=False,
    )
    (op,) = {v.owner.op for v in ancestors([states]) if v.owner and isinstance(v.owner.op, Scan)}
    before = op.mode
    pytensor.function([x], states, mode=own_mode(kind, get_mode("FAST_COMPILE")))
    assert op.mode is before
