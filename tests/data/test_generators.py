"""States of numpy's generators as text."""

import numpy as np
import pytest

from downhill_rms.data.generators import generator_state, set_generator_state

KINDS = [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_goes_on(kind):
    generator = np.random.Generator(kind(3))
    generator.integers(0, 5, size=7, dtype="int32")  # leaves half a word behind
    state = generator_state(generator)
    other = np.random.Generator(kind(4))
    set_generator_state(other, state)
    np.testing.assert_array_equal(other.normal(size=9), generator.normal(size=9))


def test_another_kind_is_refused():
    state = generator_state(np.random.Generator(np.random.PCG64(1)))
    with pytest.raises(ValueError, match="MT19937"):
        set_generator_state(np.random.Generator(np.random.MT19937(1)), state)
