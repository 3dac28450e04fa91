"""Other libraries' RMSProp in this one's terms.

``preset("torch", lr=0.01, momentum=0.9)`` takes the arguments of ``torch.optim.RMSprop``, with its
names and defaults, and returns the hyperparameters that make the same updates here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from downhill_rms.rule.checks import check_choice, check_flag, shown
from downhill_rms.rule.hyperparameters import Hyperparameters
from downhill_rms.rule.keywords import refuse_unknown


def preset(name: str, /, **arguments: Any) -> Hyperparameters:
    """Hyperparameters that make the updates of another library's RMSProp.

    Parameters
    ----------
    name : str
        ``graves``, ``downhill``, ``hinton``, ``puzzlelib``, ``d2l``, ``lucid``, ``torch``,
        ``keras``, ``tf1``, ``optax`` or ``lasagne``.
    **arguments
        That library's own arguments, by its own names; its defaults for the rest.

    Returns
    -------
    Hyperparameters
        To be unpacked: ``trainer.minimize(train, **preset("keras"))``.

    Raises
    ------
    TypeError
        For an argument that the library does not have.
    ValueError
        For an unknown library, or an argument that cannot be expressed here.

    Examples
    --------
    >>> preset("torch", lr=0.001, alpha=0.9).decay
    0.9
    """
    build = PRESETS[check_choice("name", name, list(PRESETS))]
    known = inspect.signature(build).parameters
    refuse_unknown(arguments, list(known))
    for argument, value in arguments.items():
        kind = str(known[argument].annotation)
        if value is None and kind.endswith("None"):
            continue
        if value is None:
            raise TypeError(f"{argument} is None: it takes a value. Leave it out for its default.")
        if kind.startswith("bool"):
            check_flag(argument, value)
    try:
        return build(**arguments)
    except (TypeError, ValueError) as error:  # in this library's names
        given = ", ".join(f"{argument}={shown(value)}" for argument, value in arguments.items())
        raise type(error)(f"preset({name!r}, {given}): {error}") from error


def _refuse(library: str, argument: str, value: Any, instead: str) -> None:
    raise ValueError(
        f"{argument} is {shown(value)}, which preset({library!r}) cannot express. {instead}"
    )


def _refuse_schedule(library: str, argument: str, value: Any) -> None:
    if callable(value):
        _refuse(library, argument, value, "Pass a symbolic schedule as learning_rate= to Trainer.")


def _or_zero(value: float | None) -> float:
    """A number that is 0 where a library says None."""
    return 0.0 if value is None else value


def graves(
    learning_rate: float = 1e-4, decay: float = 0.95, momentum: float = 0.9, epsilon: float = 1e-4
) -> Hyperparameters:
    """A. Graves, arXiv:1308.0850 (2013), eq. 38-45.

    ``epsilon`` is added to squared gradients of a loss that is summed over the steps of a
    sequence, as in eq. 6 and 15. Of a loss that is averaged over time they are as many times
    smaller as the square of the length, and 1e-4 then holds most updates down: sum over time, and
    average over sequences alone.

    Examples
    --------
    >>> graves().momentum
    0.9
    """
    return Hyperparameters(
        learning_rate=learning_rate, decay=decay, momentum=momentum, rms_regularizer=epsilon
    )


def is_graves(hyperparameters: Hyperparameters) -> bool:
    """Whether hyperparameters are those of `graves`, the learning rate apart."""
    return hyperparameters.replace(learning_rate=graves().learning_rate) == graves()


def downhill(
    learning_rate: float = 1e-4,
    rms_halflife: float = 14,
    rms_regularizer: float = 1e-8,
    momentum: float = 0,
    nesterov: bool = False,
    max_gradient_elem: float = 0,
    max_gradient_norm: float = 0,
) -> Hyperparameters:
    """``downhill.RMSProp`` 0.4. With both clips given, downhill ignores the norm's.

    Examples
    --------
    >>> downhill(rms_halflife=10).rms_halflife
    10.0
    """
    if nesterov and momentum:
        _refuse(
            "downhill",
            "nesterov",
            nesterov,
            "downhill's form decays its velocity by the square of momentum, a fault; "
            "nesterov=True given to the Trainer is Nesterov's own form.",
        )
    return Hyperparameters(
        learning_rate=learning_rate,
        rms_halflife=rms_halflife,
        rms_regularizer=rms_regularizer,
        momentum=momentum,
        max_gradient_elem=max_gradient_elem,
        max_gradient_norm=0 if max_gradient_elem else max_gradient_norm,
    )


def hinton(learning_rate: float = 1e-3, decay: float = 0.9) -> Hyperparameters:
    """T. Tieleman and G. Hinton, Lecture 6.5, Coursera, 2012.

    The lecture divides by the bare root; 1e-8 inside it keeps 0/0 out.

    Examples
    --------
    >>> hinton().centered
    False
    """
    return Hyperparameters(learning_rate=learning_rate, decay=decay, centered=False)


def puzzlelib(
    learnRate: float = 1e-3,
    factor: float = 0.9,
    epsilon: float = 1e-5,
    nodeinfo: None = None,
) -> Hyperparameters:
    """``PuzzleLib.Optimizers.RMSProp``.

    Its page prints epsilon inside the root and a default factor of 0.1; its code, followed here,
    adds epsilon to the root and has 0.9, which the page recommends.

    Examples
    --------
    >>> puzzlelib(learnRate=0.01).learning_rate
    0.01
    """
    if nodeinfo is not None:
        _refuse("puzzlelib", "nodeinfo", nodeinfo, "Leave it out: training runs on one node.")
    return Hyperparameters(
        learning_rate=learnRate,
        decay=factor,
        rms_regularizer=epsilon,
        centered=False,
        regularize="rms",
    )


def d2l(lr: float = 0.01, gamma: float = 0.9, eps: float = 1e-6) -> Hyperparameters:
    """A. Zhang et al., "Dive into Deep Learning", chapter 12.8.

    Examples
    --------
    >>> d2l(lr=0.4, gamma=0.9).decay
    0.9
    """
    return Hyperparameters(learning_rate=lr, decay=gamma, rms_regularizer=eps, centered=False)


def lucid(
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0,
    momentum: float = 0,
    centered: bool = False,
) -> Hyperparameters:
    """``lucid.optim.RMSprop``: its code adds eps to the root, its page prints it inside.

    Examples
    --------
    >>> lucid().regularize
    'rms'
    """
    _refuse_schedule("lucid", "lr", lr)
    return Hyperparameters(
        learning_rate=lr,
        decay=alpha,
        rms_regularizer=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        centered=centered,
        regularize="rms",
    )


def torch(
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0,
    momentum: float = 0,
    centered: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
) -> Hyperparameters:
    """``torch.optim.RMSprop``.

    ``foreach`` and ``capturable`` choose torch's implementation, not its results. torch multiplies
    its velocity by lr after the decay, so that the two agree while lr is constant.

    Examples
    --------
    >>> torch(lr=0.001, alpha=0.99).regularize
    'rms'
    """
    _refuse_schedule("torch", "lr", lr)
    if maximize:
        _refuse("torch", "maximize", maximize, "Minimise the negative of the loss.")
    if differentiable:
        _refuse("torch", "differentiable", differentiable, "Leave it out.")
    return lucid(lr, alpha, eps, weight_decay, momentum, centered)


def keras(
    learning_rate: float = 1e-3,
    rho: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-7,
    centered: bool = False,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
) -> Hyperparameters:
    """``keras.optimizers.RMSprop`` of Keras 3.

    Examples
    --------
    >>> keras(clipnorm=1.0).max_gradient_norm
    1.0
    """
    _refuse_schedule("keras", "learning_rate", learning_rate)
    if use_ema:
        _refuse("keras", "use_ema", use_ema, "Weights are not averaged here; leave it out.")
    if loss_scale_factor is not None:
        _refuse("keras", "loss_scale_factor", loss_scale_factor, "Scale the loss itself.")
    if gradient_accumulation_steps is not None:
        _refuse(
            "keras",
            "gradient_accumulation_steps",
            gradient_accumulation_steps,
            "Use a larger batch_size.",
        )
    return Hyperparameters(
        learning_rate=learning_rate,
        decay=rho,
        momentum=momentum,
        rms_regularizer=epsilon,
        centered=centered,
        weight_decay=_or_zero(weight_decay),
        decoupled_weight_decay=True,
        max_gradient_norm=_or_zero(clipnorm),
        max_gradient_elem=_or_zero(clipvalue),
        max_global_norm=_or_zero(global_clipnorm),
    )


def tf1(
    learning_rate: float = 1e-3,
    decay: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-10,
    use_locking: bool = False,
    centered: bool = False,
    name: str = "RMSProp",
) -> Hyperparameters:
    """``tf.compat.v1.train.RMSPropOptimizer``, whose mean square starts at 1.

    It has no default learning rate; 1e-3 stands in. ``use_locking`` changes no result.

    Examples
    --------
    >>> tf1(learning_rate=0.01).initial_accumulator
    1.0
    """
    _refuse_schedule("tf1", "learning_rate", learning_rate)
    return Hyperparameters(
        learning_rate=learning_rate,
        decay=decay,
        momentum=momentum,
        rms_regularizer=epsilon,
        centered=centered,
        initial_accumulator=1.0,
    )


def optax(
    learning_rate: float = 1e-3,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Hyperparameters:
    """``optax.rmsprop``. It has no default learning rate; 1e-3 stands in.

    Examples
    --------
    >>> optax(eps_in_sqrt=False).regularize
    'rms'
    """
    _refuse_schedule("optax", "learning_rate", learning_rate)
    return Hyperparameters(
        learning_rate=learning_rate,
        decay=decay,
        rms_regularizer=eps,
        initial_accumulator=initial_scale,
        regularize="variance" if eps_in_sqrt else "rms",
        centered=centered,
        momentum=_or_zero(momentum),
        nesterov=nesterov,
        bias_correction=bias_correction,
    )


def lasagne(learning_rate: float = 1.0, rho: float = 0.9, epsilon: float = 1e-6) -> Hyperparameters:
    """``lasagne.updates.rmsprop``.

    Examples
    --------
    >>> lasagne(rho=0.95).decay
    0.95
    """
    return Hyperparameters(
        learning_rate=learning_rate, decay=rho, rms_regularizer=epsilon, centered=False
    )


PRESETS: dict[str, Callable[..., Hyperparameters]] = {
    "graves": graves,
    "downhill": downhill,
    "hinton": hinton,
    "puzzlelib": puzzlelib,
    "d2l": d2l,
    "lucid": lucid,
    "torch": torch,
    "keras": keras,
    "tf1": tf1,
    "optax": optax,
    "lasagne": lasagne,
}
