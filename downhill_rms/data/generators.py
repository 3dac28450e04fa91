"""States of numpy's random generators as text, and back."""

from __future__ import annotations

import json

import numpy as np


def generator_state(generator: np.random.Generator) -> str:
    """The state of a generator as JSON."""
    return json.dumps(generator.bit_generator.state, default=lambda array: array.tolist())


def set_generator_state(generator: np.random.Generator, state: str) -> None:
    """Set a state that `generator_state` returned, in a generator of the same kind."""
    generator.bit_generator.state = json.loads(state)
