"""Reading ahead: a thread does what will be asked for next."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(batches: Iterator[T], count: int) -> Generator[T, None, None]:
    """The same batches, ``count`` of them read ahead by a thread."""
    with ThreadPoolExecutor(1, "downhill_rms-prefetch") as pool:
        pending = deque(pool.submit(next, batches, None) for _ in range(count))
        try:
            while (batch := pending.popleft().result()) is not None:
                pending.append(pool.submit(next, batches, None))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
