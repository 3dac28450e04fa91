"""How costs grow with the parameters, the arrays that hold them, the minibatch and the epochs.

    python -m tests.benchmarks.growth FILE [--rounds 3]

writes a JSON file from which the documentation draws its figure (``docs/growth.json``).
"""

import argparse
import json
import statistics
from pathlib import Path

from tests.benchmarks.contest import measure
from tests.benchmarks.rungs import GROWTH, WARM


def grow(what, rounds):
    """Sizes, and each contestant's median milliseconds for all updates of a block by updates."""
    curves = {name: [] for name in WARM}
    for size, rung in GROWTH[what].items():
        (entry,) = measure(f"{what} {size}", WARM, rounds).values()
        # Epochs differ in their updates; everything else is looked at by the update.
        updates = rung.updates if what == "epochs" else 1
        for name, values in entry["figures"].items():
            curves[name].append(statistics.median(values) * updates / 1000)
        print(what, size, {name: round(values[-1], 4) for name, values in curves.items()})
    return {"sizes": list(GROWTH[what]), "milliseconds": curves}


def main():
    """Measure all, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    curves = {what: grow(what, arguments.rounds) for what in GROWTH}
    arguments.file.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
