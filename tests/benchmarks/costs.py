"""What the trainer costs beside the compiled function: rung K.

    python -m tests.benchmarks.costs [--rounds N]

On the 5-feature regression (rung A) the compiled update alone, the shuffled minibatches alone and
``iterate`` take turns: what is left is the loop's own. On the digits' network (rung B) trainers
that do more take turns with one that does not: validation after every epoch, norms of gradients,
telemetry of updates, a checkpoint after every epoch, and so on. Medians, in microseconds.
"""

import argparse
import statistics
import tempfile
import time
from itertools import count

from downhill_rms import Checkpoint, Dataset, Trainer
from tests.benchmarks.peers.ours import OPTIONS, network_trainer
from tests.benchmarks.rungs import RUNGS

EPOCHS = 10  # in a block


def seconds(action):
    """How long it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def take_turns(actions, rounds):
    """The median time of each action."""
    times = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            elapsed = seconds(action)
            if turn:  # the first warms up
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def loop(rounds):
    """Microseconds an update, of which what."""
    rung = RUNGS["A"]
    trainer = network_trainer(rung)
    data = Dataset(list(rung.data()), batch_size=rung.batch, rng=0)
    updates = EPOCHS * len(data)
    trainer.minimize(data, max_updates=1, **OPTIONS)
    batches = [list(batch) for batch in data]
    function = trainer.steps._update.function  # the compiled update itself

    def call():
        for _ in range(EPOCHS):
            for batch in batches:
                function(*batch)

    def gather():
        bound = data.bind(trainer.steps.specs)
        for _ in range(EPOCHS):
            for _ in bound.epoch():
                pass

    def iterate():
        trainer.minimize(data, batches[0], max_updates=updates, **OPTIONS)

    whole = take_turns({"function": call, "minibatches": gather, "iterate": iterate}, rounds)
    result = {name: value / updates * 1e6 for name, value in whole.items()}
    result["the loop itself"] = result["iterate"] - result["function"] - result["minibatches"]
    return result


def extras(rounds):
    """Microseconds an epoch that is plain, and that does more."""
    rung = RUNGS["B"]
    arrays = list(rung.data())

    def epochs(trainer, more):
        data = Dataset(arrays, batch_size=rung.batch, rng=0)
        options = {**OPTIONS, "validate_every": 10**9, "patience": 1e9, **more}
        trainer.minimize(data, arrays, max_epochs=EPOCHS, **options)

    plain = network_trainer(rung)
    graph = (plain.graph.loss, plain.graph.params, plain.graph.inputs)
    norms = Trainer(*graph, monitor_gradients=True)
    telemetry = Trainer(*graph, monitor_updates=True)
    with tempfile.TemporaryDirectory() as folder:
        names = count()

        def saving():
            return {"checkpoint": Checkpoint(f"{folder}/{next(names)}", every_epochs=1)}

        actions = {
            "plain": lambda: epochs(plain, {}),
            "validation of as many samples": lambda: epochs(plain, {"validate_every": 1}),
            "monitor_gradients": lambda: epochs(norms, {}),
            "monitor_updates": lambda: epochs(telemetry, {}),
            "checkpoint": lambda: epochs(plain, saving()),
        }
        return {n: v / EPOCHS * 1e6 for n, v in take_turns(actions, rounds).items()}


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{RUNGS['A'].title}: microseconds an update")
    for name, value in loop(rounds).items():
        print(f"  {name:<30} {value:8.2f}")
    print(f"{RUNGS['B'].title}: microseconds an epoch of {RUNGS['B'].samples} samples")
    times = extras(rounds)
    for name, value in times.items():
        print(f"  {name:<30} {value:8.0f}  {value / times['plain']:.3f} times plain")


if __name__ == "__main__":
    main()
