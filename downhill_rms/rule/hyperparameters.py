"""The hyperparameters of RMSProp: names, defaults, ranges, and what each change costs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from pytensor.compile.sharedvalue import SharedVariable

from downhill_rms.rule.checks import check_choice, check_flag, check_number
from downhill_rms.rule.gradients import CLIPS
from downhill_rms.rule.keywords import refuse_unknown
from downhill_rms.rule.traversal import describe


@dataclass(frozen=True, kw_only=True, repr=False)
class Hyperparameters:
    """The numbers and choices of RMSProp.

    Numbers live in the graph as shared scalars: changing one never compiles anything. Choices
    (the booleans, ``regularize``, which clip, momentum or none, weight decay or none, the kind of
    ``learning_rate``) shape the graph. An instance can be unpacked: ``iterate(train, **h)``.

    Parameters
    ----------
    learning_rate : float, callable or SharedVariable
        Step size, at least 0. A callable is given the symbolic update count t (an int64 scalar,
        1 at the first update) and returns a scalar expression: a schedule. A shared scalar is
        used as it is.
    rms_halflife : float, optional
        Updates after which a gradient's weight in the moving averages has halved, above 0; the
        decay is ``exp(-ln 2 / rms_halflife)``. 14 unless ``decay`` is given.
    decay : float, optional
        The decay gamma of the moving averages itself, in [0, 1), instead of ``rms_halflife``.
    rms_regularizer : float
        The epsilon that keeps the denominator from 0, above 0.
    momentum : float
        Decay mu of the velocity, in [0, 1); 0 for none.
    nesterov : bool
        Apply momentum in Nesterov's form. Without momentum it changes nothing.
    centered : bool
        Divide by the gradient's standard deviation (Graves) instead of its root mean square.
    regularize : {"variance", "rms"}
        Add ``rms_regularizer`` inside the square root, or to the root.
    initial_accumulator : float
        Start of the mean square or variance, at least 0.
    bias_correction : bool
        Weight the averages as though they had no start, as Adam does.
    weight_decay : float
        Coefficient of L2 regularisation, at least 0.
    decoupled_weight_decay : bool
        Shrink parameters directly by ``learning_rate * weight_decay`` instead of adding
        ``weight_decay * parameter`` to the clipped gradient.
    max_gradient_elem, max_gradient_norm, max_global_norm : float
        Clip each gradient element, each parameter's gradient norm, or the norm over all
        parameters together. 0 for no clip; at most one may be given.
    average : {None, "ema", "tail"}
        Keep an average of each parameter beside it, which validations judge and which is the
        best: an exponentially weighted one, or the mean over all updates after the
        ``average_start``-th (Polyak and Ruppert).
    average_halflife : float
        Updates after which a value's weight in the average has halved, above 0; for ``"ema"``.
    average_start : int
        Updates before the first that counts, at least 0; for ``"tail"``.
    max_update : float
        Bound every element of the step u, before momentum; 0 for no bound. It matters where the
        centered form meets gradients that stop varying, and steps grow to
        ``learning_rate * g / sqrt(rms_regularizer)``.

    Raises
    ------
    TypeError
        For an unknown name or a value of the wrong type.
    ValueError
        For a value out of range, or two that exclude each other.

    Examples
    --------
    >>> hyperparameters = Hyperparameters(learning_rate=0.01)
    >>> hyperparameters.replace(momentum=0.9).momentum
    0.9
    >>> dict(hyperparameters)["learning_rate"]
    0.01
    """

    learning_rate: float | Callable[[Any], Any] | Any = 1e-4
    rms_halflife: float | None = None
    decay: float | None = None
    rms_regularizer: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
    centered: bool = True
    regularize: Literal["variance", "rms"] = "variance"
    initial_accumulator: float = 0.0
    bias_correction: bool = False
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    max_gradient_elem: float = 0.0
    max_gradient_norm: float = 0.0
    max_global_norm: float = 0.0
    max_update: float = 0.0
    average: Literal[None, "ema", "tail"] = None
    average_halflife: float = 100.0
    average_start: float = 0.0

    def __new__(cls, **keywords: Any) -> Hyperparameters:
        """Refuse unknown names before the generated ``__init__`` does so with less help."""
        refuse_unknown(keywords, cls.names())
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.rms_halflife is not None and self.decay is not None:
            raise ValueError(
                f"rms_halflife={self.rms_halflife} and decay={self.decay} are both given: they say "
                "one thing in two ways. Leave one out."
            )
        if self.rms_halflife is None and self.decay is None:
            object.__setattr__(self, "rms_halflife", 14.0)
        self._check_numbers()
        self._check_choices()

    def _check_numbers(self) -> None:
        if not (callable(self.learning_rate) or isinstance(self.learning_rate, SharedVariable)):
            self._check_number("learning_rate")
        elif isinstance(self.learning_rate, SharedVariable):
            _check_shared_rate(self.learning_rate)
        if self.rms_halflife is not None:
            self._check_number("rms_halflife", open_low=True)
        if self.decay is not None:
            self._check_number("decay", 1)
        self._check_number("rms_regularizer", open_low=True)
        self._check_number("momentum", 1)
        self._check_number("average_halflife", open_low=True)
        for name in ("initial_accumulator", "weight_decay", "max_update", "average_start", *CLIPS):
            self._check_number(name)

    def _check_number(self, name: str, high: float = math.inf, open_low: bool = False) -> None:
        number = check_number(name, getattr(self, name), 0, high, open_low=open_low)
        object.__setattr__(self, name, number)

    def _check_choices(self) -> None:
        for name in ("nesterov", "centered", "bias_correction", "decoupled_weight_decay"):
            object.__setattr__(self, name, check_flag(name, getattr(self, name)))
        check_choice("regularize", self.regularize, ("variance", "rms"))
        if self.average is not None:
            check_choice("average", self.average, ("ema", "tail"))
        if self.bias_correction and self.initial_accumulator:
            raise ValueError(
                f"initial_accumulator={self.initial_accumulator} is given with "
                "bias_correction=True, which wipes out the accumulator's start. Leave one out."
            )
        clips = [f"{name}={getattr(self, name)}" for name in CLIPS if getattr(self, name)]
        if len(clips) > 1:
            raise ValueError(
                f"{' and '.join(clips)} are given: one gradient clip is in force at most. "
                "Leave one out, or set it to 0."
            )

    def __repr__(self) -> str:
        """What differs from the defaults, as one would write it."""
        default = Hyperparameters()
        changed = [f"{name}={self[name]!r}" for name in self.keys() if self[name] != default[name]]
        return f"Hyperparameters({', '.join(changed)})"

    @classmethod
    def names(cls) -> list[str]:
        """Names of all hyperparameters."""
        return [field.name for field in fields(cls)]

    def keys(self) -> Iterator[str]:
        """Names of all hyperparameters; with ``h[name]`` this lets ``**h`` unpack them."""
        return iter(self.names())

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def replace(self, **changes: Any) -> Hyperparameters:
        """Copy with some values changed; giving one of decay and halflife drops the other."""
        values: dict[str, Any] = dict(self)
        if changes.get("decay") is not None:
            values["rms_halflife"] = None
        if changes.get("rms_halflife") is not None:
            values["decay"] = None
        return Hyperparameters(**values | changes)

    @property
    def log_decay(self) -> float:
        """Ln gamma; minus infinity for a decay of 0."""
        if self.rms_halflife is not None:
            return -math.log(2) / self.rms_halflife
        return math.log(self.decay) if self.decay else -math.inf

    @property
    def clip(self) -> str | None:
        """Name of the clip in force, if any."""
        return next((name for name in CLIPS if self[name]), None)

    @property
    def has_schedule(self) -> bool:
        """Whether ``learning_rate`` is a function of the update count."""
        return callable(self.learning_rate) and not isinstance(self.learning_rate, SharedVariable)

    @property
    def numbers(self) -> dict[str, float]:
        """The values of the shared scalars: what can change without compiling."""
        values = {
            "ewma_weight": -math.expm1(self.log_decay),
            "log_decay": self.log_decay,
            "rms_regularizer": self.rms_regularizer,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "max_gradient": self[self.clip] if self.clip else 0.0,
            "max_update": self.max_update,
            "average_log_decay": -math.log(2) / self.average_halflife,
            "average_start": self.average_start,
        }
        if isinstance(self.learning_rate, float):
            values["learning_rate"] = self.learning_rate
        return values

    @property
    def structure(self) -> tuple[Any, ...]:
        """What shapes the graph: two equal structures share one compiled function."""
        return (
            self.centered,
            self.momentum > 0,
            self.nesterov and self.momentum > 0,
            self.regularize,
            self.bias_correction,
            self.weight_decay > 0,
            self.decoupled_weight_decay and self.weight_decay > 0,
            self.clip,
            self.max_update > 0,
            self.average,
            None if isinstance(self.learning_rate, float) else self.learning_rate,
        )


def _check_shared_rate(learning_rate: Any) -> None:
    """Refuse a shared variable that holds no learning rate."""
    kind = getattr(learning_rate.type, "ndim", None), getattr(learning_rate.type, "dtype", "none")
    if kind[0] != 0 or kind[1][:3] not in ("flo", "int", "uin"):
        raise ValueError(
            f"learning_rate is {describe(learning_rate)}: a shared one is a real scalar. Make the "
            "shared variable from one number."
        )
    check_number("learning_rate", learning_rate.get_value())


# What help() and editors show; __new__ would hide it.
_fields = inspect.signature(Hyperparameters.__init__).parameters.values()
Hyperparameters.__signature__ = inspect.Signature(list(_fields)[1:])  # type: ignore[attr-defined]
