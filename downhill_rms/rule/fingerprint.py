"""Tell one loss graph from another, in any process.

Each variable gets a digest of its operation and of its arguments' digests: what is built twice is
one, and no order, memory address or name of an intermediate result enters. What is left of an
operation are its class and its properties; those that say how it is computed, and not what, are
left out, and those that are None or False, which a later PyTensor may have added.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytensor
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant
from pytensor.graph.op import Op
from pytensor.graph.traversal import toposort
from pytensor.graph.type import Type

from downhill_rms.rule.graph import LossGraph
from downhill_rms.rule.traversal import variables_in_order

# How an operation is computed, not what.
COMPUTING = {"inplace", "inplace_pattern", "destroy_map", "view_map", "openmp", "mode", "name"}


def fingerprint(graph: LossGraph) -> str:
    """A loss and what its updates assign, as JSON that another process compares.

    Parameters
    ----------
    graph : LossGraph
        The loss.

    Returns
    -------
    str
        ``digest``, a SHA-256 of operations, dtypes, names of inputs and shared variables, and
        constants; ``operations``, how often each occurs, to name a difference; ``pytensor``, the
        version that built the graph, since another may build the same loss of other operations.
    """
    names = _leaf_names(graph)
    variables = (*graph.assigned, *graph.carried)
    assigned = sorted(zip(variables, _assigned_names(graph), strict=True), key=lambda p: p[1])
    expressions = dict(graph.updates)
    outputs = [graph.loss, *(expressions[variable] for variable, _ in assigned)]
    digests, operations = _digests(outputs, names)
    parts = [digests[graph.loss]]
    parts += [f"{name}={digests[expressions[variable]]}" for variable, name in assigned]
    return json.dumps(
        {
            "digest": _hash(*parts),
            "operations": dict(sorted(operations.items())),
            "pytensor": pytensor.__version__,
        }
    )


def fingerprint_difference(before: str, now: str) -> str:
    """In what two fingerprints differ, in words; the empty string if they do not.

    Raises
    ------
    ValueError, KeyError, TypeError or AttributeError
        If one is no fingerprint.
    """
    old, new = _parse(before), _parse(now)
    if old["digest"] == new["digest"]:
        return ""
    changes = [
        f"{name} {old['operations'].get(name, 0)} times before and {count} now"
        for name, count in _all_counts(old["operations"], new["operations"]).items()
        if old["operations"].get(name, 0) != count
    ]
    text = ", ".join(changes[:5]) or "the same operations on other arguments"
    if len(changes) > 5:
        text += f" and {len(changes) - 5} more"
    if old["pytensor"] != new["pytensor"]:
        text += (
            f" (PyTensor was {old['pytensor']} and is {new['pytensor']}, which may build the same "
            "loss of other operations)"
        )
    return text


def _parse(text: str) -> dict[str, Any]:
    found = json.loads(text)
    kinds = {"digest": str, "operations": dict, "pytensor": str}
    if {name: type(value) for name, value in found.items()} != kinds:
        raise ValueError(f"{text!r:.80} is no fingerprint")
    if not all(type(count) is int for count in found["operations"].values()):
        raise ValueError(f"{text!r:.80} counts no operations")
    return dict(found)


def _all_counts(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    return {name: new.get(name, 0) for name in sorted({*old, *new})}


def _assigned_names(graph: LossGraph) -> tuple[str, ...]:
    return (*graph.assigned_names, *(f"carried {name}" for name in graph.carried_names))


def _leaf_names(graph: LossGraph) -> dict[Any, str]:
    """A name in any process for what the graph begins with."""
    names = {v: f"input {i} {v.name}" for i, v in enumerate(graph.inputs)}
    variables = (*graph.params, *graph.assigned, *graph.carried)
    pairs = zip(variables, (*graph.param_names, *_assigned_names(graph)), strict=True)
    names |= {variable: f"variable {name}" for variable, name in pairs}
    expressions = [graph.loss, *(new for _, new in graph.updates)]
    others = (v for v in variables_in_order(expressions) if isinstance(v, SharedVariable))
    rest = [variable for variable in others if variable not in names]
    return names | {v: f"shared {v.name or index}" for index, v in enumerate(rest)}


def _digests(
    outputs: Sequence[Any], names: Mapping[Any, str]
) -> tuple[dict[Any, str], Counter[str]]:
    """The digest of each variable behind outputs, and how often each operation occurs."""
    digests: dict[Any, str] = {}
    counts: Counter[str] = Counter()
    for variable in variables_in_order(outputs):
        if variable.owner is None:
            digests[variable], label = _leaf(variable, names)
            counts.update([label] if label else [])
    for node in toposort(outputs):
        label, described = _operation(node.op)
        counts[label] += 1
        arguments = [digests[variable] for variable in node.inputs]
        for index, output in enumerate(node.outputs):
            digests[output] = _hash(described, _type(output), str(index), *arguments)
    return digests, counts


def _leaf(variable: Any, names: Mapping[Any, str]) -> tuple[str, str]:
    """The digest of a variable without an operation, and what counts name it, if they do."""
    if isinstance(variable, Constant):
        value = _canonical(variable.data)
        shown = f"{variable.data:.6g}" if np.ndim(variable.data) == 0 and _is_real(variable) else ""
        return _hash("constant", _type(variable), value), f"constant {shown}".strip()
    return _hash(names.get(variable, "free"), _type(variable)), ""


def _is_real(variable: Any) -> bool:
    return np.asarray(variable.data).dtype.kind in "biuf"


def _type(variable: Any) -> str:
    kind = variable.type
    return f"{type(kind).__name__} {getattr(kind, 'dtype', '')} {getattr(kind, 'ndim', '')}"


def _operation(op: Any) -> tuple[str, str]:
    """A short name of an operation, and all that tells it from others."""
    inner = getattr(op, "scalar_op", None) or getattr(op, "core_op", None)
    label = type(op).__name__ if inner is None else f"{type(op).__name__}({type(inner).__name__})"
    return label, _canonical(op)


def _canonical(value: Any) -> str:
    """A text that is the same for equal values in any process, and never an address."""
    if isinstance(value, Op):
        return _canonical_op(value)
    if isinstance(value, Type):
        return f"type {getattr(value, 'dtype', type(value).__name__)}"
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value, order="C")
        content = hashlib.sha256(array.tobytes()).hexdigest() if array.dtype != object else ""
        return f"array {array.dtype.str} {array.shape} {content}"
    if isinstance(value, Mapping):
        return _together("map", sorted(_canonical(pair) for pair in value.items()))
    if isinstance(value, set | frozenset):
        return _together("set", sorted(map(_canonical, value)))
    if isinstance(value, tuple | list):
        return _together("list", map(_canonical, value))
    if isinstance(value, slice):
        return _together("slice", map(_canonical, (value.start, value.stop, value.step)))
    if is_dataclass(value) and not isinstance(value, type):
        return _properties(
            type(value).__name__, {f.name: getattr(value, f.name) for f in fields(value)}
        )
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if hasattr(value, "indptr"):  # a sparse constant
        return _together("sparse", map(_canonical, (value.data, value.indices, value.indptr)))
    return getattr(value, "__qualname__", type(value).__qualname__)


def _canonical_op(op: Any) -> str:
    names = list(getattr(op, "__props__", None) or ())
    if hasattr(op, "info"):  # of a scan
        names.append("info")
    values = {name: getattr(op, name) for name in names if name not in COMPUTING}
    if "idx_list" in values:
        values["idx_list"] = _index(values["idx_list"])
    text = _properties(type(op).__qualname__, values)
    if hasattr(op, "inner_inputs") and hasattr(op, "inner_outputs"):
        names_inside = {v: f"inner {i}" for i, v in enumerate(op.inner_inputs)}
        digests, _ = _digests(op.inner_outputs, names_inside)
        text = _together(text, (digests[output] for output in op.inner_outputs))
    return text


def _index(entries: Any) -> Any:
    """An index without the places of its arguments, which releases count differently."""
    if isinstance(entries, tuple | list):
        return [_index(entry) for entry in entries]
    if isinstance(entries, slice):
        return slice(_index(entries.start), _index(entries.stop), _index(entries.step))
    return None if entries is None else "*"


def _properties(name: str, values: Mapping[str, Any]) -> str:
    told = {n: v for n, v in values.items() if v is not None and v is not False}
    return _together(name, (f"{n}={_canonical(v)}" for n, v in sorted(told.items())))


def _together(name: str, parts: Iterable[str]) -> str:
    return f"{name}({', '.join(parts)})"


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
