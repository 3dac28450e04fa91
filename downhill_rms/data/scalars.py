"""Numbers among data: a constant, a shared variable or a function of the epoch.

They feed inputs without dimensions, such as an annealing factor or a dropout rate, and have no
samples: every minibatch is given the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Complex, Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from downhill_rms.data.sources import InputSpec

# What a number is for inputs of each kind of dtype: as for arrays, integers may feed floats.
KINDS = {"b": bool, "i": Integral, "u": Integral, "f": Real, "c": Complex}


class ScalarColumn:
    """A number of a data set, the same for all its samples.

    Parameters
    ----------
    given : number, array without dimensions, shared variable or callable
        A callable is given the number of the epoch, 0 for the first. The value of a shared
        variable is read anew for each call of a compiled function.
    axis : int
        That of the data set.
    spec : InputSpec or None
        The input.
    epoch : int
        The number of the epoch.

    Attributes
    ----------
    is_shared, is_schedule : bool
        Where it comes from, unless it is a constant.
    is_index : bool
        Whether it may be an index that changes: one that was in range may not stay there.
    """

    in_memory = True
    shape: tuple[int, ...] = ()

    def __init__(
        self, given: Any, axis: int, spec: InputSpec | None = None, epoch: int = 0
    ) -> None:
        if spec is not None and (spec.ndim or spec.sparse):
            raise ValueError(_misplaced(given, spec))
        self.given, self.axis, self.spec = given, axis, spec
        self.is_shared, self.is_schedule = _is_shared_scalar(given), callable(given)
        whole = spec is not None and np.dtype(spec.dtype).kind in "iu"
        self.is_index = whole and (self.is_shared or self.is_schedule)
        self._epoch = -1
        self._value: Any = None
        if spec is not None:
            self.begin_epoch(epoch)

    def __str__(self) -> str:
        if self.is_shared:
            return f"shared variable {self.given.name or 'without a name'}, now {self.values}"
        if self.is_schedule:
            return f"function of the epoch, {self.values} for epoch {max(self._epoch, 0)}"
        return f"the number {self.values}"

    @property
    def values(self) -> Any:
        """The number as it is now, an array without dimensions."""
        if self.is_shared:
            return as_scalar(self.given, self.spec)
        if self._epoch < 0:
            self.begin_epoch(0)
        return self._value

    def begin_epoch(self, epoch: int) -> None:
        """Go on to another epoch; a schedule is called once for each."""
        if epoch == self._epoch:
            return
        value = called(self.given, epoch, self.spec) if self.is_schedule else self.given
        self._value, self._epoch = as_scalar(value, self.spec, self.is_schedule), epoch

    def bind(self, spec: InputSpec, epoch: int = 0) -> ScalarColumn:
        """The same number, checked and cast for an input."""
        return ScalarColumn(self.given, self.axis, spec, epoch)

    def take(self, selection: Any) -> Any:
        """What every minibatch is given."""
        return self.values


def is_scalar(value: Any) -> bool:
    """Whether a part of data is a number, or what gives one, rather than an array."""
    if _is_shared_scalar(value):
        return True
    if hasattr(value, "get_value") or hasattr(value, "owner"):  # other variables of PyTensor's
        return False
    if isinstance(value, Complex):
        return True
    if hasattr(value, "shape"):
        return value.shape == () and hasattr(value, "item") and isinstance(value.item(), Complex)
    return callable(value) and not hasattr(value, "__array__")


def as_scalar(value: Any, spec: InputSpec | None, returned: bool = False) -> np.ndarray:
    """Make an array without dimensions of a number, of exactly the input's dtype.

    Parameters
    ----------
    value : number, array without dimensions or shared variable
        The number.
    spec : InputSpec or None
        The input; None leaves the dtype as it is.
    returned : bool
        Whether a function of the epoch has returned it, which errors say.

    Raises
    ------
    TypeError
        If it is no number, or of a kind that the input does not take.
    ValueError
        If it has dimensions, is NaN, or is beyond the input's dtype.
    """
    if _is_shared_scalar(value):
        value = value.get_value(borrow=True)
    if spec is None:
        return np.array(value)
    if np.ndim(value):
        refuse_array(np.shape(value), spec, returned)
    target = np.dtype(spec.dtype)
    number = value.item() if isinstance(value, np.generic) or hasattr(value, "shape") else value
    if not isinstance(number, KINDS.get(target.kind, ())):
        raise TypeError(
            f"{_subject(value, spec, returned)}: it is fed a number of its dtype's kind. Convert "
            "the number, or change the input."
        )
    if np.ma.is_masked(value) or not _is_held(number, target):
        raise ValueError(
            f"{_subject(value, spec, returned)}: it is fed a number that its dtype can hold, and "
            "not NaN. Give one, or use an input of a wider dtype."
        )
    return np.array(number, dtype=target)


def refuse_array(shape: tuple[int, ...], spec: InputSpec, returned: bool = False) -> None:
    """Raise a ValueError for an array with dimensions, where an input has none."""
    what = f"An array of shape {shape} is given for {spec}"
    if returned:
        what = f"The function of the epoch for {spec} returned an array of shape {shape}"
    raise ValueError(
        f"{what}: it is fed one number, for all samples alike. Give a number, a shared scalar or "
        "a function of the epoch, or make the input a vector."
    )


def called(schedule: Callable[[int], Any], epoch: int, spec: InputSpec | None) -> Any:
    """What a function of the epoch returns.

    Raises
    ------
    ValueError
        If it raises an error itself.
    """
    try:
        return schedule(epoch)
    except Exception as error:
        raise ValueError(
            f"The function for {spec or 'a scalar'} fails for epoch {epoch} "
            f"({type(error).__name__}: {error}). A function among data is given the number of the "
            "epoch, and returns a number. Mend it; one that returns whole batches is given alone."
        ) from error


def now(value: Any, spec: InputSpec, epoch: int) -> Any:
    """A part of a single batch, where a number may also come from a function of the epoch."""
    if isinstance(value, np.ndarray):
        return value
    if spec.ndim == 0 and callable(value) and is_scalar(value):
        return as_scalar(called(value, epoch, spec), spec, returned=True)
    if spec.ndim and is_scalar(value):
        raise ValueError(_misplaced(value, spec))
    return value


def _misplaced(given: Any, spec: InputSpec) -> str:
    """Say that an input with dimensions is given a number, or a function."""
    if callable(given):
        return (
            f"A function is given for {spec}: a function of the epoch feeds a scalar. Give an "
            "array; a function that returns whole batches is given alone, as Dataset(function)."
        )
    what = given if not _is_shared_scalar(given) else f"The shared scalar {given}"
    return (
        f"{what!s:.80} is given for {spec}: an array has its input's number of dimensions. Give "
        "an array, or make the input a scalar, as in pt.scalar('beta')."
    )


def _is_shared_scalar(value: Any) -> bool:
    return hasattr(value, "get_value") and getattr(getattr(value, "type", None), "ndim", 1) == 0


def _subject(value: Any, spec: InputSpec, returned: bool) -> str:
    if returned:
        return f"The function of the epoch for {spec} returned {value!r:.80}"
    return f"{value!r:.80} is given for {spec}"


def _is_held(number: Any, target: np.dtype) -> bool:
    if target.kind in "iu":
        limits = np.iinfo(target)
        return bool(limits.min <= number <= limits.max)
    if target.kind == "f":
        try:
            number = float(number)
        except OverflowError:  # of an integer
            return False
        with np.errstate(all="ignore"):
            cast = np.array(number).astype(target)
        return math.isinf(number) or bool(np.isfinite(cast))
    return bool(number == number)
