"""Elementary functions of single-precision numbers that LLVM can compute many at a time.

Numba calls the C library once for each element: with an LLVM that has no vector library, which is
what PyPI's wheels bring, that takes 10 to 80 times as long. Each formula below is plain arithmetic
without a branch, so that a loop around it becomes vector instructions. Errors are relative, against
the function in double precision, over all float32 numbers whose result is a normal number.

Notes
-----
The polynomials are those of Cephes, ``tanhf.c``, ``expf.c`` and ``logf.c``: S. L. Moshier, "Methods
and Programs for Mathematical Functions", Ellis Horwood, 1989.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

# LLVM may contract to a fused multiply-add, but not reorder as PyTensor allows it elsewhere: that
# would undo the compensated sums. Division by 0 gives infinity: an exception would be a branch.
_compiled: Callable[[Callable[..., Any]], Any] = numba.njit(
    fastmath={"contract"}, error_model="numpy", forceinline=True
)
_f = np.float32


@intrinsic  # type: ignore[untyped-decorator]
def _select(
    typing_context: Any, condition: Any, yes: Any, no: Any
) -> tuple[Any, Callable[..., Any]]:
    """``yes if condition else no`` as one instruction.

    Numba makes a branch of a conditional expression, and LLVM moves work into it, as soon as a
    loop holds two of these functions: it is then not vectorised.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return types.float32(types.boolean, types.float32, types.float32), generate


_ZERO, _HALF, _ONE, _TWO = _f(0), _f(0.5), _f(1), _f(2)
_INFINITY, _NAN = _f(np.inf), _f(np.nan)

# tanh(x) = x + x s P(s), s = x^2, below the bound.
_TANH_BOUND = _f(0.625)
_T0, _T1, _T2 = _f(-5.70498872745e-3), _f(2.06390887954e-2), _f(-5.37397155531e-2)
_T3, _T4 = _f(1.33314422036e-1), _f(-3.33332819422e-1)

# Outside these exp(x) is 0 or infinity.
_EXP_LOW, _EXP_HIGH = _f(-104), _f(89)
_LOG2_E = _f(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = _f(0.693359375), _f(-2.12194440e-4)  # their sum is ln 2
# Added to a float32, this leaves the nearest integer in the lowest bits.
_ROUND = _f(12582912)
_ROUND_BITS = np.int32(0x4B400000)
_E0, _E1, _E2 = _f(1.9875691500e-4), _f(1.3981999507e-3), _f(8.3334519073e-3)
_E3, _E4, _E5 = _f(4.1665795894e-2), _f(1.6666665459e-1), _f(5.0000001201e-1)
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)

_SQRT_HALF = _f(0.707106781186547524)
_MANTISSA, _HALF_BITS, _HALF_EXPONENT = (np.int32(n) for n in (0x007FFFFF, 0x3F000000, 126))
_L0, _L1, _L2 = _f(7.0376836292e-2), _f(-1.1514610310e-1), _f(1.1676998740e-1)
_L3, _L4, _L5 = _f(-1.2420140846e-1), _f(1.4249322787e-1), _f(-1.6668057665e-1)
_L6, _L7, _L8 = _f(2.0000714765e-1), _f(-2.4999993993e-1), _f(3.3333331174e-1)
_LINEAR = _f(2.0**-25)  # below, log1p(x) is x

_SIGN_SHIFT, _MAGNITUDE, _LOWEST = np.int32(31), np.int32(0x7FFFFFFF), np.int32(-(2**31))


@_compiled
def tanh(x: Any) -> Any:
    """Hyperbolic tangent; relative error below 2e-7."""
    s = x * x
    low = ((((_T0 * s + _T1) * s + _T2) * s + _T3) * s + _T4) * s * x + x
    high = _ONE - _TWO / (exp(_TWO * abs(x)) + _ONE)
    return np.float32(np.copysign(_select(abs(x) < _TANH_BOUND, low, high), x))


