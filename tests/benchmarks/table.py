"""The figures of a JSON file as a table of docs/performance, in CSV.

python -m tests.benchmarks.table FILE > docs/tables/NAME.csv

The file is one of ``python -m tests.benchmarks`` or of ``python -m tests.benchmarks.depth``.
"""

import csv
import json
import math
import statistics
import sys
from collections import Counter
from pathlib import Path

from tests.benchmarks.contest import ratios, spread
from tests.benchmarks.rungs import rung_of

NAMES = {"ours": "this library", "torch": "PyTorch", "sklearn": "scikit-learn"}
USAGES = {
    "many": "100 updates a call",
    "scan": "100 updates a call",
    "tiered": "tiered",
    "compiled": "compiled first",
    "plain": "mode NUMBA",
    "c": "mode CVM",
}


def name_of(contestant):
    """What the table calls a contestant that is compared with the first."""
    name, _, usage = contestant.partition(":")
    if contestant == "ours":
        usage = "compiled"  # beside itself, in another usage
    return NAMES.get(name, name) + (f" ({USAGES[usage]})" if usage else "")


def figure_of(number, unit):
    """Three digits, since machines vary by a tenth; milliseconds where microseconds are many."""
    short = unit.removesuffix(" an update")
    if short == "us" and number >= 1000:
        number, short = number / 1000, "ms"
    digits = max(0, 2 - math.floor(math.log10(number)))
    return f"{number:,.{digits}f} {short}"


def table(results):
    """Medians of the first contestant, and a column of ratios with quartiles for each other.

    Those that are in fewer than half of the rungs share the last column, by name.
    """
    rows = []
    for rung, entry in results["rungs"].items():
        first, *_ = entry["figures"]
        others = {}
        for name, values in ratios(entry).items():
            low, middle, high = spread(values)
            others[name_of(name)] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        middle = statistics.median(entry["figures"][first])
        usage = USAGES.get(first.partition(":")[2])
        figure = figure_of(middle, entry["unit"]) + (f" ({usage})" if usage else "")
        rows.append((f"{rung.split()[0]}: {entry['title']}", figure, others))
    counts = Counter(name for *_, others in rows for name in others)
    columns = [name for name, count in counts.items() if 2 * count >= len(rows)]
    header, body = ["rung", "this library takes", *columns], []
    for rung, ours, others in rows:
        body.append([rung, ours, *(others.pop(name, None) for name in columns)])
        if len(columns) < len(counts):
            body[-1].append("; ".join(f"{name} {cell}" for name, cell in others.items()))
    if len(columns) < len(counts):
        header.append("others")
    return [header, *body]


def depth_table(found):
    """What compiling takes, and milliseconds for an update."""
    rows = [
        ["", "empty cache", "warm", "an update", "PyTorch's", "optax's", "``jax.jit``, in all"],
    ]
    for rung, costs in found.items():
        ours, empty = costs["ours"]["warm"], costs["ours"]["empty"]
        row = [rung_of(rung).title, f"{empty['processor']:.0f} s, {empty['gigabytes']:.1f} GB"]
        row += [f"{ours['seconds']:.1f} s", f"{ours['update']:.2f} ms"]
        for name in ("torch", "optax"):
            row.append(f"{costs[name]['warm']['update']:.2f} ms" if name in costs else "")
        row.append(f"{costs['optax']['empty']['processor']:.1f} s" if "optax" in costs else "")
        rows.append(row)
    return rows


if __name__ == "__main__":
    results = json.loads(Path(sys.argv[1]).read_text())
    rows = table(results) if "rungs" in results else depth_table(results)
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
