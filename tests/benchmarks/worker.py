"""One contestant in a process of its own, which works when it is asked to.

    python -m tests.benchmarks.worker CONTESTANT RUNG

After a line that says who it is, each line on standard input is a number of updates, and is
answered by the seconds that they took and the loss after them, as JSON.
"""

import importlib
import json
import sys
import time

from tests.benchmarks.rungs import RUNGS


def main(contestant, rung):
    """Answer until standard input ends."""
    train, version = importlib.import_module(f"tests.benchmarks.peers.{contestant}").prepare(
        RUNGS[rung]
    )
    answers = sys.stdout
    print(json.dumps(version), file=answers, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        loss = train(int(line))
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "loss": loss}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
