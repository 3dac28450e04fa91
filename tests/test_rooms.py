"""The architecture: imports run one way, and files stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "downhill_rms"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))

# Whatever stands further down may import what stands further up, and never the reverse.
LAYERS = [
    {
        "graph",
        "sources",
        "monitors",
        "stopping",
        "divergence",
        "generators",
        "signals",
        "statefile",
        "report",
        "machine",
        "figures",
        "float32",
    },
    {"sampler", "rewrites"},
    {"gradients", "dataset", "history", "compiled", "uncompiled", "stacked"}
    | {"checkpoint", "datafiles"},
    {"hyperparameters", "background"},
    {"rmsprop", "tiered", "presets", "parameters", "problem", "observers", "plots"},
    {"run", "telemetry", "check", "console", "rundirectory"},
    {"steps"},
    {"statedict"},
    {"loop"},
    {"trainer"},
    {"demos", "experiment"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# These know neither each other nor the trainer; a record of history holds monitors' values.
PEERS = {"checkpoint", "dataset", "monitors", "stopping", "history", "report"}


def imported(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, name = node.module.partition(".")
            if package == "downhill_rms":
                names = [name] if name else [alias.name for alias in node.names]
                yield from (name if name in LEVEL else "__init__" for name in names)


def test_every_module_has_its_layer():
    assert set(MODULES) == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    for name in imported(module):
        assert LEVEL[name] < LEVEL[module], f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(PEERS))
def test_peers_do_not_know_each_other(module):
    known = PEERS - {module, "monitors"}
    assert not known & set(imported(module))


def test_the_rule_knows_no_loop_no_data_and_no_compiler():
    source = (PACKAGE / "rmsprop.py").read_text()
    assert "pytensor.function" not in source.replace("any ``pytensor.function``", "")
    assert set(imported("rmsprop")) <= {"graph", "gradients", "hyperparameters"}


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_small(module):
    assert len((PACKAGE / f"{module}.py").read_text().splitlines()) <= 400


@pytest.mark.parametrize("module", MODULES)
def test_functions_stay_small(module):
    """40 lines of code; a docstring is not counted."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{module}.{node.name} has {lines} lines"
