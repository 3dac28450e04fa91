"""The command line: each command calls the library, and prints what it returns."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import click

from downhill_rms import __version__
from downhill_rms.command.check import check as check_problem
from downhill_rms.command.comparison import compare as compare_runs
from downhill_rms.command.comparison import differing_number, only_runs
from downhill_rms.command.console import (
    Commands,
    csv_text,
    ctrl_c_ends_at_once,
    fitting_table,
    logging_to_terminal,
    parse_assignment,
    parse_picture,
    parse_values,
    text_curves,
)
from downhill_rms.command.demos import DEMOS, run_demo
from downhill_rms.command.experiment import Request, Resume, draw
from downhill_rms.command.experiment import train as train_problem
from downhill_rms.command.places import (
    default_path,
    latest_path,
    latest_sweep_path,
    refuse_other,
    sweep_path,
)
from downhill_rms.command.sweeps import (
    draw_rates,
    draw_sweep,
    find_problem_rate,
    run_workers,
    split,
    summary_rows,
    sweep_problem,
)
from downhill_rms.command.team import Team, parse_devices
from downhill_rms.compiling import ALONE_SECONDS, compile_alone, default_mode
from downhill_rms.problem import load_problem, problem_name
from downhill_rms.sweeping.manifest import Manifest
from downhill_rms.training import StopReason
from downhill_rms.watching.plots import learning_curves
from downhill_rms.watching.rundirectory import RunDirectory

EXIT_CODES = {StopReason.INTERRUPTED: 130, StopReason.TERMINATED: 143}

NAMED = 7  # runs in a picture up to which their names say more than a scale of colours

Command = Callable[..., Any]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="downhill-rms")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def main(debug: bool) -> None:
    """Minimise symbolic PyTensor losses by minibatch RMSProp."""


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Give a command several options, in this order."""

    def give(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return give


SPEC = click.argument("spec")
RUNS = click.argument("runs", metavar="RUN...", nargs=-1, required=True)
MODE = click.option("--mode", help="How PyTensor compiles: tiered (default), NUMBA, JAX, ...")
PROGRESS = click.option("--progress/--no-progress", default=True, help="Show a bar in a terminal.")
PICTURE = click.option(
    "--out",
    metavar="FILE",
    callback=lambda ctx, param, text: None if text is None else parse_picture(text),
    help="The picture: a png, svg or pdf file.",
)


def problem_options(parse: Callable[[str], Any], what: str) -> Callable[[Command], Command]:
    """The options of commands that train a problem, which read a hyperparameter in their way."""
    return with_options(
        SPEC,
        click.option(
            "--train", metavar="FILE", help="Training data: npz, npy, csv, tsv, parquet, a folder."
        ),
        click.option("--valid", metavar="FILE", help="Validation data."),
        click.option(
            *("--set", "assignments"),
            metavar="NAME=VALUE",
            callback=lambda ctx, param, texts: [parse(text) for text in texts],
            multiple=True,
            help=what,
        ),
        click.option("--batch-size", type=int, help="Samples in a minibatch (32)."),
        click.option(
            "--seed", type=click.IntRange(0), help="Of the problem and the data's order (0)."
        ),
        MODE,
    )


PROBLEM = problem_options(parse_assignment, "A hyperparameter; again for more.")
SWEPT = problem_options(
    parse_values, "A hyperparameter, its values, or a range, as loguniform(1e-4,1e-1)."
)
LIMITS = with_options(
    click.option("--max-epochs", type=int, help="Passes through the training data at most."),
    click.option("--max-updates", type=int, help="Minibatches at most."),
    click.option(
        "--patience", type=float, help="Validations without improvement that are borne (5)."
    ),
    click.option("--validate-every", type=int, help="Epochs from one validation to the next (10)."),
    click.option("--monitor", metavar="NAME", help="The monitor that judges validations (loss)."),
    click.option("--higher-is-better", is_flag=True, default=None, help="The monitor is to rise."),
)


FINISH_COMPILING = click.option(
    "--finish-compiling/--no-finish-compiling",
    default=True,
    envvar="DOWNHILL_RMS_FINISH_COMPILING",
    help="Compile on in the background when a run ends first.",
)


MANY = with_options(
    click.option(
        "--devices",
        metavar="N|all",
        callback=lambda ctx, param, text: None if text is None else parse_devices(text),
        help="Devices of JAX that share the work.",
    ),
    click.option(
        "--shard-above", type=click.IntRange(1), help="Divide parameters with more numbers, too."
    ),
    click.option(
        "--processes",
        type=click.IntRange(1),
        help="Processes that share it: of this host, or with --coordinator of several.",
    ),
    click.option(
        "--coordinator",
        metavar="HOST:PORT|auto",
        help="Where process 0 listens; auto for SLURM, MPI, cloud TPU.",
    ),
    click.option("--process-id", type=click.IntRange(0), help="Which of the processes this is."),
)


@main.command()
@PROBLEM
@LIMITS
@click.option("--monitor-gradients", is_flag=True, default=None, help="Report gradients' norms.")
@click.option("--monitor-updates", is_flag=True, default=None, help="Report how far updates move.")
@click.option("--updates-per-call", type=int, help="Minibatches that one call takes (1).")
@click.option(
    "--on-divergence",
    type=click.Choice(["stop", "raise", "rollback"]),
    help="What follows when the loss is not finite (stop).",
)
@MANY
@click.option("--out", metavar="RUN_DIR", help="The run directory (runs/NAME).")
@click.option("--resume", is_flag=True, help="Go on with the run in the run directory.")
@click.option("--resume-changed", is_flag=True, help="The same with a changed loss: a new best.")
@PROGRESS
@FINISH_COMPILING
def train(
    spec: str,
    out: str | None,
    resume: bool,
    resume_changed: bool,
    progress: bool,
    finish_compiling: bool,
    processes: int | None,
    coordinator: str | None,
    process_id: int | None,
    **given: Any,
) -> None:
    """Train the problem SPEC: path/to/file.py or package.module, and :name for one of several."""
    team = Team(processes, coordinator, process_id)
    team.join()
    if team.is_joined:
        given["devices"] = given["devices"] or "all"
    goes_on = resume or resume_changed
    path = out or (latest_path(spec) if goes_on else default_path(problem_name(spec)))
    directory = RunDirectory(team.from_leader(str(path)))
    if goes_on:
        if not resume_changed:
            refuse_other(directory, spec)
        request = Request.from_config(directory.read_config(), spec=spec, **given)
    else:
        if team.leads:
            directory.refuse_if_begun()
        request = Request(spec=spec).changed(**given)
    words = ("downhill-rms", "train", spec, "--out", str(directory.path), "--resume")
    if team.is_to_be_started:
        team.run(directory.path, shlex.join(words))
        return
    bar = progress and sys.stderr.isatty()
    with logging_to_terminal(logging.WARNING if bar else logging.INFO):
        problem = load_problem(spec, request.seed)
        how: Resume = "changed" if resume_changed else resume
        trainer = train_problem(problem, request, directory, resume=how, progress=bar)
        if team.leads:
            click.echo(directory.headline())
        if team.leads and trainer.stop_reason in EXIT_CODES:
            click.echo(f"go on with: {shlex.join(words)}{team.options}")
        somebody_waits = trainer.stop_reason is StopReason.TERMINATED  # who has sent the signal
        if team.leads and not somebody_waits:
            if finish_compiling:
                compile_on()
            with ctrl_c_ends_at_once():
                draw(directory)
    if trainer.stop_reason in EXIT_CODES:
        sys.exit(EXIT_CODES[trainer.stop_reason])
    if trainer.stop_reason is StopReason.DIVERGED:
        raise click.ClickException(f"{trainer.divergence}; the best parameters are in best.npz")


def compile_on() -> None:
    """Have what was not compiled in time compiled for the next run, and say so."""
    if (process := compile_alone()) is not None:
        click.echo(
            f"compiling goes on in the background for the next run (process {process}, for "
            f"{ALONE_SECONDS // 60} minutes at most)",
            err=True,
        )


def parse_part(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    """Read ``1/4``: the second of four parts."""
    return None if text is None else tuple(int(number) for number in text.split("/"))


@main.command()
@SWEPT
@LIMITS
@click.option("--seeds", type=click.IntRange(1), help="Runs of each combination, from 0 on.")
@click.option("--zipped", is_flag=True, help="Take lists in step, and not every combination.")
@click.option("--sample", type=click.IntRange(1), help="Draw so many combinations at random.")
@click.option(
    "--minibatches", type=click.Choice(["same", "seed"]), help="Order of the data (same)."
)
@click.option("--how", type=click.Choice(["in turns", "together"]), help="How runs go (measured).")
@click.option("--halve-every", type=click.IntRange(1), help="Epochs after which half goes on.")
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes (1).")
@click.option("--out", metavar="DIR", help="Where the runs are put (runs/NAME-sweep).")
@click.option("--resume", is_flag=True, help="Go on with the sweep there.")
@click.option("--part", callback=parse_part, hidden=True)
@PROGRESS
def sweep(
    spec: str,
    assignments: list[tuple[str, Any]],
    seeds: int | None,
    zipped: bool,
    sample: int | None,
    minibatches: str | None,
    how: str | None,
    halve_every: int | None,
    workers: int,
    out: str | None,
    resume: bool,
    part: Any,
    progress: bool,
    **given: Any,
) -> None:
    """Train the problem SPEC with every combination of the values given, compiled once."""
    name = problem_name(spec)
    path = Path(out) if out else latest_sweep_path(name) if resume else sweep_path(name)
    fixed, tried = split(assignments)
    bar = progress and sys.stderr.isatty()
    ways: dict[str, Any] = {"zipped": zipped, "sample": sample, "halve_every": halve_every}
    ways |= {"how": how} | ({"minibatches": minibatches} if minibatches else {})
    with logging_to_terminal(logging.WARNING):
        Manifest(path, resume)  # another sweep would be lost
        if workers > 1:
            if halve_every is not None:
                raise click.UsageError("--halve-every compares all runs: leave --workers out.")
            if code := run_workers(worker_words(path), path, workers, bar):
                sys.exit(code)
            resume = True
        request = Request(spec=spec).changed(fixed.items(), **given)
        problem = load_problem(spec, request.seed)
        options = {"seeds": seeds, "progress": bar, "resume": resume, "part": part, **ways}
        found = sweep_problem(problem, request, tried, path, **options)
        codes = [EXIT_CODES[r.stop_reason] for r in found.runs if r.stop_reason in EXIT_CODES]
        if part is None:
            width = get_terminal_size().columns
            click.echo(fitting_table(summary_rows(found), width))
            if found.best is not None:
                value = found.value(found.best)
                click.echo(f"best {found.monitor} {value:.6g} in {path / found.best.name}")
            click.echo(f"{len(found.runs)} runs, {found.seconds:.1f} s: {path / 'sweep.csv'}")
            if (picture := draw_sweep(found, path)) is not None:
                click.echo(f"drawn: {picture}")
    if codes:
        words = ["downhill-rms", *worker_words(path), "--resume"]
        click.echo(f"go on with: {shlex.join(words)}")
        sys.exit(codes[0])


def worker_words(path: Path) -> list[str]:
    """The words by which another process makes the same sweep."""
    words: list[str] = list(click.get_current_context().meta["words"])
    for name in ("--workers", "--out"):
        while any(word == name or word.startswith(f"{name}=") for word in words):
            at = next(i for i, w in enumerate(words) if w == name or w.startswith(f"{name}="))
            del words[at : at + (2 if words[at] == name else 1)]
    flags = ("--resume", "--progress", "--no-progress")
    return [*(word for word in words if word not in flags), "--out", str(path)]


@main.command("find-rate")
@PROBLEM
@click.option("--low", type=float, default=1e-7, help="The first learning rate (1e-7).")
@click.option("--high", type=float, default=10.0, help="The last one (10).")
@click.option("--updates", type=click.IntRange(10), default=100, help="Updates between (100).")
@PICTURE
def find_rate(
    spec: str, low: float, high: float, updates: int, out: Path | None, **given: Any
) -> None:
    """Train the problem SPEC a little with a learning rate that rises, and suggest one."""
    with logging_to_terminal(logging.WARNING):
        request = Request(spec=spec).changed(**given)
        problem = load_problem(spec, request.seed)
        found = find_problem_rate(problem, request, low, high, updates)
    least = found.smoothed.argmin()
    click.echo(
        f"least running mean of the loss {found.smoothed[least]:.6g} at {found.rates[least]:.3g}"
    )
    click.echo(f"suggested learning rate {found.suggestion:.3g}")
    path = out or Path(f"{problem_name(spec).replace(':', '-')}-rates.png")
    draw_rates(found, path)
    click.echo(f"drawn: {path}")


@main.command()
@PROBLEM
def check(spec: str, **given: Any) -> None:
    """Say what training the problem SPEC would do, without doing it."""
    with logging_to_terminal(logging.WARNING):
        request = Request(spec=spec).changed(**given)
        problem = request.with_files(load_problem(spec, request.seed))
        report = check_problem(
            problem,
            request.in_force(problem),
            mode=request.mode or default_mode(),
            batch_size=request.all_options(problem).get("batch_size"),
        )
    for line in report.lines:
        click.echo(line)
    if not report.trainable:
        raise click.ClickException(f"{problem.name} cannot be trained as it is")


@main.command()
@RUNS
@click.option("--monitor", "monitors", multiple=True, help="What to draw (loss); again for more.")
@PICTURE
@click.option("--text", is_flag=True, help="Print the curves in the terminal instead.")
def plot(runs: tuple[str, ...], monitors: tuple[str, ...], out: Path | None, text: bool) -> None:
    """Draw the curves of one run or of several."""
    histories = {run: RunDirectory(run).read_history() for run in runs}
    chosen = monitors or ("loss",)
    if text:
        click.echo(text_curves(histories, chosen, get_terminal_size().columns))
        return
    own = RunDirectory(runs[0]).curves_path
    path = out or (own if len(runs) == 1 else Path(own.name))
    differs = differing_number([RunDirectory(run) for run in runs]) if len(runs) > NAMED else None
    colour_by = differs and (differs[0], dict(zip(runs, differs[1], strict=True)))
    learning_curves(histories, chosen, colour_by=colour_by).savefig(path)
    click.echo(f"drawn: {path}")


@main.command()
@click.argument("run")
def show(run: str) -> None:
    """Print how a run went, and what was asked for."""
    directory = RunDirectory(run)
    for name, value in {**directory.results(), **directory.settings()}.items():
        click.echo(f"{name:<22}  {value}")


@main.command()
@RUNS
@click.option("--sort", metavar="MONITOR", help="Sort by this monitor at the best (the judge).")
@click.option("--highest-first", is_flag=True, help="A higher value is the better one.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values, all columns.")
def compare(runs: tuple[str, ...], sort: str | None, highest_first: bool, as_csv: bool) -> None:
    """Print several runs, the best first; what is no run is skipped."""
    directories, skipped = only_runs(runs)
    for line in skipped:
        click.echo(line, err=True)
    rows = compare_runs(directories, sort, highest_first)
    click.echo(csv_text(rows) if as_csv else fitting_table(rows, get_terminal_size().columns))


@main.command()
@click.argument("name", type=click.Choice(list(DEMOS)), default="rosenbrock")
@PICTURE
@click.option("--seed", type=click.IntRange(0), default=0, help="Of generated data (0).")
@MODE
@PROGRESS
@FINISH_COMPILING
def demo(
    name: str,
    out: Path | None,
    seed: int,
    mode: str | None,
    progress: bool,
    finish_compiling: bool,
) -> None:
    """Train on data that need no file, and draw what happened."""
    bar = progress and sys.stderr.isatty()
    with logging_to_terminal(logging.WARNING):
        result = run_demo(name, seed=seed, mode=mode or default_mode(), progress=bar)
    for line in result.summary:
        click.echo(line)
    if finish_compiling:
        compile_on()
    path = out or Path(f"{name}.png")
    result.figure().savefig(path)
    click.echo(f"drawn: {path}")
