"""The figures of a JSON file as the table of docs/performance.

python -m tests.benchmarks.table FILE
"""

import json
import statistics
import sys
from pathlib import Path

from tests.benchmarks.contest import ratios, spread

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
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
