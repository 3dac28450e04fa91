"""What every process of a run in several processes executes: each case once, to its end.

    python -m tests.distributed.program --out FILE --local-devices 2

trains every case on the devices of one process, and leaves the numbers in a file;
``downhill_rms.parallel.processes.run_processes`` starts several of it.
"""

import argparse
import os

import numpy as np

ROWS, COLUMNS, BATCH = 103, 12, 16


def regression(dtype, dropout=False, columns=COLUMNS, **trainer_options):
    """A trainer of a network with one hidden layer."""
    import pytensor
    import pytensor.tensor as pt

    from downhill_rms import Trainer

    rng = np.random.default_rng(1)
    x, y = pt.matrix("x", dtype=dtype), pt.vector("y", dtype=dtype)
    shapes = {"w": (columns, 8), "b": (8,), "v": (8,)}
    values = {name: rng.normal(size=shape) * 0.3 for name, shape in shapes.items()}
    w, b, v = (pytensor.shared(a.astype(dtype), name=name) for name, a in values.items())
    hidden = pt.tanh(x @ w + b)
    if dropout:
        _, mask = pt.random.shared_rng(seed=1, name="dropout").bernoulli(0.8, size=hidden.shape)
        hidden = hidden * mask.astype(dtype)
    loss = pt.sqr(hidden @ v - y).mean()
    monitors = {"|w|": abs(w).sum(), "error": abs(hidden @ v - y).mean()}
    return Trainer(loss, inputs=[x, y], monitors=monitors, mode="JAX", **trainer_options)


def arrays(dtype):
    """Features and targets."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ROWS, COLUMNS))
    target = np.sin(features @ rng.normal(size=COLUMNS))
    return features.astype(dtype), target.astype(dtype)


def batches(dtype, local):
    """A callable of minibatches of 16 samples, or of this process's part of each."""
    import jax

    features, target = arrays(dtype)
    processes = jax.process_count() if local else 1
    size = BATCH // processes
    first = (jax.process_index() if local else 0) * size
    count = iter(range(10**9))

    def next_batch():
        start = next(count) * BATCH % 96 + first
        return features[start : start + size], target[start : start + size]

    return next_batch


def case(
    devices,
    dtype="float64",
    data="arrays",
    dropout=False,
    monitor_gradients=False,
    shard_above=None,
    changes=(),
    valid=True,
    **options,
):
    """Train, and return everything that training has changed or said, as arrays."""
    from downhill_rms import Dataset

    trainer = regression(
        dtype,
        dropout,
        devices=devices,
        shard_above=shard_above if devices is not None else None,
        monitor_gradients=monitor_gradients,
    )
    features, target = arrays(dtype)
    judge = [features[:50], target[:50]] if valid else None
    if data == "windows":
        train = Dataset([features, target], batch_size=BATCH, rng=2, window=48)
    elif data == "batches":
        train = Dataset([features, target], batch_size=BATCH, rng=2, shuffle="batches")
    elif data == "in order":
        train = Dataset([features, target], batch_size=BATCH, shuffle=None, prefetch=2)
    elif data == "arrays":
        train = Dataset([features, target], batch_size=BATCH, rng=2)
    else:
        train = Dataset(batches(dtype, data == "local"), iteration_size=6, local=data == "local")
    options = {"learning_rate": 0.01, "max_epochs": 6, "validate_every": 2, **options}
    settings = dict(changes)
    for train_means, _ in trainer.iterate(train, judge, restore_best=False, **options):
        assert np.isfinite(train_means["loss"])
        if trainer.epoch_count in settings:
            trainer.set_hyperparameters(learning_rate=settings[trainer.epoch_count])
    state = trainer.state_dict()
    found = {n: v for n, v in state.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
    found = {n: v for n, v in found.items() if not n.startswith(("train/", "key/"))}
    for name in trainer.history[-1].train:
        found[f"history/train/{name}"] = np.array([r.train[name] for r in trainer.history])
    for name in trainer.history[-1].valid:
        found[f"history/valid/{name}"] = np.array([r.valid[name] for r in trainer.history])
    found["update_count"] = np.array(float(trainer.update_count))
    found["step"] = np.array(trainer.step([features[:BATCH], target[:BATCH]])["loss"])
    x = trainer.graph.inputs[0]
    found["prediction"] = trainer.predict(pt_norm(x), features)
    return found


def pt_norm(x):
    """The norm of each sample."""
    import pytensor.tensor as pt

    return pt.sqrt(pt.sqr(x).sum(axis=1))


def schedule(t):
    """A learning rate that falls with the update count."""
    return 0.02 / (1 + 0.1 * t.astype("float64"))


CASES = {
    "plain": {},
    "uneven last minibatch by batches": {"data": "batches"},
    "in order, prefetched": {"data": "in order"},
    "windows": {"data": "windows"},
    "windows, updates_per_call": {"data": "windows", "updates_per_call": 3},
    "validated on the training data": {"valid": False},
    "float32": {"dtype": "float32"},
    "clip by global norm": {"max_global_norm": 0.5},
    "momentum": {"momentum": 0.9, "nesterov": True},
    "gradients monitored": {"monitor_gradients": True},
    "updates_per_call": {"updates_per_call": 4},
    "dropout": {"dropout": True},
    "dropout, updates_per_call": {"dropout": True, "updates_per_call": 4},
    "schedule": {"learning_rate": schedule},
    "learning rate changed in the loop": {"changes": {2: 0.005, 4: 0.001}},
    "parameters divided": {"shard_above": 20, "momentum": 0.9},
    "a callable of whole minibatches": {"data": "whole"},
    "a callable of parts": {"data": "local"},
}


def main():
    """Run every case on the devices that there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--local-devices", type=int, default=1)
    parser.add_argument("--reference", action="store_true", help="one device, without a mesh")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--coordinator")
    parser.add_argument("--process-id", type=int)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    os.environ["JAX_NUM_CPU_DEVICES"] = str(options.local_devices)
    import jax

    from downhill_rms.parallel import initialize

    if options.coordinator:
        initialize(options.coordinator, options.processes, options.process_id)
    numbers = {}
    for name in options.cases:
        found = case(None if options.reference else "all", **CASES[name])
        numbers |= {f"{name}|{key}": value for key, value in found.items()}
    if jax.process_index() == 0:
        np.savez(options.out, **numbers)


if __name__ == "__main__":
    main()
