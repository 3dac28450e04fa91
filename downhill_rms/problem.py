"""A problem: a loss with its data and defaults, as a file or a module describes it."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from downhill_rms.rule import Hyperparameters, check_count, refuse_unknown, shown
from downhill_rms.trainer import Trainer

MONITORING = ("monitor_gradients", "monitor_updates")  # options of the trainer itself
OF_TRAINER = (*MONITORING, "devices", "shard_above")
OPTIONS = (
    *("batch_size", "max_epochs", "max_updates"),
    *("patience", "min_improvement", "validate_every"),
    *("monitor", "higher_is_better", "restore_best", "on_divergence", "updates_per_call"),
    *MONITORING,
)


FORMS = "Give path/to/file.py or package.module, with :name where it holds several problems."


class ProblemError(ValueError):
    """A problem that cannot be loaded."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is to be minimised, and with what, in one object.

    Attributes
    ----------
    name : str
        What the command line calls it, and its run directory.
    loss : Variable
        A real floating-point scalar.
    inputs, params, updates, monitors, carried
        As for `Trainer`.
    train, valid : Dataset or whatever it accepts, optional
        The data.
    hyperparameters : mapping
        Defaults for fields of `Hyperparameters`.
    options : mapping
        Defaults for ``batch_size``, ``max_epochs``, ``max_updates``, ``patience``,
        ``min_improvement``, ``validate_every``, ``monitor``, ``higher_is_better``,
        ``restore_best``, ``on_divergence`` and ``updates_per_call`` of ``Trainer.iterate``, and
        for ``monitor_gradients`` and ``monitor_updates`` of `Trainer`.

    Examples
    --------
    >>> import pytensor
    >>> w = pytensor.shared(1.0, name="w")
    >>> problem = Problem(loss=w**2, hyperparameters={"learning_rate": 0.1})
    >>> problem.trainer("FAST_COMPILE").graph.param_names
    ('w',)
    """

    name: str = "problem"
    loss: Any
    inputs: Sequence[Any] | None = None
    params: Sequence[Any] | None = None
    updates: Any = ()
    monitors: Any = ()
    carried: Any = ()
    train: Any = None
    valid: Any = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def trainer(self, mode: Any = None, **options: Any) -> Trainer:
        """The trainer of this problem.

        Parameters
        ----------
        mode : str or Mode, optional
            As for `Trainer`.
        **options
            ``devices``, ``shard_above``, ``monitor_gradients`` and ``monitor_updates`` of
            `Trainer`, before those of the problem's own options.
        """
        own = {name: self.options[name] for name in MONITORING if name in self.options}
        return Trainer(
            self.loss,
            self.params,
            self.inputs,
            self.updates,
            self.monitors,
            carried=self.carried,
            mode=mode,
            **{**own, **options},
        )

    def minimize(self, mode: Any = None, **options: Any) -> Trainer:
        """Train with the problem's data and defaults, as ``downhill-rms train`` does.

        Parameters
        ----------
        mode : str or Mode, optional
            As for `Trainer`.
        **options
            As for ``Trainer.minimize`` and `Problem.trainer`, before the problem's own options and
            hyperparameters.

        Returns
        -------
        Trainer
            After the run: ``stop_reason`` tells how it ended, ``history`` what it reported.

        Examples
        --------
        >>> import pytensor
        >>> w = pytensor.shared(1.0, name="w")
        >>> problem = Problem(loss=w**2, options={"max_updates": 100})
        >>> trainer = problem.minimize("FAST_COMPILE", learning_rate=0.1)
        >>> trainer.update_count
        100
        """
        options = {**self.options, **options}
        own = {name: options.pop(name) for name in OF_TRAINER if name in options}
        trainer = self.trainer(mode, **own)
        trainer.set_hyperparameters(**self.hyperparameters)
        trainer.minimize(self.train, self.valid, **options)
        return trainer


FIELDS = [one.name for one in fields(Problem)]


def load_problem(spec: str, seed: int | None = None) -> Problem:
    """Load a problem from a Python file or a module.

    A problem is a `Problem`, a mapping with its fields as keys, an object with them as
    attributes, or a function that returns one of these. Without a name in ``spec`` it is what
    the module calls ``problem``, or else the module itself, whose attributes are the fields.

    Parameters
    ----------
    spec : str
        ``path/to/file.py`` or ``package.module``, with ``:name`` where it holds several problems.
    seed : int, optional
        Given to a function that has a parameter ``seed``; None leaves it to the default.

    Returns
    -------
    Problem
        Its name, unless it has one of its own, is that of ``problem_name``.

    Raises
    ------
    ProblemError
        If there is no such problem, or its code raises an error.

    Notes
    -----
    A file is run anew by each call, under its own name: an ``if __name__ == "__main__"`` is
    passed over. Its directory, or the current one for a module, is put first in ``sys.path`` and
    stays there, as with ``python file.py``: data may be made by functions that import later.
    """
    if seed is not None:
        seed = check_count("seed", seed, 0)
    source, name = _split(spec)
    before = list(sys.path)
    try:
        module = _import_file(Path(source)) if _is_file(source) else _import_module(source)
        found = _find(module, name, spec)
        if callable(found) and not _has_loss(found):
            found = _call(found, spec, seed)
        return _as_problem(found, spec)
    except BaseException:
        sys.path[:] = before
        raise


def problem_name(spec: str) -> str:
    """The name of a problem that has none of its own: ``digits``, or ``digits-small``.

    Parameters
    ----------
    spec : str
        As for `load_problem`; nothing is loaded.

    Raises
    ------
    ProblemError
        If ``spec`` is neither a file nor a module.
    """
    source, name = _split(spec)
    last = Path(source).stem if _is_file(source) else source.rpartition(".")[2]
    return f"{last}-{name}" if name else last


def problem_path(spec: str) -> str:
    """What tells a problem from others of its name: its whole path, or its module, with its name.

    Parameters
    ----------
    spec : str
        As for `load_problem`; nothing is loaded.
    """
    source, name = _split(spec)
    whole = str(Path(source).resolve()) if _is_file(source) else source
    return f"{whole}:{name}" if name else whole


def _split(spec: str) -> tuple[str, str]:
    """File or module, and the name after the colon, if there is one."""
    if not isinstance(spec, str):
        raise TypeError(f"spec is {shown(spec)}: it takes a text. {FORMS}")
    source, colon, name = spec.rpartition(":")
    if not colon or any(mark in name for mark in "./\\"):  # the colon of a drive, as in C:\file.py
        source, colon, name = spec, "", ""
    parts = [name] if colon else []
    if not _is_file(source):
        parts += source.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ProblemError(f"spec is {shown(spec)}, which is neither a file nor a module. {FORMS}")
    return source, name


def _is_file(source: str) -> bool:
    return source.endswith(".py") or any(mark in source for mark in "/\\") or os.path.isfile(source)


def _import_file(path: Path) -> ModuleType:
    if path.suffix != ".py":
        raise ProblemError(
            f"{path} is no Python file: a problem's ends in .py. Give such a file, or a module as "
            "package.module."
        )
    if not path.is_file():
        raise ProblemError(f"{path} is not there. Give the path of a problem's file.")
    path = path.resolve()
    _make_importable(str(path.parent))
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    former = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        with _named_faults(path.name):
            # Not the loader, which takes an edit within a second for the bytecode it has cached.
            exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        if former is not None:
            sys.modules[name] = former
        raise
    return module


def _module_name(path: Path) -> str:
    """The file's own name, unless another module has it: a file may be called random.py."""
    name = re.sub(r"\W", "_", path.stem)
    while name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name += "_"
    return name


