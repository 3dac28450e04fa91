"""Problems: every form that one may have, and one clear line for each fault."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Dataset, Hyperparameters, Trainer
from downhill_rms.problem import Problem, ProblemError, load_problem, problem_name

IMPORTS = "import pytensor, pytensor.tensor as pt\n"
LOSS = IMPORTS + 'w = pytensor.shared(1.0, name="w")\nloss = w**2\n'
SEVERAL = (
    LOSS
    + """
from math import sqrt

RATE = 0.5
ready = {"loss": loss, "monitors": {"w": w}}


def small():
    return {"loss": loss}


def large(seed=7):
    return {"loss": 2 * loss, "options": {"batch_size": seed}}


def helper(rows, columns, seed):
    return rows


def _hidden():
    return {"loss": loss}


def main():
    raise SystemExit("main() was run")


if __name__ == "__main__":
    main()
"""
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory of its own; sys.path is as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def write(name, text):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return name


def value(problem):
    """The loss at the start, w = 1: it tells one problem from another."""
    return Trainer(problem.loss).evaluate(None)["loss"]


# Where a problem is


def test_a_modules_attributes(mode):
    extra = 'monitors = {"w": w}\noptions = {"max_epochs": 3}\nname = "no matter"\nother = 4\n'
    problem = load_problem(write("line.py", LOSS + extra))
    assert isinstance(problem, Problem)
    assert problem.name == "line"
    assert problem.options == {"max_epochs": 3}
    assert list(problem.monitors) == ["w"]
    assert (problem.train, problem.inputs, problem.hyperparameters) == (None, None, {})
    trainer = Trainer(problem.loss, monitors=problem.monitors, mode=mode)
    assert trainer.evaluate(None) == {"loss": 1, "w": 1}


@pytest.mark.parametrize(
    "returned",
    [
        "{'loss': 3 * loss, 'train': [4]}",
        "downhill_rms.Problem(loss=3 * loss, train=[4])",
        "types.SimpleNamespace(loss=3 * loss, train=[4], something='else')",
        "types.MappingProxyType({'loss': 3 * loss, 'train': [4]})",
    ],
)
@pytest.mark.parametrize("form", ["def problem():\n    return {}\n", "problem = {}\n"])
def test_what_is_called_problem_comes_before_the_modules_own_loss(form, returned):
    text = f"import types\nimport downhill_rms\n{LOSS}{form.format(returned)}"
    problem = load_problem(write("line.py", text))
    assert value(problem) == 3
    assert problem.train == [4]
    assert problem.name == "line"


def test_a_class_may_hold_a_problem():
    text = f"{LOSS}class Large:\n    loss = 5 * loss\n    options = {{'patience': 2}}\n"
    problem = load_problem(write("line.py", text) + ":Large")
    assert value(problem) == 5
    assert problem.options == {"patience": 2}


def test_several_problems_in_one_file():
    write("several.py", SEVERAL.replace("loss =", "square =").replace(" loss", " square"))
    assert value(load_problem("several.py:small")) == 1
    assert value(load_problem("several.py:large")) == 2
    assert list(load_problem("several.py:ready").monitors) == ["w"]
    assert load_problem("several.py:large").name == "several-large"


def test_a_module_in_a_package():
    write("models/__init__.py", "SCALE = 4\n")
    write("models/parts.py", LOSS)
    text = "from models import SCALE\nfrom .parts import loss as square\n"
    write("models/line.py", f"{text}def problem():\n    return {{'loss': SCALE * square}}\n")
    problem = load_problem("models.line")
    assert value(problem) == 4
    assert problem.name == "line"
    assert value(load_problem("models.parts")) == 1


def test_a_file_imports_its_neighbours_also_later():
    """From any current directory, and from functions that are called when it is loaded."""
    write("far/away/neighbour.py", "SCALE = 6\n")
    write("far/away/late.py", "SCALE = 7\n")
    text = (
        f"{LOSS}from neighbour import SCALE\ndef scale():\n    import late\n    return late.SCALE\n"
    )
    problem = load_problem(
        write("far/away/line.py", text + "problem = {'loss': SCALE * loss, 'train': scale}\n")
    )
    assert value(problem) == 6
    assert problem.train() == 7


def test_a_file_is_run_anew():
    """An edit within the second is seen, though bytecode is cached by the second."""
    assert value(load_problem(write("line.py", LOSS + "loss = 2 * loss\n"))) == 2
    assert value(load_problem(write("line.py", LOSS + "loss = 3 * loss\n"))) == 3
    assert not Path("__pycache__").exists()


def test_functions_of_a_file_can_be_pickled():
    """Into another process as well, which is how the workers of a data loader start."""
    text = f"{LOSS}def batches():\n    return 'a batch'\ntrain = batches\n"
    problem = load_problem(write("deep/line.py", text))
    dumped = pickle.dumps(problem.train)
    assert pickle.loads(dumped) is problem.train
    code = f"import sys, pickle; sys.path[:] = {sys.path}; print(pickle.loads({dumped})())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.stdout == "a batch\n", done.stderr


def test_dataclasses_of_a_file_find_their_module():
    text = "from dataclasses import dataclass, KW_ONLY\n@dataclass\nclass A:\n    _: 'KW_ONLY'\n"
    assert load_problem(write("line.py", f"from __future__ import annotations\n{text}{LOSS}"))


@pytest.mark.parametrize("name", ["json", "click", "my-file", "2nd", "größe", "with space"])
def test_a_file_may_have_any_name(name):
    """Another module of that name stays what it is."""
    before = sys.modules.get(name)
    problem = load_problem(write(f"{name}.py", LOSS))
    assert value(problem) == 1
    assert problem.name == name
    assert before is None or sys.modules[name] is before


def test_files_of_one_name_do_not_meet():
    first = load_problem(write("a/line.py", f"{LOSS}def f():\n    return 1\ntrain = f\n"))
    second = load_problem(write("b/line.py", f"{LOSS}def f():\n    return 2\ntrain = f\n"))
    assert pickle.loads(pickle.dumps(first.train))() == 1
    assert pickle.loads(pickle.dumps(second.train))() == 2


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("examples/digits.py", "digits"),
        ("digits.py:small", "digits-small"),
        ("package.module", "module"),
        ("package.module:small", "module-small"),
        ("/a:b/digits.py", "digits"),
        ("C:/models/digits.py", "digits"),
        ("C:/models/digits.py:small", "digits-small"),
        ("C:digits.py", "C:digits"),  # what it means is Windows' own affair
    ],
)
def test_a_name_needs_no_loading(spec, name):
    assert problem_name(spec) == name


def test_the_colon_of_a_drive_is_part_of_the_path():
    with pytest.raises(ProblemError, match=r"^C:[/\\]models[/\\]line\.py is not there\. "):
        load_problem("C:/models/line.py")
    write("a:b/line.py", SEVERAL)
    assert value(load_problem("a:b/line.py")) == 1
    assert value(load_problem("a:b/line.py:large")) == 2


def test_a_problem_keeps_its_own_name():
    text = "def problem():\n    return {'loss': loss, 'name': 'mine'}\n"
    assert load_problem(write("line.py", LOSS + text)).name == "mine"


# The seed


def test_the_seed_is_given_where_it_is_wanted():
    write("several.py", SEVERAL)
    assert load_problem("several.py:large", seed=3).options == {"batch_size": 3}
    assert load_problem("several.py:large", seed=0).options == {"batch_size": 0}
    assert load_problem("several.py:large").options == {"batch_size": 7}
    assert value(load_problem("several.py:small", seed=3)) == 1


@pytest.mark.parametrize(
    ("arguments", "seen"), [("seed", 5), ("*, seed", 5), ("*a, b=1, seed=2, **c", 5), ("**c", 2)]
)
def test_every_kind_of_seed(arguments, seen):
    text = f"{LOSS}seed = 2\ndef problem({arguments}):\n"
    text += "    return {'loss': loss, 'options': {'patience': seed}}\n"
    assert load_problem(write("line.py", text), seed=5).options["patience"] == seen


def test_a_seed_that_nobody_gives():
    text = "def problem(seed):\n    return {'loss': loss, 'train': seed}\n"
    assert load_problem(write("line.py", LOSS + text)).train is None


# Hyperparameters and options


def test_a_preset_will_do_for_hyperparameters():
    text = "from downhill_rms import preset\nhyperparameters = preset('torch', lr=0.5)\n"
    problem = load_problem(write("line.py", LOSS + text))
    merged = Hyperparameters(**problem.hyperparameters)
    assert (merged.learning_rate, merged.decay, merged.centered) == (0.5, 0.99, False)


# What goes wrong


def fault(spec, *parts):
    with pytest.raises(ProblemError) as caught:
        load_problem(spec)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return caught.value


@pytest.mark.parametrize(
    "spec", ["", ":", ":name", "line.py:", "a b", "my-module", "..line", "a..b", "line.py:a b", "."]
)
def test_what_is_no_spec(spec):
    write("line.py", LOSS)
    fault(spec, "path/to/file.py or package.module, with :name", repr(spec))
    with pytest.raises(ProblemError):
        problem_name(spec)


def test_no_such_file():
    fault("missing.py", "missing.py is not there", "Give the path")
    fault("no/such/line", "ends in .py", "no/such/line")
    Path("folder.py").mkdir()
    fault("folder.py", "folder.py is not there")


def test_no_python_file():
    write("table.csv", "a,b\n1,2\n")
    fault("table.csv", "ends in .py", "table.csv")
    fault("table.csv:name", "ends in .py", "table.csv")
    fault("./", "ends in .py")


def test_no_such_module():
    write("models/__init__.py", "")
    write("line.py", LOSS)
    fault("absent", "absent cannot be imported: there is no module absent.")
    fault("absent.part", "absent.part cannot be imported: there is no module absent.")
    fault(
        "models.absent:name", "models.absent cannot be imported: there is no module models.absent"
    )
    fault("line.part", "there is no module line.part")


def test_a_module_that_imports_one_that_is_not_there():
    write("models/__init__.py", "")
    write("models/line.py", "import absent_package\n")
    place = f"{Path('models/line.py').resolve()}, line 1"
    fault("models.line", "models.line raised ModuleNotFoundError", "absent_package", place)
    fault("models/line.py", "line.py raised ModuleNotFoundError", "absent_package", place)


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("1 / 0", ["ZeroDivisionError", "division by zero", "line.py, line 5"]),
        ("import neighbour", ["KeyError", "'absent'", "neighbour.py, line 2"]),
        ("import json; json.loads('[')", ["JSONDecodeError", "line.py, line 5"]),
        ("raise ValueError('first\\nsecond')", ["ValueError (first)", "line.py, line 5"]),
        ("raise KeyError", ["raised KeyError at", "line.py, line 5"]),
        ("import sys; sys.exit(2)", ["SystemExit (2)", "line.py, line 5"]),
        ("pt.absent", ["AttributeError", "absent", "line.py, line 5"]),
        ("def f(:", ["SyntaxError", "line.py, line 5"]),
        ("import broken", ["SyntaxError", "broken.py, line 2"]),
    ],
)
@pytest.mark.parametrize("spec", ["line.py", "line"])
def test_an_error_of_the_file_says_where(spec, code, parts):
    write("neighbour.py", "d = {}\nd['absent']\n")
    write("broken.py", "\n(\n")
    write("line.py", f"{LOSS}\n{code}\n")
    error = fault(spec, "code runs without an error", *parts)
    assert error.__cause__ is not None


def test_an_error_of_the_function_says_where():
    write("line.py", f"{LOSS}def problem():\n    return 1 / len([])\n")
    fault("line.py", "ZeroDivisionError", "line.py, line 5")


def test_bytes_that_are_no_text():
    Path("line.py").write_bytes(b"a = '\xff'\n")
    fault("line.py", "SyntaxError", "line.py")


def test_after_an_error_everything_is_as_before():
    former = load_problem(write("line.py", LOSS + "def f():\n    pass\ntrain = f\n"))
    path, modules = list(sys.path), dict(sys.modules)
    write("line.py", "1 / 0\n")
    fault("line.py")
    fault(write("elsewhere/other.py", "1 / 0\n"))
    assert (sys.path, sys.modules) == (path, modules)
    assert pickle.loads(pickle.dumps(former.train)) is former.train


def test_ctrl_c_is_no_fault_of_the_file():
    write("line.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_problem("line.py")


def test_several_candidates_are_listed():
    """Those that are problems or may make one: not what is imported, private or needs more."""
    write(
        "several.py", SEVERAL.replace("loss = w**2", "square = w**2").replace(": loss", ": square")
    )
    fault(
        "several.py",
        "neither problem nor loss: one of several is given by :name. "
        "Add one of :ready, :small, :large.",
    )


def test_no_loss_at_all():
    write("line.py", "def _private(): pass\ndef f(x): pass\n")
    fault(
        "line.py",
        "line.py has neither a function problem nor an attribute loss: a problem has a loss",
    )


def test_no_such_name():
    write("several.py", SEVERAL)
    fault("several.py:smal", "several.py:smal is not there", "Did you mean 'small'?")
    fault("several.py:zzz", "It has ready, small, large.")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("RATE", ["several.py:RATE is float", "'loss'"]),
        ("loss", ["several.py:loss is"]),
        ("helper", ["several.py:helper needs rows, columns: ", "no argument but seed"]),
        ("nothing", ["several.py:nothing is NoneType"]),
        ("empty", ["several.py:empty is a mapping without loss"]),
        ("typing", ["Unknown keyword 'trian'. Did you mean 'train'?"]),
        ("number", ["Unknown keyword '3'. Known: name, loss"]),
        ("rate", ["hyperparameters: Unknown keyword 'learning_rat'", "'learning_rate'?"]),
        ("misplaced", ["hyperparameters: Unknown keyword 'batch_size'"]),
        ("epochs", ["options: Unknown keyword 'max_epoch'. Did you mean 'max_epochs'?"]),
        ("checkpointed", ["options: Unknown keyword 'checkpoint'"]),
        ("pairs", ["options is [('max_epochs', 3)]: it takes a mapping"]),
    ],
)
def test_a_wrong_problem(name, parts):
    wrong = {
        "nothing": "None",
        "empty": "{}",
        "typing": "{'loss': loss, 'trian': []}",
        "number": "{'loss': loss, 3: []}",
        "rate": "{'loss': loss, 'hyperparameters': {'learning_rat': 1}}",
        "misplaced": "{'loss': loss, 'hyperparameters': {'batch_size': 1}}",
        "epochs": "{'loss': loss, 'options': {'max_epoch': 1}}",
        "checkpointed": "{'loss': loss, 'options': {'checkpoint': 1}}",
        "pairs": "{'loss': loss, 'options': [('max_epochs', 3)]}",
    }
    functions = [f"def {n}():\n    return {text}\n" for n, text in wrong.items()]
    write("several.py", SEVERAL + "".join(functions))
    fault(f"several.py:{name}", *parts)


def test_messages_say_what_to_do():
    """The three parts in one example: the fact, the rule, what to do."""
    message = str(fault(write("line.py", f"{LOSS}1 / 0\n")))
    assert message == (
        f"line.py raised ZeroDivisionError (division by zero) at {Path('line.py').resolve()}, "
        "line 4: a problem's code runs without an error. Mend it."
    )
    assert re.fullmatch(r"[^:]+: .+\. .+\.", message)


# The example


def test_the_digits_are_a_problem():
    example = Path(__file__).parent.parent / "examples" / "digits.py"
    problem, other = (load_problem(str(example), seed) for seed in (None, 4))
    assert problem.name == "digits"
    assert [part[0].shape for part in (problem.train, problem.valid)] == [(1197, 64), (300, 64)]
    assert (problem.train[0] != other.train[0]).any()
    trainer = Trainer(problem.loss, problem.params, problem.inputs, monitors=problem.monitors)
    trainer.minimize(
        problem.train,
        problem.valid,
        **problem.hyperparameters,
        **problem.options | {"max_epochs": 2},
    )
    assert trainer.best.monitors["error"] < 0.2


def test_minimize_tells_of_a_batch_size_beside_data_that_have_one():
    """As the command line does: it would be left out without a word otherwise."""
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    data = Dataset(np.ones(8), batch_size=4)
    problem = Problem(loss=((x - w) ** 2).mean(), train=data, options={"max_updates": 1})
    assert problem.minimize("FAST_COMPILE").update_count == 1
    with pytest.raises(ValueError, match="a Dataset that has its own sizes"):
        problem.minimize("FAST_COMPILE", batch_size=2)
