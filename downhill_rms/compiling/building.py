"""Graphs of thousands of operations, made and compiled in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytensor


@contextmanager
def quick_building() -> Iterator[None]:
    """Have Python look for garbage less often, and PyTensor not note who called what.

    Python looks for garbage whenever 700 objects were made, and a deep graph has millions, nearly
    all of which stay: a quarter of the time. PyTensor notes for each variable the lines of source
    that made it: a fifth of the rest, for variables that the library makes.
    """
    former = gc.get_threshold()
    gc.set_threshold(100_000, 20, 50)
    try:
        with pytensor.config.change_flags(traceback__limit=0):
            yield
    finally:
        gc.set_threshold(*former)
