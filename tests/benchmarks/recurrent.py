"""Recurrent networks of many sizes, timed beside torch and optax.

    python -m tests.benchmarks.recurrent [--cells LSTM GRU RNN] [--units 32 128 512]
        [--batches 1 16 64] [--lengths 20 64 200] [--peers torch optax] [--rounds 5]

By default one size differs from 128 units, batch 16 and length 64; sizes that are named are
combined with each other. ``python -m tests.benchmarks.depth --rung "LSTM 128-16-64"`` measures what
it takes to compile one.
"""

import argparse
import statistics
from itertools import product

from tests.benchmarks.contest import disagree, measure, ratios, spread

SIZES = {"units": (32, 128, 512), "batches": (1, 16, 64), "lengths": (20, 64, 200)}
MIDDLE = {"units": 128, "batches": 16, "lengths": 64}


def networks(cells, sizes):
    """The names of networks: all combinations of sizes that are named, or one that differs."""
    if any(sizes.values()):
        chosen = list(product(*(sizes[what] or (MIDDLE[what],) for what in SIZES)))
    else:
        varied = ({**MIDDLE, what: size} for what in SIZES for size in SIZES[what])
        chosen = list(dict.fromkeys(tuple(point.values()) for point in varied))
    return [f"{cell} {'-'.join(map(str, point))}" for cell in cells for point in chosen]


def compare(name, contestants, rounds):
    """Print what an update takes, and the others' ratios."""
    (entry,) = measure(name, contestants, rounds).values()
    ours = statistics.median(entry["figures"]["ours"])
    text = f"{name:<16} {ours:11,.1f} us"
    for who, values in ratios(entry).items():
        low, middle, high = spread(values)
        text += f"   {who} {middle:.2f} ({low:.2f} to {high:.2f})"
    print(text + "  THE LOSSES DISAGREE" * disagree(entry["checks"]), flush=True)


def main():
    """Measure the networks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=["LSTM"], choices=["LSTM", "GRU", "RNN"])
    for what, sizes in SIZES.items():
        parser.add_argument(f"--{what}", nargs="+", type=int, metavar=str(sizes[1]))
    parser.add_argument("--peers", nargs="*", default=["torch", "optax"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    contestants = ["ours", *arguments.peers]
    sizes = {what: getattr(arguments, what) for what in SIZES}
    for name in networks(arguments.cells, sizes):
        compare(name, contestants, arguments.rounds)


if __name__ == "__main__":
    main()
