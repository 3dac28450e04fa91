"""The figures of a JSON file as a table of docs/performance.

python -m tests.benchmarks.table FILE

The file is one of ``python -m tests.benchmarks`` or of ``python -m tests.benchmarks.depth``.
"""

import json
import statistics
import sys
from pathlib import Path

from tests.benchmarks.contest import ratios, spread
from tests.benchmarks.rungs import rung_of

NAMES = {"ours": "this library", "optax": "optax", "torch": "torch", "sklearn": "scikit-learn"}
USAGES = {
    "many": "100 updates a call",
    "scan": "100 updates a call",
    "tiered": "tiered",
    "plain": "mode NUMBA",
    "c": "mode CVM",
}


def name_of(contestant):
    """What the table calls a contestant."""
    name, _, usage = contestant.partition(":")
    return NAMES.get(name, name) + (f" ({USAGES[usage]})" if usage else "")


def table(results):
    """A list-table: medians of the first contestant, and the others' ratios with quartiles."""
    rows = [["rung", "this library", "others' figure by ours (quartiles)"]]
    for rung, entry in results["rungs"].items():
        first, *_ = entry["figures"]
        others = []
        for name, values in ratios(entry).items():
            low, middle, high = spread(values)
            others.append(f"{name_of(name)} {middle:.2f} ({low:.2f} to {high:.2f})")
        middle = statistics.median(entry["figures"][first])
        usage = USAGES.get(first.partition(":")[2])
        figure = f"{middle:,.1f} {entry['unit']}" + (f" ({usage})" if usage else "")
        rows.append([f"{rung.split()[0]}: {entry['title']}", figure, "; ".join(others)])
    return list_table(rows)


def depth_table(found):
    """A list-table: what compiling takes, and milliseconds for an update."""
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
    return list_table(rows)


def list_table(rows):
    """Rows in reStructuredText, of which the first has the headings."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines)


if __name__ == "__main__":
    results = json.loads(Path(sys.argv[1]).read_text())
    print(table(results) if "rungs" in results else depth_table(results))
