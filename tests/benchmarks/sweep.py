"""Sweeps beside other ways to make K runs: the same runs, interleaved, in one go.

    python -m tests.benchmarks.sweep [--rung A B C] [--runs K ...] [--rounds N] [--updates N]
                                     [--ways WAY ...] [--no-building] [--memory]

Every way trains the rung's network from one start with K learning rates. *separate* makes K
trainers in one process, compiled once each by the cache on disk, and trains one after the other;
*again* trains one trainer K times; *in turns*, *together* and *together, JAX* are `Trainer.sweep`;
*in turns, many* has 50 updates in a call, as runs together have, and *together, one* has one;
*optax* is ``jax.vmap`` over the runs with a scan over an epoch's minibatches, and *optax, call* one
call for each minibatch. The ways take turns, round by round, and each time is divided by that of
*separate* in the same round. Printed are microseconds for one run's update without building, and
seconds from the beginning to the table with it: there *processes* are K processes of their own, one
after the other. The losses of all ways are compared. ``--memory`` prints what K runs in turns add
to a process beside what one run adds. Needs the extra ``bench``.
"""

import argparse
import functools
import gc
import json
import statistics
import subprocess
import sys
import time

import numpy as np

from downhill_rms import Dataset
from tests.benchmarks.contest import disagree, spread
from tests.benchmarks.hardware import processor
from tests.benchmarks.peers import ours
from tests.benchmarks.rungs import RUNGS
from tests.benchmarks.worker import peak_bytes, resident_bytes

RUNS = {"A": 32, "B": 8, "C": 4}  # unless others are asked for
UPDATES = {"A": 6000, "B": 1120, "C": 200}
TOGETHER = 50  # updates in a call, of what makes many
LIMITS = {"validate_every": 10**9, "patience": np.inf, "restore_best": False, "progress": False}


def rates(count):
    """Learning rates that are tried."""
    return np.geomspace(1e-4, 1e-2, count).tolist()


def problem(name, usage=""):
    """A trainer of a rung, its data, a small validation, and the rule but for the rate."""
    rung = RUNGS[name]
    trainer = ours.network_trainer(rung, usage)
    data = Dataset(list(rung.data()), batch_size=rung.batch, shuffle=None)
    first = [part[: rung.batch] for part in rung.data()]
    rule = {n: v for n, v in ours.RULE.items() if n != "learning_rate"}
    return trainer, data, first, {**LIMITS, **rule}


def swept(name, count, updates, how, mode="", together=None):
    """A sweep with one trainer, which is made at once and compiles when it is first called."""
    ours.USAGES.setdefault("JAX", ("JAX", 1))
    trainer, data, first, options = problem(name, mode)
    start = trainer.parameters.copy()

    def run():
        trainer.parameters.set(start)
        given = {**options, "learning_rate": rates(count), "how": how, "max_updates": updates}
        given |= {"updates_per_call": together} if together else {}
        found = trainer.sweep(data, first, **given)
        return [run.history[-1].valid["loss"] for run in found.runs]

    return run


def one_after_the_other(name, count, updates, again=False):
    """Runs of one trainer, or of a trainer each, that are compiled before."""
    made = [problem(name) for _ in range(1 if again else count)]
    start = made[0][0].parameters.copy()
    state = made[0][0].state_dict()

    def run():
        losses = []
        for index, rate in enumerate(rates(count)):
            trainer, data, first, options = made[0 if again else index]
            if again:
                trainer.load_state_dict(state)
            trainer.parameters.set(start)
            _, valid = trainer.minimize(
                data, first, max_updates=updates, learning_rate=rate, **options
            )
            losses.append(valid["loss"])
        return losses

    return run


def vmapped(name, count, updates, whole_epochs):
    """Optax with a leading axis of runs, an epoch's minibatches in one call, or one by one."""
    import jax
    import jax.numpy as jnp
    import optax

    from tests.benchmarks.peers import optax as peer

    rung = RUNGS[name]
    loss_of = peer.network_loss(rung)
    optimiser = optax.inject_hyperparams(peer.rmsprop)(learning_rate=1e-3)
    update = peer.update_by(loss_of, optimiser)
    x, y = rung.data()
    rows = rung.samples // rung.batch * rung.batch
    stacks = [a[:rows].reshape(-1, rung.batch, *a.shape[1:]) for a in (x, y)]
    many = jax.vmap(update, in_axes=(0, 0, *(None for _ in stacks)))
    scan = jax.jit(peer.scanned(many), donate_argnums=(0, 1))
    step = jax.jit(many, donate_argnums=(0, 1))
    evaluate = jax.jit(jax.vmap(loss_of, in_axes=(0, None, None)))

    def start(rate):
        layers = [jnp.asarray(value) for value in rung.parameters()]
        state = optimiser.init(layers)
        state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        return layers, state

    def run():
        params = jnp.asarray(rates(count), jnp.float32)
        layers, state = jax.vmap(start)(params)
        done, per_epoch, losses = 0, len(stacks[0]), []
        while done < updates:
            length = min(per_epoch, updates - done)
            if whole_epochs:
                parts = [a[:length] for a in stacks]
                layers, state, loss = scan(layers, state, *parts)
                losses.append(loss)
            else:
                for index in range(length):
                    layers, state, loss = step(layers, state, *(a[index] for a in stacks))
                    losses.append(loss)
            done += length
        np.asarray(losses[-1])  # which waits
        return np.asarray(evaluate(layers, x[: rung.batch], y[: rung.batch])).tolist()

    return run


