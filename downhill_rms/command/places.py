"""Where the runs of a problem are, if nobody says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from downhill_rms.problem import problem_name, problem_path
from downhill_rms.watching.rundirectory import RunDirectory, RunDirectoryError


def default_path(name: str) -> Path:
    """Where a new run goes if nobody says: ``runs/name``, ``runs/name-2`` and so on.

    Parameters
    ----------
    name : str
        The problem's.
    """
    return next(path for path in _paths(name) if not RunDirectory(path).has_begun())


def latest_path(spec: str) -> Path:
    """Where the latest run of a problem went if nobody said.

    Parameters
    ----------
    spec : str
        Where the problem is found. Others of its name do not count.

    Raises
    ------
    RunDirectoryError
        If there is none.
    """
    begun = itertools.takewhile(lambda p: RunDirectory(p).has_begun(), _paths(problem_name(spec)))
    own = [path for path in begun if is_of(RunDirectory(path), spec)]
    if not own:
        raise RunDirectoryError(
            f"No run under {Path('runs')} is of {spec}: a run goes on where it is. Give its "
            "directory by --out, or leave --resume out."
        )
    return own[-1]


def sweep_path(name: str) -> Path:
    """Where a new sweep goes if nobody says: ``runs/name-sweep``, ``runs/name-sweep-2``, ..."""
    return next(path for path in _paths(f"{name}-sweep") if not _is_taken(path))


def latest_sweep_path(name: str) -> Path:
    """Where the latest sweep of a problem went if nobody said; where a new one goes if none did."""
    taken = list(itertools.takewhile(_is_taken, _paths(f"{name}-sweep")))
    return taken[-1] if taken else sweep_path(name)


def _is_taken(path: Path) -> bool:
    return path.exists()


def _paths(name: str) -> Iterator[Path]:
    yield Path("runs", name)
    yield from (Path("runs", f"{name}-{number}") for number in itertools.count(2))


def is_of(directory: RunDirectory, spec: str) -> bool:
    """Whether a directory's run is of a problem."""
    config = directory.read_config()
    return problem_path(spec) == (config.get("path") or problem_path(config["problem"]))


def refuse_other(directory: RunDirectory, spec: str) -> None:
    """Raise a `RunDirectoryError` where the run is of another problem that is still there.

    One whose file is gone may have moved; whether it is the same the loss tells.
    """
    path = directory.read_config().get("path")
    if path is None or is_of(directory, spec):
        return
    if Path(path).exists() or Path(path.rpartition(":")[0]).is_file():
        raise RunDirectoryError(
            f"{directory.path} holds a run of {path}. A run goes on with its own problem: give "
            "that, or --resume-changed to go on with another on purpose."
        )
