"""Damage checkpoint files in every way, and count what goes unnoticed.

Truncations, single-bit flips and zeroed blocks, on files of three sizes. A damaged file must raise
CheckpointError; it is silently wrong if it loads with other contents.

    python -m tests.reliability.damage
"""

import argparse
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from downhill_rms.saving.statefile import CheckpointError, read_state, write_state

SIZES = (10, 1_000, 30_000)  # values in the file's array


@dataclass
class Result:
    """What became of damaged files."""

    told: int = 0
    unchanged: int = 0
    silent: int = 0
    other_exceptions: int = 0


def equal(found, expected):
    """Whether two states hold the same bytes."""
    return found.keys() == expected.keys() and all(
        np.asarray(found[name]).tobytes() == np.asarray(value).tobytes()
        for name, value in expected.items()
    )


def judge(path, content, state, result):
    """Try to read damaged contents, and count what happens."""
    path.write_bytes(content)
    try:
        found = read_state(path)
    except CheckpointError:
        result.told += 1
    except Exception:
        result.other_exceptions += 1
    else:
        same = equal(found, state)
        result.unchanged += same
        result.silent += not same


def run(directory, truncations=200, flips=2000, blocks=200, seed=0):
    """Damage files of three sizes, so many times in each way."""
    rng, result = random.Random(seed), Result()
    for size in SIZES:
        path = directory / f"{size}.npz"
        state = {"w": np.random.default_rng(size).normal(size=size), "count": size, "name": "x"}
        write_state(path, state)
        whole = path.read_bytes()
        for _ in range(truncations):
            judge(path, whole[: rng.randrange(len(whole))], state, result)
        for _ in range(flips):
            flipped = bytearray(whole)
            flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            judge(path, flipped, state, result)
        for _ in range(blocks):
            start = rng.randrange(len(whole))
            zeroed = bytearray(whole)
            zeroed[start : start + 64] = bytes(len(zeroed[start : start + 64]))
            judge(path, zeroed, state, result)
    return result


def main():
    """Print the counts; exit with 1 if anything went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    with tempfile.TemporaryDirectory() as directory:
        result = run(Path(directory), seed=seed)
    print(
        f"damaged files: {result.told} told, {result.silent} silently wrong, "
        f"{result.other_exceptions} other exceptions, {result.unchanged} with no effect"
    )
    sys.exit(result.silent + result.other_exceptions > 0)


if __name__ == "__main__":
    main()
