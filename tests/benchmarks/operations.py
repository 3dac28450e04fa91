"""Operations alone, with their gradients, beside PyTorch and JAX.

    python -m tests.benchmarks.operations [--operation softmax ...] [--rounds 9]

They take turns as in ``python -m tests.benchmarks``; JAX is the contestant ``optax``.
"""

import argparse
import sys

from tests.benchmarks.__main__ import show
from tests.benchmarks.contest import disagree, measure
from tests.benchmarks.rungs import OPERATIONS


def main():
    """Measure the operations that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operation", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--peers", nargs="+", default=["torch", "optax"])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    failed = False
    for name in arguments.operation:
        (entry,) = measure(name, ["ours", *arguments.peers], arguments.rounds).values()
        show(name, entry)
        failed |= disagree(entry["checks"])
    return failed


if __name__ == "__main__":
    sys.exit(main())
