"""A model of PyMC as expressions: of its free values, and of minibatches in place of its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import graph_replace
from pytensor.graph.rewriting.basic import MergeOptimizer
from pytensor.graph.traversal import ancestors

from downhill_rms.data import Dataset
from downhill_rms.rule import shown, warn

try:
    import pymc
    from pymc.variational.minibatch_rv import MinibatchRandomVariable
except ImportError as error:
    raise ImportError(
        f"PyMC cannot be imported ({error}): downhill_rms.pymc reads its models. Run "
        'pip install "downhill_rms[pymc]", with Python 3.12 or newer.'
    ) from error


@dataclass(frozen=True)
class Densities:
    """What a model says of values of its free variables.

    Attributes
    ----------
    log_prior : Variable
        Of the free variables, with potentials; a scalar.
    log_likelihood : Variable
        Of all observations, a scalar: of a minibatch's it is scaled to the number in all.
    log_likelihood_each : Variable or None
        The mean log-likelihood of one fed sample, not scaled; None where nothing is fed.
    """

    log_prior: Any
    log_likelihood: Any
    log_likelihood_each: Any


class ModelGraph:
    """A model's densities, as expressions of its value variables and of what is fed.

    Parameters
    ----------
    model : pymc.Model
        The model, all of whose free variables are continuous.
    train : mapping of str to array_like, Dataset of one, or None
        What minibatches feed, by the names of ``pm.Data`` containers; None to leave the data where
        they are.

    Attributes
    ----------
    value_variables : list of Variable
        Those of the free variables, on the unconstrained scale, in the model's order.
    inputs : list of Variable
        What takes the containers' place, in the order of ``train``.
    start : dict of str to ndarray
        The model's initial point, by the names of the value variables.

    Raises
    ------
    TypeError
        If ``model`` is none.
    ValueError
        If a free variable is discrete, or the data do not fit the model.
    """

    def __init__(self, model: Any, train: Any) -> None:
        if not isinstance(model, pymc.Model):
            raise TypeError(f"model is {shown(model)}: it is a pymc.Model. Give the model itself.")
        if discrete := [variable.name for variable in model.discrete_value_vars]:
            raise ValueError(
                f"The free variables {', '.join(discrete)} are discrete: gradients need continuous "
                "ones. Sum over them, as by pm.Mixture or pymc-extras' marginalize."
            )
        self.model = model
        self.value_variables = list(model.continuous_value_vars)
        if not self.value_variables:
            raise ValueError(
                "The model has no free variable: there is nothing to fit. Add a prior."
            )
        self.start = model.initial_point()
        self.containers, self.n_samples = _fed(model, train)
        self.inputs = [_input_for(container) for container in self.containers]

    def densities(self, *, jacobian: bool) -> Densities:
        """The log-densities of the free values.

        Parameters
        ----------
        jacobian : bool
            Whether the prior is the density on the unconstrained scale, which a variational
            approximation needs, or on the model's own, where its mode is what PyMC calls the MAP.
        """
        model = self.model
        priors = model.logp([*model.free_RVs, *model.potentials], jacobian=jacobian, sum=False)
        for variable, term in zip([*model.free_RVs, *model.potentials], priors, strict=True):
            self._refuse_fed(variable, term)
        scaled, each = [], []
        for variable in model.observed_RVs:
            (term,) = model.logp([variable], sum=False)
            total, term = self._scaled(variable, term.sum())
            scaled.append(term)
            if total is not None:
                each.append(term / total)
        found = [_total(priors), _total(scaled), _total(each)]
        replacements = dict(zip(self.containers, self.inputs, strict=True))
        if replacements:
            found = graph_replace(found, replacements, strict=False)
        # PyMC copies what a variable is made of: with pm.Minibatch, the draw that both x and y
        # come from, which would be two draws from one generator.
        merged = FunctionGraph(outputs=found, clone=False)
        MergeOptimizer().rewrite(merged)
        prior, likelihood, of_each = merged.outputs
        return Densities(prior, likelihood, of_each if each else None)

    def parts(self, flat: Any) -> dict[Any, Any]:
        """What a vector of all free values holds for each value variable, in their order."""
        parts, first = {}, 0
        for variable in self.value_variables:
            value = self.start[variable.name]
            part = flat[first : first + value.size].reshape(value.shape)
            parts[variable] = part.astype(variable.type.dtype)
            first += value.size
        return parts

    def constrained(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        """The model's own variables, by name, as expressions of its free values.

        Parameters
        ----------
        values : mapping of Variable to Variable
            What takes the place of each value variable.

        Returns
        -------
        dict of str to Variable
            The free variables, and those ``pm.Deterministic`` that are not made of fed data.
        """
        model = self.model
        own = [v for v in model.deterministics if not self._uses_fed(v)]
        variables = [*model.free_RVs, *own]
        expressions = model.replace_rvs_by_values(variables)
        expressions = graph_replace(expressions, values, strict=False)
        return {v.name: value for v, value in zip(variables, expressions, strict=True)}

    def _uses_fed(self, *variables: Any) -> list[str]:
        """The names of the fed containers that expressions are made of."""
        behind = set(ancestors(variables))
        return [container.name for container in self.containers if container in behind]

    def _refuse_fed(self, variable: Any, term: Any) -> None:
        if fed := self._uses_fed(term):
            raise ValueError(
                f"{variable.name} depends on {', '.join(fed)}, which minibatches feed: it counts "
                "once in all, and what part of it a minibatch is cannot be told. Make it an "
                "observed variable, or leave these data out of train."
            )

    def _scaled(self, variable: Any, term: Any) -> tuple[Any, Any]:
        """How many observations there are in all, if they are fed, and their log-likelihood."""
        values = self.model.rvs_to_values[variable]
        if not (fed := self._uses_fed(term)):
            return None, term
        if not self._uses_fed(values):
            raise ValueError(
                f"{variable.name} depends on {', '.join(fed)}, which minibatches feed, and its "
                "observed values are not fed: both have the same samples. Make them a pm.Data "
                "container, and add it to train."
            )
        if isinstance(variable.owner.op, MinibatchRandomVariable):
            total = variable.owner.inputs[1]
            self._compare(variable, total)
            return total, term
        if self.n_samples is None:
            raise ValueError(
                f"{variable.name} is fed from data whose number of samples is not known: its "
                "log-likelihood is scaled to all of them. Give the variable total_size=, or arrays."
            )
        return self.n_samples, term * (self.n_samples / values.shape[0])

    def _compare(self, variable: Any, total: Any) -> None:
        """Doubt a total_size that is another number than that of the samples."""
        size = getattr(total, "data", None)
        if size is None or self.n_samples in (None, int(size)):
            return
        warn(
            f"{variable.name} has total_size={int(size)} and train has {self.n_samples} samples: "
            "the log-likelihood is scaled to the first. Correct it, or leave total_size out."
        )


def _total(terms: Sequence[Any]) -> Any:
    total = pt.as_tensor(np.zeros((), dtype=pytensor.config.floatX))
    for term in terms:
        total = total + term.sum()
    return total


def _fed(model: Any, train: Any) -> tuple[list[Any], int | None]:
    """The containers that data take the place of, and the number of samples, if it is known."""
    if train is None:
        return [], None
    data = train if isinstance(train, Dataset) else None
    if data is None and isinstance(train, Mapping):
        data = Dataset(train, "train")
    source = getattr(data, "source", None)
    if data is None or not (names := getattr(source, "names", None)):
        raise TypeError(
            f"train is {shown(train)}: it holds arrays by the names of pm.Data containers. Give a "
            "dict, or a Dataset of one."
        )
    if data.axis != 0:
        raise ValueError(
            f"train has its samples along axis {data.axis}: PyMC counts them along the first. "
            "Move that axis to the front."
        )
    known = {variable.name: variable for variable in model.data_vars}
    if unknown := [str(name) for name in names if name not in known]:
        raise ValueError(
            f"train has {', '.join(unknown)}, which the model has no pm.Data container for; it has "
            f"{', '.join(known) or 'none'}. Use the names of containers."
        )
    containers = [known[name] for name in names]
    for container in containers:
        if not isinstance(container, SharedVariable) or container.type.ndim == 0:
            raise ValueError(
                f"{container.name} has no samples: minibatches feed containers of vectors and "
                "more dimensions. Leave it out of train, and set it by pm.set_data."
            )
    return containers, getattr(source, "n_samples", None)


def _input_for(container: Any) -> Any:
    """An input of a container's kind, for any number of samples."""
    kind = container.type
    return pt.tensor(container.name, dtype=kind.dtype, shape=(None, *kind.shape[1:]))
