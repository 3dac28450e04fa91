"""What training a problem would do, said without doing it."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytensor.scalar as ps
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import toposort
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import Sum
from pytensor.tensor.random.type import RandomType

from downhill_rms.compiling import check_mode, computing, findings, pytensor_mode
from downhill_rms.data import ArraySource, Dataset, InputSpec, ScalarColumn, as_dataset, by_input
from downhill_rms.data.parquet import ParquetSource
from downhill_rms.problem import Problem
from downhill_rms.rule import (
    Hyperparameters,
    LossGraph,
    State,
    describe,
    differentiate,
    is_graves,
    label,
    needed_kinds,
    read_graph,
    rmsprop_updates,
    variables_in_order,
    warn_of_suspects,
    without_dimensions,
)
from downhill_rms.training import Inspection
from downhill_rms.watching import named_expressions

TERMINAL = textwrap.TextWrapper(
    80,
    initial_indent="  ",
    subsequent_indent="    ",
    break_long_words=False,
    break_on_hyphens=False,
)
COST = "which takes twice the memory and about twice the time"

Row = tuple[str, ...]


@dataclass(frozen=True)
class CheckReport:
    """What a check has found.

    Attributes
    ----------
    sections : dict of str to list of str
        What training would work with, each part under its title.
    problems : list of str
        What prevents or endangers training, each on one line.
    machine : list of str
        What computes here, and what slows it down, each on one line.
    trainable : bool
        Whether training can begin.
    """

    sections: Mapping[str, list[str]]
    problems: list[str]
    machine: list[str]
    trainable: bool

    @property
    def lines(self) -> list[str]:
        """All of it as text for a terminal of 80 columns."""
        lines = []
        for title, rows in self.sections.items():
            lines += [title, *(f"  {row}" for row in rows or ["none"])]
        for title, texts in {"problems": self.problems, "this machine": self.machine}.items():
            lines += [title, *(line for text in texts or ["none"] for line in TERMINAL.wrap(text))]
        return lines


@dataclass
class Faults:
    """What was found to be wrong so far, and whether any of it was an error."""

    problems: list[str] = field(default_factory=list)
    fatal: bool = False

    def add(self, text: str, fatal: bool = False) -> None:
        """Take down a fault, once."""
        self.fatal = self.fatal or fatal
        text = " ".join(text.split())
        if text not in self.problems:
            self.problems.append(text)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Take down the warnings and the error of a block, and go on after it."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            except Exception as error:  # whatever a user's data or operations raise
                expected = isinstance(error, ValueError | TypeError)
                text = str(error) if expected else f"{type(error).__name__}: {error}"
                self.add(text, fatal=True)
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                self.add(str(warning.message))


def check(
    problem: Problem,
    hyperparameters: Hyperparameters,
    *,
    mode: Any = None,
    batch_size: int | None = None,
) -> CheckReport:
    """Say what training a problem would do, without training or compiling anything.

    Parameters
    ----------
    problem : Problem
        The loss and its data. Of data that come as ready batches one is drawn.
    hyperparameters : Hyperparameters
        Those that training would use.
    mode : str or Mode, optional
        How PyTensor would compile.
    batch_size : int, optional
        Samples in a minibatch; by default the problem's own, or 32.

    Returns
    -------
    CheckReport
        With ``trainable`` False if ``Trainer`` would raise an error with this problem.
    """
    faults = Faults()
    sections: dict[str, list[str]] = {}
    machine: list[str] = []
    with faults.collected():
        check_mode(mode)
        machine += computing(mode)
        for finding in findings(pytensor_mode(mode)):
            if finding.prevents_training:
                faults.add(finding.text, fatal=True)
            else:
                machine.append(finding.text)
    with faults.collected():
        monitors = named_expressions(problem.monitors)
        graph = read_graph(
            *(problem.loss, problem.params, problem.inputs, problem.updates),
            *(list(monitors.values()), problem.carried),
        )
        sections["what is trained and fed"] = textwrap.wrap(str(graph), 78)
        if batch_size is None:
            batch_size = problem.options.get("batch_size")
        with faults.collected():
            sections |= _data_sections(problem, graph, monitors, batch_size, faults)
        sections |= _graph_sections(graph, monitors, hyperparameters)
        _check_rule(graph, hyperparameters, faults)
    sections["hyperparameters"] = _hyperparameter_rows(hyperparameters)
    return CheckReport(sections, faults.problems, machine, not faults.fatal)


def _check_rule(graph: LossGraph, hyperparameters: Hyperparameters, faults: Faults) -> None:
    """Build what an update needs but for the accumulators, which may be large."""
    with faults.collected():
        warn_of_suspects(graph, differentiate(graph.loss, graph.params))
    if is_graves(hyperparameters) and _averages_everything(graph.loss):
        faults.add(
            f"rms_regularizer={hyperparameters.rms_regularizer} is that of preset graves, made for "
            "a loss that is summed over time: this one is a mean over all that it is computed "
            "from. If samples are sequences, sum over time and average over samples."
        )
    with faults.collected():
        rmsprop_updates([], [], hyperparameters, State(graph.params, graph.param_names))


def _averages_everything(loss: Any) -> bool:
    """Whether a term of a loss is a mean over more than sums that were made before."""
    terms = [loss]
    while terms:
        node = terms.pop().owner
        if node is None or not isinstance(node.op, Elemwise):
            continue
        if isinstance(node.op.scalar_op, ps.Add | ps.Sub | ps.Neg | ps.Mul):
            terms += node.inputs
        elif isinstance(node.op.scalar_op, ps.TrueDiv):
            total = node.inputs[0].owner
            if total is not None and isinstance(total.op, Sum):
                return not _is_sum(total.inputs[0])
    return False


def _is_sum(variable: Any) -> bool:
    """Whether it is a sum along an axis, or an elementwise function of one."""
    node = variable.owner
    while node is not None and isinstance(node.op, Elemwise) and len(node.inputs) == 1:
        node = node.inputs[0].owner
    return node is not None and isinstance(node.op, Sum)


def _data_sections(
    problem: Problem,
    graph: LossGraph,
    monitors: Mapping[str, Any],
    batch_size: int | None,
    faults: Faults,
) -> dict[str, list[str]]:
    """The inputs, and the data that they get, bound as a trainer binds them."""
    gradients: list[Any] = []
    with suppress(Exception):  # _check_rule tells of it
        gradients = differentiate(graph.loss, graph.params)
    outputs = [graph.loss, *monitors.values()]
    monitor = problem.options.get("monitor", "loss")
    judges = {"loss": graph.loss, **monitors}
    judge = (monitor, judges[monitor]) if monitor in judges else None
    inspection = Inspection.of_graph(graph, outputs, gradients)
    specs = inspection.specs
    received, dtypes = [""] * len(specs), [spec.dtype for spec in specs]
    rows: list[Row] = []
    with faults.collected():
        if problem.train is None and specs:
            raise ValueError(
                f"There are no data for {', '.join(map(str, specs))}: the loss needs some. Give "
                "--train FILE, or a problem with train."
            )
        train = as_dataset(problem.train, "train", batch_size)
        with suppress(ValueError):  # masked values: where they are bound the input is known
            received, dtypes = _received(train, specs)
        of_train = judge if problem.valid is None else None
        rows.append(("train", *_minibatches(inspection, train, of_train, is_train=True)))
    with faults.collected():
        if problem.valid is not None:
            size = None if isinstance(problem.valid, Dataset) else batch_size
            valid = as_dataset(problem.valid, "valid", size)
            rows.append(("valid", *_minibatches(inspection, valid, judge)))
    for text in _float64_findings(graph, dtypes):
        faults.add(text)
    inputs = [(str(spec), data) for spec, data in zip(specs, received, strict=True)]
    return {"inputs": _columns(inputs), "data": _columns(rows)}


def _received(dataset: Dataset, specs: Sequence[InputSpec]) -> tuple[list[str], list[str]]:
    """What each input gets, in words, and the dtypes of the data as they were given."""
    source = dataset.source
    if not isinstance(source, ArraySource):
        return ["ready batches"] * len(specs), [spec.dtype for spec in specs]
    if isinstance(source, ParquetSource):  # its columns go to the inputs by their names
        arrays = [
            (f"{column.given.name} array of {column.shape}", column.given.name)
            for column in source.bind(specs).columns
        ]
    else:
        samples = zip(source.columns, source.take(slice(0, 1)), strict=True)
        given: Any = [
            # A number has no dtype of its own that would say anything about arrays.
            (str(column), "")
            if isinstance(column, ScalarColumn)
            else (f"{sample.dtype.name} array of {column.shape}", sample.dtype.name)
            for column, sample in samples
        ]
        if source.names is not None:
            given = dict(zip(source.names, given, strict=True))
        arrays = by_input(given, specs)
    return [words for words, _ in arrays], [dtype for _, dtype in arrays]


def _minibatches(
    inspection: Inspection,
    dataset: Dataset,
    judge: tuple[str, Any] | None,
    is_train: bool = False,
) -> Row:
    """Samples and minibatches, in words; the first is computed uncompiled."""
    data = inspection.bind(dataset, train=is_train, finite=True)
    if judge is not None:
        inspection.warn_of_schedules(data, *judge)
    batch, samples = next(iter(data.in_order()))
    inspection.refuse(batch, f"the first batch of {data.name}")
    sampler = data.sampler
    scalars_alone = isinstance(data.source, ArraySource) and data.source.is_scalar
    if sampler is None or scalars_alone:
        if not batch or scalars_alone:
            updates = data.iteration_size or 1
            count = "one update" if updates == 1 else f"{updates} updates"
            return ("none needed", f"an epoch is {count}")
        batches = data.iteration_size or "an unknown number of"
        return (f"{samples} samples in the first batch", f"{batches} batches an epoch")
    text = f"{sampler.n_batches} minibatches of {sampler.batch_size} an epoch"
    rest = sampler.n_samples % sampler.batch_size
    if rest and sampler.n_batches == sampler.pass_size:
        text += f", the last of {rest}"
    return (f"{sampler.n_samples} samples", text)


def _graph_sections(
    graph: LossGraph, monitors: Mapping[str, Any], hyperparameters: Hyperparameters
) -> dict[str, list[str]]:
    """Parameters, memory, and what else an update computes and assigns."""
    values = [param.get_value(borrow=True) for param in graph.params]
    total = sum(value.size for value in values)
    rows: list[Row] = [
        (name, str(value.shape), value.dtype.name, f"{value.size:,}")
        for name, value in zip(graph.param_names, values, strict=True)
    ]
    size = sum(value.nbytes for value in values)
    kinds = needed_kinds(hyperparameters)
    memory = [
        ("parameters", bytes_in_words(size), ""),
        ("optimiser state", bytes_in_words(len(kinds) * size), ", ".join(kinds)),
    ]
    generators = [v for v, _ in graph.updates if isinstance(v.type, RandomType)]
    carried = {"carried from minibatch to minibatch": [describe(v) for v in graph.carried]}
    return {
        f"parameters ({total:,} numbers)": _columns(rows),
        "memory": _columns(memory),
        "random generators": [f"{label(v)}, advanced by every update" for v in generators],
        "further updates": [describe(v) for v in graph.assigned],
        **(carried if graph.carried else {}),
        "monitors": ["loss", *monitors],
    }


def _hyperparameter_rows(hyperparameters: Hyperparameters) -> list[str]:
    """Those in force, the ones that are not at their default marked."""
    defaults = Hyperparameters()
    rows = []
    for name, value in dict(hyperparameters).items():
        default = defaults[name]
        mark = "" if value == default else f"changed from {'none' if default is None else default}"
        if value is not None:
            rows.append((name, _value_in_words(value), mark))
    return _columns(rows)


def _value_in_words(value: Any) -> str:
    if isinstance(value, SharedVariable):
        return f"shared variable {label(value)}, now {value.get_value()}"
    return f"schedule {getattr(value, '__name__', value)}" if callable(value) else str(value)


def _float64_findings(graph: LossGraph, dtypes: Sequence[str]) -> list[str]:
    """Where a loss computes in float64 although parameters, or the data given, are float32."""
    if any(param.type.dtype == "float32" for param in graph.params):
        return [f"{_mend(v)}: {why}, {COST}." for v, why in _float64_origins(graph.loss)]
    given = {dtype for dtype in dtypes if dtype.startswith("float")}
    double = [v for v in (*graph.params, *graph.inputs) if _dtype(v) == "float64"]
    if given != {"float32"} or not double:
        return []
    names = ", ".join(map(label, double))
    return [f"Make {names} float32, as the data are: now all is float64, {COST}."]


def _float64_origins(loss: Any) -> list[tuple[Any, str]]:
    """The variables that turn float32 arrays into float64, and how, in the order of computation.

    Scalars, whose dtype costs nothing, are passed over: the gradient of a float32 array is
    float32 behind them too.
    """
    origins: dict[Any, str] = {}
    constant: set[Any] = set()  # computed from constants alone
    converted: set[Any] = set()  # float64 that was float32, or would be
    for node in toposort([loss]):
        operands = [v for v in node.inputs if not (v in constant or isinstance(v, Constant))]
        if not operands:
            constant.update(node.outputs)
        meant = [v for v in operands if _dtype(v) == "float32" or v in converted]
        double = [v for v in node.outputs if _dtype(v) == "float64"]
        consequence = any(v in converted for v in operands)
        if not (meant and double and (consequence or double[0].type.ndim)):
            continue
        converted.update(double)
        if double[0].type.ndim == 0:
            continue
        guilty = [v for v in node.inputs if v not in converted and _widens(v, node.op)]
        if consequence:  # other dtypes than those of data and parameters follow from it too
            guilty = [v for v in guilty if _is_given(_origin(v))]
        for variable in guilty:
            why = f"where it meets {label(meant[0])}, float32 becomes float64"
            origins.setdefault(_origin(variable), why)
        if not (guilty or consequence):
            origins[double[0]] = "it makes float64 of float32"
    return list(origins.items())


def _widens(variable: Any, op: Any) -> bool:
    """Whether an operand makes an operation with float32 give float64."""
    dtype = _dtype(variable)
    if dtype == "float64":
        return True
    # Elsewhere integers are sizes and indices.
    return isinstance(op, Elemwise) and np.promote_types("float32", dtype) == "float64"


def _mend(variable: Any) -> str:
    """What to do about a variable that is float64, or makes others so."""
    called = label(variable)
    if isinstance(variable, Constant):
        return f"Write {called} as np.float32 in the loss, or set PYTENSOR_FLAGS=floatX=float32"
    if _is_given(variable) and _dtype(variable) == "float64":
        return f"Make {called} float32"
    return f"Cast {called} with .astype('float32')"


def _origin(variable: Any) -> Any:
    """What should be of another dtype: the data or parameter that it comes from, or itself."""
    behind = (v for v in variables_in_order([variable]) if _dtype(v) == "float64" and _is_given(v))
    return next(behind, without_dimensions(variable))


def _is_given(variable: Any) -> bool:
    """Whether it is an input or a shared variable."""
    return variable.owner is None and not isinstance(variable, Constant)


def _dtype(variable: Any) -> str:
    return getattr(variable.type, "dtype", "")


def bytes_in_words(size: float) -> str:
    """A size in the unit that suits it, such as ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.{0 if unit == 'B' else 1}f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _columns(rows: Sequence[Row]) -> list[str]:
    """Rows of texts, aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]