def ways_of(name, count, updates):
    """What is compared, by name; each compiles when it is first called."""
    given = (name, count, updates)
    return {
        "separate": one_after_the_other(*given),
        "again": one_after_the_other(*given, again=True),
        "in turns": swept(*given, "in turns"),
        "in turns, many": swept(*given, "in turns", together=TOGETHER),
        "together": swept(*given, "together"),
        "together, one": swept(*given, "together", together=1),
        "together, JAX": swept(*given, "together", "JAX"),
        "optax": vmapped(*given, True),
        "optax, call": vmapped(*given, False),
    }


def show(title, unit, figures, digits=2):
    """A table of one measurement, with the ratios to the first way."""
    print(f"\n{title}; {unit}")
    base = next(iter(figures.values()))
    for way, values in figures.items():
        low, middle, high = spread([b / v for v, b in zip(values, base, strict=True)])
        text = f"  {way:<14} median {statistics.median(values):10.{digits}f}"
        print(f"{text}  times as fast {middle:6.2f} (quartiles {low:.2f} to {high:.2f})")


def updates_alone(name, count, updates, rounds, wanted=None):
    """Microseconds for one run's update, of ways that have compiled."""
    ways = ways_of(name, count, updates)
    ways = {way: ways[way] for way in wanted or ways}
    checks = {way: float(np.mean(run())) for way, run in ways.items()}
    figures = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            gc.collect()
            time.sleep(0.1)
            began = time.perf_counter()
            run()
            figures[way].append((time.perf_counter() - began) / updates / count * 1e6)
    show(f"{name}: {RUNGS[name].title}, {count} runs", "us for one run's update", figures)
    if disagree(checks):
        print(f"  THE LOSSES DISAGREE: {checks}")


def whole(name, count, updates, way):
    """From building to the losses, in this process, with a warm cache on disk."""
    given = (name, count, updates)
    kinds = {
        "separate": lambda: one_after_the_other(*given),
        "in turns": lambda: swept(*given, "in turns"),
        "together": lambda: swept(*given, "together"),
        "optax": lambda: vmapped(*given, True),
    }
    return kinds[way]()()


def in_a_process(name, count, updates, way):
    """Seconds from the start of a process to its losses."""
    command = [sys.executable, "-m", "tests.benchmarks.sweep", "--whole", way, "--rung", name]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--runs", str(count), "--updates", str(updates)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def with_building(name, count, updates, rounds):
    """Seconds from the command to the table."""
    ways = {
        "processes": lambda: sum(in_a_process(name, 1, updates, "separate") for _ in range(count)),
        **{
            way: functools.partial(in_a_process, name, count, updates, way)
            for way in ("separate", "in turns", "together", "optax")
        },
    }
    figures = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, run in ways.items():
            if turn == 0 and way == "processes":
                continue  # the first fills the cache
            seconds = run()
            if turn:
                figures[way].append(seconds)
    title = f"{name}: {RUNGS[name].title}, {count} runs, {updates} updates each"
    show(title, "s from the command to the losses, warm cache", figures)


def memory(name, count, updates):
    """Bytes that runs in turns add, and what one adds."""
    trainer, data, first, options = problem(name)
    options = {**options, "max_updates": updates, "learning_rate": 1e-3}
    trainer.minimize(data, first, **options)  # compiles
    params = list(trainer.parameters.variables.values())
    held = [*params, *params, *trainer.state.accumulators.values()]  # the best, too
    state = sum(v.get_value(borrow=True).nbytes for v in held)
    gc.collect()
    before = resident_bytes()
    peak = peak_bytes()
    trainer.sweep(data, first, how="in turns", **{**options, "learning_rate": rates(count)})
    added = peak_bytes() - max(before, peak)
    print(
        f"\n{name}: {count} runs in turns add {added / 1e6:.1f} MB at the peak; parameters, best "
        f"and accumulators of one are {state / 1e6:.2f} MB, of all {count * state / 1e6:.1f} MB"
    )


def main():
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rung", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--runs", type=int, nargs="+")
    parser.add_argument("--updates", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-building", action="store_true", help="measure updates alone")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--ways", nargs="+", help="some of them alone, for the updates alone")
    parser.add_argument("--whole", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.rung:
        updates = options.updates or UPDATES[name]
        for count in options.runs or [RUNS[name]]:
            if options.whole:
                print(json.dumps(whole(name, count, updates, options.whole)))
            elif options.memory:
                memory(name, count, updates)
            else:
                print(processor())
                updates_alone(name, count, updates, options.rounds, options.ways)
                if not options.no_building:
                    with_building(name, count, updates, min(options.rounds, 3))


if __name__ == "__main__":
    main()
