"""Many devices: what an update takes on 1, 2 and 4, beside JAX with the same sharding by hand.

The rungs' networks are trained on virtual devices of one process (``1x4``: one process, four
devices) and in processes that talk through gloo (``2x1``). Virtual devices and processes share the
processor's cores: what is seen is what dividing the work costs, and no speed. The contestants are
processes that take turns, block by block. Printed are also the messages of an update, which are
counted in the text that XLA has compiled, and their bytes.

    python -m tests.benchmarks.devices [--rung C D] [--layouts 1x1 1x2 1x4 2x1] [--rounds 9]
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time

REST = 0.25  # seconds before each block
MESSAGE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\(")
ARRAY = re.compile(r"(f32|f64|s32|s64|u32|pred)\[([\d,]*)\]")
BYTES = {"f32": 4, "f64": 8, "s32": 4, "s64": 8, "u32": 4, "pred": 1}


def messages(text):
    """How many messages a compiled program sends, and the bytes of what they hold."""
    found = [shape for shape, _ in MESSAGE.findall(text)]
    count = 0
    for shape in found:
        for kind, extents in ARRAY.findall(shape):
            size = 1
            for extent in filter(None, extents.split(",")):
                size *= int(extent)
            count += size * BYTES[kind]
    return len(found), count


def ours(rung):
    """An update of this library, and the text of the program that XLA made of it."""
    import numpy as np
    import pytensor
    import pytensor.tensor as pt

    from downhill_rms import Dataset, Trainer
    from tests.benchmarks.peers.ours import OPTIONS, cross_entropy, shared

    x, y = pt.fmatrix("x"), pt.ivector("y")
    layers, hidden = shared(rung.parameters()), x
    for index in range(0, len(layers), 2):
        hidden = hidden @ layers[index] + layers[index + 1]
        if index + 2 < len(layers):
            hidden = pt.maximum(hidden, pytensor.tensor.constant(0, dtype="float32"))
    loss = cross_entropy(hidden, y, rung.sizes[-1])
    trainer = Trainer(loss, layers, [x, y], devices="all")
    data = Dataset(list(rung.data()), batch_size=rung.batch, shuffle=None)
    first = [part[: rung.batch] for part in rung.data()]

    def train(updates):
        trainer.minimize(data, first, max_updates=updates, **OPTIONS)
        return trainer.evaluate(first)["loss"]

    def text():
        function, place = trainer.steps._update.function, trainer.steps.placement
        kept = [container.storage[0] for container in function.input_storage][len(first) :]
        inputs = [*place.batch([np.ascontiguousarray(part) for part in first]), *kept]
        told = [place.flags.outgoing()] if place.several else []
        return function.vm.jit_fn.jitted.lower(*told, *inputs).compile().as_text()

    return train, text


def by_hand(rung):
    """An update as one writes it in JAX: shardings of the arrays, and one jitted function."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from tests.benchmarks.peers.optax import OPTIMISER, network_loss, update_by

    mesh = Mesh(np.array(jax.devices()), ("samples",))
    copies = NamedSharding(mesh, PartitionSpec())
    divided = NamedSharding(mesh, PartitionSpec("samples"))
    loss_of = network_loss(rung)
    call = jax.jit(update_by(loss_of), donate_argnums=(0, 1), out_shardings=copies)
    several = jax.process_count() > 1

    def put(value):
        return jax.make_array_from_callback(value.shape, copies, lambda index: value[index])

    layers = [put(value) for value in rung.parameters()]
    state = jax.jit(OPTIMISER.init, out_shardings=copies)(layers)
    x, y = rung.data()
    part = rung.batch // jax.process_count()
    own = slice(jax.process_index() * part, (jax.process_index() + 1) * part)
    held, evaluate = [(layers, state)], jax.jit(loss_of, out_shardings=copies)

    def batch(first):
        arrays = [a[first : first + rung.batch][own] for a in (x, y)]
        if several:
            return [jax.make_array_from_process_local_data(divided, a) for a in arrays]
        return jax.device_put(arrays, divided)

    def train(updates):
        layers, state = held[0]
        for done in range(updates):
            layers, state, loss = call(layers, state, *batch(done * rung.batch % rung.samples))
            if done % 4 == 0:
                loss.block_until_ready()  # hundreds of calls in flight deadlock
        loss.block_until_ready()
        held[:] = [(layers, state)]
        return float(evaluate(layers, *batch(0)))

    def text():
        return call.lower(*held[0], *batch(0)).compile().as_text()

    return train, text