def _import_module(name: str) -> ModuleType:
    _make_importable(os.getcwd())
    with _named_faults(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, and imports one that is not
            raise ProblemError(
                f"{name} cannot be imported: there is no module {error.name}. Check the name and "
                "the current directory, or give a file as path/to/file.py."
            ) from error


def _make_importable(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


@contextlib.contextmanager
def _named_faults(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one line that says where."""
    try:
        yield
    except ProblemError:
        raise
    except (Exception, SystemExit) as error:  # a file that reads arguments calls sys.exit
        text = str(error).strip().partition("\n")[0]
        raise ProblemError(
            f"{what} raised {type(error).__name__}{f' ({text})' if text else ''}{_place(error)}: a "
            "problem's code runs without an error. Mend it."
        ) from error


def _place(error: BaseException) -> str:
    """The last line of the user's own code that an error went through."""
    ours = (__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in ours and not frame.filename.startswith("<")
    ]
    if not frames:  # a SyntaxError of the file itself, which says where by its text
        return ""
    folder = os.path.dirname(frames[0].filename)
    last = [frame for frame in frames if os.path.dirname(frame.filename) == folder][-1]
    return f" at {last.filename}, line {last.lineno}"


def _find(module: ModuleType, name: str, spec: str) -> Any:
    """What holds or makes the problem: an attribute of the module, or a mapping of several."""
    members = vars(module)
    if name in members:
        return members[name]
    candidates = [n for n, value in members.items() if _is_candidate(n, value, module)]
    known = f"It has {', '.join(candidates)}." if candidates else "It has none."
    if name:
        nearest = difflib.get_close_matches(name, candidates, n=1)
        raise ProblemError(
            f"{spec} is not there: a problem's name is in its module. "
            + (f"Did you mean {nearest[0]!r}?" if nearest else known)
        )
    if callable(members.get("problem")) or _has_loss(members.get("problem")):
        return members["problem"]
    if "loss" in members and not callable(members["loss"]):
        return {n: members[n] for n in FIELDS if n in members and n != "name"}
    if candidates:
        raise ProblemError(
            f"{spec} has several problems, and neither problem nor loss: one of several is given "
            f"by :name. Add one of {', '.join(f':{candidate}' for candidate in candidates)}."
        )
    raise ProblemError(
        f"{spec} has neither a function problem nor an attribute loss: a problem has a loss. "
        "Define one."
    )


def _is_candidate(name: str, value: Any, module: ModuleType) -> bool:
    """Whether an attribute is a problem, or a function of the module's own that may make one."""
    if name.startswith("_") or name == "main":
        return False
    if not inspect.isfunction(value):
        return _has_loss(value) and not isinstance(value, ModuleType)
    return value.__module__ == module.__name__ and not _required(value)


def _has_loss(value: Any) -> bool:
    return "loss" in value if isinstance(value, Mapping) else hasattr(value, "loss")


def _required(function: Any) -> list[str]:
    """The arguments that a function cannot do without, ``seed`` apart."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name != "seed"
    ]


def _call(function: Any, spec: str, seed: int | None) -> Any:
    with _named_faults(spec):
        if required := _required(function):
            raise ProblemError(
                f"{spec} needs {', '.join(required)}: a problem's function needs no argument but "
                "seed. Give them defaults, or name another function."
            )
        own = inspect.signature(function).parameters.get("seed")
        given = own is not None and (seed is not None or own.default is own.empty)
        return function(seed=seed) if given else function()


def _as_problem(value: Any, spec: str) -> Problem:
    if not _has_loss(value):
        kind = "a mapping without loss" if isinstance(value, Mapping) else type(value).__name__
        raise ProblemError(
            f"{spec} is {kind}: a problem has a loss. Give a Problem, a mapping with the key "
            "'loss', or a function that returns one of these."
        )
    if isinstance(value, Mapping):
        _check_names(value, FIELDS, spec)
        values = dict(value)
    else:
        values = {name: getattr(value, name) for name in FIELDS if hasattr(value, name)}
    if values.setdefault("name", Problem.name) == Problem.name:
        values["name"] = problem_name(spec)
    problem = Problem(**values)
    _check_names(problem.hyperparameters, Hyperparameters.names(), f"{spec}, hyperparameters")
    _check_names(problem.options, OPTIONS, f"{spec}, options")
    return problem


def _check_names(values: Any, known: Sequence[str], what: str) -> None:
    if not isinstance(values, Mapping | Hyperparameters):
        raise ProblemError(f"{what} is {shown(values)}: it takes a mapping. Give a dict.")
    try:
        refuse_unknown([str(name) for name in values.keys()], known)  # noqa: SIM118
    except TypeError as error:
        raise ProblemError(f"{what}: {error}") from error
