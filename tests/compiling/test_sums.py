"""Sums of arrays of any layout, bit by bit those of PyTensor where an array is contiguous."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms.compiling.modes import REWRITTEN, training_mode

RNG = np.random.default_rng(0)
LAYOUTS = {
    "contiguous": lambda shape: RNG.normal(size=shape),
    "transposed": lambda shape: RNG.normal(size=shape[::-1]).T,
    "strided": lambda shape: RNG.normal(size=tuple(2 * n for n in shape))[
        tuple(slice(None, None, 2) for _ in shape)
    ],
    "backwards": lambda shape: RNG.normal(size=shape)[::-1],
    "empty": lambda shape: np.zeros((0, *shape[1:])),
}
AXES = {
    "float32": [(1, (0,)), (2, (0,)), (2, (1,)), (2, (0, 1)), (3, (0, 2)), (3, (1,))],
    "float64": [(2, (0,)), (2, (0, 1))],
}
CASES = [(dtype, *case) for dtype, cases in AXES.items() for case in cases]


@pytest.mark.parametrize(("dtype", "ndim", "axes"), CASES)
def test_sums(dtype, ndim, axes):
    x = pt.tensor("x", shape=(None,) * ndim, dtype=dtype)
    outputs = [x.sum(axis=axes), pt.sum(x, axis=axes, acc_dtype=dtype)]
    ours = pytensor.function([x], outputs, mode=training_mode(REWRITTEN))
    theirs = pytensor.function([x], outputs, mode="NUMBA")
    for name, make in LAYOUTS.items():
        array = make((5, 17, 3)[:ndim]).astype(dtype)
        exact = array.astype("float64").sum(axis=axes)
        for found, right in zip(ours(array), theirs(array), strict=True):
            assert found.dtype == dtype
            assert found.shape == exact.shape
            np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)
            if name == "contiguous":
                np.testing.assert_array_equal(found, right)


def test_other_reductions_are_left_alone():
    integers, x, flags = pt.lmatrix("i"), pt.fmatrix("x"), pt.bmatrix("b")
    outputs = [integers.sum(axis=0), x.max(axis=1), x.prod(), flags.sum(), x.sum(axis=())]
    arrays = [np.arange(6).reshape(2, 3), RNG.normal(size=(2, 3)).astype("float32"), np.eye(2)]
    arrays[2] = arrays[2].astype("int8")
    function = pytensor.function([integers, x, flags], outputs, mode=training_mode(REWRITTEN))
    exact = [arrays[0].sum(axis=0), arrays[1].max(axis=1), arrays[1].prod(), 2, arrays[1]]
    for found, right in zip(function(*arrays), exact, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-6)
