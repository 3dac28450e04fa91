"""Contestants that take turns, each in a process of its own.

What comes out is a dictionary of entries, one for a row of the table: its title and unit, each
contestant's figures in the order of the rounds, what tells that everyone computed the same, and
the contestants' versions. Ratios are to the contestant that is named first.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

from tests.benchmarks.rungs import FRESH, rung_of

# Threads that have computed products go on waiting for more, actively, for up to 0.1 s, in the way
# of whoever is next.
REST = 0.25  # seconds before each block

TOLERANCE = 0.02  # relative, of what is compared: sums of float32 in different orders


class Contestant:
    """A worker process."""

    def __init__(self, name, rung, cache=None):
        command = [sys.executable, "-m", "tests.benchmarks.worker", name, rung]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        environment = {"PYTENSOR_FLAGS": f"base_compiledir={cache}"} if cache else {}
        self.started = time.perf_counter()
        self.process = subprocess.Popen(command, text=True, env=os.environ | environment, **pipes)
        self.version = json.loads(self.process.stdout.readline())

    def train(self, updates):
        """What the worker answers after so many updates, and the seconds since it was started."""
        self.process.stdin.write(f"{updates}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer | {"since_start": time.perf_counter() - self.started}

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def new_entry(title, unit, contestants):
    """An entry without figures."""
    figures = {name: [] for name in contestants}
    return {"title": title, "unit": unit, "figures": figures, "checks": {}, "versions": {}}


def measure(rung, contestants, rounds):
    """Microseconds an update, of processes that have compiled and are warm."""
    title, updates = rung_of(rung).title, rung_of(rung).updates
    entry = new_entry(title, "us an update", contestants)
    workers = {name: Contestant(name, rung) for name in contestants}
    for turn in range(rounds + 1):
        for name, worker in workers.items():
            time.sleep(REST)
            answer = worker.train(updates)
            if turn:
                entry["figures"][name].append(answer["seconds"] / updates * 1e6)
            else:  # which compiles; later losses amplify rounding
                entry["checks"][name] = answer["check"]
                entry["versions"][name] = worker.version
    for worker in workers.values():
        worker.close()
    return {rung: entry}


def measure_fresh(rung, cache, contestants, rounds):
    """What processes need that are started for it, on a cache that is empty or warm."""
    entries = {}
    with tempfile.TemporaryDirectory() as warm:
        for turn in range(rounds + (cache == "warm")):
            for name in contestants:
                with tempfile.TemporaryDirectory() as empty:
                    worker, answers = run_afresh(rung, name, warm if cache == "warm" else empty)
                if cache == "warm" and turn == 0:
                    continue  # this one fills the cache
                for what, unit, figure in FRESH[rung].figures(answers):
                    title = f"{FRESH[rung].network.title}: {what}, {cache} cache"
                    entry = new_entry(title, unit, contestants)
                    entry = entries.setdefault(f"{rung} {what} {cache}", entry)
                    entry["figures"][name].append(figure)
                    entry["checks"].setdefault(name, answers[-1]["check"])
                    entry["versions"][name] = worker.version
    return entries


def run_afresh(rung, name, cache):
    """A worker from its start to its end, and its answers."""
    worker = Contestant(name, rung, cache)
    answers = [worker.train(updates) for updates in FRESH[rung].updates]
    worker.close()
    return worker, answers


def disagree(checks):
    """Whether what is compared is not that of the same computation."""
    values = [value for value in checks.values() if value is not None]
    return not all(
        math.isclose(value, values[0], rel_tol=TOLERANCE, abs_tol=1e-3) for value in values
    )


def ratios(entry):
    """Each contestant's figures by those of the first in the same round."""
    first, *others = entry["figures"]
    base = entry["figures"][first]
    return {
        name: [a / b for a, b in zip(entry["figures"][name], base, strict=True)] for name in others
    }


def spread(values):
    """Lower quartile, median and upper quartile."""
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))