CONTESTANTS = {"ours": ours, "by hand": by_hand}


def work(who, rung_name, process, processes, coordinator):
    """Answer, line by line, until standard input ends."""
    from downhill_rms.parallel import initialize
    from tests.benchmarks.rungs import rung_of

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # gloo says hello on standard output
    if processes > 1:
        initialize(coordinator, processes, process)
    rung = rung_of(rung_name)
    train, text = CONTESTANTS[who](rung)
    for line in sys.stdin:
        if line.strip() == "text":
            print(json.dumps(messages(text())), file=answers, flush=True)
            continue
        started = time.perf_counter()
        check = train(int(line))
        print(json.dumps([time.perf_counter() - started, check]), file=answers, flush=True)


class Contestant:
    """The processes of one contestant in one layout."""

    def __init__(self, who, rung, layout):
        processes, devices = map(int, layout.split("x"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
        environment = {
            **os.environ,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_PLATFORMS": "cpu",
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, "-m", "tests.benchmarks.devices", "--work", who, "--rung", rung]
        self.processes = [
            subprocess.Popen(
                [*command, "--team", str(process), str(processes), coordinator],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            for process in range(processes)
        ]

    def ask(self, line):
        """What the first process answers, when all have."""
        for process in self.processes:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for process in self.processes]
        return answers[0]

    def close(self):
        """End the processes."""
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()


def compare(rung, layout, rounds, updates):
    """Both contestants in turns: microseconds an update of each, and the messages."""
    teams = {who: Contestant(who, rung, layout) for who in CONTESTANTS}
    checks = {who: team.ask(updates)[1] for who, team in teams.items()}
    figures = {who: [] for who in teams}
    for _ in range(rounds):
        for who, team in teams.items():
            time.sleep(REST)
            figures[who].append(team.ask(updates)[0] / updates * 1e6)
    sent = {who: team.ask("text") for who, team in teams.items()}
    for team in teams.values():
        team.close()
    return figures, checks, sent


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rung", nargs="+", default=["C", "D"])
    parser.add_argument("--layouts", nargs="+", default=["1x1", "1x2", "1x4", "2x1"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--work", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--team", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        process, processes, coordinator = options.team
        work(options.work, options.rung[0], int(process), int(processes), coordinator)
        return
    from tests.benchmarks.hardware import description
    from tests.benchmarks.rungs import rung_of

    print(", ".join(f"{name} {value}" for name, value in description().items()))
    print(
        f"{'rung':<5}{'layout':<8}{'ours, us':>10}{'by hand, us':>13}{'by hand/ours':>14}", end=""
    )
    print(f"{'messages':>10}{'bytes':>12}{'by hand':>10}{'bytes':>12}")
    for rung in options.rung:
        for layout in options.layouts:
            updates = 4 * rung_of(rung).updates  # a call of minimize has costs of its own
            figures, checks, sent = compare(rung, layout, options.rounds, updates)
            pairs = zip(figures["by hand"], figures["ours"], strict=True)
            ratio = statistics.median(b / a for b, a in pairs)
            middle = {who: statistics.median(values) for who, values in figures.items()}
            print(f"{rung:<5}{layout:<8}{middle['ours']:>10.0f}{middle['by hand']:>13.0f}", end="")
            print(f"{ratio:>14.2f}{sent['ours'][0]:>10}{sent['ours'][1]:>12,}", end="")
            print(f"{sent['by hand'][0]:>10}{sent['by hand'][1]:>12,}", flush=True)
            if abs(checks["ours"] - checks["by hand"]) > 0.02 * abs(checks["by hand"]):
                print(f"  THE CHECKS DISAGREE: {checks}")


if __name__ == "__main__":
    main()
