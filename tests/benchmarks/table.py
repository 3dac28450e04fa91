"""The figures of a JSON file as the table of docs/performance.

python -m tests.benchmarks.table FILE
"""

import json
import statistics
import sys
from pathlib import Path

from tests.benchmarks.rungs import RUNGS


def table(results):
    """A list-table: each rung's medians, and the peers' ratios with their quartiles."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    rows = [["rung", "this library, us an update", "peers' time by ours (quartiles)"]]
    for rung, result in results["rungs"].items():
        ours = result["times"]["ours"]
        peers = []
        for name, times in result["times"].items():
            if name != "ours":
                ratios = [a / b for a, b in zip(times, ours, strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                peers.append(f"{name} {middle:.2f} ({low:.2f} to {high:.2f})")
        title = f"{rung}: {RUNGS[rung].title}"
        rows.append([title, f"{statistics.median(ours):,.1f}", "; ".join(peers)])
    for row in rows:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
