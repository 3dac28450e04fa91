"""The architecture: imports run one way between the rooms, and the rule knows only itself."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "downhill_rms"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each room may import. The package itself stands on top: its modules may import all but
# `command`, which may import everything.
ROOMS = {
    "rule": set(),
    "data": set(),
    "saving": set(),
    "compiling": {"rule"},
    "watching": {"rule"},
    "training": {"rule", "data", "saving", "compiling", "watching"},
    "parallel": {"rule", "data", "saving", "compiling", "training"},
    "sweeping": {"rule", "data", "saving", "compiling", "watching", "training", "trainer"},
    "pymc": {"rule", "data", "compiling", "problem"},
}

# These know nothing of each other: data, patience, and what is shown.
PEERS = {
    "data/dataset.py",
    "training/stopping.py",
    "watching/history.py",
    "watching/report.py",
    "saving/checkpoint.py",
}


def imported(path):
    """Every module of the package that a module imports, as a dotted name without the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by a relative name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inner = name.partition(".")
            if package == "downhill_rms":
                yield inner


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def test_the_rooms_are_these():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == {*ROOMS, "command"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path):
    room = path.parent.name
    for name in imported(path):
        first = name.partition(".")[0]
        if room in ROOMS:
            assert first in ROOMS[room] | {room}, f"{name_of(path)} imports {name}"
        elif room != "command" and path.name != "__main__.py":
            assert first != "command", f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("room", sorted({*ROOMS, "command"}))
def test_a_room_opens_with_what_it_is_for_and_has_no_code_there(room):
    docstring, *rest = ast.parse((PACKAGE / room / "__init__.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert "import" in docstring.value.value
    assert "first" in docstring.value.value
    names = [node for node in rest if not isinstance(node, ast.ImportFrom)]
    assert all(isinstance(node, ast.Assign) and node.targets[0].id == "__all__" for node in names)


@pytest.mark.parametrize("path", sorted(PEERS))
def test_peers_do_not_know_each_other(path):
    known = {peer.removesuffix(".py").replace("/", ".") for peer in PEERS - {path}}
    for name in imported(PACKAGE / path):
        assert not any(name == peer or name.startswith(f"{peer}.") for peer in known), name


def test_the_rule_compiles_nothing():
    for path in (PACKAGE / "rule").glob("*.py"):
        called = {
            ast.unparse(n.func)
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call)
        }
        assert not called & {"pytensor.function", "function"}, path.name
        sources = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
        ]
        assert not any((n.module or "").startswith("pytensor.compile.function") for n in sources)


def test_a_short_name_is_the_module_in_its_room():
    import downhill_rms.plots
    from downhill_rms.history import HistoryFile

    import downhill_rms
    from downhill_rms import observers

    assert downhill_rms.plots is downhill_rms.watching.plots
    assert observers is downhill_rms.watching.observers
    assert HistoryFile is downhill_rms.watching.HistoryFile
    assert downhill_rms.plots.__spec__.name == "downhill_rms.watching.plots"
    with pytest.raises(AttributeError, match="no attribute 'plot'"):
        downhill_rms.plot  # noqa: B018