@_compiled
def exp(x: Any) -> Any:
    """Exponential function; relative error below 1.5e-7."""
    c = _select(x > _EXP_LOW, x, _EXP_LOW)
    c = _select(c < _EXP_HIGH, c, _EXP_HIGH)
    rounded = c * _LOG2_E + _ROUND
    n = rounded - _ROUND
    r = c - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    y = p * (r * r) + r + _ONE
    # 2**n in two factors, of which neither is too large or too small.
    i = np.int32(np.float32(rounded).view(np.int32) - _ROUND_BITS)
    half = np.int32(i >> np.int32(1))
    y = y * _power_of_2(half) * _power_of_2(np.int32(i - half))
    return _select(x == x, y, x)


@_compiled
def sigmoid(x: Any) -> Any:
    """Logistic function; relative error below 2e-7."""
    return _ONE / (_ONE + exp(-x))


@_compiled
def log1p(x: Any) -> Any:
    """Logarithm of 1 + x; relative error below 2e-7."""
    y = _log1p(x)
    y = _select(abs(x) < _LINEAR, x, _select(x == _INFINITY, x, y))
    y = _select(x == -_ONE, -_INFINITY, y)
    return _select(x >= -_ONE, y, _NAN)


@_compiled
def softplus(x: Any) -> Any:
    """Logarithm of 1 + exp(x); relative error below 2e-7."""
    return _select(x < _ZERO, _ZERO, x) + _log1p(exp(-abs(x)))


@_compiled
def _power_of_2(n: Any) -> Any:
    return np.int32((n + _BIAS) << _MANTISSA_BITS).view(np.float32)


@_compiled
def _log1p(x: Any) -> Any:
    u = _ONE + x
    rest = x - (u - _ONE)  # what the sum has lost
    return _log(u) + rest / u


@_compiled
def _log(x: Any) -> Any:
    """Logarithm of a normal number."""
    bits = np.float32(x).view(np.int32)
    e = _f(np.int32(bits >> _MANTISSA_BITS) - _HALF_EXPONENT)
    m = np.int32((bits & _MANTISSA) | _HALF_BITS).view(np.float32)
    low = m < _SQRT_HALF
    e = _select(low, e - _ONE, e)
    r = _select(low, m + m, m) - _ONE
    s = r * r
    p = _L0
    p = ((((p * r + _L1) * r + _L2) * r + _L3) * r + _L4) * r + _L5
    p = ((p * r + _L6) * r + _L7) * r + _L8
    return r + (p * (r * s) + e * _LN2_LOW - _HALF * s) + e * _LN2_HIGH


# A sum may be computed in another order, so that LLVM adds many numbers at a time.
_of_rows: Callable[[Callable[..., Any]], Any] = numba.njit(
    fastmath={"contract", "reassoc"}, error_model="numpy"
)


@_of_rows
def softmax(x: Any) -> Any:
    """Softmax of each row of a contiguous matrix; relative error below 1e-6."""
    result = np.empty_like(x)
    for index in range(x.shape[0]):
        row, out = x[index], result[index]
        total = _exponentials(row, out, _largest(row))
        for column in range(row.size):
            out[column] /= total
    return result


@_of_rows
def log_softmax(x: Any) -> Any:
    """Logarithm of the softmax of each row of a contiguous matrix."""
    result = np.empty_like(x)
    for index in range(x.shape[0]):
        row, out = x[index], result[index]
        largest = _largest(row)
        log_total = np.log(_exponentials(row, out, largest))
        for column in range(row.size):
            out[column] = row[column] - largest - log_total
    return result


@_of_rows
def _exponentials(row: Any, out: Any, largest: Any) -> Any:
    """Put ``exp(row - largest)`` into ``out``; returns their sum."""
    for column in range(row.size):
        out[column] = exp(row[column] - largest)
    total = _ZERO
    for column in range(row.size):
        total += out[column]
    return total


@_of_rows
def _largest(row: Any) -> Any:
    """The largest number, or NaN where there is one: by integers of the same order."""
    largest = _LOWEST
    for column in range(row.size):
        largest = max(largest, _in_order(np.float32(row[column]).view(np.int32)))
    return np.int32(_in_order(largest)).view(np.float32)


@_compiled
def _in_order(bits: Any) -> Any:
    """Of the bits of a float32, an integer that is greater for a greater number; and back."""
    return np.int32(bits ^ ((bits >> _SIGN_SHIFT) & _MAGNITUDE))
