"""Problems made of models: the most probable values, and variational approximations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.replace import graph_replace, vectorize_graph

from downhill_rms.compiling import UncompiledFunction
from downhill_rms.data import Dataset
from downhill_rms.problem import Problem
from downhill_rms.pymc.model import ModelGraph
from downhill_rms.rule import check_choice, check_count, check_number
from downhill_rms.rule.schedules import cosine

START = 0.1  # standard deviation of an approximation before the first update
# Long averages: where gradients are noise, and skewed, an average over few of them that holds the
# present one too moves the place where steps cancel. Five per cent of a standard deviation with a
# halflife of 14 updates.
HALFLIFE = 200.0


@dataclass(frozen=True, kw_only=True)
class ModelProblem(Problem):
    """A problem that knows the model it was made of.

    Attributes
    ----------
    graph : ModelGraph
        The model.
    values : mapping of Variable to Variable
        Expressions of the parameters in place of the model's value variables.
    """

    graph: ModelGraph = field(repr=False)
    values: Mapping[Any, Any] = field(repr=False)

    def point(self) -> dict[str, np.ndarray]:
        """The model's variables, on its own scale, as the parameters are now.

        Returns
        -------
        dict of str to ndarray
            Free variables, and those ``pm.Deterministic`` that are not made of fed data. Of an
            approximation it is where its mean on the unconstrained scale lies.
        """
        named = self.graph.constrained(self.values)
        found = UncompiledFunction([], list(named.values()))()
        return {name: np.asarray(value) for name, value in zip(named, found, strict=True)}


@dataclass(frozen=True, kw_only=True)
class AdviProblem(ModelProblem):
    """What `advi_problem` makes: a normal approximation on the unconstrained scale.

    Attributes
    ----------
    mean, log_std : SharedVariable
        Vectors over all free values, in the model's order.
    coupling : SharedVariable or None
        A square matrix of which the part below the diagonal counts; None for a mean field.
    """

    mean: Any
    log_std: Any
    coupling: Any = None

    def covariance(self) -> np.ndarray:
        """The covariance of the free values on the unconstrained scale, as it is now.

        Returns
        -------
        ndarray, shape (d, d)
            In the order of ``mean``.
        """
        factor = self._factor()
        return np.asarray(factor @ factor.T)

    def _factor(self) -> np.ndarray:
        factor = np.eye(len(self.mean.get_value()))
        if self.coupling is not None:
            factor += np.tril(self.coupling.get_value(), -1)
        std: np.ndarray = np.exp(self.log_std.get_value())
        return std[:, None] * factor

    def to_inference_data(self, draws: int = 1_000, seed: int | None = None) -> Any:
        """Draws from the approximation, as ArviZ holds those of a sampler.

        Parameters
        ----------
        draws : int
            How many.
        seed : int, optional
            Of the draws.

        Returns
        -------
        xarray.DataTree
            With a group ``posterior`` of one chain: the free variables on the model's own scale,
            and those ``pm.Deterministic`` that are not made of fed data, with its coordinates.
        """
        from arviz_base import from_dict
        from pymc.backends.arviz import coords_and_dims_for_inferencedata

        check_count("draws", draws)
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((draws, len(self.mean.get_value())))
        rows = self.mean.get_value() + noise @ self._factor().T
        flat = self.mean.type("values")
        named = self.graph.constrained(self.graph.parts(flat))
        batch = pt.matrix("values", dtype=flat.dtype)
        outputs = vectorize_graph(list(named.values()), {flat: batch})
        found = UncompiledFunction([batch], outputs)(rows.astype(flat.dtype))
        # What does not depend on the values at all is one array for all draws.
        dimensions = [(name, expression.type.ndim) for name, expression in named.items()]
        posterior = {
            name: np.broadcast_to(value, (draws, *np.shape(value)[np.ndim(value) - ndim :]))[None]
            for (name, ndim), value in zip(dimensions, found, strict=True)
        }
        coords, dims = coords_and_dims_for_inferencedata(self.graph.model)
        dims = {name: dims[name] for name in posterior if name in dims}
        return from_dict({"posterior": posterior}, coords=coords, dims=dims)


def map_problem(
    model: Any,
    train: Mapping[str, Any] | Dataset | None = None,
    valid: Mapping[str, Any] | Dataset | None = None,
    *,
    batch_size: int | None = None,
    updates: int = 20_000,
    learning_rate: float = 0.01,
    name: str = "map",
) -> ModelProblem:
    """Minimise the negative log posterior of a model.

    Parameters
    ----------
    model : pymc.Model
        The model; its free variables are continuous.
    train, valid : mapping of str to array_like or Dataset, optional
        What minibatches feed in place of ``pm.Data`` containers, by their names. By default nothing
        is fed, and every update takes the whole data that the model holds.
    batch_size : int, optional
        Samples in a minibatch (32), for data that are not a `Dataset` yet.
    updates : int
        Updates of a run, over which the learning rate falls to 0 by half a cosine. A rate that
        stays leaves the parameters moving by about as much at every update.
    learning_rate : float
        Of the first update.
    name : str
        What the command line calls it.

    Returns
    -------
    ModelProblem
        Its parameters are the free variables' values on the unconstrained scale, at the model's
        initial point. What is minimised is the density on the model's own scale, without the
        Jacobians of its transforms, as by ``pm.find_MAP``.

    Raises
    ------
    TypeError, ValueError
        For a model or data that cannot be used.

    Notes
    -----
    The log-likelihood of a minibatch of b samples of N is scaled by N / b, so that the mean over an
    epoch, weighted by samples, is the whole log posterior, with a shorter last minibatch too. A
    variable's own ``total_size`` does the same.
    """
    graph = ModelGraph(model, train)
    densities = graph.densities(jacobian=False)
    params = {
        variable: pytensor.shared(graph.start[variable.name], variable.name)
        for variable in graph.value_variables
    }
    loss, each = _of_parameters(
        -(densities.log_prior + densities.log_likelihood), densities.log_likelihood_each, params
    )
    return ModelProblem(
        name=name,
        loss=loss,
        params=list(params.values()),
        values=params,
        train=train,
        valid=valid,
        graph=graph,
        **_defaults(graph, each, batch_size, updates, learning_rate),
    )


def advi_problem(
    model: Any,
    train: Mapping[str, Any] | Dataset | None = None,
    valid: Mapping[str, Any] | Dataset | None = None,
    *,
    family: Literal["mean_field", "full_rank"] = "mean_field",
    draws: int = 2,
    batch_size: int | None = None,
    updates: int = 20_000,
    learning_rate: float = 0.01,
    seed: int | None = None,
    name: str = "advi",
) -> AdviProblem:
    r"""Fit a normal approximation of a model's posterior.

    The free values on the unconstrained scale are taken to be

    .. math:: z = \mu + e^{\omega} (I + C) \epsilon, \quad \epsilon \sim N(0, I),

    with C strictly lower triangular, or 0 for a mean field, and what is minimised is the negative
    evidence lower bound [1]_

    .. math:: -E[\log p(y, z)] - \sum_i \omega_i - \tfrac{d}{2} (1 + \log 2 \pi).

    Parameters
    ----------
    model, train, valid, batch_size, name
        As for `map_problem`.
    family : {"mean_field", "full_rank"}
        Independent values, or a whole covariance matrix.
    draws : int
        Draws of z whose mean an update takes (2): 1, or an even number. Of two, one has the noise
        of the other with its sign changed, so that what a minibatch adds to the gradient of both
        does not reach :math:`\omega`.
    updates : int
        Updates of a run, over which the learning rate falls to 0 by half a cosine.
    learning_rate : float
        Of the first update.
    seed : int, optional
        Of the draws; others in every program by default.

    Returns
    -------
    AdviProblem

    Raises
    ------
    TypeError, ValueError
        For a model or data that cannot be used.

    Notes
    -----
    The bound is noise around its mean, and so is its gradient. A fixed learning rate goes on
    moving by some standard deviations of the posterior; the falling rate of this problem comes to
    rest. The last parameters are the ones that stay: of noisy validations the best is a lucky one.
    Validations draw the same random numbers every time, so that two differ by the parameters.

    References
    ----------
    .. [1] A. Kucukelbir et al., "Automatic differentiation variational inference", Journal of
       Machine Learning Research 18(14), 2017, eq. 7; D. P. Kingma and M. Welling, "Auto-encoding
       variational Bayes", arXiv:1312.6114 (2013), for the draws.
    """
    check_choice("family", family, ("mean_field", "full_rank"))
    if check_count("draws", draws) > 1 and draws % 2:
        raise ValueError(
            f"draws is {draws}: more than one come in pairs of opposite noise. Give an even number."
        )
    graph = ModelGraph(model, train)
    densities = graph.densities(jacobian=True)
    start = np.concatenate([graph.start[v.name].ravel() for v in graph.value_variables])
    mean = pytensor.shared(start, "mean")
    size, dtype = len(start), start.dtype.name
    log_std = pytensor.shared(np.full(size, math.log(START), dtype), "log_std")
    coupling = None
    rng = pt.random.shared_rng(seed=seed, name="draws")
    _, noise = rng.normal(size=(size,) if draws == 1 else (draws // 2, size), dtype=dtype)
    if draws > 1:
        noise = pt.concatenate([noise, -noise])
    if family == "full_rank":
        coupling = pytensor.shared(np.zeros((size, size), dtype), "coupling")
        noise = noise + noise @ pt.tril(coupling, -1).T
    z = mean + pt.exp(log_std) * noise
    energy, each = _of_draws(graph, densities, z, draws)
    entropy = log_std.sum() + np.asarray(size / 2 * (1 + math.log(2 * math.pi)), dtype)
    return AdviProblem(
        name=name,
        loss=energy - entropy,
        params=[mean, log_std, *([] if coupling is None else [coupling])],
        train=train,
        valid=valid,
        graph=graph,
        values=graph.parts(mean),
        mean=mean,
        log_std=log_std,
        coupling=coupling,
        **_defaults(graph, each, batch_size, updates, learning_rate, restore_best=False),
    )


def _of_parameters(loss: Any, each: Any, params: Mapping[Any, Any]) -> tuple[Any, Any]:
    """The loss and the log-likelihood with parameters in place of value variables."""
    found = graph_replace([loss] if each is None else [loss, each], params, strict=False)
    return found[0], found[1] if each is not None else None


def _of_draws(graph: ModelGraph, densities: Any, z: Any, draws: int) -> tuple[Any, Any]:
    """The mean energy of draws of all free values, and the mean log-likelihood of a sample."""
    flat = z.type.clone(shape=z.type.shape[-1:])("z")
    energy = -(densities.log_prior + densities.log_likelihood)
    outputs = _of_parameters(energy, densities.log_likelihood_each, graph.parts(flat))
    if draws == 1:
        return _of_parameters(*outputs, {flat: z})
    wanted = [output for output in outputs if output is not None]
    means = [output.mean() for output in vectorize_graph(wanted, {flat: z})]
    return means[0], means[1] if len(means) > 1 else None


def _defaults(
    graph: ModelGraph,
    each: Any,
    batch_size: int | None,
    updates: int,
    learning_rate: float,
    **options: Any,
) -> dict[str, Any]:
    """What is fed and reported, and how both kinds of problem are trained by default."""
    check_count("updates", updates)
    check_number("learning_rate", learning_rate, 0)
    if batch_size is not None:
        options["batch_size"] = batch_size
    return {
        "inputs": graph.inputs,
        "monitors": {} if each is None else {"log_likelihood": each},
        "hyperparameters": {
            "learning_rate": cosine(learning_rate, updates),
            "rms_halflife": HALFLIFE,
            "bias_correction": True,
            "centered": False,  # gradients that do not vary, as of a MAP, have no variance
        },
        # The rate has to fall to its end: patience would end a run at a plateau before.
        "options": {"max_updates": updates, "patience": math.inf, **options},
    }
