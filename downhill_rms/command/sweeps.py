"""Many runs of a problem: what ``downhill-rms sweep`` and ``find-rate`` do."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downhill_rms.command.experiment import Request, training_data
from downhill_rms.compiling import default_mode
from downhill_rms.problem import MONITORING, Problem, load_problem
from downhill_rms.rule import read_graph
from downhill_rms.sweeping import RateTest, Sweep, find_rate
from downhill_rms.sweeping.ranges import combine, is_tried
from downhill_rms.sweeping.sweep import sweep
from downhill_rms.trainer import Trainer
from downhill_rms.watching import RunDirectory, watched
from downhill_rms.watching.plots import hyperparameter_effects, rate_range
from downhill_rms.watching.rundirectory import number

EVERY = 0.2  # seconds from one look at the workers to the next

log = logging.getLogger(__name__)


def split(assignments: Sequence[tuple[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is fixed, and what is tried."""
    given = dict(assignments)
    tried = {name: value for name, value in given.items() if is_tried(value)}
    return {name: value for name, value in given.items() if name not in tried}, tried


def sweep_problem(
    problem: Problem,
    request: Request,
    tried: Mapping[str, Any],
    path: Path,
    *,
    seeds: int | None,
    progress: bool,
    resume: bool,
    part: tuple[int, int] | None = None,
    **ways: Any,
) -> Sweep:
    """Train a problem many times, each run in a directory of its own.

    Parameters
    ----------
    problem : Problem
        The loss.
    request : Request
        What is asked of every run.
    tried : mapping of str to list or Range
        What differs.
    path : Path
        Where the runs are put.
    seeds : int, optional
        How many; the problem's function is called with each.
    progress : bool
        Whether a bar is shown.
    resume : bool
        Whether the sweep there goes on.
    part : (int, int), optional
        Which part of how many is made.
    **ways
        Other options of ``Trainer.sweep``.
    """
    problem = request.with_files(problem)
    options = request.all_options(problem)
    monitoring = {name: options.pop(name) for name in MONITORING if name in options}
    trainer = problem.trainer(request.mode or default_mode(), **monitoring)
    data = training_data(problem, trainer, options.pop("batch_size", None), request.seed)
    config = request.to_config(problem)
    if part is not None:
        count = len(_places(tried, seeds, ways, request.seed))
        ways["only"] = range(part[0], count, part[1])
    if seeds is not None:
        ways |= {"seeds": seeds, "start": _starts(trainer, request.spec, seeds)}
    given = {**options, **request.in_force(problem), **tried}
    if "decay" in tried:
        del given["rms_halflife"]
    elif "rms_halflife" in tried:
        del given["decay"]
    directory = RunDirectory(path, config)
    given |= {"run_directory": directory, "resume": resume, "progress": progress, **ways}
    given["draws"] = request.seed
    return sweep(trainer, data, problem.valid, **given)


def _places(tried: Mapping[str, Any], seeds: int | None, ways: Mapping[str, Any], seed: int) -> Any:
    rng = np.random.default_rng(seed)
    combos = combine(tried, ways.get("zipped", False), ways.get("sample"), rng)
    return range(len(combos) * (seeds or 1))


def _starts(trainer: Trainer, spec: str, seeds: int) -> dict[int, Any] | None:
    """The parameters that the problem's function makes with each seed; None if they are equal."""
    starts: dict[int, Any] = {}
    for seed in range(seeds):
        other = load_problem(spec, seed)
        graph = read_graph(other.loss, other.params, other.inputs, other.updates, (), other.carried)
        values = [np.array(param.get_value(borrow=True)) for param in graph.params]
        starts[seed] = dict(zip(graph.param_names, values, strict=True))
    first = starts[0]
    others = [start for seed, start in starts.items() if seed]
    same = all(np.array_equal(first[n], other[n]) for other in others for n in first if n in other)
    return None if same and others else starts


def run_workers(words: Sequence[str], path: Path, workers: int, progress: bool) -> int:
    """Have the runs made by several processes, each with its share of the cores.

    Parameters
    ----------
    words : sequence of str
        The command, without what is a worker's own.
    path : Path
        Where the runs are put.
    workers : int
        How many.
    progress : bool
        Whether a bar counts the runs that have ended.

    Returns
    -------
    int
        The exit code of the first that failed; 0 if none did.
    """
    path.mkdir(parents=True, exist_ok=True)
    cores = (
        max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(os, "sched_getaffinity") else 1
    )
    threads = {name: str(cores) for name in ("OPENBLAS_NUM_THREADS", "DOWNHILL_RMS_THREADS")}
    processes = []
    for index in range(workers):
        own = ["--resume", "--no-progress", "--part", f"{index}/{workers}"]
        command = [sys.executable, "-m", "downhill_rms", *words, *own]
        with open(path / f"worker-{index}.txt", "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command,
                env={**os.environ, **threads},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            processes.append(process)
    try:
        for _ in watched(_ended(path, processes), progress, None):
            pass
    except KeyboardInterrupt:  # which they have heard, too, and save what they have
        for process in processes:
            process.wait()
        return 130
    codes = [process.wait() for process in processes]
    for index, code in enumerate(codes):
        if code:
            text = (path / f"worker-{index}.txt").read_text(encoding="utf-8").strip()
            log.error("worker %d ended with %d: %s", index, code, text.rpartition("\n")[2])
    return next((code for code in codes if code), 0)


def _ended(path: Path, processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[Path]:
    """Each run as it comes to its end, until no process works any more."""
    seen: set[Path] = set()
    while True:
        alive = any(process.poll() is None for process in processes)
        for result in sorted(set(path.glob("*/result.json")) - seen):
            seen.add(result)
            yield result
        if not alive:
            return
        time.sleep(EVERY)


def summary_rows(found: Sweep) -> list[dict[str, str]]:
    """The combinations, best first, as texts."""

    def text(value: Any) -> str:
        return number(value) if isinstance(value, float) else str(value)

    rows = [{name: text(value) for name, value in row.items()} for row in found.summary()]
    if all(row["seeds"] == "1" for row in rows):
        rows = [{n: v for n, v in row.items() if n not in ("spread", "seeds")} for row in rows]
    return rows


def draw_sweep(found: Sweep, path: Path) -> Path | None:
    """Draw what the runs came to against each hyperparameter, if that can be done here."""
    names = list(dict.fromkeys(name for run in found.runs for name in run.settings))
    table = found.table()
    value = f"best {found.monitor}"
    if not names or not any(math.isfinite(row[value]) for row in table):
        return None
    try:
        hyperparameter_effects(table, names, value).savefig(path / "sweep.png")
    except ImportError as error:
        log.warning("no sweep.png: %s", error)
        return None
    return path / "sweep.png"


def find_problem_rate(
    problem: Problem, request: Request, low: float, high: float, updates: int
) -> RateTest:
    """Test the range of a problem's learning rate."""
    problem = request.with_files(problem)
    options = request.all_options(problem)
    monitoring = {name: options.pop(name) for name in MONITORING if name in options}
    trainer = problem.trainer(request.mode or default_mode(), **monitoring)
    data = training_data(problem, trainer, options.pop("batch_size", None), request.seed)
    given = dict(request.in_force(problem))
    del given["learning_rate"]
    return find_rate(trainer, data, low=low, high=high, updates=updates, **given)


def draw_rates(found: RateTest, path: Path) -> None:
    """Draw the test."""
    rate_range(found).savefig(path)
