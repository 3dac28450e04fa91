"""Training, timed beside other libraries.

    python -m tests.benchmarks [--rung A B ...] [--peers torch optax ...] [--rounds 15]
                               [--cores N] [--busy] [--json FILE]

Every contestant trains the same model from the same parameters on the same minibatches by the
same centered RMSProp, in a process of its own. They take turns, one at a time, block by block;
each block's time is divided by that of this library's block in the same round. The losses after
the first block are compared, so that nobody computes something else. Rungs A to H are warm; I, J
and L start a process for every figure. K is ``python -m tests.benchmarks.costs``. With ``--cores``
everyone has so many cores and no more; with ``--busy`` another process works all the time. Needs
the extra ``bench``.
"""

import argparse
import json
import os
import statistics
import sys
from contextlib import nullcontext
from pathlib import Path

from tests.benchmarks.contest import disagree, measure, measure_fresh, ratios, spread
from tests.benchmarks.hardware import busy_core, description
from tests.benchmarks.rungs import FRESH, RUNGS

FRESH_ROUNDS = 5  # at the most: a process on an empty cache takes long


def show(name, entry):
    """Print a rung's figures."""
    print(f"\n{name}: {entry['title']}; {entry['unit']}")
    compared = ratios(entry)
    for who, figures in entry["figures"].items():
        text = (
            f"  {who:<11} least {min(figures):11,.2f}  median {statistics.median(figures):11,.2f}"
        )
        if who in compared:
            low, middle, high = spread(compared[who])
            text += f"  ratio {middle:6.2f} (quartiles {low:.2f} to {high:.2f})"
        print(f"{text}  {entry['versions'][who]}, check {entry['checks'][who]}")
    if disagree(entry["checks"]):
        print("  THE CHECKS DISAGREE: not the same computation")


def wanted(contestants, peers):
    """Who takes part: by default everyone, else this library and the peers that are named."""
    if peers is None:
        return contestants
    ours = [name for name in contestants if name.startswith("ours")]
    return (
        ours
        + [name for name in contestants if name.partition(":")[0] in peers]
        + [name for name in peers if name not in contestants]
    )


def main():
    """Measure the rungs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*RUNGS, *FRESH]
    parser.add_argument("--rung", nargs="+", choices=known, default=known)
    parser.add_argument("--peers", nargs="+", help="by default those of each rung")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cores", type=int, help="for everyone; by default all")
    parser.add_argument("--busy", action="store_true", help="keep a core busy")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.cores:  # which all that is started here inherits
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    machine = description()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    with busy_core() if arguments.busy else nullcontext():
        return compare(arguments, machine | {"a core is busy": arguments.busy})


def compare(arguments, machine):
    """Measure; whether something went wrong."""
    results = {"machine": machine, "rungs": {}}
    for name in arguments.rung:
        entries = {}
        if name in RUNGS:
            contestants = wanted(RUNGS[name].contestants, arguments.peers)
            entries = measure(name, contestants, arguments.rounds)
        for cache, takers in FRESH[name].contestants.items() if name in FRESH else ():
            rounds = min(arguments.rounds, FRESH_ROUNDS)
            entries |= measure_fresh(name, cache, wanted(takers, arguments.peers), rounds)
        for title, entry in entries.items():
            show(title, entry)
        results["rungs"] |= entries
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2))
    return any(disagree(entry["checks"]) for entry in results["rungs"].values())


if __name__ == "__main__":
    sys.exit(main())
