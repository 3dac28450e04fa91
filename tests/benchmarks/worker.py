"""One contestant in a process of its own, which works when it is asked to.

    python -m tests.benchmarks.worker CONTESTANT RUNG

A contestant is the name of a module of ``peers``, and after a colon how it is to be used. After
a line that says who it is, each line on standard input is a number of updates, and is answered,
as JSON, by the seconds that they took, a number that tells whether everyone computes the same,
and the bytes of memory that the process has gained since its imports, at the most.
"""

import importlib
import json
import resource
import sys
import time
from pathlib import Path

from tests.benchmarks.rungs import rung_of


def resident_bytes():
    """Bytes of memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_bytes():
    """Bytes of memory that the process has held at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(contestant, name):
    """Answer until standard input ends."""
    module, _, usage = contestant.partition(":")
    peer = importlib.import_module(f"tests.benchmarks.peers.{module}")
    rung = rung_of(name)
    before = resident_bytes()
    train = getattr(peer, rung.kind)(rung, *filter(None, [usage]))
    answers = sys.stdout
    print(json.dumps(peer.version()), file=answers, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        check = train(int(line))
        seconds = time.perf_counter() - started
        answer = {"seconds": seconds, "check": check, "bytes": peak_bytes() - before}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
