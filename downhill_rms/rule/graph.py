"""Read a loss graph: its inputs, parameters and random generators.

Everything that can be known about a loss without compiling it is found here, and what cannot
be trained is refused here, with the name of the guilty variable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.replace import clone_replace
from pytensor.scalar.basic import LogicalComparison
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.type import DenseTensorType, TensorType

from downhill_rms.rule.checks import check_list, shown
from downhill_rms.rule.draws import next_states, refuse_constant_generators
from downhill_rms.rule.traversal import describe, variables_in_order, warn

Update = tuple[Any, Any]  # (shared variable, the expression of its next value)


@dataclass(frozen=True)
class LossGraph:
    """A loss that can be trained.

    Attributes
    ----------
    loss : Variable
        The scalar to minimise.
    inputs : tuple of Variable
        What a minibatch feeds, in the order of the caller's list or of first use.
    params : tuple of SharedVariable
        What training adjusts, in the order of the caller's list or of first use.
    param_names : tuple of str
        One unique name for each parameter.
    updates : tuple of (SharedVariable, Variable)
        What else one training step assigns: the caller's ``updates``, default updates, and the
        next state of every random generator.
    evaluation_updates : tuple of (SharedVariable, Variable)
        What an evaluation assigns: the next states of the generators it uses, the next values of
        carried variables, and nothing else.
    assigned_names : tuple of str
        One unique name for each variable in ``assigned``.
    carried, carried_names : tuple of SharedVariable, tuple of str
        Variables that one minibatch hands to the next, which ``updates`` has too.
    params_said, inputs_said : bool
        Whether the caller named them, so that nothing about them is a guess.
    """

    loss: Any
    inputs: tuple[Any, ...]
    params: tuple[Any, ...]
    param_names: tuple[str, ...]
    updates: tuple[Update, ...]
    evaluation_updates: tuple[Update, ...]
    assigned_names: tuple[str, ...]

    @property
    def assigned(self) -> tuple[Any, ...]:
        """The variables that ``updates`` assigns, but for generators and what is carried."""
        return tuple(v for v in _assigned(self.updates) if v not in self.carried)

    carried: tuple[Any, ...] = ()
    carried_names: tuple[str, ...] = ()
    params_said: bool = True
    inputs_said: bool = True

    @property
    def is_random(self) -> bool:
        """Whether the loss draws random numbers."""
        return any(isinstance(v.type, RandomType) for v in variables_in_order([self.loss]))

    def __str__(self) -> str:
        """What is trained and what is fed, in a line."""
        shapes = (param.get_value(borrow=True).shape for param in self.params)
        named = zip(self.param_names, shapes, strict=True)
        trained = ", ".join(f"{name} {shape}" for name, shape in named)
        fed = ", ".join(variable.name or "unnamed" for variable in self.inputs)
        return f"parameters {trained}; inputs {fed or 'none'}"


def read_graph(
    loss: Any,
    params: Sequence[Any] | None = None,
    inputs: Sequence[Any] | None = None,
    updates: Iterable[Update] | Mapping[Any, Any] = (),
    monitored: Sequence[Any] = (),
    carried: Iterable[Update] | Mapping[Any, Any] = (),
) -> LossGraph:
    """Find what a loss is made of, and refuse what cannot be trained.

    Parameters
    ----------
    loss : Variable
        A real floating-point scalar.
    params : sequence of SharedVariable, optional
        The parameters; by default every floating-point shared variable that the loss uses and
        that nothing else assigns.
    inputs : sequence of Variable, optional
        The inputs; by default every free variable of the loss and of ``monitored``.
    updates : mapping or iterable of pairs
        Further assignments of a training step.
    monitored : sequence of Variable
        Further expressions that are computed from the same inputs.
    carried : mapping or iterable of pairs
        Shared variables that one minibatch hands to the next, and their values after it.

    Returns
    -------
    LossGraph

    Raises
    ------
    TypeError
        If the loss, a parameter or an input is of a kind that cannot serve as one.
    ValueError
        If a parameter or an input is missing, doubled or not connected.

    Warns
    -----
    UserWarning
        For an unused input, two parameters of one name, one generator behind several draws, and
        a column minus a row where a column minus a column was likely meant.
    """
    check_loss(loss)
    said = (params is not None, inputs is not None)
    outputs = [loss, *monitored]
    further, handed = _read_updates("updates", updates), _read_updates("carried", carried)
    _check_carried(handed, further, outputs)
    pairs, used = _further_updates(outputs, [*further, *handed])
    assigned = {variable for variable, _ in pairs}
    in_loss = variables_in_order([loss])
    if params is None:
        params = [v for v in in_loss if _is_parameter(v) and v not in assigned]
    else:
        params = check_list("params", params, "shared variables")
        if not params:
            raise ValueError("params is empty: there is one at least. Give one, or leave it out.")
        check_params(params)
        _check_place(params, in_loss, assigned)
    if not params:
        raise ValueError(
            f"loss is {describe(loss)}, which uses no floating-point shared variable: there is no "
            "parameter to train. Make the values to be trained with pytensor.shared."
        )
    inputs = _find_inputs(used) if inputs is None else _check_inputs(inputs, used)
    warn_of_outer_broadcast(loss, {p: p.get_value(borrow=True).shape for p in params})
    states = tuple(variable for variable, _ in handed)
    variables = [variable for variable in _assigned(pairs) if variable not in states]
    _check_dense("updates", variables)
    return LossGraph(
        *(loss, tuple(inputs), tuple(params), unique_names(params)),
        *(tuple(pairs), tuple(_of_evaluation(pairs, outputs, handed))),
        unique_names(variables, "Assigned variables", "assigned"),
        *(states, unique_names(states, "Carried variables", "carried")),
        *said,
    )


def read_outputs(
    outputs: Sequence[Any], carried: Sequence[Update] = ()
) -> tuple[list[Any], list[Update]]:
    """Find what a function of some expressions is fed, and what it must assign.

    Parameters
    ----------
    outputs : sequence of Variable
        Expressions.
    carried : sequence of (SharedVariable, Variable)
        What one minibatch hands to the next.

    Returns
    -------
    inputs : list of Variable
        Their free variables, in the order of first use.
    updates : list of (SharedVariable, Variable)
        Next states of the random generators behind them, and of what is carried.
    """
    handed = _carried_behind(outputs, carried)
    updates = _of_evaluation(_further_updates(outputs, handed)[0], outputs, handed)
    used = variables_in_order([*outputs, *(new for _, new in updates)])
    return _find_inputs(used), updates


def unique_names(
    variables: Sequence[Any], kind: str = "Parameters", default: str = "param"
) -> tuple[str, ...]:
    """Give every variable of a kind a name of its own, for its state and its monitors."""
    names: list[str] = []
    for index, variable in enumerate(variables):
        name = variable.name or f"{default}{index}"
        if name in names:
            renamed = f"{name}_{index}"
            warn(
                f"{kind} should have different names: two are called {name!r}, and the "
                f"second is called {renamed!r} in monitors and state. Rename one of them."
            )
            name = renamed
        names.append(name)
    return tuple(names)


def check_loss(loss: Any) -> None:
    """Refuse a loss that is not a real floating-point scalar."""
    if not isinstance(loss, Variable) or not isinstance(loss.type, TensorType):
        raise TypeError(
            f"loss is {shown(loss)}: it is a symbolic PyTensor scalar. "
            "Build it from shared variables and pytensor.tensor operations."
        )
    if loss.type.ndim != 0:
        raise TypeError(
            f"loss is {describe(loss)} of {loss.type.ndim} dimensions: it is a scalar. "
            "Reduce it, for example with .mean()."
        )
    if not loss.type.dtype.startswith("float"):
        raise TypeError(
            f"loss is {describe(loss)} of dtype {loss.type.dtype}: it is real floating point. "
            "Cast it or compute it from floating-point variables."
        )


def _is_parameter(variable: Any) -> bool:
    return (
        isinstance(variable, SharedVariable)
        and isinstance(variable.type, TensorType)
        and variable.type.dtype.startswith("float")
    )


def check_params(params: Sequence[Any]) -> None:
    """Refuse what no rule can adjust: anything but floating-point shared tensors, each once."""
    for index, param in enumerate(params):
        if not isinstance(param, SharedVariable):
            raise TypeError(
                f"params has {describe(param)}: a parameter is a shared variable. "
                "Make it with pytensor.shared(value, name=...)."
            )
        if isinstance(param.type, RandomType):
            raise TypeError(
                f"params has {describe(param)}, a random generator: a parameter is a "
                "floating-point tensor. Leave it out; generators advance by themselves."
            )
        if not _is_parameter(param):
            raise TypeError(
                f"params has {describe(param)}: a parameter is a floating-point tensor. "
                "Leave it out, or make it from a floating-point array."
            )
        if param in params[:index]:
            raise ValueError(
                f"params has {describe(param)} twice: a parameter is given once. Remove one."
            )


def _check_place(params: Sequence[Any], in_loss: list[Any], assigned: set[Any]) -> None:
    for param in params:
        if param not in in_loss:
            raise ValueError(
                f"params has {describe(param)}, which is not part of the loss. "
                "Leave it out, or use it in the loss."
            )
        if param in assigned:
            raise ValueError(
                f"params has {describe(param)}, which an update assigns too: a parameter is "
                "assigned by training alone. Leave it out of params, or of updates and carried."
            )


def _find_inputs(used: list[Any]) -> list[Any]:
    return [v for v in used if v.owner is None and not isinstance(v, Constant | SharedVariable)]


def _check_inputs(inputs: Sequence[Any], used: list[Any]) -> list[Any]:
    inputs = check_list("inputs", inputs, "symbolic variables")
    for index, variable in enumerate(inputs):
        if not isinstance(variable, Variable) or variable.owner is not None:
            raise TypeError(
                f"inputs has {describe(variable)}: an input is a free symbolic variable. "
                "List the variables that the data replace, such as pt.matrix('x')."
            )
        if isinstance(variable, Constant | SharedVariable):
            raise TypeError(
                f"inputs has {describe(variable)}, which has a value already: an input is a free "
                "symbolic variable. Leave it out."
            )
        if variable in inputs[:index]:
            raise ValueError(
                f"inputs has {describe(variable)} twice: an input is given once. Remove one."
            )
        if variable not in used:
            warn(
                f"Inputs should be used: {describe(variable)} is listed, but neither the loss nor "
                "a monitor uses it. Data are still expected for it; leave it out if not meant."
            )
    missing = [v for v in _find_inputs(used) if v not in inputs]
    if missing:
        raise ValueError(
            f"{', '.join(map(describe, missing))} is missing from inputs: every free variable of "
            "the loss, its monitors and updates is an input. Add it to the list."
        )
    return inputs


def _read_updates(name: str, updates: Iterable[Update] | Mapping[Any, Any]) -> list[Update]:
    given = updates.items() if isinstance(updates, Mapping) else updates
    pairs = check_list(name, given, "pairs (shared variable, expression)")
    return [_read_update(name, pair) for pair in pairs]


def _read_update(name: str, pair: Any) -> Update:
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise TypeError(
            f"{name} has {shown(pair)}: it takes pairs. Give a list of (shared variable, "
            "expression), or a dict."
        )
    variable, new = pair
    if not isinstance(variable, SharedVariable):
        raise TypeError(
            f"{name} assigns {describe(variable)}: what is assigned is a shared variable. "
            "Give pairs (shared variable, expression)."
        )
    try:
        return variable, variable.type.filter_variable(new)
    except Exception as error:  # as many kinds as types have filters
        raise TypeError(
            f"{name} gives {describe(variable)} the value {shown(new)}, which is of another type "
            f"({error}). Give an expression of the variable's own type."
        ) from error


def _assigned(updates: Iterable[Update]) -> tuple[Any, ...]:
    return tuple(v for v, _ in updates if not isinstance(v.type, RandomType))


def _check_dense(name: str, variables: Sequence[Any]) -> None:
    for variable in variables:
        if not isinstance(variable.type, DenseTensorType):
            raise TypeError(
                f"{name} assigns {describe(variable)}: what is assigned is a dense array or a "
                "random generator, and saved with the parameters. Make it from a dense array."
            )


def _check_carried(
    carried: Sequence[Update], updates: Sequence[Update], outputs: Sequence[Any]
) -> None:
    variables = [variable for variable, _ in carried]
    used = set(variables_in_order([*outputs, *(new for _, new in (*updates, *carried))]))
    for index, variable in enumerate(variables):
        if not isinstance(variable.type, DenseTensorType):
            raise TypeError(
                f"carried has {describe(variable)}: what one minibatch hands to the next is a "
                "dense array. Make it from one; random generators go on by themselves."
            )
        if variable in variables[:index]:
            raise ValueError(
                f"carried has {describe(variable)} twice: a variable has one value after a "
                "minibatch. Remove one."
            )
        if any(variable is assigned for assigned, _ in updates):
            raise ValueError(
                f"carried has {describe(variable)}, which updates assigns too: a variable has one "
                "value after a minibatch. Leave it out of one of them."
            )
        if variable not in used:
            raise ValueError(
                f"carried has {describe(variable)}, which nothing reads: the loss, a monitor or "
                "an update begins with what is carried. Use it, or leave it out."
            )


def _carried_behind(outputs: Sequence[Any], carried: Sequence[Update]) -> list[Update]:
    """What is carried that outputs depend on, directly or through what is carried."""
    handed: list[Update] = []
    while True:
        used = set(variables_in_order([*outputs, *(new for _, new in handed)]))
        found = [(variable, new) for variable, new in carried if variable in used]
        if len(found) == len(handed):
            return handed
        handed = found


def _further_updates(outputs: Sequence[Any], pairs: list[Update]) -> tuple[list[Update], list[Any]]:
    """Add default updates and next states, those of what they are computed from included.

    Returns the pairs, and all variables that are used.
    """
    while True:
        expressions = [*outputs, *(new for _, new in pairs)]
        used = variables_in_order(expressions)
        assigned = {variable for variable, _ in pairs}
        left = [v for v in used if isinstance(v, SharedVariable) and v not in assigned]
        generators = [v for v in left if isinstance(v.type, RandomType)]
        others = [v for v in left if v.default_update is not None and v not in generators]
        further = [(v, v.default_update) for v in others] or next_states(generators, expressions)
        if not further:
            refuse_constant_generators(expressions)
            return pairs, used
        pairs = [*pairs, *further]


def _of_evaluation(
    updates: Iterable[Update], outputs: Sequence[Any], carried: Sequence[Update]
) -> list[Update]:
    """Of the updates that training makes those of what is carried, and of generators behind it."""
    behind = set(variables_in_order([*outputs, *(new for _, new in carried)]))
    made = [(v, new) for v, new in updates if v in behind]
    random = [(v, new) for v, new in made if isinstance(v.type, RandomType)]
    # A variable with a default update stays as it is only if it is assigned to itself.
    still = [(v, v) for v, new in made if new is v.default_update]
    return [
        *carried,
        *random,
        *(pair for pair in still if not isinstance(pair[0].type, RandomType)),
    ]


def warn_of_outer_broadcast(loss: Any, shapes: Mapping[Any, tuple[int | None, ...]]) -> bool:
    """Warn where a column meets a vector elementwise inside the loss.

    ``(N, 1) - (N,)`` broadcasts to ``(N, N)``: the classic silent mistake of a regression.

    Parameters
    ----------
    loss : Variable
        The loss.
    shapes : mapping of Variable to tuple of int or None
        What is known of the shapes of parameters and inputs.

    Returns
    -------
    bool
        Whether there was something to warn of.
    """
    known = {
        v: TensorType(v.type.dtype, shape)(v.name)
        for v, shape in shapes.items()
        if isinstance(v.type, TensorType)
    }
    try:
        shaped = clone_replace(loss, known, rebuild_strict=False)
    except (TypeError, ValueError, AssertionError, NotImplementedError):
        return False  # an operation that cannot be rebuilt with known shapes: nothing to tell
    for variable in variables_in_order([shaped]):
        node = variable.owner
        if node is None or not isinstance(node.op, Elemwise) or variable.type.ndim != 2:
            continue
        if isinstance(node.op.scalar_op, LogicalComparison):  # of labels with all classes
            continue
        columns = [v for v in node.inputs if _is_column(v)]
        rows = [v for v in node.inputs if _is_implicit_row(v)]
        if columns and rows:
            warn(
                "Arrays that are combined elementwise should have one shape: inside the loss, "
                f"{node.op.scalar_op} meets a column {describe(columns[0])} and a vector "
                f"{describe(rows[0].owner.inputs[0])}, which broadcast to a square matrix. "
                "If that is not meant, make both columns or both vectors, for example with [:, 0].",
            )
            return True
    return False


def _is_column(variable: Any) -> bool:
    if variable.type.shape[1] != 1 or variable.type.shape[0] == 1:
        return False
    explicit = variable.owner is not None and isinstance(variable.owner.op, DimShuffle)
    return not explicit


def _is_implicit_row(variable: Any) -> bool:
    return (
        variable.owner is not None
        and isinstance(variable.owner.op, DimShuffle)
        and tuple(variable.owner.op.new_order) == ("x", 0)
        and variable.type.shape[1] != 1
    )
